"""Loads the compiled operators, once; without them the plain-torch references run, with one warning."""

import os
import warnings
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent

# What the Python side expects the library to define. One that lacks any of them was built from older sources.
_OPERATORS = (
    'alpha_weights',
    'alpha_weights_backward',
    'cast_rays',
    'clip_rays',
    'confusion_matrix',
    'deform_attn',
    'deform_attn_backward',
    'density_alpha',
    'density_alpha_backward',
    'frustum_indices',
    'frustum_pool',
    'frustum_pool_backward',
    'observed_cells',
    'ray_counts',
    'ray_distortion',
    'ray_distortion_backward',
    'ray_samples',
    'ray_sum',
    'ray_sum_backward',
    'scene_bvh',
    'scene_cast',
    'sparse_conv',
    'sparse_conv_weight',
    'sparse_map',
    'sparse_max_pool',
    'sparse_max_pool_backward',
    'sparse_sites',
    'sparse_sum_pool',
    'sparse_transpose_map',
    'volume_render',
    'volume_render_backward',
    'volume_render_samples',
    'volume_render_samples_backward',
    'voxel_assign',
    'voxel_limit',
    'voxel_reduce',
    'voxel_reduce_backward',
)


class _Library:
    """What was found: ``loaded``, the device types with kernels, and if not loaded the reason."""

    def __init__(self):
        self.loaded = False
        self.devices = frozenset()
        self.warned = False
        self.missing = ''
        if os.environ.get('OCCFORGE_DISABLE_EXT', '0') == '1':
            self.missing = 'are switched off by OCCFORGE_DISABLE_EXT=1'
            return
        libraries = sorted(_PACKAGE.glob('_C*.so'))
        if not libraries:
            self.missing = 'are not built'
            return
        try:
            torch.ops.load_library(str(libraries[0]))
        except OSError as error:  # built against another torch
            self.missing = f'could not be loaded ({str(error).splitlines()[0]})'
            return
        absent = [name for name in _OPERATORS if not hasattr(torch.ops.occforge, name)]
        if absent:
            self.missing = f'are out of date (no {", ".join(absent)}) and must be built again'
            return
        self.loaded = True
        has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key('occforge::cast_rays', 'CUDA')
        self.devices = frozenset(('cpu', 'meta', 'cuda') if has_cuda else ('cpu', 'meta'))


# Loading when the package is imported (it compiles nothing and touches no GPU) keeps torch.compile from tracing it.
_library = _Library()


def has_extension() -> bool:
    """Whether the compiled operators (``torch.ops.occforge.*``) are loaded.

    ``OCCFORGE_DISABLE_EXT=1`` in the environment hides them (to run the references).
    """
    return _library.loaded


def extension_devices() -> frozenset:
    """Device types the compiled operators have kernels for, e.g. ``{'cpu', 'meta', 'cuda'}``; empty if not loaded."""
    return _library.devices


def use_extension(device: torch.device) -> bool:
    """Whether an op on this device runs the compiled code. If not, the caller runs its reference; says so once."""
    if device.type in _library.devices:
        return True
    if not _library.warned:
        _library.warned = True
        reason = _library.missing or f'were built without support for {device.type}'
        warnings.warn(
            f'the compiled operators of occforge {reason}: the plain-torch references run instead, correct but slow. '
            'Build them with `make setup` or `pip install -e . --no-build-isolation`.',
            stacklevel=3,
        )
    return False


def once_differentiable(backward: str) -> None:
    """Let the registered backward operator raise where it would itself be differentiated (a gradient of a gradient)."""

    def refuse(ctx, *grads):
        raise NotImplementedError(f'occforge::{backward} has no derivative: its operator is differentiable once')

    torch.library.register_autograd(f'occforge::{backward}', refuse)
