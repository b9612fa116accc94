"""Brings an encoded volume to a finer grid, beside features that already live there."""

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn.functional import interpolate, linear

from ...errors import ConfigError
from ...ops import upsample_rows
from ..sparse import SparseTensor


@MODELS.register_module()
class SkipUpsample3D(BaseModule):
    """``up(A coarse) + S skip`` with 1x1x1 convolutions A and S and trilinear interpolation ``up``.

    A small model can so encode at twice the voxel size (an eighth of the work) and still answer on the label grid.
    There is neither norm nor activation: on the fine grid every pass over memory counts, and a convolution follows.

    Args:
        in_channels: of the coarse volume.
        skip_channels: of the volume on the fine grid, 0 where there is none. S is left out where it equals
            ``out_channels``.
        out_channels: of the output.
        scale_factor: fine voxels per coarse voxel along each axis.

    ``forward`` takes (B, in_channels, Z, Y, X) and (B, skip_channels, sZ, sY, sX), a ``SparseTensor`` of that grid or
    None, and returns (B, out_channels, sZ, sY, sX). Both grids cover the same range, so voxel centres, not corners, are
    aligned.
    """

    def __init__(self, in_channels, skip_channels, out_channels, scale_factor=2, init_cfg=None):
        super().__init__(init_cfg)
        if not isinstance(scale_factor, int) or scale_factor < 1:
            raise ConfigError(f'SkipUpsample3D.scale_factor is {scale_factor!r}, expected an integer of 1 or more')
        self.skip_channels = skip_channels
        self.scale_factor = scale_factor
        self.coarse = nn.Linear(in_channels, out_channels)
        project = skip_channels not in (0, out_channels)
        self.skip = nn.Linear(skip_channels, out_channels, bias=False) if project else None

    def forward(self, coarse, skip=None):
        self._check(skip)
        x = self._upsample(coarse)
        if skip is None:
            return x
        if isinstance(skip, SparseTensor):
            skip = skip.dense('zyx').to(x.dtype)
        if self.skip is not None:
            skip = linear(skip.permute(0, 2, 3, 4, 1), self.skip.weight).permute(0, 4, 1, 2, 3)
        return x + skip

    def at(self, coarse, skip, rows):
        """``forward`` at some voxels: rows (V,) int64 in the flattened (B, sZ, sY, sX) -> (V, out_channels)."""
        self._check(skip)
        x = upsample_rows(self._project(coarse), rows, self.scale_factor)
        if skip is None:
            return x
        if isinstance(skip, SparseTensor):
            padded = torch.cat([skip.features, skip.features.new_zeros(1, skip.features.shape[1])])
            skip = padded.index_select(0, self._places(skip)[rows])
        else:
            skip = skip.permute(0, 2, 3, 4, 1).flatten(0, 3).index_select(0, rows)
        return x + (skip if self.skip is None else self.skip(skip))

    def _check(self, skip):
        if (skip is None) != (self.skip_channels == 0):
            raise ValueError('SkipUpsample3D: skip features given and skip_channels 0, or the other way round')

    def _project(self, coarse):
        # channels-last products before the interpolation: linear maps commute with it
        return linear(coarse.permute(0, 2, 3, 4, 1), self.coarse.weight, self.coarse.bias)

    def _upsample(self, coarse):
        x = self._project(coarse).permute(0, 4, 1, 2, 3)
        return interpolate(x, scale_factor=self.scale_factor, mode='trilinear', align_corners=False)

    @staticmethod
    def _places(voxels):
        """Row of each voxel of the flattened (B, Z, Y, X) among the features; where there is none, the one behind."""
        x, y, z = voxels.spatial_shape
        places = voxels.coords.new_full((voxels.batch_size * z * y * x,), len(voxels.coords))
        b, i, j, k = voxels.coords.long().unbind(1)
        places[((b * z + k) * y + j) * x + i] = torch.arange(len(b), dtype=places.dtype, device=places.device)
        return places
