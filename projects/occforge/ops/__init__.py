"""Operators of csrc/ with their plain-torch references. Needs torch alone."""

from ._backend import extension_devices, has_extension
from .grid_raycast import RayHits, cast_rays, observed_cells

__all__ = ['RayHits', 'cast_rays', 'extension_devices', 'has_extension', 'observed_cells']
