"""Classes of an image's pixels."""

import torch
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn.functional import interpolate


@MODELS.register_module()
class PixelSegHead(BaseModule):
    """Classifies pixels at the resolution of the backbone's first map, beside the coarser features of the neck.

    What is a pixel wide in the neck's features, a pedestrian at 20 m in small images, is several pixels wide in the
    first map. One skip connection, as in Chen et al., "DeepLabv3+", ECCV 2018.

    Args:
        in_channels: (of the first map, of the neck's features).
        channels: inner width.
        num_classes: classes of the logits.
        norm_cfg: norm layer.

    ``forward`` takes (M, C0, h0, w0) and (M, C1, h, w) and returns logits (M, num_classes, h0, w0).
    """

    def __init__(self, in_channels, channels, num_classes, norm_cfg=None, init_cfg=None):
        super().__init__(init_cfg)
        fine, coarse = in_channels
        norm_cfg = norm_cfg or dict(type='BN')
        self.reduce = nn.Conv2d(coarse, channels, 1)
        self.fuse = ConvModule(fine + channels, channels, 3, padding=1, bias=False, norm_cfg=norm_cfg)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, fine, coarse):
        coarse = interpolate(self.reduce(coarse), size=fine.shape[2:], mode='bilinear', align_corners=True)
        return self.classify(self.fuse(torch.cat([fine, coarse], dim=1)))
