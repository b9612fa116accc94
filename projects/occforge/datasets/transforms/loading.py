"""Points, LiDAR segmentation labels and occupancy labels."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from torch.nn import functional as F

from occforge.errors import ConfigError, DataError

from ..fine_labels import MASKS, CellCounts, read_fine_labels
from ..occ3d import GRID_SIZE, LIDARSEG_TO_OCC, label_file, read_labels
from .common import get_points, key_points, lidar_matrices, read_bytes, read_points, required_path, where


@TRANSFORMS.register_module()
class LoadLidarPoints(BaseTransform):
    """Reads the key frame's cloud and checks it.

    Sets ``points`` and ``key_points``, (P, load_dim) float32: x, y, z in metres in the LiDAR frame, then intensity
    and ring for nuScenes. mmdet3d's LoadPointsFromFile also serves where no check is wanted.

    Args:
        load_dim: values a point in the file.
        nonfinite: 'error', or 'drop' to leave out points with NaN or infinity.

    Raises:
        DataError: see ``read_points``.
    """

    def __init__(self, load_dim: int = 5, nonfinite: str = 'error'):
        if nonfinite not in ('error', 'drop'):
            raise ConfigError(f"LoadLidarPoints field 'nonfinite' is {nonfinite!r}, expected 'error' or 'drop'")
        self.load_dim = load_dim
        self.nonfinite = nonfinite

    def transform(self, results: dict) -> dict:
        points = read_points(required_path(results, 'lidar_path'), self.load_dim, self.nonfinite)
        results['points'] = results['key_points'] = points
        return results


@TRANSFORMS.register_module()
class LoadLidarSegLabels(BaseTransform):
    """Reads nuScenes-lidarseg labels of the key frame's cloud as Occ3D classes.

    Sets ``key_point_labels``, (P,) uint8 in 0..16.

    Args:
        mapping: raw label -> class; default nuScenes-lidarseg's 32 labels -> Occ3D.

    Raises:
        DataError: the file is missing, has another length than the cloud, or holds an unknown label.
    """

    only_labels = True  # not needed where nothing is trained or scored

    def __init__(self, mapping=None):
        self.mapping = np.asarray(LIDARSEG_TO_OCC if mapping is None else mapping, dtype=np.uint8)

    def transform(self, results: dict) -> dict:
        path = required_path(results, 'pts_semantic_mask_path')
        labels = np.frombuffer(read_bytes(path, 'lidarseg labels'), dtype=np.uint8)
        count = len(key_points(results))
        if len(labels) != count:
            raise DataError(f'{path}: lidarseg labels: {len(labels)} labels, expected {count}, one a LiDAR point')
        if labels.max() >= len(self.mapping):
            raise DataError(f'{path}: lidarseg labels: label {labels.max()}, expected 0..{len(self.mapping) - 1}')
        results['key_point_labels'] = self.mapping[labels]
        return results


@TRANSFORMS.register_module()
class FuseAdjacentPoints(BaseTransform):
    """Adds the clouds of the previous key frames and of sweeps between them, moved into the current LiDAR frame.

    The ego's motion is compensated (float64 poses), that of other road users is not.

    Args:
        num_adjacent: previous key frames to add, at most the dataset's ``num_adjacent``.
        sweeps: which of the sweeps before the current key frame, and before each of the previous ones, to add too:
            places in ``lidar_sweeps``, 0 for the last one before the key frame (in nuScenes 0.05 s earlier; 9 is the
            key frame before). Sweeps that a scene does not have are left out. The published model uses none.
        load_dim: values a point in the files.
        repeat_missing: at the start of a scene add the current cloud once for each missing one, as the reference of
            the BEVDet-occupancy family does. It only changes point counts, so the default leaves them out.
        with_time: append a column, the age of each point's cloud in seconds (0 for the current one), by which trails
            of moving objects can be told from what stands there now. The published model has none.
        nonfinite: see LoadLidarPoints.

    Raises:
        ConfigError: the dataset gives fewer adjacent frames.
        DataError: a cloud or a pose cannot be used.
    """

    def __init__(
        self,
        num_adjacent: int = 7,
        sweeps: Sequence[int] = (),
        load_dim: int = 5,
        repeat_missing: bool = False,
        with_time: bool = False,
        nonfinite: str = 'error',
    ):
        self.num_adjacent = num_adjacent
        if any(place < 0 for place in sweeps):
            raise ConfigError(f'FuseAdjacentPoints field sweeps is {list(sweeps)}, expected places from 0')
        self.sweeps = tuple(sweeps)
        self.load_dim = load_dim
        self.repeat_missing = repeat_missing
        self.with_time = with_time
        self.nonfinite = nonfinite

    def transform(self, results: dict) -> dict:
        adjacent = results.get('adjacent') or []
        if len(adjacent) < self.num_adjacent:
            raise ConfigError(
                f'FuseAdjacentPoints wants num_adjacent={self.num_adjacent} frames, the dataset gives '
                f'{len(adjacent)} (dataset field num_adjacent)'
            )
        points = get_points(results)
        clouds, ages = [points], [0.0]
        lidar2ego, ego2global = lidar_matrices(results)
        global2lidar = np.linalg.inv(ego2global @ lidar2ego)
        others = self._sweeps(results)
        for info in adjacent[: self.num_adjacent]:
            if info.get('is_repeat'):
                if self.repeat_missing:
                    clouds.append(points)
                    ages.append(0.0)
                continue
            others += [info, *self._sweeps(info)]
        for info in others:
            path = info.get('lidar_path') or required_path(info.get('lidar_points') or {}, 'lidar_path')
            cloud = read_points(path, self.load_dim, self.nonfinite)
            lidar2ego, ego2global = lidar_matrices(info)
            motion = global2lidar @ ego2global @ lidar2ego
            # the product is small again, so float32 loses nothing from here on
            cloud[:, :3] = cloud[:, :3] @ motion[:3, :3].T.astype(np.float32) + motion[:3, 3].astype(np.float32)
            clouds.append(cloud)
            ages.append(results['timestamp'] - info['timestamp'])
        if self.with_time:
            clouds = [np.pad(cloud, ((0, 0), (0, 1)), constant_values=age) for cloud, age in zip(clouds, ages)]
        results['points'] = np.concatenate(clouds)
        return results

    def _sweeps(self, info):
        known = info.get('lidar_sweeps') or ()
        return [known[place] for place in self.sweeps if place < len(known)]


@TRANSFORMS.register_module()
class LoadOccGTFromFile(BaseTransform):
    """Reads the Occ3D labels of ``occ_path``.

    Sets ``voxel_semantics``, ``mask_lidar``, ``mask_camera``, (X, Y, Z) uint8. May stand before or after BEVAug: what
    has been drawn already is applied here, else BEVAug applies it.

    A sample that the dataset calls unlabelled (``with_gt`` is False) gets 255 everywhere and empty masks, and no file
    is read.

    Args:
        grid_size: expected (X, Y, Z); None: any.
        ignore_label: a label beside 0..17 that may occur (it takes part in neither loss nor metric).

    Raises:
        DataError: see ``occ3d.read_labels``.
        ConfigError: BEVAug may scale, which a label grid cannot follow.
    """

    only_labels = True  # not needed where nothing is trained or scored

    def __init__(self, grid_size=GRID_SIZE, ignore_label: int | None = None):
        self.grid_size = None if grid_size is None else tuple(grid_size)
        self.ignore_label = ignore_label

    def transform(self, results: dict) -> dict:
        if results.get('with_gt') is False:
            shape = self.grid_size or GRID_SIZE
            results['voxel_semantics'] = np.full(shape, 255, dtype=np.uint8)
            results['mask_lidar'], results['mask_camera'] = np.zeros((2, *shape), dtype=np.uint8)
            return results
        if not results.get('occ_path'):
            raise DataError(f"{where(results)}: field 'occ_path' is missing")
        labels = read_labels(results['occ_path'], self.grid_size, ignore_label=self.ignore_label)
        results['voxel_semantics'], results['mask_lidar'], results['mask_camera'] = labels
        if 'bda' in results:
            augment_labels(results, results)
        return results


@TRANSFORMS.register_module()
class LoadFineOccGT(BaseTransform):
    """Reads labels finer than Occ3D's, and masks as fine as there are (see ``occforge.datasets.fine_labels``).

    Args:
        file_name: archive or folder beside the sample's ``labels.npz``. Masks that it does not have are those of
            ``labels.npz`` if that has them, else true everywhere.
        form: 'counts' sets ``fine_counts``, the fine voxels by cell, class and mask: all that loss and metric of a
            network that answers on the label grid need. 'voxels' replaces ``voxel_semantics``, ``mask_lidar`` and
            ``mask_camera``, for networks that answer on the fine grid.
        grid_size: (X, Y, Z) of the cells.

    May stand before or after BEVAug, as LoadOccGTFromFile.

    Raises:
        DataError: the file is missing or damaged, or its grid is no multiple of ``grid_size``.
        ConfigError: 'voxels' of a file that holds counts alone.
    """

    only_labels = True  # not needed where nothing is trained or scored

    def __init__(self, file_name: str, form: str = 'counts', grid_size=GRID_SIZE):
        if form not in ('counts', 'voxels'):
            raise ConfigError(f"LoadFineOccGT field 'form' is {form!r}, expected 'counts' or 'voxels'")
        self.file_name = file_name
        self.form = form
        self.grid_size = tuple(grid_size)

    def transform(self, results: dict) -> dict:
        if not results.get('occ_path'):
            raise DataError(f"{where(results)}: field 'occ_path' is missing")
        coarse = label_file(results['occ_path'])
        path = os.path.join(os.path.dirname(coarse), self.file_name)
        labels = read_fine_labels(path, coarse if os.path.exists(coarse) else None)
        if isinstance(labels, CellCounts):
            if self.form == 'voxels':
                raise ConfigError(f"{path}: holds counts of voxels, LoadFineOccGT.form='voxels' needs the voxels")
            if labels.grid != self.grid_size:
                raise DataError(f'{path}: counts by cells of the grid {labels.grid}, expected {self.grid_size}')
        if self.form == 'voxels':
            semantics, *masks = labels.dense()
            if any(fine % side for fine, side in zip(semantics.shape, self.grid_size)):
                raise DataError(f'{path}: the grid is {semantics.shape}, expected a multiple of {self.grid_size}')
            results['voxel_semantics'] = semantics
            for name, mask in zip(MASKS, masks):
                results[name] = np.ones(self.grid_size, dtype=np.uint8) if mask is None else mask
        else:
            results['fine_counts'] = labels if isinstance(labels, CellCounts) else labels.counts(self.grid_size)
        if 'bda' in results:
            own = {name: results.get(name) for name in ('fine_counts',)} if self.form == 'counts' else results
            augment_labels(own, results)
            results.update(own)
        return results


def augment_labels(labels: dict, draw: dict) -> None:
    """Applies BEVAug's draw to the label volume, both masks and counts of fine voxels, in ``labels``.

    Args:
        labels: ``voxel_semantics``, ``mask_lidar``, ``mask_camera``, ``fine_counts``, as far as they are there.
        draw: what BEVAug has set.

    Raises:
        ConfigError: the augmentation may scale, or rotate counts.
    """
    if draw['bda_scales']:
        raise ConfigError('BEVAug may scale, which occupancy labels cannot follow: set scale_lim to (1, 1)')
    if draw['bda_rotates'] and labels.get('fine_counts') is not None:
        raise ConfigError('BEVAug may rotate, which counts of fine voxels cannot follow: allow flips only')
    if draw['rotate_bda']:
        for name, outside in (('voxel_semantics', 255), ('mask_lidar', 0), ('mask_camera', 0)):
            if labels.get(name) is not None:
                labels[name] = rotate_labels(labels[name], draw['rotate_bda'], outside)
    flip_labels(labels, draw['flip_dx'], draw['flip_dy'])


def rotate_labels(volume: np.ndarray, degrees: float, outside: int) -> np.ndarray:
    """Turns a (X, Y, Z) uint8 volume about the vertical line through its middle, from x to y, to the nearest cell.

    Cells whose content comes from beyond the volume get ``outside``.
    """
    angle = np.deg2rad(degrees)
    size_x, size_y = volume.shape[:2]
    x = torch.arange(size_x, dtype=torch.float32) - (size_x - 1) / 2
    y = torch.arange(size_y, dtype=torch.float32) - (size_y - 1) / 2
    y, x = torch.meshgrid(y, x, indexing='ij')
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # where the content of each cell was before
    grid = torch.stack([(cos * x + sin * y) * (2 / size_x), (cos * y - sin * x) * (2 / size_y)], dim=-1)
    # one more than the labels, so that 0 tells what lies outside
    maps = torch.from_numpy(np.ascontiguousarray(volume)).permute(2, 1, 0)[None].float() + 1
    found = F.grid_sample(maps, grid[None], 'nearest', 'zeros', align_corners=False)[0].permute(2, 1, 0)
    return torch.where(found > 0, found - 1, outside).to(torch.uint8).contiguous().numpy()


def flip_labels(results: dict, flip_dx: bool, flip_dy: bool) -> None:
    """Reverses axis X (flip_dx) and axis Y (flip_dy) of label volume, masks and counts, in ``results``."""
    if results.get('fine_counts') is not None:
        results['fine_counts'] = results['fine_counts'].flip(flip_dx, flip_dy)
    step = (slice(None, None, -1 if flip_dx else 1), slice(None, None, -1 if flip_dy else 1))
    for name in ('voxel_semantics', 'mask_lidar', 'mask_camera'):
        if results.get(name) is not None:
            results[name] = results[name][step]
