"""Datasets and their transforms."""

from . import detection, transforms
from .class_balanced import OccCBGSDataset
from .label_mix import LabelledFrames, LabelMixBatchSampler
from .nuscenes_occupancy import NuScenesOccDataset
from .samplers import SequenceBatchSampler, SequenceTestBatchSampler
from .scannet import ScanNet200SegDataset_, ScanNet200SegMVDataset_, ScanNetSegDataset_, ScanNetSegMVDataset_

__all__ = [
    'LabelMixBatchSampler',
    'LabelledFrames',
    'NuScenesOccDataset',
    'OccCBGSDataset',
    'ScanNet200SegDataset_',
    'ScanNet200SegMVDataset_',
    'ScanNetSegDataset_',
    'ScanNetSegMVDataset_',
    'SequenceBatchSampler',
    'SequenceTestBatchSampler',
    'detection',
    'transforms',
]
