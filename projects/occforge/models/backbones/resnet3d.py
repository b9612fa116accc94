"""Residual 3D encoder of voxel volumes."""

from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn

from ..checkpointing import checkpoint


class BasicBlock3D(BaseModule):
    """Two convolutions, the second of kernel 3x3x3, and a shortcut.

    Args:
        in_channels, out_channels: channels of input and output.
        stride: of the first convolution and of the shortcut.
        project: whether the shortcut is a convolution with norm (else the identity).
        kernel_size: of the first convolution and of the shortcut.
        norm_cfg: norm layer.
    """

    def __init__(self, in_channels, out_channels, stride=1, project=False, kernel_size=3, norm_cfg=None, init_cfg=None):
        super().__init__(init_cfg)

        def convolution(channels, step, kernel, act):
            return ConvModule(
                channels,
                out_channels,
                kernel,
                stride=step,
                padding=kernel // 2,
                bias=False,
                conv_cfg=dict(type='VolumeConv3d'),
                norm_cfg=norm_cfg or dict(type='BN3d'),
                act_cfg=act,
            )

        self.conv1 = convolution(in_channels, stride, kernel_size, dict(type='ReLU'))
        self.conv2 = convolution(out_channels, 1, 3, None)
        self.downsample = convolution(in_channels, stride, kernel_size, None) if project else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + identity)


@MODELS.register_module()
class CustomResNet3D(BaseModule):
    """Residual encoder of a volume; the first block of each stage has a projection shortcut, also where the shapes
    agree.

    Source: Huang and Huang, "BEVDet4D" (2022) and BEVDet's occupancy baseline; used by FusionOcc (ACM MM 2024).

    Args:
        numC_input: input channels.
        num_layer: blocks of each stage.
        num_channels: channels of each stage; default ``numC_input * 2**(i+1)``.
        stride: of each stage's first block.
        entry_kernel: of the two convolutions that read the encoder's input; 3 as published. 1 mixes the channels alone,
            at 1/27 of the cost.
        backbone_output_ids: stages whose outputs are returned; default all.
        with_cp: recompute the stages in the backward pass to save memory.
        norm_cfg: norm layer.

    ``forward`` takes (B, C, Z, Y, X) and returns the list of the chosen stages' volumes.
    """

    def __init__(
        self,
        numC_input,
        num_layer=(2, 2, 2),
        num_channels=None,
        stride=(2, 2, 2),
        entry_kernel=3,
        backbone_output_ids=None,
        with_cp=False,
        norm_cfg=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if num_channels is None:
            num_channels = [numC_input * 2 ** (i + 1) for i in range(len(num_layer))]
        if not len(num_layer) == len(num_channels) == len(stride):
            raise ValueError(
                'CustomResNet3D: num_layer, num_channels and stride need one entry a stage, found '
                f'{len(num_layer)}, {len(num_channels)} and {len(stride)}'
            )
        self.backbone_output_ids = range(len(num_layer)) if backbone_output_ids is None else backbone_output_ids
        self.with_cp = with_cp
        stages, channels, kernel = [], numC_input, entry_kernel
        for blocks, width, step in zip(num_layer, num_channels, stride):
            stage = [BasicBlock3D(channels, width, step, project=True, kernel_size=kernel, norm_cfg=norm_cfg)]
            stage += [BasicBlock3D(width, width, norm_cfg=norm_cfg) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            channels, kernel = width, 3
        self.layers = nn.Sequential(*stages)

    def forward(self, x):
        outputs = []
        for i, stage in enumerate(self.layers):
            if self.with_cp and self.training and x.requires_grad:
                x = checkpoint(stage, stage, x)
            else:
                x = stage(x)
            if i in self.backbone_output_ids:
                outputs.append(x)
        return outputs
