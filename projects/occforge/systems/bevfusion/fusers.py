"""Planes of camera and LiDAR into one. Inputs come in the order camera, LiDAR.

Source: Liu et al., "BEVFusion", ICRA 2023.
"""

from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ConvFuser(nn.Sequential):
    """Concatenation, 3x3 convolution, norm, ReLU.

    Args:
        in_channels: of the inputs.
        out_channels: of the result.

    ``forward``: list of (B, C_i, X, Y) to (B, out_channels, X, Y).
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        self.in_channels, self.out_channels = list(in_channels), out_channels
        super().__init__(
            nn.Conv2d(sum(in_channels), out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(True),
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return super().forward(torch.cat(list(inputs), dim=1))


@MODELS.register_module()
class AddFuser(nn.Module):
    """Mean of the inputs, each after a 3x3 convolution, norm and ReLU.

    Args:
        in_channels, out_channels: as in ``ConvFuser``.
        dropout: probability with which training leaves one input (any, equally likely) out of the mean.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.in_channels, self.out_channels, self.dropout = list(in_channels), out_channels, dropout
        self.transforms = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(True)
            )
            for width in in_channels
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        features = [transform(x) for transform, x in zip(self.transforms, inputs)]
        weights = [1.0] * len(features)
        if self.training and torch.rand(()) < self.dropout:
            weights[int(torch.randint(len(features), ()))] = 0.0
        return sum(weight * x for weight, x in zip(weights, features)) / sum(weights)
