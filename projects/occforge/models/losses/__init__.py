"""Losses shared by the systems."""

from .fine_counts import class_table
from .mask_extension import check_extension, extend_mask
from .occupancy import OccTargets, OccupancyLoss, cell_class_counts, lovasz_softmax
from .voxel_queries import ChunkedOccupancyLoss, chunked_cross_entropy, draw_fine_targets, fine_features
from .voxel_terms import (
    distance_map,
    geometric_scaling_loss,
    log_frequency_weights,
    semantic_scaling_loss,
    voxel_dice_loss,
    voxel_focal_loss,
)

__all__ = [
    'ChunkedOccupancyLoss',
    'OccTargets',
    'OccupancyLoss',
    'cell_class_counts',
    'check_extension',
    'chunked_cross_entropy',
    'class_table',
    'distance_map',
    'draw_fine_targets',
    'extend_mask',
    'fine_features',
    'geometric_scaling_loss',
    'log_frequency_weights',
    'lovasz_softmax',
    'semantic_scaling_loss',
    'voxel_dice_loss',
    'voxel_focal_loss',
]
