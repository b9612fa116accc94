"""Losses shared by the systems."""

from .occupancy import OccTargets, OccupancyLoss, cell_class_counts, lovasz_softmax

__all__ = ['OccTargets', 'OccupancyLoss', 'cell_class_counts', 'lovasz_softmax']
