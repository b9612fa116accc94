"""Lift-splat view transformer: image features, weighted by a depth distribution, into a voxel volume."""

import math

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from ...engine.dist import reduce_mean_count
from ...ops import FrustumIndexCache, frustum_indices, frustum_pool
from ..geometry import inverse_3x3


@MODELS.register_module()
class LSSViewTransformer(BaseModule):
    """Lifts image features along a depth distribution and sums them in the voxels of an ego-frame grid.

    Source: Philion and Fidler, "Lift, Splat, Shoot", ECCV 2020; pooling and fields as in BEVDet / BEVPoolv2.

    Args:
        grid_config: ``{x, y, z: (lower, upper, step), depth: (lower, upper, step)}`` in metres.
        input_size: (H, W) of the network's input images.
        downsample: input pixels per feature pixel.
        in_channels: of the image features.
        out_channels: of the lifted features.
        sid: depth bins with spacing that grows (uniform in log depth) instead of uniform ones.
        collapse_z: join the planes of z on the channels, (B, Z*C, Y, X) instead of (B, C, Z, Y, X).
        accelerate: accepted for the BEVDet family's configs. Voxel indices are computed for every batch all the same:
            those of another sample are only right where calibration and ego poses never change.
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
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.input_size = tuple(input_size)
        self.downsample = downsample
        self.in_channels, self.out_channels = in_channels, out_channels
        self.sid, self.collapse_z = sid, collapse_z
        axes = [grid_config[axis] for axis in 'xyz']
        self.grid_lower = tuple(float(axis[0]) for axis in axes)
        self.grid_interval = tuple(float(axis[2]) for axis in axes)
        self.grid_size = tuple(round((axis[1] - axis[0]) / axis[2]) for axis in axes)
        self.kept_indices = FrustumIndexCache()
        self.depth_config = tuple(float(value) for value in grid_config['depth'])
        # Buffers are not saved: the official checkpoints have no keys for them.
        self.register_buffer('frustum', self.create_frustum(), persistent=False)
        self.depth_net = self.build_depth_net()

    def build_depth_net(self):
        """The layer that predicts depth and context; subclasses with their own network return None."""
        return nn.Conv2d(self.in_channels, self.num_bins + self.out_channels, 1)

    @property
    def feature_size(self) -> tuple:
        """(h, w) of the feature maps."""
        return self.input_size[0] // self.downsample, self.input_size[1] // self.downsample

    @property
    def num_bins(self) -> int:
        lower, upper, step = self.depth_config
        return math.ceil((upper - lower) / step - 1e-9)

    def create_frustum(self) -> torch.Tensor:
        """(D, h, w, 3) of u, v (pixels of the input image) and depth (metres).

        Feature pixels are spread over [0, W-1] with both ends included, not at multiples of ``downsample``: that is
        how the published weights were trained.
        """
        lower, upper, step = self.depth_config
        bins = torch.arange(self.num_bins, dtype=torch.float64)
        if self.sid:
            depth = torch.exp(math.log(lower) + bins / (self.num_bins - 1) * math.log((upper - 1) / lower))
        else:
            depth = lower + bins * step
        (height, width), (h, w) = self.input_size, self.feature_size
        grid = torch.meshgrid(
            depth,
            torch.linspace(0, height - 1, h, dtype=torch.float64),
            torch.linspace(0, width - 1, w, dtype=torch.float64),
            indexing='ij',
        )
        return torch.stack([grid[2], grid[1], grid[0]], dim=-1).float()

    def ego_points(self, sensor2keyego, intrins, post_rots, post_trans, bda) -> torch.Tensor:
        """Frustum points in the augmented key ego frame.

        Args:
            sensor2keyego: (B, N, 4, 4) camera to key ego frame.
            intrins: (B, N, 3, 3).
            post_rots, post_trans: (B, N, 3, 3), (B, N, 3) image augmentation ``u' = R u + t``; it acts on u and v
                alone.
            bda: (B, 3, 3) augmentation of the ego frame.

        Returns:
            (B, N, D, h, w, 3) float32 metres. A frustum point is origin + depth * direction; both are made in
            float64, because poses are products of matrices with translations of kilometres.
        """
        sensor2keyego, intrins, post_rots, post_trans, bda = (
            matrix.double() for matrix in (sensor2keyego, intrins, post_rots, post_trans, bda)
        )
        pixels = torch.ones_like(self.frustum[0], dtype=torch.float64)
        pixels[..., :2] = self.frustum[0, ..., :2]
        pixels = pixels.view(1, 1, -1, 3)  # (1, 1, h*w, 3)
        shift = torch.zeros_like(post_trans)
        shift[..., :2] = post_trans[..., :2]
        undo = inverse_3x3(post_rots)
        ray = bda[:, None] @ sensor2keyego[..., :3, :3] @ inverse_3x3(intrins) @ undo
        directions = (pixels - shift[:, :, None]) @ ray.transpose(-1, -2)  # (B, N, h*w, 3)
        origins = (bda[:, None] @ sensor2keyego[..., :3, 3:]).squeeze(-1).float()  # (B, N, 3)
        h, w = self.feature_size
        directions = directions.float().view(*directions.shape[:2], 1, h, w, 3)
        depth = self.frustum[:, 0, 0, 2].view(1, 1, -1, 1, 1, 1)
        return torch.addcmul(origins[:, :, None, None, None], depth, directions)

    def pool(self, depth, features, points) -> torch.Tensor:
        """Sum ``depth * features`` in the voxels that the points fall into, in float32 (float64 stays float64).

        Args:
            depth: (B, N, D, h, w) weights.
            features: (B, N, C, h, w).
            points: (B, N, D, h, w, 3) of ``ego_points``.

        Returns:
            (B, C, Z, Y, X), or (B, Z*C, Y, X) with ``collapse_z``.
        """
        make_indices = frustum_indices if self.training else self.kept_indices  # augmentation moves the points
        indices = make_indices(points, self.grid_lower, self.grid_interval, self.grid_size)
        dtype = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(depth.device.type, enabled=False):
            volume = frustum_pool(depth.to(dtype), features.to(dtype), indices, self.grid_size)
        return volume.transpose(1, 2).flatten(1, 2) if self.collapse_z else volume

    def forward(self, x, sensor2keyego, intrins, post_rots, post_trans, bda):
        """``x`` (B, N, in_channels, h, w); returns the volume and the depth distribution (B*N, D, h, w)."""
        batch, cameras = x.shape[:2]
        output = self.depth_net(x.flatten(0, 1))
        depth = output[:, : self.num_bins].softmax(dim=1)
        features = output[:, self.num_bins : self.num_bins + self.out_channels]
        points = self.ego_points(sensor2keyego, intrins, post_rots, post_trans, bda)
        volume = self.pool(depth.unflatten(0, (batch, cameras)), features.unflatten(0, (batch, cameras)), points)
        return volume, depth

    def depth_bins(self, sparse_depth) -> torch.Tensor:
        """Bin of the nearest measured depth of each feature pixel.

        Args:
            sparse_depth: (B, N, H, W) metres at the input's resolution, or (B, N, h, w) already reduced by the
                minimum; 0 means none.

        Returns:
            (B*N, h, w) int64; 0 where there is no depth or it is out of range, else bin + 1. Bin j holds the depths
            from its plane on, up to the plane of bin j+1.
        """
        return depth_bins(sparse_depth, self.feature_size, self.downsample, self.depth_config, self.num_bins, self.sid)


def depth_bins(sparse_depth, feature_size, downsample, depth_config, num_bins, sid=False) -> torch.Tensor:
    """``LSSViewTransformer.depth_bins`` without the view transformer.

    Args:
        sparse_depth: see there.
        feature_size: (h, w) of the feature map.
        downsample: input pixels per feature pixel.
        depth_config: (lower, upper, step) in metres.
        num_bins: D.
        sid: spacing that grows.
    """
    h, w = feature_size
    full = (h * downsample, w * downsample)
    depth = sparse_depth.flatten(0, 1).float()
    if tuple(depth.shape[1:]) != (h, w):
        if tuple(depth.shape[1:]) != full:
            raise ValueError(
                f'sparse_depth is {tuple(depth.shape[1:])}, expected {full} (the input image) or {(h, w)} '
                '(the feature map)'
            )
        blocks = depth.view(-1, h, downsample, w, downsample)
        blocks = torch.where(blocks == 0, torch.inf, blocks)
        depth = blocks.amin(dim=(2, 4))
        depth = torch.where(torch.isinf(depth), 0.0, depth)
    lower, upper, step = depth_config
    if sid:
        index = torch.log(depth / lower) * ((num_bins - 1) / math.log((upper - 1) / lower)) + 1
    else:
        index = (depth - (lower - step)) / step
    return torch.where((index >= 0) & (index < num_bins + 1), index, 0.0).long()


def depth_loss(bins, depth) -> torch.Tensor:
    """Binary cross entropy of depth probabilities, summed over bins, averaged over pixels that have depth.

    Args:
        bins: (B*N, h, w) of ``depth_bins``.
        depth: (B*N, D, h, w) probabilities.

    Returns:
        Scalar; the average is over the pixels of all ranks, and 0 (with a graph) where there are none.
    """
    valid = bins > 0
    count = reduce_mean_count(valid.sum(), minimum=1.0)
    with torch.autocast(depth.device.type, enabled=False):
        probability = depth.float().movedim(1, -1)[valid]
        hot = F.one_hot(bins[valid] - 1, depth.shape[1]).to(probability.dtype)
        return F.binary_cross_entropy(probability, hot, reduction='sum') / count


def camera_vector(sensor2keyego, intrins, post_rots, post_trans, bda) -> torch.Tensor:
    """The 27 numbers that describe a camera to the depth network.

    Arguments as of ``LSSViewTransformer.ego_points``. Returns (B, N, 27) float32: fx, fy, cx, cy; the image
    augmentation's r00, r01, t0, r10, r11, t1; bda 00, 01, 10, 11, 22; rows 0 to 2 of ``sensor2keyego``.
    """
    cameras = intrins.shape[1]
    bda = bda[:, None].expand(-1, cameras, -1, -1)
    parts = [
        *(intrins[..., i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))),
        *(post_rots[..., 0, 0], post_rots[..., 0, 1], post_trans[..., 0]),
        *(post_rots[..., 1, 0], post_rots[..., 1, 1], post_trans[..., 1]),
        *(bda[..., i, j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))),
    ]
    vector = torch.stack([part.float() for part in parts], dim=-1)
    return torch.cat([vector, sensor2keyego[..., :3, :].flatten(-2).float()], dim=-1)
