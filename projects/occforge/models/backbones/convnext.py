"""ConvNeXt with the stereo feature that BEVStereo-style systems ask for."""

import torch
from mmcv.cnn.bricks import DropPath
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..checkpointing import checkpoint

ARCHITECTURES = {
    'tiny': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    'small': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),
    'base': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    'large': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
}
# the authors' names of a block's layers -> those of OpenMMLab, used here
_AUTHORS = {'dwconv': 'depthwise_conv', 'pwconv1': 'pointwise_conv1', 'pwconv2': 'pointwise_conv2'}


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(BaseModule):
    """Depthwise 7x7 convolution, norm, two linear layers with GELU between, scaled per channel; and a shortcut."""

    def __init__(self, channels, drop_path, layer_scale, with_cp=False):
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, x):
        if self.with_cp and self.training and x.requires_grad:
            return x + self.drop_path(checkpoint(self, self._residual, x))
        return x + self.drop_path(self._residual(x))

    def _residual(self, x):
        x = self.norm(self.depthwise_conv(x).permute(0, 2, 3, 1))
        x = self.pointwise_conv2(F.gelu(self.pointwise_conv1(x)))
        if self.gamma is not None:
            x = x * self.gamma
        return x.permute(0, 3, 1, 2)


@MODELS.register_module()
class ConvNeXt(BaseModule):
    """ConvNeXt backbone.

    Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022. Parameters are named as in OpenMMLab's classifier;
    checkpoints with the authors' names load, too (a classifier's ``head`` and last ``norm`` are left out of them).

    Args:
        arch: 'tiny', 'small', 'base', 'large', or ``dict(depths, channels)``.
        out_indices: stages that are returned, each behind a layer norm of its own.
        drop_path_rate: share of residuals dropped in the last block; rises linearly from 0.
        layer_scale_init_value: initial factor of the residuals; 0: no factor.
        return_stereo_feat: put stage 0's output (stride 4), without norm, in front of the outputs.
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')`` as in mmengine.

    ``forward`` takes (B, 3, H, W) and returns a list of (B, C_i, H / 2^(i+2), W / 2^(i+2)).
    """

    def __init__(
        self,
        arch='base',
        out_indices=(2, 3),
        drop_path_rate=0.0,
        layer_scale_init_value=1e-6,
        return_stereo_feat=False,
        with_cp=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if isinstance(arch, str):
            if arch not in ARCHITECTURES:
                raise ConfigError(f"ConvNeXt.arch is '{arch}', expected one of {sorted(ARCHITECTURES)} or a dict")
            arch = ARCHITECTURES[arch]
        depths, channels = arch['depths'], arch['channels']
        if len(depths) != len(channels) or not all(0 <= index < len(depths) for index in out_indices):
            raise ConfigError(f'ConvNeXt: depths {depths}, channels {channels}, out_indices {out_indices} do not fit')
        self.out_indices = tuple(out_indices)
        self.return_stereo_feat = return_stereo_feat
        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, (depth, width) in enumerate(zip(depths, channels)):
            if i == 0:
                layers = [nn.Conv2d(3, width, 4, stride=4), ChannelNorm(width, eps=1e-6)]
            else:
                layers = [ChannelNorm(channels[i - 1], eps=1e-6), nn.Conv2d(channels[i - 1], width, 2, stride=2)]
            self.downsample_layers.append(nn.Sequential(*layers))
            blocks = [ConvNeXtBlock(width, rates.pop(0), layer_scale_init_value, with_cp) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        for i in self.out_indices:
            self.add_module(f'norm{i}', ChannelNorm(channels[i], eps=1e-6))
        self.register_load_state_dict_pre_hook(_take_authors_names)

    def forward(self, x):
        outputs = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            if i == 0 and self.return_stereo_feat:
                outputs.append(x)
            if i in self.out_indices:
                outputs.append(getattr(self, f'norm{i}')(x).contiguous())
        return outputs

    def stereo_feature(self, x):
        """Stage 0's output (B, C, H / 4, W / 4), without running the later stages."""
        return self.stages[0](self.downsample_layers[0](x))


def _take_authors_names(module, state_dict, prefix, *args):
    for name in [key for key in state_dict if key.startswith(f'{prefix}stages.')]:
        parts = name.split('.')
        renamed = '.'.join(_AUTHORS.get(part, part) for part in parts)
        if renamed != name:
            state_dict[renamed] = state_dict.pop(name)
    if any(key.startswith(f'{prefix}head.') for key in state_dict):  # a classifier
        for name in [key for key in state_dict if key.startswith((f'{prefix}head.', f'{prefix}norm.'))]:
            del state_dict[name]
