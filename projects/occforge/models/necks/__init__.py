"""Necks: modules between a backbone and a head."""

from .custom_fpn import CustomFPN
from .fpn3d import FPN3D
from .fpn_lss import FPN_LSS
from .lss_fpn3d import LSSFPN3D
from .skip_upsample3d import SkipUpsample3D

__all__ = ['FPN3D', 'FPN_LSS', 'LSSFPN3D', 'CustomFPN', 'SkipUpsample3D']
