"""Losses shared by the systems."""

from .mask_extension import check_extension, extend_mask
from .occupancy import OccTargets, OccupancyLoss, cell_class_counts, lovasz_softmax
from .voxel_queries import ChunkedOccupancyLoss, chunked_cross_entropy, draw_fine_targets, fine_features

__all__ = [
    'ChunkedOccupancyLoss',
    'OccTargets',
    'OccupancyLoss',
    'cell_class_counts',
    'check_extension',
    'chunked_cross_entropy',
    'draw_fine_targets',
    'extend_mask',
    'fine_features',
    'lovasz_softmax',
]
