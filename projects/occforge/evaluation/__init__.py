"""Metrics."""

from .occupancy_metric import OccupancyMetric
from .ray_metrics import RayIoU, RayPQ

__all__ = ['OccupancyMetric', 'RayIoU', 'RayPQ']
