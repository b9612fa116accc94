"""Datasets and their transforms."""

from . import transforms
from .nuscenes_occupancy import NuScenesOccDataset
from .samplers import SequenceBatchSampler, SequenceTestBatchSampler

__all__ = ['NuScenesOccDataset', 'SequenceBatchSampler', 'SequenceTestBatchSampler', 'transforms']
