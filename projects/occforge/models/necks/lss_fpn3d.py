"""Joins the levels of a 3D encoder on the finest one."""

from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch.nn.functional import interpolate, linear

from ..checkpointing import checkpoint


@MODELS.register_module()
class LSSFPN3D(BaseModule):
    """Trilinear upsampling of all levels to the first one, concatenation, 1x1x1 convolution, norm, ReLU.

    The concatenated volume is never made. A 1x1x1 convolution and a trilinear interpolation are linear and the
    interpolation's weights sum to one, so each level is first multiplied by its own columns of the kernel, at its own
    resolution, and the results are upsampled and added: the same value with a fraction of the memory and work.

    Args:
        in_channels: sum of the levels' channels.
        out_channels: of the output.
        with_cp: recompute in the backward pass to save memory.
        norm_cfg: norm layer.
        align_corners: of the interpolation.

    ``forward`` takes a list of (B, C_i, Z_i, Y_i, X_i), finest first, and returns (B, out_channels, Z_0, Y_0, X_0).
    """

    def __init__(self, in_channels, out_channels, with_cp=False, norm_cfg=None, align_corners=True, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = ConvModule(
            in_channels,
            out_channels,
            1,
            bias=False,
            conv_cfg=dict(type='VolumeConv3d'),
            norm_cfg=norm_cfg or dict(type='BN3d'),
            act_cfg=dict(type='ReLU'),
        )
        self.with_cp = with_cp
        self.align_corners = align_corners

    def forward(self, feats):
        channels = [level.shape[1] for level in feats]
        if sum(channels) != self.conv.in_channels:
            raise ValueError(
                f'LSSFPN3D: levels with {channels} channels given, {self.conv.in_channels} expected in all'
            )
        if self.with_cp and self.training and any(level.requires_grad for level in feats):
            return checkpoint(self, self._join, *feats)
        return self._join(*feats)

    def _join(self, *feats):
        kernels = self.conv.conv.weight.flatten(1).split([level.shape[1] for level in feats], dim=1)
        size, total = feats[0].shape[2:], None
        for level, kernel in zip(feats, kernels):
            # channels-last matrix product: on the CPU several times faster than a 1x1x1 convolution
            level = linear(level.permute(0, 2, 3, 4, 1), kernel).permute(0, 4, 1, 2, 3)
            if level.shape[2:] != size:
                level = interpolate(level, size=size, mode='trilinear', align_corners=self.align_corners)
            total = level if total is None else total + level
        return self.conv.activate(self.conv.norm(total))
