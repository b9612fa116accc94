"""Feature pyramid of voxel volumes."""

from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn.functional import interpolate

from ..checkpointing import checkpoint


@MODELS.register_module()
class FPN3D(BaseModule):
    """Feature pyramid: 1x1x1 laterals, trilinear top-down sums, a 3x3x3 convolution on every level.

    Source: Lin et al., "Feature Pyramid Networks", CVPR 2017, in 3D as in FB-OCC (2023).

    Args:
        in_channels: of each level, finest first.
        out_channels: of every output.
        with_cp: recompute the output convolutions in the backward pass.
        norm_cfg: norm layer.

    ``forward`` takes a list of (B, C_i, Y_i, X_i, Z_i) and returns as many (B, out_channels, Y_i, X_i, Z_i).
    """

    def __init__(self, in_channels=(64, 128, 256), out_channels=256, with_cp=False, norm_cfg=None, init_cfg=None):
        super().__init__(init_cfg)
        self.with_cp = with_cp
        common = dict(
            bias=False,
            conv_cfg=dict(type='VolumeConv3d'),
            norm_cfg=norm_cfg or dict(type='BN3d'),
            act_cfg=dict(type='ReLU', inplace=True),
        )
        self.lateral_convs = nn.ModuleList(
            [nn.Sequential(ConvModule(channels, out_channels, 1, **common)) for channels in in_channels]
        )
        self.fpn_convs = nn.ModuleList(
            [nn.Sequential(ConvModule(out_channels, out_channels, 3, padding=1, **common)) for _ in in_channels]
        )

    def forward(self, inputs):
        if len(inputs) != len(self.lateral_convs):
            raise ValueError(f'FPN3D: {len(inputs)} levels given, {len(self.lateral_convs)} expected')
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, inputs)]
        for i in range(len(levels) - 1, 0, -1):
            up = interpolate(levels[i], size=levels[i - 1].shape[2:], mode='trilinear', align_corners=False)
            levels[i - 1] = levels[i - 1] + up
        return [
            checkpoint(conv, conv, x) if self.with_cp and x.requires_grad else conv(x)
            for conv, x in zip(self.fpn_convs, levels)
        ]
