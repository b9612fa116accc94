"""Transforms of BEVFusion's pipelines; random ones draw from ``results['rng']`` where the data set gives it.

All matrices follow Liu et al., "BEVFusion", ICRA 2023: ``img_aug_matrix`` takes pixels of the file to pixels of the
network's image, ``lidar_aug_matrix`` takes the LiDAR frame to the augmented one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmdet3d.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from PIL import Image

from occforge.errors import ConfigError, DataError

from .maps import MAP_CLASSES, map_masks


def rng_of(results: Mapping) -> np.random.Generator:
    """The sample's generator, or (data sets that give none) one of torch's seed, which differs by worker and call."""
    rng = results.get('rng')
    return np.random.default_rng(int(torch.randint(2**62, ()))) if rng is None else rng


def _read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (OSError, SyntaxError) as error:
        raise DataError(f'{path}: not a readable image ({error})') from error


# ------------------------------------------------------------------------------------------------------------- loading
@TRANSFORMS.register_module()
class BEVLoadMultiViewImageFromFiles(BaseTransform):
    """Reads the images of ``results['images']`` and the cameras' matrices.

    Sets ``img``: list of PIL images (RGB), and arrays (N, 4, 4) float64 ``cam2img`` (of the files' pixels),
    ``lidar2cam``, ``cam2lidar``, ``lidar2img``, ``ori_cam2img``, and ``cam2ego`` where the info has it.

    Args:
        to_float32, color_type, backend_args, num_views, num_ref_frames, test_mode, set_default_scale: accepted for the
            published configs.
    """

    def __init__(self, **kwargs):
        unknown = set(kwargs) - {
            'to_float32', 'color_type', 'backend_args', 'num_views', 'num_ref_frames', 'test_mode', 'set_default_scale'
        }  # fmt: skip
        if unknown:
            raise ConfigError(f'BEVLoadMultiViewImageFromFiles: unknown fields {sorted(unknown)}')

    def transform(self, results: dict) -> dict:
        where = f'{results.get("source", "sample")}: sample {results.get("token")}'
        images, matrices = [], {name: [] for name in ('cam2img', 'lidar2cam', 'cam2ego')}
        for name, item in results['images'].items():
            for field in ('img_path', 'cam2img', 'lidar2cam'):
                if item.get(field) is None:
                    raise DataError(f'{where}: {name} has no {field!r}')
            images.append(_read_image(item['img_path']))
            for field, found in matrices.items():
                if item.get(field) is not None:
                    matrix = np.eye(4)
                    value = np.asarray(item[field], dtype=np.float64)
                    matrix[: value.shape[0], : value.shape[1]] = value
                    found.append(matrix)
        results['img'] = images
        results['img_path'] = [item['img_path'] for item in results['images'].values()]
        results['cam2img'] = results['ori_cam2img'] = np.stack(matrices['cam2img'])
        results['lidar2cam'] = np.stack(matrices['lidar2cam'])
        results['cam2lidar'] = np.linalg.inv(results['lidar2cam'])
        results['lidar2img'] = results['cam2img'] @ results['lidar2cam']
        if len(matrices['cam2ego']) == len(images):
            results['cam2ego'] = np.stack(matrices['cam2ego'])
        results['num_views'] = len(images)
        return results


def reduce_beams(points: np.ndarray, beams: int) -> np.ndarray:
    """The points of some beams of nuScenes' LiDAR with 32, chosen by elevation.

    Args:
        points: (P, >= 3) in the LiDAR frame.
        beams: 16 (every second), 4 or 1 (in the middle); 32 and more: all.

    Raises:
        ConfigError: another number.
    """
    if beams >= 32:
        return points
    kept = {16: range(1, 32, 2), 4: (7, 9, 11, 13), 1: (9,)}.get(beams)
    if kept is None:
        raise ConfigError(f'reduce_beams is {beams}, expected 1, 4, 16, or 32 and more')
    # elevations in radians, from the highest down
    table = np.full(32, 0.1862)
    for index in range(1, 31):
        table[index] = table[index - 1] - 0.023275
    table[31] = -0.5353
    distance = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    elevation = np.arcsin(points[:, 2] / np.maximum(distance, 1e-12))
    mask = np.zeros(len(points), dtype=bool)
    for index in kept:
        mask |= (elevation < table[index - 1] - 0.012) & (elevation > table[index] - 0.012)
    return points[mask]


def thin_rings(points: np.ndarray, rings: np.ndarray, beams: int) -> np.ndarray:
    """Every n-th ring of a sensor that numbers its beams, so that about ``beams`` stay.

    Args:
        points: (P, C).
        rings: (P,) numbers of the beams, from 0.
        beams: how many are wanted; all where the sensor has no more.
    """
    number = int(rings.max()) + 1 if len(rings) else 0
    if number <= beams:
        return points
    chosen = np.unique(np.linspace(0, number - 1, beams).round().astype(int))
    return points[np.isin(rings.astype(int), chosen)]


@TRANSFORMS.register_module()
class BEVLoadPoints(BaseTransform):
    """Reads the key frame's points and those of sweeps before it into the key frame's LiDAR frame.

    Sets ``points`` (mmdet3d's LiDARPoints): x, y, z in metres, intensity, age in seconds (0 for the key frame).

    Args:
        sweeps_num: sweeps. In training any of those listed are drawn, in testing the nearest are taken.
        load_dim, use_dim: columns of the files, and those taken.
        reduce_beams: see ``reduce_beams``; for other sensors than nuScenes' see ``rings``.
        rings: thin the beams by the fifth column of the file, the ring's number, instead.
        remove_close: metres: points of sweeps (not of the key frame) nearer in x and in y are dropped: the own car.
        pad_empty_sweeps: repeat the key frame where there is no sweep.
    """

    def __init__(
        self,
        sweeps_num: int = 9,
        load_dim: int = 5,
        use_dim: int | Sequence[int] = 5,
        reduce_beams: int = 32,
        rings: bool = False,
        remove_close: float | bool = 1.0,
        pad_empty_sweeps: bool = True,
    ):
        self.sweeps_num, self.load_dim = sweeps_num, load_dim
        self.use_dim = list(range(use_dim)) if isinstance(use_dim, int) else list(use_dim)
        if max(self.use_dim) >= load_dim or load_dim < 5:
            raise ConfigError(f'BEVLoadPoints: use_dim {self.use_dim} of load_dim {load_dim} columns, 5 at least')
        if not rings and reduce_beams < 32 and reduce_beams not in (1, 4, 16):
            raise ConfigError(f'BEVLoadPoints.reduce_beams is {reduce_beams}, expected 1, 4, 16, or 32 and more')
        self.reduce_beams, self.rings = reduce_beams, rings
        self.close = 1.0 if remove_close is True else float(remove_close or 0.0)
        self.pad_empty_sweeps = pad_empty_sweeps

    def _read(self, path: str) -> np.ndarray:
        try:
            flat = np.fromfile(path, dtype=np.float32)
        except OSError as error:
            raise DataError(f'{path}: cannot be read ({error})') from error
        if flat.size % self.load_dim:
            raise DataError(f'{path}: {flat.size} numbers are no rows of {self.load_dim} (load_dim)')
        points = flat.reshape(-1, self.load_dim)
        points = points[np.isfinite(points).all(axis=1)]
        if self.rings:
            return thin_rings(points, points[:, 4], self.reduce_beams)
        return reduce_beams(points, self.reduce_beams)

    def _without_car(self, points: np.ndarray) -> np.ndarray:
        return points[(np.abs(points[:, 0]) >= self.close) | (np.abs(points[:, 1]) >= self.close)]

    def transform(self, results: dict) -> dict:
        from mmdet3d.structures.points import LiDARPoints

        lidar = results.get('lidar_points') or {}
        if not lidar.get('lidar_path'):
            raise DataError(f'{results.get("source", "sample")}: sample {results.get("token")} has no lidar_path')
        points = self._read(lidar['lidar_path'])
        points[:, 4] = 0.0
        clouds = [points]
        sweeps = results.get('lidar_sweeps') or []
        if not sweeps and self.pad_empty_sweeps:
            clouds += [self._without_car(points)] * self.sweeps_num
        number = min(self.sweeps_num, len(sweeps))
        places = range(number)
        if len(sweeps) > number and not results.get('test_mode'):
            places = rng_of(results).choice(len(sweeps), number, replace=False)
        for place in places:
            sweep = sweeps[place]
            cloud = self._without_car(self._read(sweep['lidar_points']['lidar_path']))
            sensor2lidar = np.linalg.inv(np.asarray(sweep['lidar_points']['lidar2sensor'], dtype=np.float64))
            cloud[:, :3] = cloud[:, :3] @ sensor2lidar[:3, :3].T + sensor2lidar[:3, 3]
            cloud[:, 4] = results['timestamp'] - sweep['timestamp']
            clouds.append(cloud)
        joined = np.concatenate(clouds)[:, self.use_dim]
        results['points'] = LiDARPoints(joined, points_dim=joined.shape[1])
        results['num_pts_feats'] = joined.shape[1]
        return results


@TRANSFORMS.register_module()
class LoadBEVSegmentation(BaseTransform):
    """Draws ``gt_masks_bev`` (classes, X, Y) uint8 in the present LiDAR frame. Stands after rotation, scaling and
    translation, before flips, which turn the masks themselves.

    Args:
        xbound, ybound: (lower, upper, step) metres.
        classes: names; see ``maps.layers_of``.
        dataset_root: folder that holds ``maps/``; None: the data set's.
        follow_scale: shrink the patch by the augmentation's scale, as the features are. False as the published models
            were trained.
        cache: keep the masks of samples that are not augmented.

    A sample without a map location gets no masks.
    """

    def __init__(
        self,
        xbound: Sequence[float],
        ybound: Sequence[float],
        classes: Sequence[str] = MAP_CLASSES,
        dataset_root: str | None = None,
        follow_scale: bool = True,
        cache: bool = True,
    ):
        self.xbound, self.ybound = tuple(xbound), tuple(ybound)
        self.classes = tuple(classes)
        self.dataset_root = dataset_root
        self.follow_scale = follow_scale
        self.kept: dict | None = {} if cache else None

    def transform(self, results: dict) -> dict:
        location = results.get('map_location')
        if location is None:
            return results
        matrix = np.asarray(results.get('lidar_aug_matrix', np.eye(4)), dtype=np.float64)
        key = results.get('token') if np.array_equal(matrix, np.eye(4)) else None
        if self.kept is not None and key in self.kept:
            shape, bits = self.kept[key]
            results['gt_masks_bev'] = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
            return results
        lidar2ego = np.asarray(results['lidar_points']['lidar2ego'], dtype=np.float64)
        lidar2global = np.asarray(results['ego2global'], dtype=np.float64) @ lidar2ego @ np.linalg.inv(matrix)
        scale = np.cbrt(np.abs(np.linalg.det(matrix[:3, :3]))) if self.follow_scale else 1.0
        root = self.dataset_root or results['data_root']
        masks = map_masks(root, location, lidar2global, self.xbound, self.ybound, self.classes, float(scale))
        if self.kept is not None and key is not None:
            self.kept[key] = masks.shape, np.packbits(masks)
        results['gt_masks_bev'] = masks
        return results


# -------------------------------------------------------------------------------------------------------- augmentation
def image_matrix(resize: float, crop: Sequence[int], flip: bool, rotate: float) -> np.ndarray:
    """(4, 4) of resize, crop (left, upper, right, lower), mirror and rotation (degrees) in this order."""
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    rotation, shift = np.eye(2) * resize, -np.array(crop[:2], dtype=np.float64)
    if flip:
        mirror = np.diag([-1.0, 1.0])
        rotation, shift = mirror @ rotation, mirror @ shift + [width, 0.0]
    angle = rotate / 180 * np.pi
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([width, height]) / 2
    matrix = np.eye(4)
    matrix[:2, :2], matrix[:2, 3] = turn @ rotation, turn @ shift + middle - turn @ middle
    return matrix


def augment_image(image: Image.Image, dims, crop, flip: bool, rotate: float) -> Image.Image:
    """The image after resize to ``dims`` (width, height), crop, mirror and rotation (degrees); black outside."""
    image = image.resize(tuple(dims)).crop(tuple(crop))
    if flip:
        image = image.transpose(method=Image.FLIP_LEFT_RIGHT)
    return image.rotate(rotate)


@TRANSFORMS.register_module()
class ImageAug3D(BaseTransform):
    """Resizes, crops, mirrors and turns every camera's image by a draw of its own.

    Sets ``img``: list of (H, W, 3) float32 arrays, ``img_aug_matrix`` (N, 4, 4).

    Args:
        final_dim: (H, W).
        resize_lim: (lower, upper) factor of the size of the file; None: from ``final_dim`` over the file's width, times
            0.94 to 1.25, for files of another size than 1600 x 900 (testing: times 1.09).
        bot_pct_lim: (lower, upper) share of the rows cut off below.
        rot_lim: (lower, upper) degrees.
        rand_flip: mirror half of the images.
        is_train: draw; else the middle of each range and no mirror.
    """

    def __init__(self, final_dim, resize_lim=None, bot_pct_lim=(0.0, 0.0), rot_lim=(0.0, 0.0), rand_flip=False,
                 is_train=False):  # fmt: skip
        self.final_dim = tuple(final_dim)
        self.resize_lim = None if resize_lim is None else tuple(resize_lim)
        self.bot_pct_lim, self.rot_lim = tuple(bot_pct_lim), tuple(rot_lim)
        self.rand_flip, self.is_train = rand_flip, is_train

    def draw(self, size: tuple[int, int], rng: np.random.Generator | None):
        """Factor, (width, height), crop, mirror and degrees for a file of ``size`` (width, height)."""
        (height, width), (file_width, file_height) = self.final_dim, size
        limits = self.resize_lim
        if limits is None:
            least = width / file_width
            limits = (0.94 * least, 1.25 * least) if rng is not None else (1.09 * least,) * 2
        if rng is not None:
            resize = rng.uniform(*limits)
            dims = int(file_width * resize), int(file_height * resize)
            top = int((1 - rng.uniform(*self.bot_pct_lim)) * dims[1]) - height
            left = int(rng.uniform(0, max(0, dims[0] - width)))
            flip = bool(self.rand_flip and rng.integers(2))
            rotate = rng.uniform(*self.rot_lim)
        else:
            resize = float(np.mean(limits))
            dims = int(file_width * resize), int(file_height * resize)
            top = int((1 - np.mean(self.bot_pct_lim)) * dims[1]) - height
            left = int(max(0, dims[0] - width) / 2)
            flip, rotate = False, 0.0
        return resize, dims, (left, top, left + width, top + height), flip, rotate

    def transform(self, results: dict) -> dict:
        rng = rng_of(results) if self.is_train else None
        images, matrices = [], []
        for image in results['img']:
            if not isinstance(image, Image.Image):
                image = Image.fromarray(np.asarray(image).astype(np.uint8))
            resize, dims, crop, flip, rotate = self.draw(image.size, rng)
            images.append(np.asarray(augment_image(image, dims, crop, flip, rotate), dtype=np.float32))
            matrices.append(image_matrix(resize, crop, flip, rotate))
        results['img'] = images
        results['img_shape'] = self.final_dim
        results['img_aug_matrix'] = np.stack(matrices)
        return results


def rotate_scale_translate(points, boxes, angle: float, scale: float, translation) -> np.ndarray:
    """Turns (radians, about z), shifts (metres), then scales points and boxes in place; returns the matrix (4, 4)."""
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    translation = np.asarray(translation, dtype=np.float64)
    for item in (points, boxes):
        if item is not None:
            item.rotate(angle)
            item.translate(torch.as_tensor(translation, dtype=torch.float32))
            item.scale(scale)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn.numpy() * scale, translation * scale
    return matrix


@TRANSFORMS.register_module()
class BEVFusionGlobalRotScaleTrans(BaseTransform):
    """Turns, shifts and scales points and boxes; updates ``lidar_aug_matrix``.

    Args:
        rot_range: (lower, upper) radians.
        scale_ratio_range: (lower, upper).
        translation_std: metres, number or one an axis.
    """

    def __init__(self, rot_range=(-0.785, 0.785), scale_ratio_range=(0.9, 1.1), translation_std=0.5, **kwargs):
        if set(kwargs) - {'shift_height'}:
            raise ConfigError(f'BEVFusionGlobalRotScaleTrans: unknown fields {sorted(kwargs)}')
        self.rot_range, self.scale_range = tuple(rot_range), tuple(scale_ratio_range)
        std = np.asarray(translation_std, dtype=np.float64)
        if std.shape not in ((), (1,), (3,)) or not (std >= 0).all():
            raise ConfigError(
                f'BEVFusionGlobalRotScaleTrans.translation_std is {translation_std}, expected metres, one or three'
            )
        self.std = np.broadcast_to(std, 3)

    def transform(self, results: dict) -> dict:
        rng = rng_of(results)
        scale, angle = rng.uniform(*self.scale_range), rng.uniform(*self.rot_range)
        translation = rng.normal(size=3) * self.std
        points, boxes = results.get('points'), results.get('gt_bboxes_3d')
        matrix = rotate_scale_translate(points, boxes, angle, scale, translation)
        results['lidar_aug_matrix'] = matrix @ results.get('lidar_aug_matrix', np.eye(4))
        return results


# mmdet3d's order is rotation, scaling, translation and records no matrix
TRANSFORMS.register_module(name='GlobalRotScaleTransAll', module=BEVFusionGlobalRotScaleTrans)


def flip_scene(results: dict, horizontal: bool, vertical: bool) -> None:
    """Mirrors y (horizontal) and x (vertical) of points, boxes, masks and ``lidar_aug_matrix``, in place."""
    matrix = np.eye(4)
    for name, wanted, axis in (('horizontal', horizontal, 1), ('vertical', vertical, 0)):
        if not wanted:
            continue
        matrix[axis, axis] = -1.0
        for key in ('points', 'gt_bboxes_3d'):
            if results.get(key) is not None:
                results[key].flip(name)
        if results.get('gt_masks_bev') is not None:  # (classes, X, Y)
            results['gt_masks_bev'] = np.flip(results['gt_masks_bev'], axis=axis + 1).copy()
    results['lidar_aug_matrix'] = matrix @ results.get('lidar_aug_matrix', np.eye(4))


@TRANSFORMS.register_module()
class BEVFusionRandomFlip3D(BaseTransform):
    """Mirrors y and x, each with probability ``flip_ratio``."""

    def __init__(self, flip_ratio: float = 0.5, **kwargs):
        self.flip_ratio = flip_ratio

    def transform(self, results: dict) -> dict:
        horizontal, vertical = rng_of(results).random(2) < self.flip_ratio
        flip_scene(results, bool(horizontal), bool(vertical))
        return results


def grid_mask(height: int, width: int, period: int, strip: int, start_row: int, start_column: int, use_h=True,
              use_w=True, rotate: int = 0, mode: int = 0) -> np.ndarray:  # fmt: skip
    """(height, width) float32 of 0 and 1: strips of 0 every ``period`` pixels; ``mode`` 1 exchanges 0 and 1.

    The strips are drawn on a canvas half as large again, which may be turned (degrees), and cut out of its middle.
    """
    rows, columns = int(1.5 * height), int(1.5 * width)
    mask = np.ones((rows, columns), np.uint8)
    for wanted, axis, start in ((use_h, 0, start_row), (use_w, 1, start_column)):
        if not wanted:
            continue
        for index in range(mask.shape[axis] // period):
            low = period * index + start
            part = [slice(None), slice(None)]
            part[axis] = slice(low, min(low + strip, mask.shape[axis]))
            mask[tuple(part)] = 0
    if rotate:
        mask = np.asarray(Image.fromarray(mask).rotate(rotate))
    top, left = (rows - height) // 2, (columns - width) // 2
    mask = mask[top : top + height, left : left + width].astype(np.float32)
    return 1 - mask if mode == 1 else mask


@TRANSFORMS.register_module()
class GridMask(BaseTransform):
    """Hides a grid of strips in all images.

    Source: P. Chen et al., "GridMask Data Augmentation", 2020.

    Args:
        use_h, use_w: strips along rows, along columns.
        max_epoch: with ``fixed_prob`` False the probability grows to ``prob`` over so many epochs.
        rotate: upper limit of the turn, degrees.
        ratio: of the strips' width to the period.
        mode: 1: only the strips stay visible.
        prob: probability in the end.
    """

    def __init__(self, use_h=True, use_w=True, max_epoch=6, rotate=1, offset=False, ratio=0.5, mode=0, prob=1.0,
                 fixed_prob=False):  # fmt: skip
        if offset:
            raise ConfigError('GridMask.offset is not supported')
        self.use_h, self.use_w, self.max_epoch, self.rotate = use_h, use_w, max_epoch, rotate
        self.ratio, self.mode, self.prob, self.fixed_prob = ratio, mode, prob, fixed_prob

    def transform(self, results: dict) -> dict:
        share = 1.0 if self.fixed_prob else min(results.get('epoch', self.max_epoch) / max(self.max_epoch, 1), 1.0)
        rng = rng_of(results)
        if rng.random() >= self.prob * share:
            return results
        height, width = results['img'][0].shape[:2]
        period = int(rng.integers(2, min(height, width)))
        strip = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        starts = rng.integers(period, size=2)
        turn = int(rng.integers(self.rotate)) if self.rotate else 0
        mask = grid_mask(height, width, period, strip, *starts, self.use_h, self.use_w, turn, self.mode)
        results['img'] = [image * mask[..., None] for image in results['img']]
        return results


# ------------------------------------------------------------------------------------------------------------- packing
_META_KEYS = (
    'cam2img', 'ori_cam2img', 'lidar2cam', 'lidar2img', 'cam2lidar', 'cam2ego', 'ori_lidar2img', 'img_aug_matrix',
    'box_type_3d', 'box_mode_3d', 'sample_idx', 'token', 'scene_token', 'lidar_path', 'img_path',
    'transformation_3d_flow', 'pcd_rotation', 'pcd_scale_factor', 'pcd_trans', 'lidar_aug_matrix', 'num_pts_feats',
    'num_views', 'timestamp', 'ego2global', 'lidar2ego', 'map_location', 'sample_seed',
)  # fmt: skip


@TRANSFORMS.register_module()
class PackBEVInputs(Pack3DDetInputs):
    """mmdet3d's ``Pack3DDetInputs`` with the map's masks, the cameras' matrices and ``lidar2ego``.

    ``data_samples.gt_masks_bev.masks`` (classes, X, Y) uint8.
    """

    def __init__(self, keys=('img', 'points', 'gt_bboxes_3d', 'gt_labels_3d', 'gt_masks_bev'), meta_keys=_META_KEYS):
        super().__init__([key for key in keys if key != 'gt_masks_bev'], meta_keys)
        self.with_masks = 'gt_masks_bev' in keys

    def transform(self, results: dict) -> dict:
        masks = results.pop('gt_masks_bev', None)
        lidar = results.get('lidar_points') or {}
        results.setdefault('lidar2ego', lidar.get('lidar2ego'))
        packed = super().transform(results)
        if self.with_masks and masks is not None:
            packed['data_samples'].gt_masks_bev = BaseDataElement(masks=torch.from_numpy(np.ascontiguousarray(masks)))
        return packed
