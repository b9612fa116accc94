"""Necks and planar encoders of BEVFusion."""

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError


@MODELS.register_module()
class GeneralizedLSSFPN(BaseModule):
    """Joins image features from coarse to fine; each level is concatenated with the enlarged level above.

    Source: Liu et al., "BEVFusion", ICRA 2023.

    Args:
        in_channels: of the levels, fine to coarse.
        out_channels: of every output.
        num_outs, start_level, end_level: as in mmdet's FPN; the last level used has no output of its own.
        norm_cfg, act_cfg: of the convolutions, which have no bias.
        upsample_cfg: of ``F.interpolate``.
        no_norm_on_lateral: leave the norm out of the 1x1 convolutions.

    ``forward``: list of (B, C_i, h_i, w_i) to a tuple of (B, out_channels, h_i, w_i), one less than levels used.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        end_level: int = -1,
        no_norm_on_lateral: bool = False,
        conv_cfg=None,
        norm_cfg=None,
        act_cfg=None,
        upsample_cfg=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.in_channels, self.out_channels = list(in_channels), out_channels
        self.start_level = start_level
        self.stop = len(in_channels) if end_level == -1 else end_level
        levels = self.in_channels[start_level : self.stop]
        if len(levels) < 2 or num_outs < len(levels) - 1:
            raise ConfigError(
                f'GeneralizedLSSFPN: {len(levels)} levels, {start_level} to {end_level} of in_channels {in_channels}, '
                f'and num_outs {num_outs}; at least 2 levels and as many outputs less one are expected'
            )
        norm_cfg, act_cfg = norm_cfg or dict(type='BN2d'), act_cfg or dict(type='ReLU')
        self.upsample_cfg = dict(upsample_cfg or dict(mode='bilinear', align_corners=True))
        self.lateral_convs, self.fpn_convs = nn.ModuleList(), nn.ModuleList()
        for index, width in enumerate(levels[:-1]):
            above = levels[-1] if index == len(levels) - 2 else out_channels
            shared = dict(conv_cfg=conv_cfg, act_cfg=act_cfg, inplace=False)
            lateral_norm = None if no_norm_on_lateral else norm_cfg
            self.lateral_convs.append(ConvModule(width + above, out_channels, 1, norm_cfg=lateral_norm, **shared))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, **shared))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'GeneralizedLSSFPN: {len(self.in_channels)} levels are expected, found {len(inputs)}')
        levels = list(inputs[self.start_level : self.stop])
        for index in range(len(levels) - 2, -1, -1):
            above = F.interpolate(levels[index + 1], size=levels[index].shape[2:], **self.upsample_cfg)
            joined = self.lateral_convs[index](torch.cat([levels[index], above], dim=1))
            levels[index] = self.fpn_convs[index](joined)
        return tuple(levels[:-1])


@MODELS.register_module()
class GeneralizedResNet(nn.ModuleList):
    """Residual stages on the plane of a camera-only model.

    Args:
        in_channels: of the plane.
        blocks: (number of blocks, channels, stride) of every stage.

    ``forward``: (B, in_channels, X, Y) to a list with every stage's output.
    """

    def __init__(self, in_channels: int, blocks: Sequence[Sequence[int]]):
        super().__init__()
        for number, channels, stride in blocks:
            shortcut = None
            if stride > 1 or channels != in_channels:
                shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
                )
            stage = [BasicBlock(in_channels, channels, stride=stride, downsample=shortcut)]
            stage += [BasicBlock(channels, channels) for _ in range(number - 1)]
            self.append(nn.Sequential(*stage))
            in_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self:
            x = stage(x)
            outputs.append(x)
        return outputs


@MODELS.register_module()
class LSSFPN(BaseModule):
    """Joins two stages of the plane's encoder and enlarges the result.

    Args:
        in_indices: the two inputs taken; the first is resized to the second.
        in_channels: of these two.
        out_channels: of the result.
        scale_factor: by which it is enlarged at last.

    ``forward``: list of (B, C_i, X_i, Y_i) to (B, out_channels, scale_factor X, scale_factor Y).
    """

    def __init__(
        self, in_indices: Sequence[int], in_channels: Sequence[int], out_channels: int, scale_factor=1, init_cfg=None
    ):
        super().__init__(init_cfg)
        self.in_indices, self.scale_factor = tuple(in_indices), scale_factor
        self.fuse = nn.Sequential(
            *_conv_bn_relu(sum(in_channels), out_channels, 1), *_conv_bn_relu(out_channels, out_channels, 3)
        )
        self.upsample = None
        if scale_factor > 1:
            self.upsample = nn.Sequential(
                nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True),
                *_conv_bn_relu(out_channels, out_channels, 3),
            )

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        coarse, fine = (x[index] for index in self.in_indices)
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode='bilinear', align_corners=True)
        joined = self.fuse(torch.cat([coarse, fine], dim=1))
        return joined if self.upsample is None else self.upsample(joined)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> list:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(True)]
