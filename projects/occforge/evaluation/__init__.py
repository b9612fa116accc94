"""Metrics."""

from .box_metric import BEVBoxMetric, BEVNuScenesMetric
from .instance_metric import UnifiedSegMetric
from .map_metric import BEVMapMetric
from .occupancy_metric import OccupancyMetric
from .ray_metrics import RayIoU, RayPQ

__all__ = [
    'BEVBoxMetric',
    'BEVMapMetric',
    'BEVNuScenesMetric',
    'OccupancyMetric',
    'RayIoU',
    'RayPQ',
    'UnifiedSegMetric',
]
