"""Metrics."""

from .occupancy_metric import OccupancyMetric

__all__ = ['OccupancyMetric']
