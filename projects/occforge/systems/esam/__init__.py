"""ESAM: online instance segmentation of RGB-D sequences, with Tiny-SA and Bi-Fusion."""

from .bi_fusion import BiFusionEncoder
from .clip import ClipConv1
from .criterion import (
    MaskBCECost,
    MaskDiceCost,
    MixedInstanceCriterion,
    QueryClassificationCost,
    ScanNetMergeCriterion_Fast,
    ScanNetMixedCriterion,
    ScanNetSemanticCriterion,
    SparseMatcher,
)
from .data_preprocessor import Det3DDataPreprocessor_
from .esam import (
    BiFusionSeg,
    BiFusionSegOnline,
    ScanNet200MixFormer3D,
    ScanNet200MixFormer3D_FF,
    ScanNet200MixFormer3D_FF_Online,
    ScanNet200MixFormer3D_Online,
    ScanNet200MixFormer3D_Stream,
)
from .hooks import FusionStatisticsHook
from .memory import MultilevelMemory
from .merging import MergeHead, OnlineMerge
from .pooling import GeoAwarePooling
from .query_decoder import ScanNetMixQueryDecoder
from .res16unet import Res16UNet34C
from .stream import FrameResult, OnlineSegmentor, SceneResult
from .tiny_sa import TinySA2D, TinySAModule, TinySANeck

__all__ = [
    'BiFusionEncoder',
    'BiFusionSeg',
    'BiFusionSegOnline',
    'ClipConv1',
    'Det3DDataPreprocessor_',
    'FrameResult',
    'FusionStatisticsHook',
    'GeoAwarePooling',
    'MaskBCECost',
    'MaskDiceCost',
    'MergeHead',
    'MixedInstanceCriterion',
    'MultilevelMemory',
    'OnlineMerge',
    'OnlineSegmentor',
    'QueryClassificationCost',
    'Res16UNet34C',
    'ScanNet200MixFormer3D',
    'ScanNet200MixFormer3D_FF',
    'ScanNet200MixFormer3D_FF_Online',
    'ScanNet200MixFormer3D_Online',
    'ScanNet200MixFormer3D_Stream',
    'ScanNetMergeCriterion_Fast',
    'ScanNetMixQueryDecoder',
    'ScanNetMixedCriterion',
    'ScanNetSemanticCriterion',
    'SceneResult',
    'SparseMatcher',
    'TinySA2D',
    'TinySAModule',
    'TinySANeck',
]
