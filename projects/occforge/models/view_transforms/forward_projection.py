"""FB-OCC's forward projection: lift and splat into a voxel volume."""

import torch
from mmdet3d.registry import MODELS
from torch import nn

from .lss import LSSViewTransformer


@MODELS.register_module()
class LSSViewTransformerFunction3D(LSSViewTransformer):
    """Lifts context features along given depth distributions; has nothing to learn.

    Source: Li et al., "FB-OCC", 2023; Philion and Fidler, "Lift, Splat, Shoot", ECCV 2020.

    Args:
        grid_config: ``x, y, z`` (lower, upper, step) of the voxel grid and ``depth`` (lower, upper, step), metres.
        input_size: (H, W) of the network's images.
        downsample: input pixels per feature pixel.
        accelerate, uniform, with_cp, extra_relu: accepted for the published configs, where they are off.

    ``dx``, ``bx`` and ``nx`` (cell size, centre of the first cell, number of cells; x, y, z) are frozen parameters
    only because the published checkpoints hold them; the config decides.
    """

    def __init__(
        self,
        grid_config,
        input_size,
        downsample=16,
        accelerate=False,
        uniform=False,
        with_cp=False,
        extra_relu=False,
        init_cfg=None,
    ):
        for name, value in (('accelerate', accelerate), ('uniform', uniform), ('extra_relu', extra_relu)):
            if value:
                raise ValueError(f'LSSViewTransformerFunction3D: {name}=True is not supported')
        super().__init__(
            grid_config=grid_config, input_size=input_size, downsample=downsample, collapse_z=False, init_cfg=init_cfg
        )
        lower, step = torch.tensor(self.grid_lower), torch.tensor(self.grid_interval)
        for name, value in (('dx', step), ('bx', lower + step / 2), ('nx', torch.tensor(self.grid_size).float())):
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def build_depth_net(self):
        return None

    def forward(self, context, depth, sensor2keyego, intrins, post_rots, post_trans, bda):
        """Pool ``context`` (B, N, C, h, w), weighted by ``depth`` (B, N, D, h, w), in the voxels of the key ego frame.

        Camera matrices as in ``ego_points``, here always in float64: float16 would overflow at 65504 pixel metres.

        Returns:
            (B, C, Y, X, Z) float32, in memory (B, Y, X, Z, C).
        """
        with torch.autocast(context.device.type, enabled=False):
            points = self.ego_points(sensor2keyego, intrins, post_rots, post_trans, bda)
            volume = self.pool(depth, context, points)
        return volume.permute(0, 1, 3, 4, 2).contiguous(memory_format=torch.channels_last_3d)
