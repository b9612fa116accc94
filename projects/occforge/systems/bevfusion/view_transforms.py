"""BEVFusion's view transforms: image features, lifted along depth, into the bird's-eye plane of the LiDAR frame.

All planes are (B, C, X, Y): axis 2 is x, axis 3 is y, both ascending.

Source: Z. Liu et al., "BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View Representation", ICRA
2023; the depth-aware ones after Y. Li et al., "BEVDepth", AAAI 2023.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import ConfigError
from ...models.view_transforms.cross_modal_lss import ASPP, Mlp, SELayer
from ...models.view_transforms.lss import camera_vector, depth_bins, depth_loss
from ...ops import FrustumIndexCache, FrustumIndices, frustum_indices, frustum_pool

# what the config decides and checkpoints hold all the same
_GEOMETRY = ('dx', 'bx', 'nx', 'frustum')


def _rotate(matrix: Tensor, points: Tensor) -> Tensor:
    """``matrix`` (..., 3, 3) times ``points`` (..., K, 3), sums in the order of the columns."""
    x, y, z = points.unsqueeze(-1).unbind(-2)
    columns = matrix.unsqueeze(-4).unbind(-1) if matrix.dim() == points.dim() + 1 else matrix.unsqueeze(-3).unbind(-1)
    return x * columns[0] + y * columns[1] + z * columns[2]


class BaseViewTransform(BaseModule):
    """Frustum geometry and pooling, shared by all view transforms.

    Args:
        in_channels: of the image features.
        out_channels: of the plane.
        image_size: (H, W) of the network's images.
        feature_size: (h, w) of the features.
        xbound, ybound, zbound: (lower, upper, step) of the cells, metres, LiDAR frame.
        dbound: (lower, upper, step) of the depth bins, metres; a bin stands for its lower edge.

    ``dx``, ``bx``, ``nx`` (cell size, centre of the first cell, number of cells) and ``frustum`` (D, h, w, 3) of (u, v,
    depth) are buffers only because published checkpoints hold them: the config decides, a file's are not taken.
    """

    #: whether ``forward`` returns (plane, depth loss) when it is given ``gt_depths``
    supervises_depth = False
    #: whether it reads ``points``
    uses_points = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: Sequence[int],
        feature_size: Sequence[int],
        xbound: Sequence[float],
        ybound: Sequence[float],
        zbound: Sequence[float],
        dbound: Sequence[float],
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.in_channels, self.C = in_channels, out_channels
        self.image_size, self.feature_size = tuple(image_size), tuple(feature_size)
        self.xbound, self.ybound, self.zbound, self.dbound = (tuple(b) for b in (xbound, ybound, zbound, dbound))
        bounds = (xbound, ybound, zbound)
        for name, (low, high, step) in zip(('xbound', 'ybound', 'zbound', 'dbound'), (*bounds, dbound)):
            if not (step > 0 and high > low):
                raise ConfigError(f'view_transform.{name}: (lower, upper, step) is expected, found {(low, high, step)}')
        dx = np.array([step for _, _, step in bounds], dtype=np.float32)
        bx = np.array([low + step / 2.0 for low, _, step in bounds], dtype=np.float32)
        # as the reference counts, save that 9.6 / 0.3 is 32 although its quotient of floats is below
        nx = np.array([int((high - low) / step + 1e-6) for low, high, step in bounds], dtype=np.int64)
        for name, value in (('dx', dx), ('bx', bx), ('nx', nx)):
            self.register_buffer(name, torch.tensor(value.tolist(), dtype=getattr(torch, str(value.dtype))))
        self.register_buffer('frustum', self.create_frustum())
        self.D = self.frustum.shape[0]
        self.grid_size = tuple(nx.tolist())
        self.grid_lower = tuple((bx - dx / 2).tolist())
        self.grid_interval = tuple(dx.tolist())
        self.kept_indices = FrustumIndexCache()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = {prefix + name: getattr(self, name) for name in _GEOMETRY}
        super()._load_from_state_dict({**state_dict, **own}, prefix, *args)

    def create_frustum(self) -> Tensor:
        """(D, h, w, 3) of u, v (pixels of the network's image; feature pixels span it, both ends included) and depth
        (metres)."""
        (height, width), (h, w) = self.image_size, self.feature_size
        depth = torch.arange(*self.dbound, dtype=torch.float32)
        v, u = torch.linspace(0, height - 1, h), torch.linspace(0, width - 1, w)
        depth, v, u = torch.meshgrid(depth, v, u, indexing='ij')
        return torch.stack([u, v, depth], dim=-1)

    def get_geometry(self, camera2lidar, intrinsics, img_aug_matrix, lidar_aug_matrix) -> Tensor:
        """Frustum points in the augmented LiDAR frame.

        Args:
            camera2lidar: (B, N, 4, 4).
            intrinsics: (B, N, 4, 4) or (B, N, 3, 3) of the original image.
            img_aug_matrix: (B, N, 4, 4), original to network's pixels.
            lidar_aug_matrix: (B, 4, 4), original to augmented LiDAR frame.

        Returns:
            (B, N, D, h, w, 3) float32 metres.
        """
        camera2lidar, intrinsics, img_aug_matrix, lidar_aug_matrix = (
            matrix.float() for matrix in (camera2lidar, intrinsics, img_aug_matrix, lidar_aug_matrix)
        )
        shape = (*camera2lidar.shape[:2], *self.frustum.shape)
        points = self.frustum.flatten(0, 2) - img_aug_matrix[..., None, :3, 3]  # (B, N, D*h*w, 3)
        points = _rotate(torch.inverse(img_aug_matrix[..., :3, :3]), points)
        points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], dim=-1)
        points = _rotate(camera2lidar[..., :3, :3].matmul(torch.inverse(intrinsics[..., :3, :3])), points)
        points = points + camera2lidar[..., None, :3, 3]
        points = _rotate(lidar_aug_matrix[:, None, :3, :3], points)
        return (points + lidar_aug_matrix[:, None, None, :3, 3]).view(shape)

    def cell_indices(self, geometry: Tensor) -> FrustumIndices:
        """Which points of ``geometry`` fall into which cell; kept from call to call in testing, where a fixed rig's do
        not move."""
        make_indices = frustum_indices if self.training else self.kept_indices
        return make_indices(geometry, self.grid_lower, self.grid_interval, self.grid_size)

    def pool(self, depth: Tensor, features: Tensor, geometry: Tensor) -> Tensor:
        """Sum ``depth`` (B, N, D, h, w) times ``features`` (B, N, C, h, w) in the cells that ``geometry`` falls into.

        Returns:
            (B, C*Z, X, Y) float32.
        """
        indices = self.cell_indices(geometry)
        volume = frustum_pool(depth.float(), features.float(), indices, self.grid_size)
        return volume.permute(0, 2, 1, 4, 3).flatten(1, 2) if self.grid_size[2] > 1 else volume[:, :, 0].mT

    def sparse_depth(
        self, points: Sequence[Tensor], lidar2image, img_aug_matrix, lidar_aug_matrix, features: int = 0
    ) -> Tensor:
        """Depth images of the LiDAR points.

        Args:
            points: list of B (P, >= 3) in the augmented LiDAR frame.
            lidar2image: (B, N, 4, 4), original LiDAR frame to the original image's (u d, v d, d).
            img_aug_matrix, lidar_aug_matrix: as in ``get_geometry``.
            features: so many leading columns of the points become further channels.

        Returns:
            (B, N, 1 + features, H, W) float32, the first channel in metres, 0 where no point falls. Of several points
            in a pixel the last counts.
        """
        height, width = self.image_size
        lidar2image, img_aug_matrix = lidar2image.float(), img_aug_matrix.float()
        lidar_aug_matrix = lidar_aug_matrix.float()
        images = lidar2image.new_zeros(*lidar2image.shape[:2], 1 + features, height * width)
        for b, cloud in enumerate(points):
            xyz = cloud[:, :3].float() - lidar_aug_matrix[b, :3, 3]
            xyz = xyz @ torch.inverse(lidar_aug_matrix[b, :3, :3]).T
            uvd = xyz @ lidar2image[b, :, :3, :3].mT + lidar2image[b, :, None, :3, 3]  # (N, P, 3)
            distance = uvd[..., 2]
            clamped = distance.clamp(1e-5, 1e5)
            uvd = torch.cat([uvd[..., :2] / clamped[..., None], clamped[..., None]], dim=-1)
            uvd = uvd @ img_aug_matrix[b, :, :3, :3].mT + img_aug_matrix[b, :, None, :3, 3]
            u, v = uvd[..., 0], uvd[..., 1]
            inside = (v >= 0) & (v < height) & (u >= 0) & (u < width)
            pixel = torch.where(inside, v.clamp(0, height - 1).long() * width + u.clamp(0, width - 1).long(), 0)
            # of the points of a pixel the last: the same on every device
            order = torch.arange(len(cloud), device=cloud.device).expand_as(pixel)
            last = torch.full_like(images[b, :, 0], -1, dtype=torch.int64)
            last.scatter_reduce_(1, pixel, torch.where(inside, order, -1), 'amax')
            hit, last = last >= 0, last.clamp(min=0)
            if len(cloud):
                images[b, :, 0] = torch.where(hit, distance.gather(1, last), 0.0)
                images[b, :, 1:] = (cloud[last][..., :features] * hit[..., None]).mT
        return images.unflatten(-1, (height, width))


def _downsample(channels: int, factor: int) -> nn.Module:
    if factor not in (1, 2):
        raise ConfigError(f'view_transform.downsample: 1 or 2 is expected, found {factor}')
    if factor == 1:
        return nn.Identity()
    layers = []
    for stride in (1, 2, 1):
        layers += [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers)


def _interpolate_rows(rows: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """``rows`` (P, ...) at ascending ``places`` (P,), linearly at ``wanted`` (Q,); beyond the ends the rows there."""
    upper = torch.searchsorted(places, wanted).clamp(1, len(places) - 1)
    share = ((wanted - places[upper - 1]) / (places[upper] - places[upper - 1])).clamp(0, 1)
    share = share.to(rows).view(-1, *[1] * (rows.dim() - 1))
    upper = upper.to(rows.device)
    return torch.lerp(rows[upper - 1], rows[upper], share)


@MODELS.register_module()
class LSSTransform(BaseViewTransform):
    """Depth from the image alone: one 1x1 convolution gives logits of the depth bins and context.

    Args:
        downsample: 2 halves the plane by three convolutions; 1 leaves it.
        others: of ``BaseViewTransform``.
    """

    def __init__(self, in_channels, out_channels, *args, downsample: int = 1, **kwargs):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        self.downsample_factor = downsample
        self.depthnet = nn.Conv2d(in_channels, self.D + self.C, 1)
        self.downsample = _downsample(self.C, downsample)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """A file with other depth bins: the rows of the depth logits are interpolated at this config's depths."""
        theirs, last = state_dict.get(f'{prefix}frustum'), f'{prefix}depthnet.'
        if isinstance(self.depthnet, nn.Sequential):
            last = f'{last}{len(self.depthnet) - 1}.'
        if theirs is not None and theirs.dim() == 4:
            depths, own = (frustum[:, 0, 0, 2].detach().cpu().double() for frustum in (theirs, self.frustum))
            for name in (f'{last}weight', f'{last}bias'):
                value = state_dict.get(name)
                if value is not None and len(value) == len(depths) + self.C and not torch.equal(depths, own):
                    rows = _interpolate_rows(value[: len(depths)], depths, own)
                    state_dict[name] = torch.cat([rows, value[len(depths) :]])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_cam_feats(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, in_channels, h, w) -> depth probabilities (B, N, D, h, w), context (B, N, C, h, w)."""
        return self.split(self.depthnet(x.flatten(0, 1)), x.shape[:2])

    def split(self, output: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        depth, context = output[:, : self.D].softmax(dim=1), output[:, self.D : self.D + self.C]
        return depth.unflatten(0, shape), context.unflatten(0, shape)

    def forward(
        self,
        img: Tensor,
        points: Sequence[Tensor] | None,
        lidar2image: Tensor,
        camera_intrinsics: Tensor,
        camera2lidar: Tensor,
        img_aug_matrix: Tensor,
        lidar_aug_matrix: Tensor,
        img_metas=None,
    ) -> Tensor:
        """Image features (B, N, in_channels, h, w) to the plane (B, C*Z, X, Y); matrices as in ``get_geometry`` and
        ``sparse_depth``. Nothing given is changed."""
        with torch.autocast(img.device.type, enabled=False):
            geometry = self.get_geometry(camera2lidar, camera_intrinsics, img_aug_matrix, lidar_aug_matrix)
        depth, context = self.get_cam_feats(img)
        return self.downsample(self.pool(depth, context, geometry))


@MODELS.register_module()
class DepthLSSTransform(LSSTransform):
    """The LiDAR's depth image goes through three convolutions and helps the network that predicts depth and context.

    Arguments as ``LSSTransform``; the feature map is an eighth of the image.
    """

    uses_points = True

    def __init__(self, in_channels, out_channels, *args, **kwargs):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        (height, width), (h, w) = self.image_size, self.feature_size
        if (height, width) != (8 * h, 8 * w):
            raise ConfigError(
                f'DepthLSSTransform: image_size {self.image_size} must be 8 times feature_size {self.feature_size}'
            )
        self.dtransform = nn.Sequential(
            *_conv_bn_relu(1, 8, 1),
            *_conv_bn_relu(8, 32, 5, stride=4),
            *_conv_bn_relu(32, 64, 5, stride=2),
        )
        self.depthnet = nn.Sequential(
            *_conv_bn_relu(in_channels + 64, in_channels, 3),
            *_conv_bn_relu(in_channels, in_channels, 3),
            nn.Conv2d(in_channels, self.D + self.C, 1),
        )

    def get_cam_feats(self, x: Tensor, depth_image: Tensor) -> tuple[Tensor, Tensor]:
        """As ``LSSTransform.get_cam_feats``, with the depth images (B, N, 1, H, W)."""
        depth = self.dtransform(depth_image.flatten(0, 1))
        return self.split(self.depthnet(torch.cat([depth, x.flatten(0, 1)], dim=1)), x.shape[:2])

    def forward(
        self,
        img,
        points,
        lidar2image,
        camera_intrinsics,
        camera2lidar,
        img_aug_matrix,
        lidar_aug_matrix,
        img_metas=None,
    ):
        with torch.autocast(img.device.type, enabled=False):
            depth_image = self.sparse_depth(points, lidar2image, img_aug_matrix, lidar_aug_matrix)
            geometry = self.get_geometry(camera2lidar, camera_intrinsics, img_aug_matrix, lidar_aug_matrix)
        depth, context = self.get_cam_feats(img, depth_image)
        return self.downsample(self.pool(depth, context, geometry))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True) -> list:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(True)]


class AwareDepthNet(BaseModule):
    """Depth logits and context of image features, gated by the camera's parameters.

    Args:
        in_channels: of the features (with those of the depth image, if any).
        mid_channels: width inside.
        context_channels, depth_channels: C and D.

    ``forward`` takes (M, in_channels, h, w) and camera vectors (M, 27), returns (M, D + C, h, w), depth first.
    """

    def __init__(self, in_channels: int, mid_channels: int, context_channels: int, depth_channels: int, init_cfg=None):
        super().__init__(init_cfg)
        self.reduce_conv = nn.Sequential(*_conv_bn_relu(in_channels, mid_channels, 3))
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        self.bn = nn.BatchNorm1d(27)
        self.depth_mlp = Mlp(27, mid_channels, mid_channels)
        self.depth_se = SELayer(mid_channels)
        self.context_mlp = Mlp(27, mid_channels, mid_channels)
        self.context_se = SELayer(mid_channels)
        self.depth_conv_1 = nn.Sequential(*(BasicBlock(mid_channels, mid_channels) for _ in range(3)))
        self.depth_conv_2 = nn.Sequential(
            ASPP(mid_channels, mid_channels, dict(type='BN')),
            nn.Conv2d(mid_channels, mid_channels, 3, padding=1),
            nn.BatchNorm2d(mid_channels),
        )
        self.depth_conv_3 = nn.Sequential(nn.Conv2d(mid_channels, depth_channels, 1), nn.BatchNorm2d(depth_channels))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        vector = self.bn(vector)
        x = self.reduce_conv(x)
        context = self.context_conv(self.context_se(x, self.context_mlp(vector)[..., None, None]))
        depth = self.depth_se(x, self.depth_mlp(vector)[..., None, None])
        depth = self.depth_conv_3(self.depth_conv_2(self.depth_conv_1(depth)))
        return torch.cat([depth, context], dim=1)


class DepthRefinement(BaseModule):
    """Convolutions across image columns and depth bins, (M, C, w, D) -> (M, C, w, D)."""

    def __init__(self, channels: int, init_cfg=None):
        super().__init__(init_cfg)
        self.reduce_conv = nn.Sequential(*_conv_bn_relu(channels, channels, 3, bias=False))
        layers = [*_conv_bn_relu(channels, channels, 3, bias=False), *_conv_bn_relu(channels, channels, 3, bias=False)]
        self.conv = nn.Sequential(*layers)
        self.out_conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce_conv(x)
        return self.out_conv(self.conv(x) + x)


@MODELS.register_module()
class AwareBEVDepth(BaseViewTransform):
    """Depth from the image and the camera's parameters, supervised by the LiDAR.

    Args:
        downsample: as in ``LSSTransform``.
        bevdepth_downsample: image pixels per feature pixel.
        bevdepth_refine: convolve the lifted volume along depth before pooling (the volume is then made in full).
        depth_loss_factor: weight of the depth loss.
        others: of ``BaseViewTransform``.

    ``forward`` takes besides ``LSSTransform``'s arguments ``camera2ego`` (B, N, 4, 4) and ``gt_depths`` (B, N, H, W)
    metres, 0 = none; with the latter it returns (plane, depth loss).
    """

    supervises_depth = True

    def __init__(
        self,
        in_channels,
        out_channels,
        *args,
        downsample: int = 1,
        bevdepth_downsample: int = 16,
        bevdepth_refine: bool = True,
        depth_loss_factor: float = 3.0,
        **kwargs,
    ):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        (height, width), (h, w), stride = self.image_size, self.feature_size, bevdepth_downsample
        if (height, width) != (stride * h, stride * w):
            raise ConfigError(
                f'{type(self).__name__}: image_size {self.image_size} must be bevdepth_downsample={stride} times '
                f'feature_size {self.feature_size}'
            )
        self.bevdepth_downsample, self.depth_loss_factor = stride, depth_loss_factor
        self.depthnet = AwareDepthNet(in_channels + self.depth_image_channels, in_channels, self.C, self.D)
        self.refinement = DepthRefinement(self.C) if bevdepth_refine else None
        self.downsample = _downsample(self.C, downsample)

    #: channels that a subclass adds to the image features
    depth_image_channels = 0

    def depth_image_features(self, points, *matrices) -> Tensor | None:
        """(B*N, depth_image_channels, h, w) of the LiDAR's points, or None."""
        return None

    def lift(self, depth: Tensor, context: Tensor) -> Tensor:
        """The refined volume (B, N, D, C, h, w)."""
        volume = depth.unsqueeze(2) * context.unsqueeze(3)  # (B, N, C, D, h, w)
        batch, cameras, _, _, height, _ = volume.shape
        columns = volume.permute(0, 1, 4, 2, 5, 3).flatten(0, 2)  # (B*N*h, C, w, D)
        refined = self.refinement(columns).unflatten(0, (batch, cameras, height))
        return refined.permute(0, 1, 5, 3, 2, 4)

    def depth_loss(self, gt_depths: Tensor, depth: Tensor) -> Tensor:
        """``gt_depths`` (B, N, H, W) metres against probabilities (B, N, D, h, w)."""
        bins = depth_bins(gt_depths, self.feature_size, self.bevdepth_downsample, self.dbound, self.D)
        return self.depth_loss_factor * depth_loss(bins, depth.flatten(0, 1))

    def forward(
        self,
        img,
        points,
        lidar2image,
        camera_intrinsics,
        camera2lidar,
        img_aug_matrix,
        lidar_aug_matrix,
        img_metas=None,
        camera2ego=None,
        gt_depths=None,
    ):
        if camera2ego is None:
            raise ConfigError(f'{type(self).__name__} needs cam2ego of every camera')
        with torch.autocast(img.device.type, enabled=False):
            geometry = self.get_geometry(camera2lidar, camera_intrinsics, img_aug_matrix, lidar_aug_matrix)
            vector = camera_vector(
                camera2ego,
                camera_intrinsics,
                img_aug_matrix[..., :3, :3],
                img_aug_matrix[..., :3, 3],
                lidar_aug_matrix[..., :3, :3],
            )
            extra = self.depth_image_features(points, lidar2image, img_aug_matrix, lidar_aug_matrix)
        x = img.flatten(0, 1) if extra is None else torch.cat([extra, img.flatten(0, 1)], dim=1)
        output = self.depthnet(x, vector.flatten(0, 1)).unflatten(0, img.shape[:2])
        depth, context = output[:, :, : self.D].float().softmax(dim=2), output[:, :, self.D :]
        if self.refinement is None:
            plane = self.pool(depth, context, geometry)
        else:
            # every depth bin as a camera of its own, with weight one
            volume = self.lift(depth, context).flatten(1, 2)
            ones = volume.new_ones(*volume.shape[:2], 1, *volume.shape[3:])
            plane = self.pool(ones, volume, geometry.flatten(1, 2).unsqueeze(2))
        plane = self.downsample(plane)
        return plane if gt_depths is None else (plane, self.depth_loss(gt_depths, depth))


@MODELS.register_module()
class AwareDBEVDepth(AwareBEVDepth):
    """``AwareBEVDepth`` that also sees the LiDAR's depth image.

    Args:
        depth_input: 'scalar', metres in one channel.
        height_expand: put every point at eight heights, 0.25 m to 2 m, as for radar.
        add_depth_features: give the network the points' other columns, too.
        point_features: their number, with ``add_depth_features``.
        use_points: 'lidar'.
        others: of ``AwareBEVDepth``.
    """

    depth_image_channels = 64
    uses_points = True

    def __init__(
        self,
        *args,
        depth_input: str = 'scalar',
        height_expand: bool = False,
        add_depth_features: bool = False,
        point_features: int = 5,
        use_points: str = 'lidar',
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if depth_input != 'scalar' or use_points != 'lidar':
            raise ConfigError(
                f"AwareDBEVDepth: depth_input 'scalar' and use_points 'lidar' are supported, found {depth_input!r} and "
                f'{use_points!r}'
            )
        if self.bevdepth_downsample != 16:
            raise ConfigError('AwareDBEVDepth: the depth image is brought to a 16th, bevdepth_downsample must be 16')
        self.height_expand = height_expand
        self.point_features = point_features if add_depth_features else 0
        self.dtransform = nn.Sequential(
            *_conv_bn_relu(1 + self.point_features, 8, 1),
            *_conv_bn_relu(8, 32, 5, stride=4),
            *_conv_bn_relu(32, 64, 5, stride=2),
            *_conv_bn_relu(64, 64, 5, stride=2),
        )

    def depth_image_features(self, points, lidar2image, img_aug_matrix, lidar_aug_matrix):
        if self.height_expand:
            heights = torch.arange(1, 9, device=lidar2image.device) * 0.25
            points = [
                torch.cat([p[:, :2].repeat(8, 1), heights.repeat_interleave(len(p))[:, None], p[:, 3:].repeat(8, 1)], 1)
                for p in points
            ]
        images = self.sparse_depth(points, lidar2image, img_aug_matrix, lidar_aug_matrix, self.point_features)
        return self.dtransform(images.flatten(0, 1))
