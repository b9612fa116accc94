"""From an RGB-D image to points and superpoints; the same for data preparation and for live frames."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from occforge.errors import DataError


def backproject(depth: np.ndarray, pose: np.ndarray, intrinsics, u=None, v=None, depth_scale: float = 1000.0):
    """World coordinates of pixels.

    Args:
        depth: (H, W) raw depth, or (P,) with ``u`` and ``v``.
        pose: (4, 4) camera to world; the camera looks along z, x to the right, y down.
        intrinsics: fx, fy, cx, cy in pixels.
        u, v: (P,) columns and rows; None: of the whole image, row by row.
        depth_scale: raw units a metre.

    Returns:
        (P, 3) float64 metres.
    """
    fx, fy, cx, cy = intrinsics
    if u is None:
        v, u = np.indices(depth.shape)
    z = np.asarray(depth, dtype=np.float64).reshape(-1) / depth_scale
    u, v = (np.asarray(each, dtype=np.float64).reshape(-1) for each in (u, v))
    camera = np.stack([(u - cx) * z / fx, (v - cy) * z / fy, z], 1)
    pose = np.asarray(pose, dtype=np.float64)
    return camera @ pose[:3, :3].T + pose[:3, 3]


def label_image(masks: np.ndarray) -> np.ndarray:
    """Masks (M, H, W) bool -> (H, W) int64: larger ones are painted first, so that smaller ones stay visible; -1:
    none."""
    masks = np.asarray(masks).astype(bool)
    image = np.full(masks.shape[1:], -1, dtype=np.int64)
    area = masks.reshape(len(masks), -1).sum(1)
    for number, row in enumerate(np.argsort(-area, kind='stable')):
        image[masks[row]] = number
    return image


def geometric_segments(depth: np.ndarray, rgb: np.ndarray, intrinsics, depth_scale: float = 1000.0) -> np.ndarray:
    """A segmentation without any learnt model: connected regions without jumps of depth, normal or colour.

    Args:
        depth: (H, W) raw depth. rgb: (H, W, 3) 0..255. intrinsics, depth_scale: as in ``backproject``.

    Returns:
        (H, W) int64 region of each pixel, -1 where there is no depth and on edges.
    """
    z = np.asarray(depth, dtype=np.float32) / depth_scale
    points = backproject(depth, np.eye(4), intrinsics, depth_scale=depth_scale).reshape(*z.shape, 3).astype(np.float32)
    points = ndimage.gaussian_filter(points, (1.5, 1.5, 0))
    normal = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    colour = ndimage.gaussian_filter(np.asarray(rgb, dtype=np.float32), (1, 1, 0))

    def step(values):
        edge = np.zeros(z.shape, np.float32)
        for axis in (0, 1):
            change = np.abs(np.diff(values, axis=axis)).max(-1)
            part = edge[:-1] if axis == 0 else edge[:, :-1]
            np.maximum(part, change, out=part)
        return edge

    edge = (step(z[..., None]) > 0.02 + 0.02 * z) | (step(normal) > 0.3) | (step(colour) > 18) | (z <= 0)
    regions, count = ndimage.label(~edge)
    small = np.bincount(regions.reshape(-1), minlength=count + 1) < 20
    small[0] = True
    return np.where(small[regions], -1, regions).astype(np.int64)


def cluster_unmasked(features: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Groups (P,) of points that no mask has, by k-means on (P, 6) coordinates and colours, the same in every run; one
    group where there are fewer points than groups."""
    if len(features) < clusters:
        return np.zeros(len(features), dtype=np.int64)
    features = np.asarray(features, dtype=np.float64)
    # equal rows would leave a group empty
    clusters = min(clusters, len(np.unique(features, axis=0)))
    with warnings.catch_warnings():  # a group may become empty on the way; the others are what is asked for
        warnings.filterwarnings('ignore', 'One of the clusters is empty')
        return kmeans2(features, clusters, minit='++', seed=seed, missing='warn')[1].astype(np.int64)


def contiguous(ids: np.ndarray) -> np.ndarray:
    """The same grouping with ids 0..n-1."""
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def segment_image(masks, depth, rgb, intrinsics, depth_scale: float = 1000.0) -> np.ndarray:
    """(H, W) int64 mask of each pixel, -1: none.

    Args:
        masks: (M, H, W) bool; a label image (H, W), integers, 0: none; a function of ``rgb`` that gives either; or
            None: ``geometric_segments``.
    """
    if isinstance(masks, Callable):
        masks = masks(rgb)
    if masks is None:
        return geometric_segments(depth, rgb, intrinsics, depth_scale)
    masks = np.asarray(masks)
    if masks.shape[-2:] != depth.shape or masks.ndim not in (2, 3):
        raise DataError(f'masks have shape {masks.shape}, the depth image {depth.shape}')
    return label_image(masks) if masks.ndim == 3 else masks.astype(np.int64) - 1


def sample_frame(
    rgb: np.ndarray,
    depth: np.ndarray,
    pose: np.ndarray,
    intrinsics,
    masks=None,
    num_sample: int = 20000,
    clusters: int = 8,
    depth_scale: float = 1000.0,
    rng: np.random.Generator | None = None,
) -> dict:
    """Points and superpoints of a frame.

    Args:
        rgb: (H, W, 3) uint8.
        depth: (H, W) raw depth; 0.1 and less is no measurement.
        pose: (4, 4) camera to world.
        intrinsics: fx, fy, cx, cy.
        masks: see ``segment_image``.
        num_sample: points; drawn with repetition only where there are fewer pixels with depth.
        clusters: groups of the points that no mask has.
        depth_scale: raw units a metre.
        rng: for the drawing; None: a generator of seed 0.

    Returns:
        ``points`` (P, 6) float32 metres and 0..255, ``superpoints`` (P,) int64 0..n-1, ``pixels`` (P, 2) int64 u, v,
        ``center`` (3,) mean of all points of the image.

    Raises:
        DataError: shapes that do not fit, a pose that is not finite, no pixel with depth.
    """
    rgb, depth, pose = np.asarray(rgb), np.asarray(depth), np.asarray(pose, dtype=np.float64)
    if rgb.shape != (*depth.shape, 3):
        raise DataError(f'the colour image has shape {rgb.shape}, the depth image {depth.shape}: one size is expected')
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DataError('pose: expected 4 x 4 finite numbers')
    rng = rng or np.random.default_rng(0)
    segments = segment_image(masks, depth, rgb, intrinsics, depth_scale)
    v, u = np.nonzero(depth > 0.1)
    if len(u) == 0:
        raise DataError('the depth image has no measurement')
    xyz = backproject(depth[v, u], pose, intrinsics, u, v, depth_scale)
    center = xyz.mean(0)
    chosen = rng.choice(len(u), num_sample, replace=len(u) < num_sample)
    u, v, xyz = u[chosen], v[chosen], xyz[chosen]
    points = np.concatenate([xyz, rgb[v, u].astype(np.float64)], 1).astype(np.float32)
    ids = segments[v, u]
    alone = ids < 0
    if alone.any():
        ids[alone] = ids.max(initial=-1) + 1 + cluster_unmasked(points[alone], clusters)
    return dict(points=points, superpoints=contiguous(ids), pixels=np.stack([u, v], 1), center=center)


def denoise_instances(xyz: np.ndarray, instance: np.ndarray, boxes: np.ndarray, delta: float = 0.05) -> np.ndarray:
    """Instance ids with those reset to 0 whose point lies outside of the instance's box.

    Args:
        xyz: (P, 3) metres, in the frame of the boxes.
        instance: (P,) 1-based ids, 0: none.
        boxes: (I, 6 or more) centre and size of instance 1, 2, ...
        delta: metres by which a box is larger on each side.
    """
    instance = np.array(instance)
    rows = np.flatnonzero(instance > 0)
    box = np.asarray(boxes)[instance[rows] - 1]
    outside = (np.abs(xyz[rows] - box[:, :3]) > box[:, 3:6] / 2 + delta).any(1)
    instance[rows[outside]] = 0
    return instance
