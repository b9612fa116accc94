"""Point clouds: thinning, frame, range."""

import hashlib

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from occforge.errors import ConfigError

from ..occ3d import POINT_CLOUD_RANGE
from .common import get_points, lidar_matrices, own_points


@TRANSFORMS.register_module()
class ThinPoints(BaseTransform):
    """Keeps all points of the upper beams and a random part of the lower ones, which crowd the ground near the car.

    In training the draw comes from the sample's generator; otherwise from the sample's token, so that a test gives
    the same numbers every time.

    Args:
        keep_above_ring: points of a beam index above this are all kept.
        keep_probability: of the others; 1 keeps all.
        ring_dim: column of the beam index.
        is_train: see above.
    """

    def __init__(
        self, keep_above_ring: int = 16, keep_probability: float = 0.2, ring_dim: int = 4, is_train: bool = False
    ):
        if not 0 <= keep_probability <= 1:
            raise ConfigError(f'ThinPoints field keep_probability is {keep_probability}, expected 0..1')
        self.keep_above_ring = keep_above_ring
        self.keep_probability = keep_probability
        self.ring_dim = ring_dim
        self.is_train = is_train

    def transform(self, results: dict) -> dict:
        points = get_points(results)
        if self.keep_probability < 1:
            rng = results['rng']
            if not self.is_train:
                digest = hashlib.sha256(str(results['token']).encode()).digest()
                rng = np.random.default_rng(int.from_bytes(digest[:8], 'little'))
            lucky = rng.random(len(points), dtype=np.float32) < self.keep_probability
            results['points'] = points[lucky | (points[:, self.ring_dim] > self.keep_above_ring)]
        return results


@TRANSFORMS.register_module()
class PointsLidarToEgo(BaseTransform):
    """Moves ``points`` from the LiDAR frame to the key frame's ego frame (LiDAR time; the frame of the labels)."""

    def transform(self, results: dict) -> dict:
        points = own_points(results)
        lidar2ego = lidar_matrices(results)[0].astype(np.float32)
        points[:, :3] = points[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
        results['points'] = points
        results['points_frame'] = 'ego'
        return results


@TRANSFORMS.register_module()
class EgoPointsRangeFilter(BaseTransform):
    """Keeps points strictly inside the range less a margin.

    Args:
        point_cloud_range: x, y, z lower then upper, metres.
        margin: metres taken off every side, so that no point falls on the upper bound's voxel.
    """

    def __init__(self, point_cloud_range=POINT_CLOUD_RANGE, margin: float = 1e-3):
        bounds = np.asarray(point_cloud_range, dtype=np.float64)
        if bounds.shape != (6,) or not (bounds[:3] + 2 * margin < bounds[3:]).all():
            raise ConfigError(f'EgoPointsRangeFilter field point_cloud_range is {point_cloud_range}')
        self.lower = (bounds[:3] + margin).astype(np.float32)
        self.upper = (bounds[3:] - margin).astype(np.float32)

    def transform(self, results: dict) -> dict:
        points = get_points(results)
        keep = np.ones(len(points), dtype=bool)
        for axis in range(3):
            column = np.ascontiguousarray(points[:, axis])
            keep &= (column > self.lower[axis]) & (column < self.upper[axis])
        results['points'] = points[keep]
        return results
