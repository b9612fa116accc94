"""ESAM's pipeline for RGB-D frames with superpoints: loading, labels, augmentation, packing.

Names and settings are the published ones. Source: Xu et al., EmbodiedSAM, ICLR 2025.
"""

import os
from pathlib import PurePath

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import LoadAnnotations3D, LoadPointsFromFile, Pack3DDetInputs, PointSegClassMapping
from mmdet3d.datasets.transforms.formating import to_tensor
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import BasePoints, Det3DDataSample, PointData
from mmdet3d.structures.points import get_points_type
from mmengine.structures import InstanceData
from PIL import Image
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from occforge.errors import ConfigError, DataError

from .. import scannet_classes
from .common import read_bytes

# Pinhole cameras of the data sets, (fx, fy, cx, cy) for images of 640 x 480.
INTRINSICS = dict(
    scannet=(577.870605, 577.870605, 319.5, 239.5),
    scannet200=(577.870605, 577.870605, 319.5, 239.5),
    scenenn=(544.47329, 544.47329, 320.0, 240.0),
)
# Where the pipeline keeps the frames' images: under 'img', mmdet3d's RandomFlip3D would mirror them, and what was
# projected into them would lie elsewhere. The packers call them img.
IMAGE = 'frame_img'
# SceneNN's y axis points down: its points and poses are turned so that z is up.
SCENENN_ROTATION = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


def upright_pose(pose) -> np.ndarray:
    """A pose (4, 4), camera to world, of SceneNN in the world whose z is up."""
    turned = np.array(pose, dtype=np.float64)
    turned[:3] = SCENENN_ROTATION @ turned[:3]
    return turned


def intrinsic_matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """(4, 4) float64."""
    matrix = np.eye(4)
    matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2] = fx, fy, cx, cy
    return matrix


def read_ids(path) -> np.ndarray:
    """A ``.bin`` file of int64, one a point."""
    content = read_bytes(path, 'label file')
    if len(content) % 8:
        raise DataError(f'{path}: label file: {len(content)} bytes are no multiple of 8 (int64)')
    return np.frombuffer(content, dtype='<i8').astype(np.int64)


def read_cloud(path, load_dim: int = 6) -> np.ndarray:
    """A ``.bin`` point file of float32, (P, load_dim)."""
    content = read_bytes(path, 'point file')
    if len(content) % (4 * load_dim):
        raise DataError(f'{path}: point file: {len(content)} bytes are no multiple of {4 * load_dim}')
    return np.frombuffer(content, dtype='<f4').reshape(-1, load_dim).astype(np.float32)


@TRANSFORMS.register_module()
class LoadPointsFromFile_(LoadPointsFromFile):
    """mmdet3d's ``LoadPointsFromFile``; the points of SceneNN (``dataset_type='scenenn'``) are turned upright."""

    def __init__(self, dataset_type: str = 'scannet', **kwargs):
        super().__init__(**kwargs)
        self.dataset_type = dataset_type

    def transform(self, results: dict) -> dict:
        results = super().transform(results)
        if self.dataset_type == 'scenenn':
            results['points'].tensor[:, :3] = results['points'].tensor[:, :3] @ torch.tensor(
                SCENENN_ROTATION.T, dtype=torch.float32
            )
            if 'pose' in results:
                results['pose'] = upright_pose(results['pose'])
        return results


@TRANSFORMS.register_module()
class LoadAnnotations3D_(LoadAnnotations3D):
    """mmdet3d's ``LoadAnnotations3D`` and the superpoint of each point (``super_pts_path``).

    In evaluation ``eval_ann_info`` also has ``sp_pts_mask`` and ``lidar_idx``, the point file's stem.
    """

    def __init__(self, with_sp_mask_3d: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.with_sp_mask_3d = with_sp_mask_3d

    def transform(self, results: dict) -> dict:
        results = super().transform(results)
        if self.with_sp_mask_3d:
            sp = read_ids(results['super_pts_path'])
            if len(sp) != len(results['points']):
                raise DataError(f'{results["super_pts_path"]}: {len(sp)} ids for {len(results["points"])} points')
            results['sp_pts_mask'] = sp
            if 'eval_ann_info' in results:
                stem = PurePath(results['lidar_path']).stem
                results['eval_ann_info'].update(sp_pts_mask=sp, lidar_idx=stem)
        return results


@TRANSFORMS.register_module()
class SwapChairAndFloor(BaseTransform):
    """Raw ids 2 and 3 of ScanNet200 change places, so that the first two classes are wall and floor."""

    def transform(self, results: dict) -> dict:
        results['pts_semantic_mask'] = self._swapped(results['pts_semantic_mask'])
        if 'eval_ann_info' in results:
            results['eval_ann_info']['pts_semantic_mask'] = results['pts_semantic_mask'].copy()
        return results

    @staticmethod
    def _swapped(mask):
        mask = np.array(mask)
        two, three = mask == 2, mask == 3
        mask[two], mask[three] = 3, 2
        return mask


@TRANSFORMS.register_module()
class SwapChairAndFloorWithRec(SwapChairAndFloor):
    """``SwapChairAndFloor``, for the labels of the reconstruction, too."""

    def transform(self, results: dict) -> dict:
        if 'rec_semantic_mask' in results:
            results['rec_semantic_mask'] = self._swapped(results['rec_semantic_mask'])
        results['pts_semantic_mask'] = self._swapped(results['pts_semantic_mask'])
        return results


@TRANSFORMS.register_module()
class LabelsFromNYU40(BaseTransform):
    """NYU40 numbers, the labels of SceneNN and 3RScan, become the raw ids of ScanNet200, where
    ``SwapChairAndFloorWithRec`` stands for ScanNet's own; the reconstruction's, too."""

    TABLE = np.array(scannet_classes.nyu40_to_scannet200())

    def transform(self, results: dict) -> dict:
        for name in ('pts_semantic_mask', 'rec_semantic_mask'):
            if name in results:
                labels = np.asarray(results[name])
                if labels.size and not 0 <= labels.min() <= labels.max() < len(self.TABLE):
                    raise DataError(f'{name}: labels {labels.min()} to {labels.max()}, expected NYU40 numbers, 0 to 40')
                results[name] = self.TABLE[labels]
        return results


@TRANSFORMS.register_module()
class PointSegClassMappingWithRec(PointSegClassMapping):
    """mmdet3d's ``PointSegClassMapping``, for the labels of the reconstruction, too, which are those of evaluation."""

    def transform(self, results: dict) -> dict:
        mapping = results['seg_label_mapping']
        results['pts_semantic_mask'] = mapping[results['pts_semantic_mask']]
        if 'rec_semantic_mask' in results:
            results['rec_semantic_mask'] = mapping[results['rec_semantic_mask']]
        if 'eval_ann_info' in results:
            name = 'rec_semantic_mask' if 'rec_semantic_mask' in results else 'pts_semantic_mask'
            results['eval_ann_info']['pts_semantic_mask'] = results[name].copy()
        return results


@TRANSFORMS.register_module()
class NormalizePointsColor_(BaseTransform):
    """(colour - mean) / std.

    Args:
        color_mean, color_std: of R, G, B, 0..255.
    """

    def __init__(self, color_mean, color_std=(1.0, 1.0, 1.0)):
        self.mean = torch.tensor(color_mean, dtype=torch.float32)
        self.std = torch.tensor(color_std, dtype=torch.float32)

    def transform(self, results: dict) -> dict:
        points = results['points']
        if not points.attribute_dims or 'color' not in points.attribute_dims:
            raise DataError('NormalizePointsColor_: the points have no colours (use_color=True)')
        columns = points.attribute_dims['color']  # not its setter, which warns of values outside of 0..255
        points.tensor[:, columns] = (points.tensor[:, columns] - self.mean) / self.std
        return results


def contiguous_instances(instance, semantic, num_classes: int, stuff_classes) -> tuple[np.ndarray, np.ndarray]:
    """Instance of each point as 0..I-1, -1 for stuff and unlabelled points, and the I original ids."""
    instance = np.array(instance)
    instance[(semantic == num_classes) | np.isin(semantic, stuff_classes)] = -1
    ids = np.unique(instance[instance != -1])
    if len(ids) == 0:
        return np.full_like(instance, -1), ids
    return np.where(instance == -1, -1, np.searchsorted(ids, instance)), ids


def superpoint_masks(instance, semantic, sp, instances: int, num_classes: int) -> np.ndarray:
    """(I + num_classes + 1, S) bool: the superpoints of which more than half belongs to an instance or class; a
    superpoint of no class is in the last row."""
    count = int(sp.max()) + 1 if len(sp) else 0
    size = np.maximum(np.bincount(sp, minlength=count), 1)

    def share(label, rows):
        inside = (label >= 0) & (label < rows)
        votes = np.bincount(label[inside] * count + sp[inside], minlength=rows * count)
        return votes.reshape(rows, count) / size > 0.5

    classes = share(semantic, num_classes + 1)
    classes[-1] |= ~classes.any(0)
    return np.concatenate([share(instance, instances), classes])


def instance_labels(instance, semantic, instances: int, num_classes: int, stuff: int) -> np.ndarray:
    """(I + num_classes + 1,) int64 class of each instance, without stuff, by its first point; -1 where it has none;
    0 in the tail."""
    labels = np.zeros(instances + num_classes + 1, dtype=np.int64)
    labels[:instances] = -1
    numbers, first = np.unique(instance, return_index=True)
    seen = numbers >= 0
    labels[numbers[seen]] = semantic[first[seen]] - stuff
    return labels


def evaluation_instances(instance, semantic, stuff_classes) -> np.ndarray:
    """Instance ids as evaluation wants them: stuff classes first, then the instances; -1 for no label."""
    ids = np.where(instance >= 0, instance + len(stuff_classes), -1)
    for number, each in enumerate(stuff_classes):
        ids[semantic == each] = number
    return ids


@TRANSFORMS.register_module()
class AddSuperPointAnnotations(BaseTransform):
    """Labels of superpoints from labels of points.

    Args:
        num_classes: semantic classes; the label of unlabelled points.
        stuff_classes: classes without instances.
        merge_non_stuff_cls: accepted as False.

    Sets ``pts_instance_mask`` (contiguous, -1: none), ``gt_labels_3d``, ``gt_sp_masks``.
    """

    def __init__(self, num_classes: int, stuff_classes=(0, 1), merge_non_stuff_cls: bool = False):
        if merge_non_stuff_cls:
            raise ConfigError(f'{type(self).__name__}.merge_non_stuff_cls is True, only False is supported')
        self.num_classes, self.stuff_classes = num_classes, list(stuff_classes)

    def transform(self, results: dict) -> dict:
        semantic, sp = results['pts_semantic_mask'], results['sp_pts_mask']
        instance, ids = contiguous_instances(
            results['pts_instance_mask'], semantic, self.num_classes, self.stuff_classes
        )
        results['pts_instance_mask'] = instance
        if 'eval_ann_info' in results:
            results['eval_ann_info']['pts_instance_mask'] = evaluation_instances(instance, semantic, self.stuff_classes)
        stuff = len(self.stuff_classes)
        results['gt_labels_3d'] = instance_labels(instance, semantic, len(ids), self.num_classes, stuff)
        results['gt_sp_masks'] = superpoint_masks(instance, semantic, sp, len(ids), self.num_classes)
        return results


@TRANSFORMS.register_module()
class AddSuperPointAnnotations_Online(AddSuperPointAnnotations):
    """``AddSuperPointAnnotations`` frame by frame, with instances numbered over all frames.

    Args:
        with_rec: instances of evaluation are those of the reconstruction.
        num_classes, stuff_classes, merge_non_stuff_cls: as there.

    ``gt_labels_3d`` and ``gt_sp_masks`` become lists over the frames; an instance that a frame does not show has label
    -1 there. ``instance_ids``: the original ids.
    """

    def __init__(self, *args, with_rec: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.with_rec = with_rec

    def transform(self, results: dict) -> dict:
        frames, stuff = results['num_frames'], len(self.stuff_classes)
        semantic = results['pts_semantic_mask']
        instance, ids = contiguous_instances(
            results['pts_instance_mask'], semantic, self.num_classes, self.stuff_classes
        )
        results['pts_instance_mask'], results['instance_ids'] = instance, ids
        parts = [np.split(each, frames) for each in (instance, semantic, results['sp_pts_mask'])]
        results['gt_labels_3d'] = [
            instance_labels(i, s, len(ids), self.num_classes, stuff) for i, s, _ in zip(*parts)
        ]  # fmt: skip
        results['gt_sp_masks'] = [superpoint_masks(i, s, sp, len(ids), self.num_classes) for i, s, sp in zip(*parts)]
        if self.with_rec and 'rec_instance_mask' in results:
            results['rec_original_instance'] = results['rec_instance_mask']
            seen = results['rec_semantic_mask']
            rec, _ = contiguous_instances(results['rec_instance_mask'], seen, self.num_classes, self.stuff_classes)
            results['rec_instance_mask'] = rec
        else:
            rec, seen = instance, semantic
        if 'eval_ann_info' in results:
            results['eval_ann_info']['pts_instance_mask'] = evaluation_instances(rec, seen, self.stuff_classes)
        return results


def elastic_field(shape_of: np.ndarray, gran: int) -> list[RegularGridInterpolator]:
    """Three smooth random fields over the box of the points (voxels); draws from numpy's global generator."""
    size = np.abs(shape_of).max(0).astype(np.int32) // gran + 3
    noise = [np.random.randn(*size).astype(np.float32) for _ in range(3)]  # noqa: NPY002
    for axis in (0, 1, 2, 0, 1, 2):
        noise = [ndimage.convolve1d(each, np.ones(3, np.float32) / 3, axis=axis, mode='constant') for each in noise]
    axes = [np.linspace(-(n - 1) * gran, (n - 1) * gran, n) for n in size]
    return [RegularGridInterpolator(axes, each, bounds_error=False, fill_value=0) for each in noise]


@TRANSFORMS.register_module()
class ElasticTransfrom(BaseTransform):
    """Smooth random deformation; sets ``elastic_coords`` (P, 3), in voxels, always.

    Args:
        gran: voxels between the nodes of each field.
        mag: voxels, strength of each.
        voxel_size: metres.
        p: probability.
        with_rec: the field covers the frames' points (``points`` may have the reconstruction's behind them).
    """

    def __init__(self, gran, mag, voxel_size: float, p: float = 1.0, with_rec: bool = False):
        self.gran, self.mag, self.voxel_size, self.p, self.with_rec = gran, mag, voxel_size, p, with_rec

    def transform(self, results: dict) -> dict:
        points = results['points']
        xyz = np.asarray(getattr(points, 'coord', points)[:, :3], dtype=np.float32)
        coords = (xyz / self.voxel_size).astype(np.float64)
        frames = len(coords) - results.get('rec_count', 0) if self.with_rec else len(coords)
        if np.random.rand() < self.p:  # noqa: NPY002
            for gran, mag in zip(self.gran, self.mag):
                fields = elastic_field(coords[:frames], gran)
                coords = coords + np.stack([field(coords) for field in fields], 1) * mag
        results['elastic_coords'] = coords
        return results


def instance_boxes(xyz: np.ndarray, instance: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(I, 7) float32: centre, size and yaw 0 of the axis-aligned box of each of ``ids``; zeros where it has no
    point."""
    boxes = np.zeros((len(ids), 7), dtype=np.float32)
    for row, each in enumerate(ids):
        inside = xyz[instance == each]
        if len(inside):
            low, high = inside.min(0), inside.max(0)
            boxes[row, :6] = np.concatenate([(low + high) / 2, high - low])
    return boxes


@TRANSFORMS.register_module()
class BboxCalculation(BaseTransform):
    """Boxes of the instances from the reconstruction, as augmentation has left it; then drops its points.

    Args:
        voxel_size: metres of a unit of ``elastic_coords``.

    ``gt_bboxes_3d``: the (I, 7) boxes for each frame.
    """

    def __init__(self, voxel_size: float = 0.02):
        self.voxel_size = voxel_size

    def transform(self, results: dict) -> dict:
        count = results.pop('rec_count', 0)
        if not count:
            raise ConfigError('BboxCalculation needs LoadAdjacentDataFromFile with with_rec=True and cat_rec=True')
        xyz = np.asarray(results['elastic_coords'][-count:]) * self.voxel_size
        boxes = instance_boxes(xyz, results['rec_original_instance'], results['instance_ids'])
        results['gt_bboxes_3d'] = [boxes.copy() for _ in range(results['num_frames'])]
        results['points'] = results['points'][: len(results['points']) - count]
        results['elastic_coords'] = results['elastic_coords'][:-count]
        return results


@TRANSFORMS.register_module()
class LoadAdjacentDataFromFile(BaseTransform):
    """Points and labels of neighbouring frames of a scene, one after the other.

    Args:
        num_frames: so many in a row from a random one on (round to the start at the end); -1: all.
        num_sample: points of a frame.
        max_frames: where all are wanted, at most so many, evenly spaced; -1: all.
        load_dim, use_dim: columns of the point files.
        use_color, coord_type, shift_height: as mmdet3d's ``LoadPointsFromFile``.
        with_mask_3d, with_seg_3d, with_sp_mask_3d: which labels are read.
        with_bbox_3d, with_label_3d: accepted as False.
        with_rec: read the reconstruction, too (labels of evaluation, boxes).
        cat_rec: append its points, so that augmentation moves them, too.
        use_FF: keep paths of the images and poses of the chosen frames, and read the images.
        keep_images: keep the paths and poses without reading images.
        dataset_type: 'scannet', 'scannet200', 'scenenn' or '3rscan'.
        rec_root: folder of the reconstructions, default ``data/<dataset_type>``.
    """

    def __init__(
        self,
        num_frames: int = -1,
        num_sample: int = 20000,
        max_frames: int = -1,
        load_dim: int = 6,
        use_dim=(0, 1, 2, 3, 4, 5),
        use_color: bool = True,
        coord_type: str = 'DEPTH',
        shift_height: bool = False,
        with_mask_3d: bool = True,
        with_seg_3d: bool = True,
        with_sp_mask_3d: bool = True,
        with_bbox_3d: bool = False,
        with_label_3d: bool = False,
        with_rec: bool = False,
        cat_rec: bool = False,
        use_FF: bool = False,
        keep_images: bool = False,
        dataset_type: str = 'scannet200',
        rec_root: str | None = None,
        **unused,
    ):
        if shift_height or with_bbox_3d or with_label_3d:
            raise ConfigError('LoadAdjacentDataFromFile: shift_height, with_bbox_3d, with_label_3d must be False')
        if set(unused) - {'backend_args', 'norm_intensity', 'norm_elongation', 'seg_3d_dtype'}:
            raise TypeError(f'LoadAdjacentDataFromFile: unknown arguments {sorted(unused)}')
        self.num_frames, self.num_sample, self.max_frames = num_frames, num_sample, max_frames
        self.load_dim, self.use_dim = load_dim, list(range(use_dim) if isinstance(use_dim, int) else use_dim)
        self.use_color, self.points_class = use_color, get_points_type(coord_type)
        self.with_mask_3d, self.with_seg_3d, self.with_sp_mask_3d = with_mask_3d, with_seg_3d, with_sp_mask_3d
        self.with_rec, self.cat_rec, self.use_FF, self.keep_images = with_rec, cat_rec, use_FF, keep_images or use_FF
        self.dataset_type = dataset_type
        self.rec_root = rec_root or os.path.join('data', dataset_type)

    def frames(self, count: int) -> list[int]:
        """Which of ``count`` frames."""
        if count == 0:
            raise DataError('a scene without frames')
        if self.num_frames > 0:
            begin = np.random.randint(count)  # noqa: NPY002
            return [(begin + i) % count for i in range(self.num_frames)]
        if 0 < self.max_frames < count:
            return np.floor(np.linspace(0, count - 1, self.max_frames)).astype(int).tolist()
        return list(range(count))

    def transform(self, results: dict) -> dict:
        chosen = self.frames(len(results['pts_paths']))
        # written back, so that what is read later belongs to the same frames
        for name in ('pts_paths', 'super_pts_paths', 'pts_instance_mask_paths', 'pts_semantic_mask_paths', 'img_paths'):
            if name in results:
                results[name] = [results[name][i] for i in chosen]
        for name in ('poses', 'clip_feat_paths'):
            if name in results:
                results[name] = [results[name][i] for i in chosen]
        if self.dataset_type == 'scenenn' and 'poses' in results:
            results['poses'] = [upright_pose(pose) for pose in results['poses']]
        clouds = [self._points(path) for path in results['pts_paths']]
        lidar_idx = results['point_cloud']['lidar_idx']
        results.update(num_frames=len(chosen), num_sample=self.num_sample, lidar_idx=lidar_idx)
        for wanted, name, paths in (
            (self.with_mask_3d, 'pts_instance_mask', 'pts_instance_mask_paths'),
            (self.with_seg_3d, 'pts_semantic_mask', 'pts_semantic_mask_paths'),
            (self.with_sp_mask_3d, 'sp_pts_mask', 'super_pts_paths'),
        ):
            if wanted:
                results[name] = np.concatenate([self._ids(path) for path in results[paths]])
        if 'eval_ann_info' in results:
            results['eval_ann_info'].update(lidar_idx=lidar_idx, sp_pts_mask=results.get('sp_pts_mask'))
        if self.with_rec:
            rec = self._reconstruction(results, lidar_idx)
            if self.cat_rec:
                clouds.append(rec)
                results['rec_count'] = len(rec)
        if self.use_FF:
            results[IMAGE] = np.stack([read_image(path) for path in results['img_paths']])
        points = np.concatenate(clouds)
        dims = dict(color=[3, 4, 5]) if self.use_color else None
        results['points'] = self.points_class(points, points_dim=points.shape[1], attribute_dims=dims)
        return results

    def _points(self, path) -> np.ndarray:
        points = read_cloud(path, self.load_dim)[:, self.use_dim]
        if len(points) != self.num_sample:
            raise DataError(f'{path}: {len(points)} points, expected num_sample={self.num_sample}')
        if self.dataset_type == 'scenenn':
            points[:, :3] = points[:, :3] @ SCENENN_ROTATION.T.astype(np.float32)
        return points

    def _ids(self, path) -> np.ndarray:
        ids = read_ids(path)
        if len(ids) != self.num_sample:
            raise DataError(f'{path}: {len(ids)} labels, expected num_sample={self.num_sample}')
        return ids

    def _reconstruction(self, results: dict, scene: str) -> np.ndarray:
        root = self.rec_root
        points = read_cloud(os.path.join(root, 'points', f'{scene}.bin'), self.load_dim)[:, self.use_dim]
        if self.dataset_type == 'scenenn':
            points[:, :3] = points[:, :3] @ SCENENN_ROTATION.T.astype(np.float32)
        results['rec_xyz'] = points[:, :3]
        results['rec_instance_mask'] = read_ids(os.path.join(root, 'instance_mask', f'{scene}.bin'))
        results['rec_semantic_mask'] = read_ids(os.path.join(root, 'semantic_mask', f'{scene}.bin'))
        if 'eval_ann_info' in results:
            results['eval_ann_info'].update(rec_xyz=points[:, :3], segment_ids=self._segments(scene, len(points)))
        return points

    def _segments(self, scene: str, count: int) -> np.ndarray:
        segments = read_ids(os.path.join(self.rec_root, 'super_points', f'{scene}.bin'))
        if len(segments) != count:
            raise DataError(f'{self.rec_root}/super_points/{scene}.bin: {len(segments)} ids for {count} points')
        return segments


def read_image(path) -> np.ndarray:
    """(3, H, W) uint8 RGB."""
    try:
        with Image.open(path) as image:
            return np.ascontiguousarray(np.asarray(image.convert('RGB')).transpose(2, 0, 1))
    except OSError as error:
        raise DataError(f'{path}: image cannot be read: {error}') from error


@TRANSFORMS.register_module()
class LoadFrameImage(BaseTransform):
    """Reads ``img_path`` (or each of ``img_paths``): ``frame_img`` (3, H, W) uint8 RGB, with frames in front where
    several."""

    def transform(self, results: dict) -> dict:
        if 'img_paths' in results:
            results[IMAGE] = np.stack([read_image(path) for path in results['img_paths']])
        else:
            results[IMAGE] = read_image(results['img_path'])
        return results


def project(xyz: np.ndarray, pose: np.ndarray, intrinsics, size=(640, 480)) -> np.ndarray:
    """Pixels (P, 2) float32 of world points, NaN where they are outside of the image or behind the camera.

    Args:
        xyz: (P, 3) metres.
        pose: (4, 4) camera to world.
        intrinsics: fx, fy, cx, cy.
        size: (W, H).
    """
    fx, fy, cx, cy = intrinsics
    to_camera = np.linalg.inv(np.asarray(pose, dtype=np.float64))
    camera = xyz.astype(np.float64) @ to_camera[:3, :3].T + to_camera[:3, 3]
    depth = np.where(camera[:, 2] > 1e-3, camera[:, 2], np.nan)
    uv = np.stack([fx * camera[:, 0] / depth + cx, fy * camera[:, 1] / depth + cy], 1)
    # pixel centres are whole numbers: the image reaches half a pixel further
    inside = (uv >= -0.5).all(1) & (uv < np.array(size) - 0.5).all(1)
    uv[~inside] = np.nan
    return uv.astype(np.float32)


@TRANSFORMS.register_module()
class ProjectPointsToImage(BaseTransform):
    """Where each point lies in its frame's image: ``clip_uv`` (P, 2), NaN outside.

    Comes right behind the loaders: augmentation moves points, not what they show.

    Args:
        dataset_type: whose camera.
        intrinsics: fx, fy, cx, cy, where it is another one.
        image_size: (W, H).
    """

    def __init__(self, dataset_type: str = 'scannet200', intrinsics=None, image_size=(640, 480)):
        if intrinsics is None and dataset_type not in INTRINSICS:
            raise ConfigError(f'ProjectPointsToImage: the camera of {dataset_type!r} is not known, set intrinsics')
        self.intrinsics = tuple(intrinsics or INTRINSICS[dataset_type])
        self.image_size = tuple(image_size)

    def transform(self, results: dict) -> dict:
        if any(results.get(name) for name in ('transformation_3d_flow', 'flip_xy')):
            raise ConfigError('ProjectPointsToImage must come before the augmentations')
        xyz = np.asarray(results['points'].tensor[:, :3])
        xyz = xyz[: len(xyz) - results.get('rec_count', 0)]
        poses = results.get('poses')
        if poses is None:
            results['clip_uv'] = project(xyz, results['pose'], self.intrinsics, self.image_size)
        else:
            parts = np.split(xyz, len(poses))
            results['clip_uv'] = np.concatenate(
                [project(part, pose, self.intrinsics, self.image_size) for part, pose in zip(parts, poses)]
            )
        return results


def clip_path(img_path: str) -> str:
    """Feature file of an image: the folder ``2D`` becomes ``clip_feat``, the suffix ``.pt``.

    Raises:
        DataError: no folder of that name on the path.
    """
    parts = list(PurePath(img_path).parts)
    if '2D' not in parts[:-1]:
        raise DataError(f'{img_path}: no folder 2D on the path, from which that of the CLIP features follows')
    last = len(parts) - 2 - parts[-2::-1].index('2D')  # the innermost: what is above the data root may be named alike
    parts[last] = 'clip_feat'
    return str(PurePath(*parts).with_suffix('.pt'))


@TRANSFORMS.register_module()
class LoadClipFeature(BaseTransform):
    """Image features that ``tools/precompute_clip_feats.py`` has written: ``clip_pix`` and ``clip_global``, lists over
    the frames in multi-view data. None where there is no file; then the image is read, and the model computes them.

    Args:
        data_root: of paths that are not found as they are.
        dtype: 'fp16' or 'fp32'.
        strict: a missing file is an error.
        load_images: read the image of a frame without a file.
    """

    def __init__(self, data_root: str = '', dtype: str = 'fp16', strict: bool = False, load_images: bool = True):
        if dtype not in ('fp16', 'fp32'):
            raise ConfigError(f"LoadClipFeature.dtype is {dtype!r}, expected 'fp16' or 'fp32'")
        self.data_root, self.strict, self.load_images = data_root, strict, load_images
        self.dtype = torch.float16 if dtype == 'fp16' else torch.float32
        self.missing = 0

    def transform(self, results: dict) -> dict:
        many = 'img_paths' in results
        images = results['img_paths'] if many else [results['img_path']]
        given = results.get('clip_feat_paths' if many else 'clip_feat_path')
        paths = ([given] if isinstance(given, str) else given) or [clip_path(path) for path in images]
        found = [self._read(path) for path in paths]
        pix, mean = [each and each['pix'] for each in found], [each and each['global'] for each in found]
        if self.load_images and any(each is None for each in found):
            frames = [None if f is not None else read_image(self._resolve(p)) for f, p in zip(found, images)]
            shape = next(frame.shape for frame in frames if frame is not None)
            frames = [np.zeros(shape, np.uint8) if frame is None else frame for frame in frames]
            results[IMAGE] = np.stack(frames) if many else frames[0]
        results['clip_pix'] = pix if many else pix[0]
        results['clip_global'] = mean if many else mean[0]
        return results

    def _resolve(self, path: str) -> str:
        """As it is, or below the data root: data sets may have joined the two already."""
        joined = os.path.join(self.data_root, path)
        return joined if not os.path.isfile(path) and os.path.isfile(joined) else path

    def _read(self, path: str) -> dict | None:
        path = self._resolve(path)
        if not os.path.isfile(path):
            self.missing += 1
            if self.strict:
                raise DataError(f'{path}: no such file (CLIP features; tools/precompute_clip_feats.py writes them)')
            return None
        try:
            content = torch.load(path, map_location='cpu', weights_only=True)
            return {name: content[name].to(self.dtype) for name in ('pix', 'global')}
        except Exception as error:
            raise DataError(f'{path}: no CLIP features in it: {error}') from error


class _Packer(Pack3DDetInputs):
    """Common to both packers."""

    INPUT_NAMES = ('points', 'img', 'elastic_coords', 'clip_pix', 'clip_global', 'clip_uv', 'clip_mask', 'depth2img')
    INSTANCES = dict(gt_labels_3d='labels_3d', gt_sp_masks='sp_masks', gt_bboxes_3d='bboxes_3d')
    POINTS = ('pts_semantic_mask', 'pts_instance_mask', 'sp_pts_mask')

    def __init__(self, keys, dataset_type: str = 'scannet200', intrinsics=None, **kwargs):
        super().__init__(keys=keys, **kwargs)
        self.matrix = intrinsic_matrix(*(intrinsics or INTRINSICS.get(dataset_type, INTRINSICS['scannet200'])))

    def pack_single_results(self, results: dict) -> dict:
        results = dict(results)
        if isinstance(results['points'], BasePoints):
            results['points'] = results['points'].tensor
        frames = self._frames(results)
        keys = set(self.keys) | {'points'}
        if 'clip_pix' in keys:
            self._clip(results, frames)
            keys |= {'clip_mask', 'img'}
        results['img'] = results.pop(IMAGE, None)
        sample, inputs = Det3DDataSample(), {}
        for name in self.INPUT_NAMES:
            if name == 'depth2img' and 'depth2img' in keys:
                inputs[name] = torch.from_numpy(self._depth2img(results)).float()
            elif name in keys and results.get(name) is not None:
                inputs[name] = self._input(to_tensor(results[name]), name, frames, results)
        instances, points = InstanceData(), PointData()
        for name, field in self.INSTANCES.items():
            if name in keys and name in results:
                value = results[name]
                instances[field] = [to_tensor(each) for each in value] if isinstance(value, list) else to_tensor(value)
        for name in self.POINTS:
            if name in keys and name in results:
                value = to_tensor(results[name])
                points[name] = value if frames is None else value.reshape(frames, -1)
        sample.gt_instances_3d, sample.gt_pts_seg = instances, points
        sample.eval_ann_info = results.get('eval_ann_info')
        names = ('sample_idx', 'lidar_path', 'lidar_idx', 'img_path', 'img_paths', 'num_frames', 'pcd_rotation',
                 'pcd_scale_factor')  # fmt: skip
        meta = {name: results[name] for name in names if name in results}
        sample.set_metainfo(meta)
        return dict(inputs=inputs, data_samples=sample)

    def _clip(self, results: dict, frames: int | None) -> None:
        """Frames without features become zeros, ``clip_mask`` says which have some."""
        pix, mean = results['clip_pix'], results['clip_global']
        if frames is None:
            results['clip_mask'] = torch.tensor(pix is not None)
            if pix is None:
                results['clip_pix'] = results['clip_global'] = None
            return
        known = [each is not None for each in pix]
        results['clip_mask'] = torch.tensor(known)
        if not any(known):
            results['clip_pix'] = results['clip_global'] = None
            return
        first = known.index(True)
        fill = [torch.zeros_like(values[first]) for values in (pix, mean)]
        results['clip_pix'] = torch.stack([fill[0] if each is None else each for each in pix])
        results['clip_global'] = torch.stack([fill[1] if each is None else each for each in mean])


@TRANSFORMS.register_module()
class Pack3DDetInputs_(_Packer):
    """Inputs and labels of a frame.

    Args:
        keys: what is packed.
        dataset_type, intrinsics: the camera for ``depth2img`` (world to pixels, from ``pose``).
    """

    def _frames(self, results):
        return None

    def _input(self, value, name, frames, results):
        return value.float() if name in ('elastic_coords', 'points') else value

    def _depth2img(self, results):
        return self.matrix @ np.linalg.inv(np.asarray(results['pose'], dtype=np.float64))


@TRANSFORMS.register_module()
class Pack3DDetInputs_Online(_Packer):
    """``Pack3DDetInputs_`` with the frames as first axis: points (T, P, 6), masks (T, P); labels stay lists."""

    def _frames(self, results):
        return results['num_frames']

    def _input(self, value, name, frames, results):
        if name in ('points', 'elastic_coords', 'clip_uv'):
            value = value.float().reshape(frames, -1, value.shape[-1])
        return value

    def _depth2img(self, results):
        return np.stack([self.matrix @ np.linalg.inv(np.asarray(pose, dtype=np.float64)) for pose in results['poses']])
