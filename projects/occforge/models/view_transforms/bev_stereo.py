"""Lift with a depth network that also sees a stereo cost volume of two moments."""

import math
from typing import NamedTuple

import torch
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.registry import MODELS
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..geometry import inverse_3x3
from .camera_depth_net import CM_DepthNet
from .lss import LSSViewTransformer, depth_loss

_STEREO_STRIDE = 4  # input pixels per pixel of the stereo features


class StereoPair(NamedTuple):
    """What a cost volume is made from: the same cameras at two moments."""

    current: torch.Tensor  # (B*N, C, H/4, W/4) features of the frame whose depth is asked
    previous: torch.Tensor | None  # the same of the frame before; None: there is none
    current2previous: torch.Tensor  # (B, N, 4, 4) from the camera to itself one frame earlier


class StereoDepthNet(CM_DepthNet):
    """``CM_DepthNet`` whose depth branch also reads a stereo cost volume.

    Source: Li et al., "BEVStereo", AAAI 2023; sizes and names as in BEVDet4D's stereo variant.

    Args:
        stereo: False leaves the cost volume out.
        downsample: input pixels per feature pixel; the cost volume (stride 4) gets there by convolutions of stride 2.
        (others): of ``CM_DepthNet``.

    ``forward`` takes features (M, in_channels, h, w), camera vectors (M, 27) and the cost volume (M, D, H/4, W/4) and
    returns context (M, context_channels, h, w) and probabilities (M, D, h, w), float32.
    """

    def __init__(
        self, in_channels, context_channels, depth_channels, mid_channels=512, stereo=True, norm_cfg=None, **kwargs
    ):
        norm_cfg = norm_cfg or dict(type='BN')
        super().__init__(in_channels, context_channels, depth_channels, mid_channels, norm_cfg=norm_cfg, **kwargs)
        self.cost_volumn_net = None
        if not stereo:
            return
        steps = math.log2(self.downsample / _STEREO_STRIDE)
        if steps < 0 or steps != int(steps):
            raise ConfigError(f'StereoDepthNet.downsample is {self.downsample}, expected {_STEREO_STRIDE} times 2^n')
        layers = []
        for _ in range(int(steps)):
            layers += [
                nn.Conv2d(depth_channels, depth_channels, 3, stride=2, padding=1),
                build_norm_layer(norm_cfg, depth_channels)[1],
            ]
        self.cost_volumn_net = nn.Sequential(*layers)
        width = mid_channels + depth_channels
        self.depth_conv[0] = BasicBlock(
            width, mid_channels, downsample=nn.Conv2d(width, mid_channels, 1), norm_cfg=norm_cfg
        )

    def forward(self, x, mlp_input, cost_volume=None):
        context, depth = self.gate(x, mlp_input)
        if self.cost_volumn_net is not None:
            depth = torch.cat([depth, self.cost_volumn_net(cost_volume)], dim=1)
        return context, self.classify_depth(depth).float().softmax(dim=1)


@MODELS.register_module()
class LSSViewTransformerBEVStereo(LSSViewTransformer):
    """Lifts image features along depths that are told from one image and from its match with the frame before.

    Source: Li et al., "BEVStereo", AAAI 2023; Huang and Huang, "BEVDet4D", 2022; used by RenderOcc and UniOcc.

    Args:
        loss_depth_weight: factor of ``get_depth_loss``.
        depthnet_cfg: fields of the depth network: ``stereo`` (False: no cost volume), ``bias`` (cost added where the
            frame before does not show a point), ``mid_channels`` (default ``in_channels``), ``aspp_mid_channels``,
            ``use_aspp``, ``camera_norm``, ``with_cp``; ``use_dcn`` must be False.
        norm_cfg: norm layer of the depth network.
        grid_config, input_size, downsample, in_channels, out_channels, accelerate, sid, collapse_z: see
            ``LSSViewTransformer``.
    """

    def __init__(
        self,
        grid_config,
        input_size,
        downsample=16,
        in_channels=512,
        out_channels=64,
        accelerate=False,
        sid=False,
        collapse_z=True,
        loss_depth_weight=3.0,
        depthnet_cfg=None,
        norm_cfg=None,
        init_cfg=None,
    ):
        super().__init__(
            grid_config, input_size, downsample, in_channels, out_channels, accelerate, sid, collapse_z, init_cfg
        )
        fields = dict(mid_channels=in_channels, stereo=True, bias=0.0)
        fields.update(depthnet_cfg or {})
        self.bias = float(fields.pop('bias'))
        self.loss_depth_weight = loss_depth_weight
        self.depth_net = StereoDepthNet(
            in_channels,
            out_channels,
            self.num_bins,
            input_size=self.input_size,
            downsample=downsample,
            norm_cfg=norm_cfg,
            **fields,
        )

    def build_depth_net(self):
        return None

    @property
    def stereo(self) -> bool:
        return self.depth_net.cost_volumn_net is not None

    def forward(
        self,
        x,
        sensor2keyego,
        intrins,
        post_rots,
        post_trans,
        bda,
        camera,
        stereo: StereoPair | None = None,
        measured_bins=None,
    ):
        """Lift one frame.

        Args:
            x: (B, N, in_channels, h, w) image features.
            sensor2keyego, intrins, post_rots, post_trans, bda: see ``LSSViewTransformer.ego_points``.
            camera: (B, N, 27) of ``camera_vector``.
            stereo: needed with ``depthnet_cfg.stereo``.
            measured_bins: (B*N, h, w) of ``depth_bins``: where they are above 0, the features go to the measured depth
                and not to the predicted ones.

        Returns:
            The volume (see ``pool``) and the predicted depth distribution (B*N, D, h, w).
        """
        cost = self.cost_volume(stereo, intrins, post_rots, post_trans) if self.stereo else None
        context, depth = self.depth_net(x.flatten(0, 1), camera.flatten(0, 1), cost)
        lifted = depth if measured_bins is None else inject_depth(depth, measured_bins)
        points = self.ego_points(sensor2keyego, intrins, post_rots, post_trans, bda)
        cameras = x.shape[:2]
        volume = self.pool(lifted.to(context.dtype).unflatten(0, cameras), context.unflatten(0, cameras), points)
        return volume, depth

    @torch.no_grad()
    def cost_volume(self, pair: StereoPair, intrins, post_rots, post_trans):
        """How likely each depth is by the difference of the two frames' features.

        Args:
            pair: the features and the cameras' motion.
            intrins, post_rots, post_trans: of the cameras, the same at both moments.

        Returns:
            (B*N, D, H/4, W/4) float32, softmax over D of minus the summed absolute differences; zeros without a
            previous frame. No gradient.
        """
        current = pair.current.float()
        height, width = current.shape[2:]
        if pair.previous is None:
            return current.new_zeros(len(current), self.num_bins, height, width)
        with torch.autocast(current.device.type, enabled=False):
            projection = self.stereo_projection(pair.current2previous, intrins, post_rots, post_trans)
            grid = self.previous_pixels(*(part.float().flatten(0, 1) for part in projection), height, width)
            return self.match(current, pair.previous.float(), grid)

    def stereo_projection(self, current2previous, intrins, post_rots, post_trans):
        """How a pixel at a depth gets into the frame before, what ``previous_pixels`` takes; (B, N, ...) float64."""
        motion, intrins, rots, trans = (value.double() for value in (current2previous, intrins, post_rots, post_trans))
        image2camera = inverse_3x3(intrins) @ inverse_3x3(rots)
        # (u, v, 1) minus the augmentation's shift (of u and v alone), as a matrix
        unshift = torch.eye(3, dtype=torch.float64, device=trans.device).repeat(*trans.shape[:2], 1, 1)
        unshift[..., :2, 2] = -trans[..., :2]
        matrix = intrins @ motion[..., :3, :3] @ image2camera @ unshift
        shift = (intrins @ motion[..., :3, 3:]).squeeze(-1)
        return matrix, shift, rots[..., :2, :2], trans[..., :2]

    def previous_pixels(self, matrix, shift, rots, trans, height, width):
        """Where the frustum's points stand in the frame before, in grid_sample's units.

        Args:
            matrix (M, 3, 3), shift (M, 3): depth (u, v, 1) -> the other image's (x, y, z) before augmentation.
            rots (M, 2, 2), trans (M, 2): its augmentation.
            height, width: of the stereo features.

        Returns:
            (M, D * height, width, 2).
        """
        full_height, full_width = self.input_size
        v, u = torch.meshgrid(
            torch.linspace(0, full_height - 1, height, dtype=matrix.dtype, device=matrix.device),
            torch.linspace(0, full_width - 1, width, dtype=matrix.dtype, device=matrix.device),
            indexing='ij',
        )
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1).view(-1, 3)
        rays = pixels @ matrix.transpose(-1, -2)  # (M, h*w, 3)
        depth = self.frustum[:, 0, 0, 2].to(rays)
        image = depth[:, None, None] * rays[:, None] + shift[:, None, None]  # (M, D, h*w, 3)
        z = image[..., 2:]
        in_front = z >= 1e-3
        uv = image[..., :2] / torch.where(in_front, z, torch.ones_like(z))
        uv = uv @ rots.transpose(-1, -2)[:, None] + trans[:, None, None]
        # as the reference: the feature map's pixels times 4 are taken for the image's
        extent = uv.new_tensor([_STEREO_STRIDE * width - 1.0, _STEREO_STRIDE * height - 1.0])
        grid = torch.where(in_front, uv / extent * 2 - 1, torch.full_like(uv, -2.0))
        return grid.reshape(len(matrix), -1, width, 2)

    def match(self, current, previous, grid):
        """Likelihoods of the depths (M, D, h, w) from features (M, C, h, w) of two frames and ``previous_pixels``."""
        height = current.shape[2]
        cost, seen = 0.0, None
        # a few channels at a time: all of them for all depths would take gigabytes
        for ours, theirs in zip(current.split(4, dim=1), previous.split(4, dim=1)):
            warped = F.grid_sample(theirs, grid, 'bilinear', 'zeros', align_corners=True)
            warped = warped.unflatten(2, (self.num_bins, height))
            cost = cost + (ours[:, :, None] - warped).abs().sum(dim=1)
            seen = warped[:, 0] != 0
        if self.bias:
            cost = torch.where(seen, cost, cost + self.bias)
        return (-cost).softmax(dim=1)

    def get_depth_loss(self, sparse_depth, depth):
        """Weighted loss of the distribution ``depth`` (B*N, D, h, w) against measured depths (B, N, H, W) or
        (B, N, h, w) in metres, 0 = none."""
        return self.loss_depth_weight * depth_loss(self.depth_bins(sparse_depth), depth)


def inject_depth(depth, measured_bins):
    """The distribution (M, D, h, w) with everything on the measured bin where there is one.

    Args:
        depth: probabilities.
        measured_bins: (M, h, w) int64, 0 = not measured, else bin + 1.
    """
    hot = torch.zeros_like(depth).scatter_(1, (measured_bins - 1).clamp(min=0)[:, None], 1.0)
    return torch.where(measured_bins[:, None] > 0, hot, depth)
