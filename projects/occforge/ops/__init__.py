"""Operators of csrc/ with their plain-torch references. Needs torch alone."""

from ._backend import absent_operators, extension_devices, has_extension
from .compositing import (
    accumulate,
    alpha_to_weights,
    binary_entropy,
    density_to_alpha,
    distortion,
    ray_offsets,
    shift_for_alpha,
)
from .confusion import confusion_matrix
from .deform_attn import deform_attn, depth_deform_attn, sample_depth
from .frustum_pool import FrustumIndexCache, FrustumIndices, frustum_indices, frustum_pool
from .grid_raycast import RayHits, cast_rays, observed_cells
from .ray_counts import ray_counts
from .ray_samples import RaySamples, clip_rays, sample_rays
from .upsample_rows import upsample_rows
from .volume_render import RayRendering, render_rays, render_samples
from .voxelize import Voxels, hard_voxelize, voxelize

__all__ = [
    'FrustumIndexCache',
    'FrustumIndices',
    'RayHits',
    'RayRendering',
    'RaySamples',
    'Voxels',
    'absent_operators',
    'accumulate',
    'alpha_to_weights',
    'binary_entropy',
    'cast_rays',
    'clip_rays',
    'confusion_matrix',
    'deform_attn',
    'density_to_alpha',
    'depth_deform_attn',
    'distortion',
    'extension_devices',
    'frustum_indices',
    'frustum_pool',
    'hard_voxelize',
    'has_extension',
    'observed_cells',
    'ray_counts',
    'ray_offsets',
    'render_rays',
    'render_samples',
    'sample_depth',
    'sample_rays',
    'shift_for_alpha',
    'upsample_rows',
    'voxelize',
]
