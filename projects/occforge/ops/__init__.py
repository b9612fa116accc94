"""Operators of csrc/ with their plain-torch references. Needs torch alone."""

from ._backend import extension_devices, has_extension
from .confusion import confusion_matrix
from .deform_attn import deform_attn, depth_deform_attn, sample_depth
from .frustum_pool import FrustumIndices, frustum_indices, frustum_pool
from .grid_raycast import RayHits, cast_rays, observed_cells
from .voxelize import Voxels, voxelize

__all__ = [
    'FrustumIndices',
    'RayHits',
    'Voxels',
    'cast_rays',
    'confusion_matrix',
    'deform_attn',
    'depth_deform_attn',
    'extension_devices',
    'frustum_indices',
    'frustum_pool',
    'has_extension',
    'observed_cells',
    'sample_depth',
    'voxelize',
]
