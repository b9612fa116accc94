"""Residual 3D encoder of FB-OCC."""

from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn

from ..checkpointing import checkpoint
from ..conv3d import Conv3d

# ResNets of basic blocks; deeper published ones use bottlenecks, which nobody trained in 3D here
_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class VoxelBasicBlock(BaseModule):
    """Two 3x3x3 convolutions (with bias, as published) and a shortcut, a strided 1x1x1 one where shapes differ."""

    def __init__(self, in_channels, out_channels, stride=1, norm_cfg=None, init_cfg=None):
        super().__init__(init_cfg)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, 1, stride), build_norm_layer(norm_cfg, out_channels)[1]
            )
        self.conv1 = Conv3d(in_channels, out_channels, 3, stride, 1)
        self.bn1 = build_norm_layer(norm_cfg, out_channels)[1]
        self.conv2 = Conv3d(out_channels, out_channels, 3, 1, 1)
        self.bn2 = build_norm_layer(norm_cfg, out_channels)[1]
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + identity)


@MODELS.register_module()
class VoxelResNet3D(BaseModule):
    """A 1x1x1 input projection and stages of basic blocks.

    FB-OCC's configs call it ``CustomResNet3D``, a name that BEVDet's encoder has here; the detector ``FBOCC`` knows
    which one it means. Kernels act on (Y, X, Z), as the published weights need.

    Args:
        depth: 10, 18 or 34, the number of blocks of a stage.
        n_input_channels: of the volume.
        block_inplanes: channels of each stage.
        block_strides: stride of each stage, along all axes.
        out_indices: stages that are returned.
        with_cp: recompute the stages in the backward pass to save memory.
        norm_cfg: norm layer.

    ``forward`` takes (B, C, Y, X, Z) and returns the list of the chosen stages' volumes.
    """

    def __init__(
        self,
        depth=18,
        n_input_channels=80,
        block_inplanes=(64, 128, 256),
        block_strides=(1, 2, 2),
        out_indices=(0, 1, 2),
        with_cp=False,
        norm_cfg=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if depth not in _BLOCKS:
            raise ValueError(f'VoxelResNet3D: depth {depth}, expected one of {sorted(_BLOCKS)}')
        if len(block_inplanes) != len(block_strides):
            raise ValueError(
                f'VoxelResNet3D: {len(block_inplanes)} block_inplanes and {len(block_strides)} block_strides'
            )
        norm_cfg = norm_cfg or dict(type='BN3d')
        self.with_cp, self.out_indices = with_cp, tuple(out_indices)
        channels = block_inplanes[0]
        self.input_proj = nn.Sequential(
            Conv3d(n_input_channels, channels, 1, bias=False),
            build_norm_layer(norm_cfg, channels)[1],
            nn.ReLU(inplace=True),
        )
        stages = []
        for width, stride, blocks in zip(block_inplanes, block_strides, _BLOCKS[depth]):
            stage = [VoxelBasicBlock(channels, width, stride, norm_cfg)]
            stage += [VoxelBasicBlock(width, width, 1, norm_cfg) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            channels = width
        self.layers = nn.ModuleList(stages)

    def forward(self, x):
        x = self.input_proj(x)
        outputs = []
        for i, stage in enumerate(self.layers):
            x = checkpoint(stage, stage, x) if self.with_cp and x.requires_grad else stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs
