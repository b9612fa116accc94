"""ESAM: online instance segmentation of RGB-D sequences, with Tiny-SA and Bi-Fusion."""

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
from .memory import MultilevelMemory
from .merging import MergeHead, OnlineMerge
from .pooling import GeoAwarePooling
from .query_decoder import ScanNetMixQueryDecoder
from .res16unet import Res16UNet34C

__all__ = [
    'GeoAwarePooling',
    'MaskBCECost',
    'MaskDiceCost',
    'MergeHead',
    'MixedInstanceCriterion',
    'MultilevelMemory',
    'OnlineMerge',
    'QueryClassificationCost',
    'Res16UNet34C',
    'ScanNetMergeCriterion_Fast',
    'ScanNetMixQueryDecoder',
    'ScanNetMixedCriterion',
    'ScanNetSemanticCriterion',
    'SparseMatcher',
]
