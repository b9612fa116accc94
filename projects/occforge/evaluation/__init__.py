"""Metrics."""

from .instance_metric import UnifiedSegMetric
from .occupancy_metric import OccupancyMetric
from .ray_metrics import RayIoU, RayPQ

__all__ = ['OccupancyMetric', 'RayIoU', 'RayPQ', 'UnifiedSegMetric']
