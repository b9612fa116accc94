"""Sparse 3D convolution layers in spconv's vocabulary, on our own operators.

Kernels are stored as spconv 2 does, (out, kx, ky, kz, in), so that its checkpoints load as they are; checkpoints of
mmcv and spconv 1, (kx, ky, kz, in, out), are recognised by shape and permuted while loading (``kernel_layout``).

A kernel of one voxel is a linear layer here. spconv 2 (issue 450) reads the memory of such a kernel as (in, out)
although its shape says (out, 1, 1, 1, in): a 1x1x1 kernel *trained* in spconv 2 has to be passed through
``weight.reshape(in, 1, 1, 1, out).permute(4, 1, 2, 3, 0)`` before it is loaded.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occforge.ops.sparse_conv import (
    Triple,
    as_triple,
    check_coords,
    linear_key,
    neighbour_map,
    output_shape,
    sparse_conv,
    sparse_max_pool,
    sparse_sites,
    sparse_sum_pool,
    transpose_map,
)

__all__ = [
    'SparseAvgPool3d',
    'SparseConv3d',
    'SparseConvTranspose3d',
    'SparseInverseConv3d',
    'SparseMaxPool3d',
    'SparseModule',
    'SparseSequential',
    'SparseTensor',
    'SubMConv3d',
    'kernel_layout',
    'on_features',
]


@dataclass
class Neighbours:
    """What layers with one ``indice_key`` share: the map from output voxels to input rows, and both sets of voxels."""

    geometry: tuple
    index: Tensor
    coords_in: Tensor
    coords_out: Tensor
    shape_in: Triple
    shape_out: Triple
    _index_t: Tensor | None = field(default=None, repr=False)

    def transposed(self) -> Tensor:
        """The map from input voxels to output rows, (K, V_in); made once."""
        kind, kernel, *_ = self.geometry
        if self._index_t is None and kind == 'subm' and all(k % 2 for k in kernel):
            self._index_t = self.index.flip(0)  # if o sees i under a tap, i sees o under the opposite one
        if self._index_t is None:
            self._index_t = transpose_map(self.index, len(self.coords_in))
        return self._index_t


class SparseTensor:
    """Features at the active voxels of a batch of grids.

    Args:
        features: (V, C) floating point.
        coords: (V, 4) rows (batch, x, y, z), int32 (int64 is converted), in any order, no voxel twice.
        spatial_shape: grid (X, Y, Z).
        batch_size: number of samples; any of them, or all, may have no voxel.

    Raises:
        ValueError: wrong shapes or dtypes, a voxel outside the grid, a voxel named twice.
    """

    def __init__(self, features: Tensor, coords: Tensor, spatial_shape: Sequence[int], batch_size: int):
        spatial_shape = as_triple(spatial_shape, 'spatial_shape', minimum=1)
        if features.dim() != 2 or not features.is_floating_point():
            raise ValueError(
                f'features: expected floating point of shape (V, C), found {features.dtype} of shape '
                f'{tuple(features.shape)}'
            )
        if coords.dim() != 2 or len(coords) != len(features) or coords.device != features.device:
            raise ValueError(
                f'coords: expected one row for each of the {len(features)} features on {features.device}, found shape '
                f'{tuple(coords.shape)} on {coords.device}'
            )
        if batch_size < 0 or batch_size * math.prod(spatial_shape) >= 2**62:
            raise ValueError(f'batch_size: {batch_size} grids of {spatial_shape} voxels cannot be numbered')
        if coords.dtype == torch.int64 and (len(coords) == 0 or coords.abs().max() < 2**31):
            coords = coords.int()
        coords = coords.contiguous()
        check_coords(coords, batch_size, spatial_shape)
        self.features = features
        self.coords = coords
        self.spatial_shape = spatial_shape
        self.batch_size = batch_size
        self.indice_dict: dict[str, Neighbours] = {}

    @property
    def indices(self) -> Tensor:
        """``coords`` under spconv's name."""
        return self.coords

    def derive(self, features: Tensor, coords: Tensor | None = None, spatial_shape: Triple | None = None):
        """A tensor of the same batch that shares the cached neighbour maps; nothing is checked again."""
        if len(features) != len(self.coords if coords is None else coords):
            raise ValueError(f'features: expected {len(self.coords)} rows, found {len(features)}')
        result = object.__new__(type(self))
        result.features = features
        result.coords = self.coords if coords is None else coords
        result.spatial_shape = self.spatial_shape if spatial_shape is None else spatial_shape
        result.batch_size = self.batch_size
        result.indice_dict = self.indice_dict
        return result

    def replace_feature(self, features: Tensor) -> 'SparseTensor':
        """The same voxels with other features (V, any number of channels)."""
        return self.derive(features)

    def find_indice_pair(self, key: str | None) -> Neighbours | None:
        """The neighbours cached under ``indice_key``, or None."""
        return None if key is None else self.indice_dict.get(key)

    def dense(self, order: str = 'xyz') -> Tensor:
        """(B, C, X, Y, Z) with zeros elsewhere, or (B, C, Z, Y, X) with ``order='zyx'``; differentiable.

        The memory is channels-last, in which a voxel's features are written in one piece and 3D convolutions run
        fastest.
        """
        if order not in ('xyz', 'zyx'):
            raise ValueError(f"order: expected 'xyz' or 'zyx', found {order!r}")
        shape, coords = self.spatial_shape, self.coords
        if order == 'zyx':
            shape, coords = shape[::-1], coords[:, [0, 3, 2, 1]]
        cells, channels = math.prod(shape), self.features.shape[1]
        key = linear_key(coords, shape)
        volume = self.features.new_zeros(self.batch_size, cells, channels)
        volume[key // cells, key % cells] = self.features
        return volume.transpose(1, 2).unflatten(2, shape)

    def __repr__(self):
        return (
            f'SparseTensor({len(self.coords)} voxels x {self.features.shape[1]} channels, {self.features.dtype}, '
            f'grid {self.spatial_shape}, batch {self.batch_size})'
        )


class SparseModule(nn.Module):
    """Marks the layers that take a ``SparseTensor``; the others in a ``SparseSequential`` get the features."""


class SparseSequential(nn.Sequential, SparseModule):
    """nn.Sequential of sparse layers and ordinary ones; the latter (norms, activations) run on the features.

    Batch norm of fewer than two voxels uses the running statistics, since none can be computed from them.
    """

    def __init__(self, *modules, **named):
        if len(modules) == 1 and isinstance(modules[0], OrderedDict):
            modules, named = (), {**modules[0], **named}
        super().__init__(*modules)
        for name, module in named.items():
            if name in self._modules:
                raise ValueError(f'{name}: there is a layer of this name already')
            self.add_module(name, module)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        layers = {f'{prefix}{name}.weight': m for name, m in self.named_modules() if isinstance(m, _SparseConvolution)}
        found = {
            kernel_layout(state_dict[key].shape, layer.weight.shape)
            for key, layer in layers.items()
            if isinstance(state_dict.get(key), Tensor)
        }
        found -= {'either', 'unknown'}
        if found:
            for layer in layers.values():
                layer._siblings_layout = 'out_last' if found == {'out_last'} else 'out_first'
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: SparseTensor) -> SparseTensor:
        for module in self:
            if isinstance(module, SparseModule):
                x = module(x)
            elif not isinstance(x, SparseTensor):
                x = module(x)
            else:
                x = x.replace_feature(on_features(module, x.features))
        return x


def on_features(module: nn.Module, features: Tensor) -> Tensor:
    """An ordinary layer on features (V, C) of voxels; a batch norm of fewer than two uses the running statistics."""
    # A synchronised norm is left alone: its statistics span the processes, and all of them have to take part.
    if len(features) < 2 and type(module) is nn.BatchNorm1d and module.training and module.track_running_stats:
        return F.batch_norm(
            features, module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps
        )
    return module(features)


def kernel_layout(shape: Sequence[int], expected: Sequence[int]) -> str:
    """Layout of a stored kernel, by its shape alone.

    Args:
        shape: shape of the stored kernel.
        expected: the layer's own shape, (out, kx, ky, kz, in).

    Returns:
        'out_first' (as here and in spconv 2), 'out_last' (mmcv, spconv 1), 'unknown' (neither), or 'either': the two
        differ in meaning and not in shape only where out = kx = ky = kz = in, e.g. 3 -> 3 channels under 3x3x3.

    An 'either' kernel is taken as out_first if the state dict's metadata gives its layer version 2 or more; else as
    the other kernels of the ``SparseSequential`` it is in are stored, where these agree; else as out_first. (The
    metadata's absence proves nothing: it is lost when a state dict is rebuilt as a plain dict.)
    """
    shape, expected = tuple(shape), tuple(expected)
    first, last = shape == expected, shape == (*expected[1:], expected[0])
    if first and last:
        return 'out_first' if len(set(shape)) == 1 == shape[0] else 'either'
    return 'out_first' if first else 'out_last' if last else 'unknown'


class _SparseConvolution(SparseModule):
    """Parameters, loading and the cache of neighbours, for all convolutions below."""

    _version = 2  # of the state dict: kernels are (out, kx, ky, kz, in)
    _siblings_layout = 'out_first'  # set by the SparseSequential around it while a state dict is loaded

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, indice_key):
        super().__init__()
        if groups != 1:
            raise ValueError(f'groups: sparse convolutions have 1 group, found {groups}')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_triple(kernel_size, 'kernel_size', minimum=1)
        self.stride = as_triple(stride, 'stride', minimum=1)
        self.padding = as_triple(padding, 'padding')
        self.dilation = as_triple(dilation, 'dilation', minimum=1)
        self.indice_key = indice_key
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch's dense convolutions: uniform in +-1 / sqrt(taps * in_channels), kernel and bias."""
        bound = 1 / math.sqrt(max(1, self.in_channels * math.prod(self.kernel_size)))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        key = prefix + 'weight'
        kernel = state_dict.get(key)
        if isinstance(kernel, Tensor):
            layout = kernel_layout(kernel.shape, self.weight.shape)
            if layout == 'either' and (local_metadata.get('version') or 0) < 2:
                layout = self._siblings_layout
            if layout == 'out_last':
                # in a copy: the caller's state dict stays as it was, so that loading it again does the same
                state_dict = {**state_dict, key: kernel.permute(4, 0, 1, 2, 3)}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self):
        names = ('kernel_size', 'stride', 'padding', 'dilation')
        text = ', '.join(f'{name}={getattr(self, name)}' for name in names)
        key = f', indice_key={self.indice_key!r}' if self.indice_key is not None else ''
        return f'{self.in_channels}, {self.out_channels}, {text}, bias={self.bias is not None}{key}'

    @property
    def _pointwise(self) -> bool:
        return self.kernel_size == self.stride == (1, 1, 1) and self.padding == (0, 0, 0)

    def _linear(self, x: SparseTensor) -> SparseTensor:
        return x.replace_feature(F.linear(x.features, self.weight.flatten(1), self.bias))

    def _convolve(self, x: SparseTensor, index: Tensor, index_t: Tensor | None) -> Tensor:
        dtype = torch.promote_types(x.features.dtype, self.weight.dtype)  # they differ under autocast
        out = sparse_conv(x.features.to(dtype), self.weight.flatten(1, 3).to(dtype), index, index_t)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _needs_reverse(self, x: SparseTensor) -> bool:
        return torch.is_grad_enabled() and x.features.requires_grad


def find_neighbours(x: SparseTensor, key: str | None, geometry: tuple) -> Neighbours:
    """Neighbours of ``x`` under a geometry (kind, kernel, stride, padding, dilation, output_padding), cached by key."""
    kind, kernel, stride, padding, dilation, output_padding = geometry
    cached = x.find_indice_pair(key)
    if cached is not None:
        if cached.geometry != geometry:
            raise ValueError(
                f'indice_key {key!r} is in use for {cached.geometry[:5]}, this layer needs {geometry[:5]}: give one of '
                'the two layers another key'
            )
        if cached.coords_in is not x.coords:
            raise ValueError(f'indice_key {key!r} belongs to other voxels than those given: use another key')
        return cached
    if kind == 'subm':
        shape, coords = x.spatial_shape, x.coords
    else:
        transposed = kind == 'transposed'
        shape = output_shape(x.spatial_shape, kernel, stride, padding, dilation, transposed, output_padding)
        coords = sparse_sites(x.coords, shape, kernel, stride, padding, dilation, transposed)
    index = neighbour_map(
        x.coords, coords, x.spatial_shape, kernel, stride, padding, dilation, transposed=kind == 'transposed'
    )
    found = Neighbours(geometry, index, x.coords, coords, x.spatial_shape, shape)
    if key is not None:
        x.indice_dict[key] = found
    return found


class SubMConv3d(_SparseConvolution):
    """Submanifold convolution: the output voxels are the input voxels, each centred under its kernel.

    Args:
        in_channels, out_channels: channels.
        kernel_size, dilation: int or three ints. A 1x1x1 kernel is a linear layer.
        stride, padding: accepted as in spconv; the stride must be 1, the padding is always dilation * (kernel // 2).
        bias: add a bias.
        indice_key: layers of equal key, kernel and dilation on the same voxels share one neighbour map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, indice_key)
        if self.stride != (1, 1, 1):
            raise ValueError(f'stride: a submanifold convolution has stride 1, found {stride}')
        self.padding = tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel_size))

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self._pointwise:
            return self._linear(x)
        geometry = ('subm', self.kernel_size, self.stride, self.padding, self.dilation, (0, 0, 0))
        pairs = find_neighbours(x, self.indice_key, geometry)
        index_t = pairs.transposed() if self._needs_reverse(x) else None
        return x.replace_feature(self._convolve(x, pairs.index, index_t))


class SparseConv3d(_SparseConvolution):
    """Sparse convolution: an output voxel is active where its window holds at least one active input voxel.

    Output voxels come in lexicographic order. Arguments as in ``torch.nn.Conv3d`` (one group); ``indice_key`` names
    the neighbour map for the ``SparseInverseConv3d`` that undoes this layer's geometry.
    """

    _kind = 'conv'

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, indice_key)
        self.output_padding = (0, 0, 0)

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self._pointwise:
            return self._linear(x)
        geometry = (self._kind, self.kernel_size, self.stride, self.padding, self.dilation, self.output_padding)
        pairs = find_neighbours(x, self.indice_key, geometry)
        index_t = pairs.transposed() if self._needs_reverse(x) else None
        return x.derive(self._convolve(x, pairs.index, index_t), pairs.coords_out, pairs.shape_out)


class SparseConvTranspose3d(SparseConv3d):
    """Transposed sparse convolution: every voxel that an active input reaches becomes active.

    As ``torch.nn.ConvTranspose3d`` on a dense grid (one group); the kernel is stored (out, kx, ky, kz, in).
    """

    _kind = 'transposed'

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, indice_key)
        self.output_padding = as_triple(output_padding, 'output_padding')
        if any(o >= max(s, d) for o, s, d in zip(self.output_padding, self.stride, self.dilation)):
            raise ValueError(f'output_padding: expected less than the stride or the dilation, found {output_padding}')


class SparseInverseConv3d(_SparseConvolution):
    """Brings features back to the voxels that the ``SparseConv3d`` of the same ``indice_key`` started from.

    Tap k joins the same pairs of voxels as tap k of that layer, in the other direction.

    Raises:
        ValueError: no layer of that key came before, or its kernel differs, or its output voxels are not the input's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        indice_key: str,
        bias: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, 1, 0, 1, 1, bias, indice_key)

    def forward(self, x: SparseTensor) -> SparseTensor:
        pairs = x.find_indice_pair(self.indice_key)
        if pairs is None:
            known = sorted(x.indice_dict) or 'none'
            raise ValueError(f'indice_key {self.indice_key!r}: no layer of this key came before (known: {known})')
        if pairs.geometry[1] != self.kernel_size:
            raise ValueError(
                f'kernel_size: indice_key {self.indice_key!r} has kernel {pairs.geometry[1]}, this layer '
                f'{self.kernel_size}'
            )
        if pairs.coords_out is not x.coords:
            raise ValueError(f'indice_key {self.indice_key!r} did not produce the voxels given to its inverse')
        features = self._convolve(x, pairs.transposed(), pairs.index)
        return x.derive(features, pairs.coords_in, pairs.shape_in)


class _SparsePool(SparseModule):
    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        indice_key: str | None = None,
    ):
        super().__init__()
        self.kernel_size = as_triple(kernel_size, 'kernel_size', minimum=1)
        self.stride = self.kernel_size if stride is None else as_triple(stride, 'stride', minimum=1)
        self.padding = as_triple(padding, 'padding')
        self.dilation = as_triple(dilation, 'dilation', minimum=1)
        self.indice_key = indice_key

    def forward(self, x: SparseTensor) -> SparseTensor:
        geometry = ('conv', self.kernel_size, self.stride, self.padding, self.dilation, (0, 0, 0))
        pairs = find_neighbours(x, self.indice_key, geometry)
        index_t = pairs.transposed() if torch.is_grad_enabled() and x.features.requires_grad else None
        return x.derive(self._pool(x.features, pairs.index, index_t), pairs.coords_out, pairs.shape_out)

    def extra_repr(self):
        return f'{self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}'


class SparseMaxPool3d(_SparsePool):
    """Maximum over the *active* voxels of each window (not over the zeros between them); stride defaults to kernel."""

    def _pool(self, features, index, index_t):
        return sparse_max_pool(features, index, index_t)


class SparseAvgPool3d(_SparsePool):
    """Mean over the *active* voxels of each window; stride defaults to the kernel."""

    def _pool(self, features, index, index_t):
        count = (index >= 0).sum(0).clamp_(min=1).to(features.dtype)
        return sparse_sum_pool(features, index, index_t) / count[:, None]
