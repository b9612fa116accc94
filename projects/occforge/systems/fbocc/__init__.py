"""FB-OCC: forward-backward projection with temporal fusion."""

from .export import DeployableFBOCC, DeployedStream, export_onnx
from .fb_occ import FBOCC
from .history import HistoryMemory
from .hooks import HistoryHook
from .occ_head import OccHead
from .pretrain import DepthSemanticPretrainer
from .stream import OccupancyStream

__all__ = [
    'FBOCC',
    'DeployableFBOCC',
    'DeployedStream',
    'DepthSemanticPretrainer',
    'HistoryHook',
    'HistoryMemory',
    'OccHead',
    'OccupancyStream',
    'export_onnx',
]
