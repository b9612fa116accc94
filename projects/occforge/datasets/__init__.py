"""Datasets and their transforms."""

from . import transforms
from .class_balanced import OccCBGSDataset
from .nuscenes_occupancy import NuScenesOccDataset
from .samplers import SequenceBatchSampler, SequenceTestBatchSampler

__all__ = ['NuScenesOccDataset', 'OccCBGSDataset', 'SequenceBatchSampler', 'SequenceTestBatchSampler', 'transforms']
