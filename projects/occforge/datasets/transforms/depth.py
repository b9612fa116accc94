"""Sparse depth maps of the cameras from LiDAR points."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from occforge.errors import ConfigError, DataError

from ..occ3d import FREE
from .common import camera_matrices, key_points, lidar_matrices, read_points, required_path, where


def nearest_points(uvd, size, depth_range, downsample: int = 1, pooled: bool = False) -> tuple:
    """The nearest point of every pixel.

    Args:
        uvd: (P, 3) float: pixel u (right), v (down) in an image of ``size``, depth in metres.
        size: (H, W) of the image, multiples of ``downsample``.
        depth_range: (low, high): points with low <= depth < high count.
        downsample: side of the output's pixels, in pixels of the image.
        pooled: False: points are rounded to the nearest output pixel's coordinate (the reference's depth map).
            True: points are rounded to the image's pixels and the output pixel is the minimum over its block, which is
            what the depth bins of the BEVDet family are made from.

    Returns:
        tuple: pixel (K,) int64, the row-major output pixels that hold a point; point (K,) int64, the index of the
        nearest point of each. Exact: points of one pixel are ordered by depth alone, then by index.
    """
    height, width = size[0] // downsample, size[1] // downsample
    uv, depth = uvd[:, :2], uvd[:, 2]
    if pooled:
        cell = np.rint(uv)
        bounds = (size[1], size[0])
    else:
        cell = np.rint(uv / np.float32(downsample))
        bounds = (width, height)
    keep = (depth >= depth_range[0]) & (depth < depth_range[1])
    keep &= (cell[:, 0] >= 0) & (cell[:, 0] < bounds[0]) & (cell[:, 1] >= 0) & (cell[:, 1] < bounds[1])
    kept = np.flatnonzero(keep)
    cell = cell[kept].astype(np.int64)
    if pooled:
        cell //= downsample
    pixel = cell[:, 1] * width + cell[:, 0]
    nearest_first = np.lexsort((depth[kept], pixel))
    pixel, kept = pixel[nearest_first], kept[nearest_first]
    first = np.ones(len(pixel), dtype=bool)
    first[1:] = pixel[1:] != pixel[:-1]
    return pixel[first], kept[first]


def depth_map(uvd, size, depth_range, downsample: int = 1, pooled: bool = False) -> np.ndarray:
    """(H / downsample, W / downsample) float32: depth of the nearest point in metres, 0 = none. See nearest_points."""
    pixel, point = nearest_points(uvd, size, depth_range, downsample, pooled)
    out = np.zeros((size[0] // downsample, size[1] // downsample), dtype=np.float32)
    out.reshape(-1)[pixel] = uvd[point, 2]
    return out


@TRANSFORMS.register_module()
class PointToMultiViewDepth(BaseTransform):
    """Projects the key frame's own cloud into its cameras; needs PrepareImageInputs before it.

    The cloud is carried from the LiDAR's time to each camera's time by the ego poses (float64) and through the
    image augmentation. Neither fused points nor BEV flips take part.

    Sets ``sparse_depth`` (N, h, w) float32, metres, 0 = no point; with ``with_segs`` also ``segs`` (N, h, w) uint8,
    the class of that nearest point, 17 = none.

    Args:
        grid_config: ``depth`` (low, high, step): points with low <= d < high count.
        downsample: 1: the network's input resolution. 16, say: the map at the feature resolution, where a pixel holds
            the minimum over its block (the same numbers as pooling the full map later, at a fraction of the size).
        with_segs: needs LoadLidarSegLabels before it.
        seg_downsample: the same for ``segs``, where they are wanted at another resolution; None: ``downsample``.
        num_adjacent: also the depths of so many older frames, of their own clouds in their own cameras:
            ``adjacent_depth`` (num_adjacent, N, h, w).

    Raises:
        ConfigError: the input size is no multiple of the downsampling; images or labels have not been loaded.
    """

    def __init__(
        self,
        grid_config: dict,
        downsample: int = 1,
        with_segs: bool = False,
        num_adjacent: int = 0,
        seg_downsample: int | None = None,
    ):
        self.depth_range = tuple(float(value) for value in grid_config['depth'][:2])
        self.downsample = downsample
        self.with_segs = with_segs
        self.seg_downsample = downsample if seg_downsample is None else seg_downsample
        self.num_adjacent = num_adjacent

    def transform(self, results: dict) -> dict:
        if 'post_rots' not in results:
            raise ConfigError('PointToMultiViewDepth needs PrepareImageInputs before it')
        size = results['input_size']
        for step in (self.downsample, self.seg_downsample):
            if size[0] % step or size[1] % step:
                raise ConfigError(f'PointToMultiViewDepth: input size {size} is no multiple of {step}')
        points = key_points(results)
        labels = results.get('key_point_labels') if self.with_segs else None
        if self.with_segs:
            if labels is None:
                raise ConfigError('PointToMultiViewDepth: with_segs needs LoadLidarSegLabels before it')
            if len(labels) != len(points):
                raise DataError(f'{where(results)}: {len(labels)} lidarseg labels for {len(points)} points')
        depths, segs = self._project(results, results, points, labels, 0)
        results['sparse_depth'] = depths
        if self.with_segs:
            results['segs'] = segs
        if self.num_adjacent:
            older = results['adjacent'][: self.num_adjacent]
            if len(older) < self.num_adjacent or len(results['post_rots']) <= self.num_adjacent:
                raise ConfigError(
                    f'PointToMultiViewDepth wants num_adjacent={self.num_adjacent} frames, the dataset and '
                    f'PrepareImageInputs give {len(older)} and {len(results["post_rots"]) - 1}'
                )
            clouds = (
                read_points(info.get('lidar_path') or required_path(info, 'lidar_path'), points.shape[1])
                for info in older
            )
            results['adjacent_depth'] = np.stack(
                [
                    self._project(results, info, cloud, None, t + 1)[0]
                    for t, (info, cloud) in enumerate(zip(older, clouds))
                ]
            )
        return results

    def _project(self, results, info, points, labels, frame):
        """Depth and class images of one frame's cloud in its own cameras; augmented as frame ``frame``'s images."""
        size, names = results['input_size'], results['used_cameras']
        xyz = np.ascontiguousarray(points[:, :3])
        lidar2ego, lidar_ego2global = lidar_matrices(info)
        depths = np.zeros((len(names), *(side // self.downsample for side in size)), dtype=np.float32)
        segs = np.full((len(names), *(side // self.seg_downsample for side in size)), FREE, dtype=np.uint8)
        for n, name in enumerate(names):
            cam2img, cam2ego, ego2global = camera_matrices(info, name)
            lidar2cam = np.linalg.inv(ego2global @ cam2ego) @ lidar_ego2global @ lidar2ego
            # the product is small again, so float32 loses nothing from here on
            lidar2img = (cam2img @ lidar2cam[:3]).astype(np.float32)
            depth = xyz @ lidar2img[2, :3] + lidar2img[2, 3]
            index = np.flatnonzero((depth >= self.depth_range[0]) & (depth < self.depth_range[1]))
            uvd = xyz[index] @ lidar2img[:, :3].T + lidar2img[:, 3]
            uvd[:, 2] = depth[index]
            uvd[:, :2] /= uvd[:, 2:]
            rot, tran = results['post_rots'][frame, n], results['post_trans'][frame, n]
            uvd[:, :2] = uvd[:, :2] @ rot[:2, :2].T + tran[:2]
            pixel, point = nearest_points(uvd, size, self.depth_range, self.downsample, pooled=True)
            depths[n].reshape(-1)[pixel] = uvd[point, 2]
            if labels is not None:
                if self.seg_downsample != self.downsample:
                    pixel, point = nearest_points(uvd, size, self.depth_range, self.seg_downsample, pooled=True)
                segs[n].reshape(-1)[pixel] = labels[index[point]]
        return depths, segs
