"""Residual 2D encoder of bird's-eye-view maps."""

from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn

from ..checkpointing import checkpoint


@MODELS.register_module()
class CustomResNet(BaseModule):
    """Residual encoder of a map; the first block of each stage has a 3x3 convolution as its shortcut.

    Source: Huang et al., "BEVDet", arXiv 2112.11790; the 2D sibling of ``CustomResNet3D``.

    Args:
        numC_input: input channels.
        num_layer: blocks of each stage.
        num_channels: channels of each stage; default ``numC_input * 2**(i+1)``.
        stride: of each stage's first block.
        backbone_output_ids: stages whose outputs are returned; default all.
        block_type: 'Basic', the only one.
        with_cp: recompute the stages in the backward pass to save memory.
        norm_cfg: norm layer.

    ``forward`` takes (B, C, Y, X) and returns the list of the chosen stages' maps.
    """

    def __init__(
        self,
        numC_input,
        num_layer=(2, 2, 2),
        num_channels=None,
        stride=(2, 2, 2),
        backbone_output_ids=None,
        block_type='Basic',
        with_cp=False,
        norm_cfg=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if block_type != 'Basic':
            raise ValueError(f"CustomResNet: block_type is {block_type!r}, expected 'Basic'")
        if num_channels is None:
            num_channels = [numC_input * 2 ** (i + 1) for i in range(len(num_layer))]
        if not len(num_layer) == len(num_channels) == len(stride):
            raise ValueError(
                'CustomResNet: num_layer, num_channels and stride need one entry a stage, found '
                f'{len(num_layer)}, {len(num_channels)} and {len(stride)}'
            )
        norm_cfg = norm_cfg or dict(type='BN')
        self.backbone_output_ids = range(len(num_layer)) if backbone_output_ids is None else backbone_output_ids
        self.with_cp = with_cp
        stages, channels = [], numC_input
        for blocks, width, step in zip(num_layer, num_channels, stride):
            shortcut = nn.Conv2d(channels, width, 3, stride=step, padding=1)
            stage = [BasicBlock(channels, width, stride=step, downsample=shortcut, norm_cfg=norm_cfg)]
            stage += [BasicBlock(width, width, norm_cfg=norm_cfg) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            channels = width
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
