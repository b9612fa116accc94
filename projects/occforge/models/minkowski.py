"""Sparse 3D layers whose parameters have MinkowskiEngine's names and shapes, on our own operators.

A kernel is ``kernel`` (taps, in, out) with x fastest among the taps, or (in, out) for a kernel of one voxel; a batch
norm keeps its tensors under ``bn``. Checkpoints of networks written with that library load as they are. A layer also
reads a kernel stored as ``weight`` (out, kx, ky, kz, in), the layout of spconv 2 and of ``models.sparse``.

Source: C. Choy et al., 4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks, CVPR 2019 (the layers).
"""

import math

import torch
from torch import Tensor, nn

from ..ops import voxelize
from ..ops.sparse_conv import sparse_conv
from .sparse import SparseModule, SparseSequential, SparseTensor, find_neighbours

__all__ = [
    'GRID_ORIGIN',
    'MinkBatchNorm',
    'MinkConv',
    'MinkConvTranspose',
    'Voxelized',
    'from_minkowski',
    'to_minkowski',
    'voxelize_points',
]

# Coordinates may be negative while a grid's indices may not: voxel (0, 0, 0) is put at this index of a grid of twice
# the size. It is a multiple of every stride, so that coarse voxels stay where they are.
GRID_ORIGIN = 1 << 17
_GRID = (2 * GRID_ORIGIN,) * 3


def from_minkowski(kernel: Tensor, size: int) -> Tensor:
    """(K, in, out), x fastest, or (in, out) -> (out, kx, ky, kz, in)."""
    inside, out = kernel.shape[-2:]
    return kernel.reshape(size, size, size, inside, out).permute(4, 2, 1, 0, 3)


def to_minkowski(weight: Tensor) -> Tensor:
    """(out, kx, ky, kz, in) -> (K, in, out), x fastest; (in, out) for a kernel of one voxel."""
    kernel = weight.permute(3, 2, 1, 4, 0).flatten(0, 2)
    return kernel[0] if len(kernel) == 1 else kernel


class _Kernel(SparseModule):
    """Parameters and loading, for both convolutions."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, fan: int):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        shape = (in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape if kernel_size == 1 else (kernel_size**3, *shape)))
        bound = 1 / math.sqrt(fan * kernel_size**3)
        nn.init.uniform_(self.kernel, -bound, bound)

    def _taps(self) -> Tensor:
        """(out, taps, in) in the order of the operator."""
        return from_minkowski(self.kernel, self.kernel_size).flatten(1, 3).contiguous()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict.get(prefix + 'weight')
        if isinstance(weight, Tensor) and prefix + 'kernel' not in state_dict and weight.dim() == 5:
            state_dict[prefix + 'kernel'] = to_minkowski(state_dict.pop(prefix + 'weight'))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _convolve(self, x: SparseTensor, index: Tensor, index_t: Tensor | None) -> Tensor:
        dtype = torch.promote_types(x.features.dtype, self.kernel.dtype)  # they differ under autocast
        return sparse_conv(x.features.to(dtype), self._taps().to(dtype), index, index_t)


class MinkConv(_Kernel):
    """Convolution without bias: stride 1 keeps the voxels, stride 2 (kernel 2) goes to the grid of half the resolution.

    Args:
        in_channels, out_channels: channels.
        kernel_size: voxels along each axis; odd with stride 1, 2 with stride 2.
        stride: 1 or 2.
        dilation: voxels between taps.
        indice_key: layers of equal key and geometry share one neighbour map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        indice_key: str | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, in_channels)
        if (stride == 1 and kernel_size % 2 == 0) or (stride == 2 and kernel_size != 2) or stride not in (1, 2):
            raise ValueError(f'kernel_size {kernel_size} with stride {stride}: expected odd with 1, or 2 with 2')
        self.stride, self.dilation, self.indice_key = stride, dilation, indice_key

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self.kernel_size == 1:
            return x.replace_feature(x.features @ self.kernel)
        kernel, dilation = (self.kernel_size,) * 3, (self.dilation,) * 3
        padding = (self.dilation * (self.kernel_size // 2) if self.stride == 1 else 0,) * 3
        kind = 'subm' if self.stride == 1 else 'conv'
        pairs = find_neighbours(x, self.indice_key, (kind, kernel, (self.stride,) * 3, padding, dilation, (0, 0, 0)))
        index_t = pairs.transposed() if torch.is_grad_enabled() and x.features.requires_grad else None
        features = self._convolve(x, pairs.index, index_t)
        return x.derive(features, pairs.coords_out, pairs.shape_out)

    def extra_repr(self):
        return f'{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.stride}, dilation={self.dilation}'


class MinkConvTranspose(_Kernel):
    """Transposed convolution, kernel 2 and stride 2, back to the voxels that the ``MinkConv`` of the same key had.

    Raises:
        ValueError: no layer of that key came before, or it made other voxels than those given.
    """

    def __init__(self, in_channels: int, out_channels: int, indice_key: str):
        super().__init__(in_channels, out_channels, 2, out_channels)
        self.indice_key = indice_key

    def forward(self, x: SparseTensor) -> SparseTensor:
        pairs = x.find_indice_pair(self.indice_key)
        if pairs is None or pairs.coords_out is not x.coords:
            raise ValueError(f'indice_key {self.indice_key!r}: no MinkConv of this key made the voxels given')
        features = self._convolve(x, pairs.transposed(), pairs.index)
        return x.derive(features, pairs.coords_in, pairs.shape_in)


class MinkBatchNorm(SparseModule):
    """Batch norm over all voxels; fewer than two use the running statistics."""

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps, momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return SparseSequential.forward([self.bn], x)


class Voxelized:
    """Points as voxels: ``tensor`` (SparseTensor, mean features), ``inverse`` (P,) the voxel of each point, and
    ``coords`` (V, 4) int64 rows (sample, x, y, z) in voxels, negative ones as they are."""

    def __init__(self, tensor: SparseTensor, inverse: Tensor):
        self.tensor, self.inverse = tensor, inverse

    @property
    def coords(self) -> Tensor:
        coords = self.tensor.coords.long()
        return torch.cat([coords[:, :1], coords[:, 1:] - GRID_ORIGIN], 1)


def voxelize_points(cells: Tensor, features: Tensor, batch_index: Tensor, batch_size: int) -> Voxelized:
    """Mean of the features of the points of each voxel.

    Args:
        cells: (P, 3) float, coordinates in voxels (metres / voxel size); a voxel is their floor.
        features: (P, C).
        batch_index: (P,) int64 sample of each point.
        batch_size: samples.

    Raises:
        ValueError: a coordinate is NaN, infinite, or further than 2^17 voxels from the origin.
    """
    cells = cells.detach().floor()
    if not bool((cells.abs() < GRID_ORIGIN).all()):
        raise ValueError(f'points: coordinates must be finite and less than {GRID_ORIGIN} voxels from the origin')
    # cells are whole numbers: half a cell further in, no rounding can move a point
    points = torch.cat([cells.float() + (GRID_ORIGIN + 0.5), features.float()], 1)
    voxels = voxelize(points, batch_index, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), _GRID)
    return Voxelized(SparseTensor(voxels.features[:, 3:], voxels.coords, _GRID, batch_size), voxels.inverse)
