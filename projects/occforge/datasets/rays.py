"""Rays with 2D labels: what they are made from, and which of them a training step takes. numpy only.

A ray is a row of 13 float32 numbers in the key ego frame (not augmented), metres:

====== =====================================================================================
0, 1   pixel of the camera's file (right, down), the corner of the cell that the ray goes through
2      depth along the camera's axis; 0: not measured
3      class 0..16; 255: none
4-6    origin, the camera's centre
7-9    direction, one metre along the camera's axis (so that depth x direction is the surface)
10-12  the same with length 1
====== =====================================================================================

Source: Pan et al., "RenderOcc", ICRA 2024 (layout, class balance, share of the other frames).
"""

from collections.abc import Sequence

import numpy as np

from occforge.errors import ConfigError, DataError

from .occ3d import NUM_SEMANTIC_CLASSES

COLUMNS = 13
NO_CLASS = 255

# LiDAR points of each class in nuScenes' training split as RenderOcc counted them, 0 (others) to 16 (vegetation).
LIDAR_POINT_COUNTS = (
    2854504, 7291443, 141614, 4239939, 32248552, 1583610, 364372, 2346381, 582961, 4829021, 14073691, 191019309,
    6249651, 55095657, 58484771, 193834360, 131378779,
)  # fmt: skip
# What may move: rays of other frames say nothing about where it is now. The reference's list has no bicycles and no
# motorcycles, and has barriers: (0, 1, 3, 4, 5, 7, 9, 10).
DYNAMIC_CLASSES = (0, 2, 3, 4, 5, 6, 7, 9, 10)


def ray_rows(uv, depth, label, cam2key, cam2img) -> np.ndarray:
    """Rays through pixels of one camera.

    Args:
        uv: (P, 2) continuous pixel coordinates, as the projection gives them; the middle of pixel (i, j) is
            (i + 0.5, j + 0.5).
        depth: (P,) metres along the camera's axis; 0: not measured.
        label: (P,) classes; 255: none.
        cam2key: (4, 4) camera -> key ego frame.
        cam2img: (3, 3).

    Returns:
        (P, 13) float32. Directions in float64 before.
    """
    uv, cam2key = np.asarray(uv, dtype=np.float64), np.asarray(cam2key, dtype=np.float64)
    rows = np.empty((len(uv), COLUMNS), dtype=np.float32)
    seen = np.concatenate([uv, np.ones((len(uv), 1))], axis=1) @ np.linalg.inv(cam2img).T
    seen /= seen[:, 2:]
    direction = seen @ cam2key[:3, :3].T
    rows[:, :2] = np.floor(uv)
    rows[:, 2], rows[:, 3] = depth, label
    rows[:, 4:7] = cam2key[:3, 3]
    rows[:, 7:10] = direction
    rows[:, 10:13] = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return rows


def class_balance_weights(counts: Sequence[float] = LIDAR_POINT_COUNTS, strength: float = 0.005) -> np.ndarray:
    """(classes,) float64: exp(strength (n_max / n - 1)); 0 for classes that do not occur."""
    counts = np.asarray(counts, dtype=np.float64)
    present = counts > 0
    ratio = np.divide(counts.max(initial=0.0), counts, out=np.ones_like(counts), where=present)
    return np.where(present, np.exp(np.minimum(strength * (ratio - 1), 50.0)), 0.0)


def sampling_weights(
    label, other_frame, class_weight=None, dynamic_classes=DYNAMIC_CLASSES, weight_adj=0.3, weight_dyn=0.0
) -> np.ndarray:
    """How likely each ray is taken.

    Args:
        label: (P,) classes; 255 weighs as much as the most frequent class.
        other_frame: (P,) bool or one bool: rays of another frame than the key frame.
        class_weight: (classes,) of ``class_balance_weights``; None: all equal.
        dynamic_classes: what may move.
        weight_adj, weight_dyn: factor of rays of other frames, and of those of them that may move.

    Returns:
        (P,) float64, 0 or more.
    """
    label = np.asarray(label).astype(np.int64)
    table = np.ones(256)
    if class_weight is not None:
        table[: len(class_weight)] = class_weight
    moving = np.zeros(256, dtype=bool)
    moving[list(dynamic_classes)] = True
    index = np.where((label >= 0) & (label < 256), label, NO_CLASS)
    temporal = np.where(other_frame, np.where(moving[index], weight_dyn, weight_adj), 1.0)
    return table[index] * temporal


def draw_weighted(weights, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` items without replacement, likelier where the weight is larger; fewer where fewer have one.

    By the smallest of exponential variables over the weights (Efraimidis and Spirakis, 2006): one pass, any number of
    items, no categories limit. Ascending.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError('weights must be (P,) finite numbers of 0 or more')
    candidates = np.flatnonzero(weights > 0)
    if count >= len(candidates):
        return candidates
    keys = rng.exponential(size=len(candidates)) / weights[candidates]
    return np.sort(candidates[np.argpartition(keys, count)[:count]])


def check_classes(classes: Sequence[int], field: str) -> tuple:
    """The classes as a tuple; ConfigError where one is not in 0..16."""
    unknown = [value for value in classes if not 0 <= int(value) < NUM_SEMANTIC_CLASSES]
    if unknown:
        raise ConfigError(f'{field} holds {unknown}, expected classes 0..{NUM_SEMANTIC_CLASSES - 1}')
    return tuple(int(value) for value in classes)


# ------------------------------------------------------------------------------------------- point label files


def read_point_labels(path) -> np.ndarray:
    """(P, 3) float32 of a label file: pixel u, v (fractional) and depth in metres, or class.

    The published layout: ``depth_gt/<image file name>.bin`` and ``seg_gt_lidarseg/<image file name>.bin``, whose points
    come in the same order.

    Raises:
        DataError: missing, no multiple of 12 bytes, or not finite.
    """
    try:
        content = np.fromfile(path, dtype='<f4')
    except OSError as error:
        raise DataError(f'{path}: 2D labels: {error.strerror}; tools/create_ray_labels.py makes these files') from error
    if len(content) % 3:
        raise DataError(f'{path}: 2D labels: {content.nbytes} bytes, expected a multiple of 12 (u, v, value)')
    rows = content.reshape(-1, 3)
    if not np.isfinite(rows).all():
        raise DataError(f'{path}: 2D labels: holds NaN or infinity')
    return rows
