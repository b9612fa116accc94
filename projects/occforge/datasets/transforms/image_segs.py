"""Class images beside the camera images, for the auxiliary 2D segmentation."""

import os

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from PIL import Image

from occforge.errors import ConfigError, DataError

from ..image_segs import STRIDE, paint, read_seg, seg_file
from ..occ3d import FREE
from .common import camera, camera_matrices, key_points, lidar_matrices, where
from .images import augment_image


def project(info: dict, name: str, points) -> np.ndarray:
    """(P, 3) float64 pixels u, v of a camera's file and depth of LiDAR points (P, >= 3) of the key frame.

    The points are carried from the LiDAR's time to the camera's by the ego poses.
    """
    cam2img, cam2ego, ego2global = camera_matrices(info, name)
    lidar2ego, lidar_ego2global = lidar_matrices(info)
    lidar2cam = np.linalg.inv(ego2global @ cam2ego) @ lidar_ego2global @ lidar2ego
    lidar2img = cam2img @ lidar2cam[:3]
    uvd = np.asarray(points[:, :3], dtype=np.float64) @ lidar2img[:, :3].T + lidar2img[:, 3]
    in_front = uvd[:, 2] > 0
    uvd[in_front, :2] /= uvd[in_front, 2:]
    return uvd


@TRANSFORMS.register_module()
class LoadImageSegs(BaseTransform):
    """Class images of the key frame, read from files or painted from its labelled points, and augmented as the images.

    Sets ``segs`` (N, h, w) uint8, classes 0..16, 17 = no label. Needs PrepareImageInputs before it; without a folder
    also LoadLidarPoints and LoadLidarSegLabels.

    Args:
        img_seg_dir: folder that tools/create_img_seg.py has filled; relative to the data root. None: paint here.
        downsample: keep every n-th pixel of the network's images.
        as_published: the published loader stretches the labels, made for every 8th of 904 rows, over 900 rows, and
            fills what augmentation uncovers with class 0. False: neither.

    Raises:
        ConfigError: a transform before it is missing.
        DataError: a file is missing or damaged.
    """

    def __init__(self, img_seg_dir: str | None = None, downsample: int = 1, as_published: bool = False):
        self.img_seg_dir = img_seg_dir
        self.downsample = downsample
        self.as_published = as_published

    def transform(self, results: dict) -> dict:
        if 'image_augmentations' not in results:
            raise ConfigError('LoadImageSegs needs PrepareImageInputs before it')
        segs = []
        for name, (size, augmentation) in zip(results['used_cameras'], results['image_augmentations']):
            segs.append(self._augment(self._load(results, name, size), size, augmentation))
        results['segs'] = np.stack(segs)[:, :: self.downsample, :: self.downsample]
        return results

    def _load(self, results, name, size):
        if self.img_seg_dir is not None:
            folder = os.path.join(results.get('data_root', ''), self.img_seg_dir)
            return read_seg(seg_file(folder, name, camera(results, name)['img_path']), size)
        labels = results.get('key_point_labels')
        if labels is None:
            raise ConfigError('LoadImageSegs: without img_seg_dir it needs LoadLidarSegLabels before it')
        points = key_points(results)
        if len(labels) != len(points):
            raise DataError(f'{where(results)}: {len(labels)} lidarseg labels for {len(points)} points')
        return paint(project(results, name, points), labels, size)

    def _augment(self, seg, size, augmentation):
        full = seg.repeat(STRIDE, axis=0).repeat(STRIDE, axis=1)
        if not self.as_published:
            # Pillow fills with 0, so 0 stands for "no label" meanwhile
            full = FREE - full[: size[0], : size[1]]
        full = np.asarray(augment_image(Image.fromarray(full), augmentation, Image.Resampling.NEAREST))
        return full if self.as_published else FREE - full
