"""FusionOcc: camera and LiDAR occupancy prediction."""

from .fusion_occ import FusionOCC

__all__ = ['FusionOCC']
