"""From points to superpoints."""

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import ConfigError


def group_count(group: Tensor, groups: int) -> Tensor:
    """(P,) ids -> (groups, 1) float, 1 where a group is empty."""
    return torch.bincount(group, minlength=groups).clamp(min=1)[:, None].float()


def group_mean(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean (groups, C) of the rows (P, C) of each group; 0 for an empty one."""
    total = values.new_zeros(groups, values.shape[1]).index_add(0, group, values)
    return total / group_count(group, groups).to(values.dtype)


def group_max(values: Tensor, group: Tensor, groups: int, reduce: str = 'amax') -> Tensor:
    """Maximum (or minimum, 'amin') (groups, C) of the rows of each group; 0 for an empty one."""
    index = group[:, None].expand_as(values)
    return values.new_zeros(groups, values.shape[1]).scatter_reduce(0, index, values, reduce, include_self=False)


@MODELS.register_module()
class GeoAwarePooling(BaseModule):
    """Mean of the features of a superpoint's points, weighted by where in the superpoint they lie, plus a code of its
    shape.

    Source: Xu et al., EmbodiedSAM, ICLR 2025.

    Args:
        channel_proj: channels of the features.
    """

    def __init__(self, channel_proj: int, init_cfg=None):
        super().__init__(init_cfg)
        self.channel_proj = c = channel_proj
        self.pts_proj1 = nn.Sequential(
            nn.Linear(3, c), nn.LayerNorm(c), nn.ReLU(), nn.Linear(c, c), nn.LayerNorm(c)
        )  # fmt: skip
        self.pts_proj2 = nn.Sequential(
            nn.Linear(2 * c, c), nn.LayerNorm(c), nn.ReLU(), nn.Linear(c, 1, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor, sp_idx: Tensor, all_xyz, with_xyz: bool = False, groups: int | None = None):
        """Superpoint features (S, C), with the mean coordinates (S, C + 3) where ``with_xyz``, and weights (P, 1).

        Args:
            x: (P, C) point features of all samples.
            sp_idx: (P,) int64 superpoint of each point, numbered over all samples, each 0..max with a point.
            all_xyz: (P, 3) metres, or a list or stack of the samples' coordinates.
            with_xyz: append the mean coordinates.
            groups: number of superpoints, None: the largest id and one.

        Raises:
            ConfigError: C is not ``channel_proj``.
        """
        if x.shape[1] != self.channel_proj:
            raise ConfigError(
                f'GeoAwarePooling.channel_proj is {self.channel_proj}, the points have {x.shape[1]} features: the last '
                "of the backbone's planes, or out_channels of the neck or of bi_encoder"
            )
        xyz = all_xyz if isinstance(all_xyz, Tensor) else torch.cat(list(all_xyz))
        xyz = xyz.reshape(-1, 3).float()
        groups = (int(sp_idx.max()) + 1 if len(sp_idx) else 0) if groups is None else groups
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            centre = group_mean(xyz, sp_idx, groups)
            size = group_max(xyz, sp_idx, groups) - group_max(xyz, sp_idx, groups, 'amin')
            diameter = size.amax(1, keepdim=True)
            shape = self.pts_proj1((xyz - centre[sp_idx]) / (diameter[sp_idx] + 0.01))
            code = group_max(shape, sp_idx, groups)
            weights = 2 * self.pts_proj2(torch.cat([shape, code[sp_idx]], 1))
            pooled = group_mean(weights * x, sp_idx, groups) + code
        return (torch.cat([pooled, centre], 1) if with_xyz else pooled), weights
