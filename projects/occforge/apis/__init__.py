"""Running trained models: :class:`Inferencer` and the typed results of its predictions."""

from .inferencer import FrameStream, Inferencer, InferenceStream, ModelStream, Prediction
from .results import Boxes, Instances, Map, Occupancy, Result, Scene, Setting, register_result
from .vis_hook import PredictionVisHook

__all__ = [
    'Boxes',
    'FrameStream',
    'InferenceStream',
    'Inferencer',
    'Instances',
    'Map',
    'ModelStream',
    'Occupancy',
    'Prediction',
    'PredictionVisHook',
    'Result',
    'Scene',
    'Setting',
    'register_result',
]
