"""The LiDAR branch of FusionOcc: points -> mean voxels -> sparse convolutions -> dense volume.

Source: FusionOcc (ACM MM 2024), its sparse encoder; the layers follow Yan, Mao, Li, "SECOND", Sensors 2018.
"""

from collections.abc import Callable, Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from occforge.ops import voxelize

from ..sparse import SparseConv3d, SparseSequential, SparseTensor, SubMConv3d


def grid_shape(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Voxels along (x, y, z) of a range (x0, y0, z0, x1, y1, z1) in metres.

    ValueError where a side is not a whole number of voxels (to a thousandth of one): 9.6 m / 0.1 m is 96, although its
    quotient of floats is below.
    """
    if len(point_cloud_range) != 6 or len(voxel_size) != 3:
        raise ValueError(
            f'point_cloud_range, voxel_size: expected 6 and 3 numbers, found {point_cloud_range} and {voxel_size}'
        )
    sides = [(high - low) / size for low, high, size in zip(point_cloud_range, point_cloud_range[3:], voxel_size)]
    if any(round(side) < 1 or abs(side - round(side)) > 1e-3 for side in sides):
        raise ValueError(
            f'point_cloud_range: {list(point_cloud_range)} is {sides} voxels of {list(voxel_size)} m, expected whole '
            'numbers of at least 1'
        )
    return tuple(round(side) for side in sides)


@MODELS.register_module()
class CustomSparseEncoder(BaseModule):
    """Points in the ego frame to a dense feature volume.

    Points are averaged per voxel (all of them; no limit, no random choice) and pass ``conv_input`` (1x1x1), the
    stages of ``encoder_channels`` and ``conv_out`` (1x1x1). All convolutions of the stages are 3x3x3 with norm and
    ReLU; each stage but the last ends with one of stride 2, so that N stages divide the grid by 2^(N-1).

    Args:
        in_channels: leading values of a point that are features: x, y, z (metres), intensity, ring.
        paint_channels: features that ``paint`` adds to each voxel.
        sparse_shape: input grid (X, Y, Z); None computes it from the range.
        point_cloud_range: (x0, y0, z0, x1, y1, z1) in metres; points outside are dropped.
        voxel_size: (x, y, z) in metres.
        base_channels: channels after ``conv_input``.
        encoder_channels: per stage the output channels of its convolutions. ``((16, 16, 32), (32, 32))`` has one
            strided convolution.
        output_channels: channels of the volume.
        input_scale: factor of each input feature, or None. The published model takes raw values (metres, intensity up
            to 255, ring); a model trained from scratch in few steps learns faster from values of the order of one.
        voxel_offsets: add the mean's offset from the voxel's centre, in voxels (-0.5 to 0.5), to each voxel: positions
            of tens of metres hide it.
        norm_cfg: norm of the stages, any 1-D norm of the registry; None is
            ``dict(type='BN1d', eps=1e-3, momentum=0.01)``.

    Raises:
        ValueError: a range that is not a whole number of voxels, or a ``sparse_shape`` that differs from it.
    """

    def __init__(
        self,
        in_channels: int = 5,
        paint_channels: int = 0,
        sparse_shape: Sequence[int] | None = None,
        point_cloud_range: Sequence[float] = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
        voxel_size: Sequence[float] = (0.05, 0.05, 0.05),
        base_channels: int = 16,
        encoder_channels: Sequence[Sequence[int]] = ((16, 16, 32), (32, 32, 48), (48, 48, 64), (64, 64)),
        output_channels: int = 32,
        input_scale: Sequence[float] | None = None,
        voxel_offsets: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        shape = grid_shape(point_cloud_range, voxel_size)
        if sparse_shape is not None and tuple(sparse_shape) != shape:
            raise ValueError(
                f'sparse_shape: expected {list(shape)} for range {list(point_cloud_range)} and voxel_size '
                f'{list(voxel_size)}, found {list(sparse_shape)}'
            )
        if in_channels < 3:
            raise ValueError(f'in_channels: a point has at least x, y, z, found {in_channels}')
        if not encoder_channels or not all(len(stage) for stage in encoder_channels):
            raise ValueError(f'encoder_channels: expected at least one channel a stage, found {encoder_channels}')
        if input_scale is not None and len(input_scale) != in_channels:
            raise ValueError(f'input_scale: expected {in_channels} factors, found {len(input_scale)}')
        # not saved: published checkpoints have no key for it
        scale = None if input_scale is None else torch.tensor(input_scale, dtype=torch.float32)
        self.register_buffer('input_scale', scale, persistent=False)
        self.in_channels, self.paint_channels = in_channels, paint_channels
        self.voxel_offsets = voxel_offsets
        self.sparse_shape = shape
        self.point_cloud_range = tuple(point_cloud_range)
        self.voxel_size = tuple(voxel_size)
        self.output_channels = output_channels

        norm_cfg = norm_cfg or dict(type='BN1d', eps=1e-3, momentum=0.01)
        width = in_channels + paint_channels + (3 if voxel_offsets else 0)
        self.conv_input = SparseSequential(SubMConv3d(width, base_channels, 1, bias=False))
        self.encoder_layers = SparseSequential()
        channels = base_channels
        for number, stage in enumerate(encoder_channels, start=1):
            blocks = []
            for position, width in enumerate(stage, start=1):
                if number < len(encoder_channels) and position == len(stage):
                    conv = SparseConv3d(channels, width, 3, stride=2, padding=1, bias=False)
                else:
                    conv = SubMConv3d(channels, width, 3, bias=False, indice_key=f'subm{number}')
                blocks.append(SparseSequential(conv, build_norm_layer(norm_cfg, width)[1], nn.ReLU(inplace=True)))
                channels = width
            self.encoder_layers.add_module(f'encoder_layer{number}', SparseSequential(*blocks))
        self.conv_out = SparseSequential(SubMConv3d(channels, output_channels, 1, bias=False))

    def voxelize(self, points: Sequence[Tensor]) -> SparseTensor:
        """Mean voxels of a batch: list of B (P, >= in_channels) tensors, any of them empty."""
        if len(points) == 0:
            raise ValueError('points: expected a list with one tensor a sample, found an empty list')
        for number, cloud in enumerate(points):
            if cloud.dim() != 2 or cloud.shape[1] < self.in_channels:
                raise ValueError(
                    f'points[{number}]: expected shape (P, {self.in_channels} or more), found {tuple(cloud.shape)}'
                )
        features = torch.cat([cloud[:, : self.in_channels] for cloud in points])
        lengths = torch.tensor([len(cloud) for cloud in points], device=features.device)
        batch_index = torch.arange(len(points), device=features.device).repeat_interleave(lengths)
        lower = self.point_cloud_range[:3]
        voxels = voxelize(features, batch_index, lower, self.voxel_size, self.sparse_shape)
        return SparseTensor(voxels.features, voxels.coords, self.sparse_shape, len(points))

    def forward(
        self,
        points: Sequence[Tensor],
        paint: Callable[[Tensor, Tensor], Tensor] | None = None,
        dense: bool = True,
    ) -> Tensor | SparseTensor:
        """List of B (P, >= in_channels) point clouds (metres) -> volume (B, output_channels, Z, Y, X).

        ``dense=False`` gives the voxels that the volume would be made of.
        ``paint`` takes the voxels' mean positions (V, 3) and samples (V,) and returns (V, paint_channels).
        """
        if (paint is None) != (self.paint_channels == 0):
            raise ValueError(f'paint: given is {paint}, and paint_channels {self.paint_channels}')
        x = self.voxelize(points)
        position, features = x.features[:, :3], [x.features]
        if self.input_scale is not None:
            features = [x.features * self.input_scale.to(x.features.dtype)]
        if self.voxel_offsets:
            lower, size = position.new_tensor(self.point_cloud_range[:3]), position.new_tensor(self.voxel_size)
            features.append((position - lower) / size - x.coords[:, 1:] - 0.5)
        if paint is not None:
            features.append(paint(position, x.coords[:, 0]).to(position.dtype))
        x = x.replace_feature(torch.cat(features, 1))
        x = self.conv_out(self.encoder_layers(self.conv_input(x)))
        return x.dense('zyx') if dense else x
