"""Datasets and their transforms."""

from . import transforms
from .nuscenes_occupancy import NuScenesOccDataset

__all__ = ['NuScenesOccDataset', 'transforms']
