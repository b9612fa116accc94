"""Two-level image or BEV neck of the LSS family."""

from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import cat, nn
from torch.nn.functional import interpolate


def _conv_norm_relu(in_channels, out_channels, kernel, norm_cfg) -> list:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        build_norm_layer(norm_cfg, out_channels)[1],
        nn.ReLU(inplace=True),
    ]


@MODELS.register_module()
class FPN_LSS(BaseModule):
    """Upsample the coarser map, concatenate, two 3x3 convolutions, and optionally upsample once more.

    Source: Philion and Fidler, "Lift, Splat, Shoot", ECCV 2020; fields as in BEVDet.

    Args:
        in_channels: of both maps together.
        out_channels: of the output.
        scale_factor: of the coarser map to the finer one (the finer map's size decides).
        input_feature_index: positions of the finer and of the coarser map in the input list.
        norm_cfg: norm layer.
        extra_upsample: factor of the last upsampling; None leaves it out (the inner width is then ``out_channels``,
            else twice that).
        lateral: channels of the finer map where a 1x1 lateral convolution is wanted.
        use_input_conv: start with a 1x1 convolution.

    ``forward`` takes a list of (B, C_i, H_i, W_i) and returns (B, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        scale_factor=4,
        input_feature_index=(0, 2),
        norm_cfg=None,
        extra_upsample=2,
        lateral=None,
        use_input_conv=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type='BN')
        self.input_feature_index = input_feature_index
        self.scale_factor = scale_factor
        width = out_channels * (2 if extra_upsample is not None else 1)
        self.lateral_conv = nn.Sequential(*_conv_norm_relu(lateral, lateral, 1, norm_cfg)) if lateral else None
        self.input_conv = nn.Sequential(*_conv_norm_relu(in_channels, width, 1, norm_cfg)) if use_input_conv else None
        self.conv = nn.Sequential(
            *_conv_norm_relu(width if use_input_conv else in_channels, width, 3, norm_cfg),
            *_conv_norm_relu(width, width, 3, norm_cfg),
        )
        self.up2 = None
        if extra_upsample is not None:
            self.up2 = nn.Sequential(
                nn.Upsample(scale_factor=extra_upsample, mode='bilinear', align_corners=True),
                *_conv_norm_relu(width, out_channels, 3, norm_cfg),
                nn.Conv2d(out_channels, out_channels, 1),
            )

    def forward(self, feats):
        fine, coarse = (feats[i] for i in self.input_feature_index)
        if self.lateral_conv is not None:
            fine = self.lateral_conv(fine)
        # sized by the finer map: the same as the factor where sizes divide, and right where they do not
        x = cat([fine, interpolate(coarse, size=fine.shape[2:], mode='bilinear', align_corners=True)], dim=1)
        if self.input_conv is not None:
            x = self.input_conv(x)
        x = self.conv(x)
        return x if self.up2 is None else self.up2(x)
