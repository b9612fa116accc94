"""Necks: modules between a backbone and a head."""

from .fpn_lss import FPN_LSS
from .lss_fpn3d import LSSFPN3D
from .skip_upsample3d import SkipUpsample3D

__all__ = ['FPN_LSS', 'LSSFPN3D', 'SkipUpsample3D']
