"""Augmentation in the bird's-eye view (BDA). Source: Huang et al., "BEVDet", arXiv 2112.11790."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from occforge.errors import ConfigError

from .common import own_points
from .loading import augment_labels


def bda_matrix(rotate_deg: float, scale: float, flip_dx: bool, flip_dy: bool) -> np.ndarray:
    """(3, 3) float64: flips after scale after rotation about z; flip_dx mirrors x, flip_dy mirrors y."""
    angle = np.deg2rad(rotate_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return np.diag([-1.0 if flip_dx else 1.0, -1.0 if flip_dy else 1.0, 1.0]) @ (scale * turn)


def bda_boxes(boxes, rotate_deg: float, scale: float, flip_dx: bool, flip_dy: bool) -> np.ndarray:
    """Boxes (n, 7 or 9) x, y, z, dx, dy, dz, yaw[, vx, vy] of the ego frame under ``bda_matrix``; a new array."""
    boxes = np.array(boxes, copy=True)
    matrix = bda_matrix(rotate_deg, scale, flip_dx, flip_dy)
    boxes[:, :3] = boxes[:, :3] @ matrix.T
    boxes[:, 3:6] *= scale
    boxes[:, 6] += np.deg2rad(rotate_deg)
    if flip_dx:
        boxes[:, 6] = np.pi - boxes[:, 6]
    if flip_dy:
        boxes[:, 6] = -boxes[:, 6]
    boxes[:, 7:9] = boxes[:, 7:9] @ matrix[:2, :2].T
    return boxes


@TRANSFORMS.register_module(name=['BEVAug', 'LoadAnnotationsBEVDepth'])
class BEVAug(BaseTransform):
    """Draws a rotation, scale and flips of the bird's-eye view and applies them to everything in the ego frame.

    Sets ``bda`` (3, 3) float32, ``rotate_bda`` (degrees), ``flip_dx``, ``flip_dy``; moves ``points`` (in the ego
    frame), ``gt_bboxes_3d`` ((n, 7 or 9) numpy) and occupancy labels, as far as they are there. Label loaders that come
    later read the draw. Labels are turned to the nearest cell; those that come from outside the grid are 255, in no
    mask.

    Args:
        bda_aug_conf: ``rot_lim`` (degrees), ``scale_lim`` (low, high each), ``flip_dx_ratio``, ``flip_dy_ratio``.
        is_train: draw (else the identity).
        classes: accepted for configs of the BEVDet family, not used.

    Raises:
        ConfigError: scale limits beside occupancy labels (a label grid can only be turned and flipped), or points that
            are still in the LiDAR frame.
    """

    def __init__(self, bda_aug_conf: dict, is_train: bool = False, classes=None):
        unknown = set(bda_aug_conf) - {'rot_lim', 'scale_lim', 'flip_dx_ratio', 'flip_dy_ratio'}
        if unknown:
            raise ConfigError(f'BEVAug field bda_aug_conf has unknown keys {sorted(unknown)}')
        self.rot_lim = tuple(bda_aug_conf.get('rot_lim', (0.0, 0.0)))
        self.scale_lim = tuple(bda_aug_conf.get('scale_lim', (1.0, 1.0)))
        self.flip_dx_ratio = bda_aug_conf.get('flip_dx_ratio', 0.0)
        self.flip_dy_ratio = bda_aug_conf.get('flip_dy_ratio', 0.0)
        self.is_train = is_train
        self.flips_only = not is_train or (self.rot_lim == (0, 0) and self.scale_lim == (1, 1))

    def transform(self, results: dict) -> dict:
        rotate, scale, flip_dx, flip_dy = 0.0, 1.0, False, False
        if self.is_train:
            rng = results['rng']
            rotate, scale = rng.uniform(*self.rot_lim), rng.uniform(*self.scale_lim)
            flip_dx, flip_dy = rng.random() < self.flip_dx_ratio, rng.random() < self.flip_dy_ratio
        matrix = bda_matrix(rotate, scale, flip_dx, flip_dy)
        results['bda'] = matrix.astype(np.float32)
        results['flip_dx'], results['flip_dy'] = bool(flip_dx), bool(flip_dy)
        results['rotate_bda'] = float(rotate)
        results['bda_rotates'] = self.is_train and self.rot_lim != (0, 0)
        results['bda_scales'] = self.is_train and self.scale_lim != (1, 1)
        if results.get('voxel_semantics') is not None or results.get('fine_counts') is not None:
            augment_labels(results, results)
        if results.get('points') is not None:
            if results.get('points_frame') != 'ego':
                raise ConfigError('BEVAug: the points are in the LiDAR frame, put PointsLidarToEgo before it')
            points = own_points(results)
            if self.flips_only:
                points[:, :2] *= np.diag(results['bda'])[:2]
            else:
                points[:, :3] = points[:, :3] @ results['bda'].T
            results['points'] = points
        if results.get('gt_bboxes_3d') is not None:
            results['gt_bboxes_3d'] = bda_boxes(results['gt_bboxes_3d'], rotate, scale, flip_dx, flip_dy)
        return results
