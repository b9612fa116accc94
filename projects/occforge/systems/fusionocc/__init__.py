"""FusionOcc: camera and LiDAR occupancy prediction."""

from .fusion_occ import FusionOCC
from .hooks import ImagePretrainHook

__all__ = ['FusionOCC', 'ImagePretrainHook']
