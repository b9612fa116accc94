"""BEVFusion's LiDAR encoder: sparse convolutions on a grid in the order x, y, z.

Source: Yan, Mao, Li, "SECOND", Sensors 2018; Liu et al., "BEVFusion", ICRA 2023.
"""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.sparse import SparseConv3d, SparseModule, SparseSequential, SparseTensor, SubMConv3d, on_features


class SparseBasicBlock(SparseModule):
    """Two submanifold convolutions with norms and a shortcut around both."""

    def __init__(self, channels: int, norm_cfg: dict, indice_key: str):
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, 3, bias=False, indice_key=indice_key)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.conv2 = SubMConv3d(channels, channels, 3, bias=False, indice_key=indice_key)
        self.bn2 = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = self.conv1(x)
        out = self.conv2(out.replace_feature(self.relu(on_features(self.bn1, out.features))))
        return out.replace_feature(self.relu(on_features(self.bn2, out.features) + x.features))


@MODELS.register_module()
class BEVFusionSparseEncoder(BaseModule):
    """Voxel features to a plane of features.

    Args:
        in_channels: of the voxels.
        sparse_shape: grid (X, Y, Z).
        encoder_channels: per stage the channels of its blocks; the last of a stage (but the final stage's) is a
            convolution of stride 2.
        encoder_paddings: per stage the padding of every block; those of submanifold layers do not matter.
        block_type: 'basicblock': residual blocks and one strided convolution a stage. 'conv_module': a convolution a
            block.
        base_channels: after the first convolution.
        output_channels: of every height of the plane.
        norm_cfg: norm of every layer.
        order: accepted as ('conv', 'norm', 'act').
        return_middle_feats: return also the output of every stage.

    ``forward`` returns (B, output_channels * Z', X', Y'); the channel of feature c at height z is c Z' + z.
    """

    def __init__(
        self,
        in_channels: int,
        sparse_shape: Sequence[int],
        order: Sequence[str] = ('conv', 'norm', 'act'),
        norm_cfg: dict | None = None,
        base_channels: int = 16,
        output_channels: int = 128,
        encoder_channels: Sequence[Sequence[int]] = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64)),
        encoder_paddings: Sequence[Sequence] = ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1)),
        block_type: str = 'conv_module',
        return_middle_feats: bool = False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if block_type not in ('conv_module', 'basicblock') or tuple(order) != ('conv', 'norm', 'act'):
            raise ConfigError(
                "BEVFusionSparseEncoder: block_type 'conv_module' or 'basicblock', order ('conv', 'norm', 'act') are "
                f'expected, found {block_type!r} and {tuple(order)}'
            )
        if [len(stage) for stage in encoder_channels] != [len(stage) for stage in encoder_paddings]:
            raise ConfigError('BEVFusionSparseEncoder: encoder_paddings needs one entry for each of encoder_channels')
        self.sparse_shape = tuple(sparse_shape)
        self.return_middle_feats = return_middle_feats
        self.norm_cfg = norm_cfg or dict(type='BN1d', eps=1e-3, momentum=0.01)
        self.conv_input = self._convolution(SubMConv3d(in_channels, base_channels, 3, bias=False, indice_key='subm1'))
        self.encoder_layers = SparseSequential()
        channels = base_channels
        for number, (stage, paddings) in enumerate(zip(encoder_channels, encoder_paddings), start=1):
            layers = []
            for position, (width, padding) in enumerate(zip(stage, paddings)):
                strided, last = False, number == len(encoder_channels)
                if block_type == 'basicblock':
                    strided = position == len(stage) - 1 and not last
                else:  # there the first layer of a stage after the first has the stride
                    strided = position == 0 and number > 1
                if strided:
                    padding = tuple(padding) if isinstance(padding, Sequence) else padding
                    conv = SparseConv3d(channels, width, 3, stride=2, padding=padding, bias=False)
                    layers.append(self._convolution(conv))
                elif block_type == 'basicblock':
                    if width != channels:
                        raise ConfigError(
                            f'BEVFusionSparseEncoder: stage {number}: a block of {width} channels follows {channels}'
                        )
                    layers.append(SparseBasicBlock(width, self.norm_cfg, f'subm{number}'))
                else:
                    conv = SubMConv3d(channels, width, 3, bias=False, indice_key=f'subm{number}')
                    layers.append(self._convolution(conv))
                channels = width
            self.encoder_layers.add_module(f'encoder_layer{number}', SparseSequential(*layers))
        self.conv_out = self._convolution(
            SparseConv3d(channels, output_channels, (1, 1, 3), stride=(1, 1, 2), bias=False)
        )

    def _convolution(self, conv: nn.Module) -> SparseSequential:
        return SparseSequential(conv, build_norm_layer(self.norm_cfg, conv.out_channels)[1], nn.ReLU(inplace=True))

    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int):
        """
        Args:
            voxel_features: (V, in_channels).
            coors: (V, 4) rows (sample, x, y, z).
            batch_size: number of samples, with voxels or without.
        """
        with torch.autocast(voxel_features.device.type, enabled=False):
            x = SparseTensor(voxel_features.float(), coors, self.sparse_shape, batch_size)
            x = self.conv_input(x)
            middle = []
            for layer in self.encoder_layers:
                x = layer(x)
                middle.append(x)
            plane = self.conv_out(x).dense()  # (B, C, X, Y, Z)
            plane = plane.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return (plane, middle) if self.return_middle_feats else plane


@MODELS.register_module()
class PillarScatter(BaseModule):
    """Features of pillars, voxels as high as the grid, to the plane.

    Args:
        in_channels: of a pillar.
        output_shape: (X, Y) cells.

    Source: A. Lang et al., "PointPillars: Fast Encoders for Object Detection from Point Clouds", CVPR 2019.
    """

    def __init__(self, in_channels: int, output_shape: Sequence[int], init_cfg=None):
        super().__init__(init_cfg)
        self.in_channels, self.output_shape = in_channels, tuple(output_shape)

    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int) -> Tensor:
        """(V, in_channels) with rows (sample, x, y, 0) of ``coors`` (V, 4) to (B, in_channels, X, Y)."""
        plane = voxel_features.new_zeros(batch_size, *self.output_shape, self.in_channels)
        sample, x, y, _ = coors.long().unbind(1)
        return plane.index_put((sample, x, y), voxel_features).permute(0, 3, 1, 2)
