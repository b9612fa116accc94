"""Rays with 2D labels, made while loading: from LiDAR points, from label files, from dense label maps."""

import os
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from occforge.errors import ConfigError, DataError

from ..label_maps import class_table, find_map, look_up, read_classes, read_depths
from ..occ3d import LIDARSEG_TO_OCC
from ..rays import (
    COLUMNS,
    DYNAMIC_CLASSES,
    LIDAR_POINT_COUNTS,
    NO_CLASS,
    check_classes,
    class_balance_weights,
    draw_weighted,
    ray_rows,
    read_point_labels,
    sampling_weights,
)
from .common import camera, camera_matrices, lidar_matrices, read_bytes, read_points, required_path
from .depth import nearest_points
from .image_segs import project


@TRANSFORMS.register_module()
class GenerateRays(BaseTransform):
    """Draws rays with depth and class from the cameras of this frame and of others of its scene.

    Sets ``rays`` (R, 13) float32 (``datasets.rays``), R at most ``max_rays``; how many there are differs from sample to
    sample. Needs PrepareImageInputs before it. Rays are in the key ego frame without augmentation: that of the images
    does not touch them, that of the ego frame is applied where the volume is known.

    Depth and class of a ray have their own sources. With points (``depth`` 'lidar' or 'files') the rays go through the
    points' pixels, depth and class of a point stay together whatever else falls on the pixel, and of points on the same
    pixel only the nearest is kept. Without points, pixels are drawn at random.

    Args:
        depth: 'lidar': the LiDAR's points, projected; 'files': ``<depth_dir>/<image file name>.bin``; 'maps': dense
            maps in ``depth_dir``; None: no depth.
        semantics: 'lidar': the points' lidarseg labels (with ``depth='lidar'``); 'files': ``<semantic_dir>/<image file
            name>.bin``, in the order of the depth files (with ``depth='files'``); 'maps': dense maps in
            ``semantic_dir``; None: no classes.
        depth_dir, semantic_dir: folders, relative to the data root; for maps see ``datasets.label_maps``.
        class_map: what the values of class maps mean, a dict or a JSON file; see ``label_maps.class_table``.
        depth_scale: metres per unit of 16-bit depth images.
        max_rays: rays of a sample; the published models take 38400.
        key_ego: ego frame of the rays, the same as the model's: 'first_camera', 'lidar' or a camera's name.
        min_depth, max_depth: metres; points and pixels outside are left out (depth maps: their depth is).
        pixel_size: side of the squares of which only the nearest point is kept; 0 keeps all.
        pixels_per_image: pixels drawn of each image where there are no points.
        class_balance: 'dataset': weights by the classes' numbers in nuScenes; 'sample': by those of this sample's rays;
            None: all rays alike.
        balance_strength: see ``class_balance_weights``.
        dynamic_classes, weight_adj, weight_dyn: see ``sampling_weights``.
        unlabelled_semantics: lidarseg labels also of frames that the dataset calls unlabelled (``with_gt`` is False);
            by default those give depth alone.
        load_dim: values a LiDAR point.
        mapping: raw lidarseg label -> class; default nuScenes'.

    The frames besides this one are those of the dataset's ``aux_frames``.

    Raises:
        ConfigError: sources that do not go together, or no image loader before.
        DataError: a file is missing or damaged.
    """

    def __init__(
        self,
        depth: str | None = 'lidar',
        semantics: str | None = 'lidar',
        depth_dir: str | None = None,
        semantic_dir: str | None = None,
        class_map=None,
        depth_scale: float = 1 / 256,
        max_rays: int = 38400,
        key_ego: str = 'first_camera',
        min_depth: float = 0.5,
        max_depth: float = 52.0,
        pixel_size: int = 1,
        pixels_per_image: int = 8192,
        class_balance: str | None = 'dataset',
        balance_strength: float = 0.005,
        dynamic_classes: Sequence[int] = DYNAMIC_CLASSES,
        weight_adj: float = 0.3,
        weight_dyn: float = 0.0,
        unlabelled_semantics: bool = False,
        load_dim: int = 5,
        mapping=None,
    ):
        allowed = {
            'lidar': ('lidar', 'maps', None),
            'files': ('files', 'maps', None),
            'maps': ('maps', None),
            None: ('maps',),
        }
        if depth not in allowed or semantics not in allowed[depth]:
            raise ConfigError(
                f'GenerateRays: depth={depth!r} with semantics={semantics!r}; expected one of '
                + '; '.join(f'{key!r} with {" or ".join(map(repr, value))}' for key, value in allowed.items())
            )
        for field, source, folder in (('depth_dir', depth, depth_dir), ('semantic_dir', semantics, semantic_dir)):
            if source in ('files', 'maps') and folder is None:
                raise ConfigError(f'GenerateRays: {field} is needed with {source!r}')
        if class_balance not in ('dataset', 'sample', None):
            raise ConfigError(f"GenerateRays.class_balance is {class_balance!r}, expected 'dataset', 'sample' or None")
        if max_rays < 1 or pixels_per_image < 1 or not 0 <= min_depth < max_depth:
            raise ConfigError('GenerateRays: max_rays and pixels_per_image are 1 or more, 0 <= min_depth < max_depth')
        self.depth, self.semantics = depth, semantics
        self.depth_dir, self.semantic_dir = depth_dir, semantic_dir
        self.class_table = None if class_map is None else class_table(class_map)
        self.depth_scale = depth_scale
        self.max_rays, self.key_ego, self.pixels_per_image = max_rays, key_ego, pixels_per_image
        self.min_depth, self.max_depth, self.pixel_size = min_depth, max_depth, pixel_size
        self.class_balance, self.balance_strength = class_balance, balance_strength
        self.dynamic_classes = check_classes(dynamic_classes, 'GenerateRays.dynamic_classes')
        self.weight_adj, self.weight_dyn = weight_adj, weight_dyn
        self.unlabelled_semantics = unlabelled_semantics
        self.load_dim = load_dim
        self.mapping = np.asarray(LIDARSEG_TO_OCC if mapping is None else mapping, dtype=np.uint8)

    def transform(self, results: dict) -> dict:
        if 'image_augmentations' not in results:
            raise ConfigError('GenerateRays needs PrepareImageInputs before it')
        names = results['used_cameras']
        sizes = {name: size for name, (size, _) in zip(names, results['image_augmentations'])}
        views = []  # (uv, depth, label, info, camera) of each image
        others = []
        for other, info in [(False, results), *((True, info) for info in results.get('aux_infos') or ())]:
            points = self._points(info) if self.depth == 'lidar' else None
            for name in names:
                uv, depth, label = self._pixels(results, info, name, sizes[name], points)
                views.append((uv, depth, label, info, name))
                others.append(np.full(len(uv), other))
        label, others = np.concatenate([view[2] for view in views]), np.concatenate(others)
        weights = sampling_weights(
            label, others, self._class_weight(label), self.dynamic_classes, self.weight_adj, self.weight_dyn
        )
        chosen = draw_weighted(weights, self.max_rays, results['rng'])
        rows, start = [np.empty((0, COLUMNS), dtype=np.float32)], 0
        global2key = np.linalg.inv(self._key_pose(results, names[0]))
        for uv, depth, own, info, name in views:
            first, last = np.searchsorted(chosen, (start, start + len(uv)))
            index = chosen[first:last] - start
            start += len(uv)
            if len(index):
                cam2img, cam2ego, ego2global = camera_matrices(info, name)
                cam2key = global2key @ ego2global @ cam2ego
                rows.append(ray_rows(uv[index], depth[index], own[index], cam2key, cam2img))
        results['rays'] = np.concatenate(rows)
        return results

    def _key_pose(self, results, first_camera):
        if self.key_ego == 'lidar':
            return lidar_matrices(results)[1]
        name = first_camera if self.key_ego == 'first_camera' else self.key_ego
        if name not in (results.get('images') or {}):
            raise ConfigError(
                f"GenerateRays.key_ego is {name!r}, expected 'first_camera', 'lidar' or a camera of "
                f'{sorted(results["images"])}'
            )
        return camera_matrices(results, name)[2]

    def _class_weight(self, label):
        if self.class_balance is None:
            return None
        counts = LIDAR_POINT_COUNTS
        if self.class_balance == 'sample':
            counts = np.bincount(label[label < len(LIDAR_POINT_COUNTS)], minlength=len(LIDAR_POINT_COUNTS))
        return class_balance_weights(counts, self.balance_strength)

    def _points(self, info):
        """A frame's cloud and the classes of its points."""
        path = info.get('lidar_path') or required_path(info.get('lidar_points') or {}, 'lidar_path')
        points = read_points(path, self.load_dim)
        unlabelled = info.get('with_gt') is False and not self.unlabelled_semantics
        if self.semantics != 'lidar' or unlabelled:
            return points, np.full(len(points), NO_CLASS, dtype=np.uint8)
        path = required_path(info, 'pts_semantic_mask_path')
        raw = np.frombuffer(read_bytes(path, 'lidarseg labels'), dtype=np.uint8)
        if len(raw) != len(points) or raw.max() >= len(self.mapping):
            raise DataError(
                f'{path}: lidarseg labels: {len(raw)} labels up to {raw.max()}, expected {len(points)} below '
                f'{len(self.mapping)}'
            )
        return points, self.mapping[raw]

    def _pixels(self, results, info, name, size, points):
        """(P, 2) continuous pixels, (P,) depths (0 = none) and (P,) classes (255 = none) of an image."""
        image = camera(info, name)['img_path']
        root = results.get('data_root', '')
        if self.depth in ('lidar', 'files'):
            if self.depth == 'lidar':
                uvd = project(info, name, points[0])
                label = points[1]
            else:
                uvd, label = self._point_files(os.path.join(root, self.depth_dir), root, image)
            kept = self._visible(uvd, size)
            uvd, label = uvd[kept], label[kept]
            uv, depth = uvd[:, :2], uvd[:, 2]
        else:
            rng = results['rng']
            uv = rng.random((self.pixels_per_image, 2)) * size[::-1]
            depth, label = np.zeros(len(uv)), np.full(len(uv), NO_CLASS, dtype=np.uint8)
            if self.depth == 'maps':
                path = find_map(os.path.join(root, self.depth_dir), name, image)
                depth = look_up(read_depths(path, size, self.depth_scale), uv, size)
                depth = np.where((depth >= self.min_depth) & (depth <= self.max_depth), depth, 0)
        if self.semantics == 'maps':
            path = find_map(os.path.join(root, self.semantic_dir), name, image)
            label = look_up(read_classes(path, size, self.class_table), uv, size)
        if self.depth == 'maps' or self.depth is None:
            known = (depth > 0) | (label != NO_CLASS)
            uv, depth, label = uv[known], depth[known], label[known]
        return uv, depth, label

    def _point_files(self, folder, root, image):
        name = f'{os.path.basename(image)}.bin'
        uvd = read_point_labels(os.path.join(folder, name)).astype(np.float64)
        if self.semantics != 'files':
            return uvd, np.full(len(uvd), NO_CLASS, dtype=np.uint8)
        path = os.path.join(root, self.semantic_dir, name)
        classes = read_point_labels(path)
        if len(classes) != len(uvd):
            raise DataError(f'{path}: 2D labels: {len(classes)} points, expected the {len(uvd)} of the depth file')
        values = classes[:, 2]
        if ((values < 0) | (values > NO_CLASS) | (values != np.floor(values))).any():
            raise DataError(f'{path}: 2D labels: holds values that are no class')
        return uvd, values.astype(np.uint8)

    def _visible(self, uvd, size):
        """Indices of the points in range and image; of those on a pixel the nearest."""
        inside = (uvd[:, 2] >= self.min_depth) & (uvd[:, 2] <= self.max_depth) & (uvd[:, :2] >= 0).all(1)
        kept = np.flatnonzero(inside & (uvd[:, 0] < size[1]) & (uvd[:, 1] < size[0]))
        if not self.pixel_size:
            return kept
        cells = uvd[kept] / [self.pixel_size, self.pixel_size, 1]
        cells[:, :2] = np.floor(cells[:, :2])
        extent = (-(-size[0] // self.pixel_size), -(-size[1] // self.pixel_size))
        _, point = nearest_points(cells, extent, (0.0, np.inf))
        return kept[np.sort(point)]
