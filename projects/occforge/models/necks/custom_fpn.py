"""Image feature pyramid of the BEVDet family, which makes only the levels that are used."""

from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn.functional import interpolate


@MODELS.register_module()
class CustomFPN(BaseModule):
    """Feature pyramid with laterals on all levels and output convolutions on some.

    Source: Lin et al., "Feature Pyramid Networks", CVPR 2017; fields as in BEVDet (Huang et al., 2021).

    Args:
        in_channels: of each input level, finest first.
        out_channels: of the outputs.
        num_outs: levels made, at most the inputs (extra levels are not supported).
        start_level: first level that is used.
        out_ids: levels, counted from ``start_level``, that are returned.
        with_cp: accepted for the published configs; the neck is too small to be worth it.

    ``forward`` takes a list of (M, C_i, h_i, w_i) and returns the level, or the list of levels if there are several.
    """

    def __init__(
        self, in_channels, out_channels, num_outs=1, start_level=0, out_ids=(0,), with_cp=False, init_cfg=None
    ):
        super().__init__(init_cfg)
        if num_outs > len(in_channels) - start_level:
            raise ValueError(f'CustomFPN: num_outs {num_outs} is more than the {len(in_channels) - start_level} levels')
        self.start_level, self.out_ids = start_level, tuple(out_ids)
        used = in_channels[start_level:]
        self.lateral_convs = nn.ModuleList([ConvModule(channels, out_channels, 1, act_cfg=None) for channels in used])
        self.fpn_convs = nn.ModuleList(
            [ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None) for _ in self.out_ids]
        )

    def forward(self, inputs):
        levels = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.start_level :], strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + interpolate(levels[i], size=levels[i - 1].shape[2:], mode='nearest')
        outputs = [conv(levels[i]) for conv, i in zip(self.fpn_convs, self.out_ids)]
        return outputs[0] if len(outputs) == 1 else outputs
