"""Detection and map segmentation in the LiDAR frame: data sets, transforms, map rasters, object database."""

from . import gt_database, maps, transforms
from .dataset import BEVNuScenesDataset, CustomDataset

__all__ = ['BEVNuScenesDataset', 'CustomDataset', 'gt_database', 'maps', 'transforms']
