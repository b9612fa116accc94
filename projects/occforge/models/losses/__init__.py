"""Losses shared by the systems."""

from .occupancy import OccTargets, OccupancyLoss, cell_class_counts, lovasz_softmax
from .voxel_queries import ChunkedOccupancyLoss, chunked_cross_entropy, draw_fine_targets, fine_features

__all__ = [
    'ChunkedOccupancyLoss',
    'OccTargets',
    'OccupancyLoss',
    'cell_class_counts',
    'chunked_cross_entropy',
    'draw_fine_targets',
    'fine_features',
    'lovasz_softmax',
]
