"""What a model says, by task, in forms that can be saved and drawn.

A task is a class with the decorator :func:`register_result`. Four are there: occupancy, boxes, map and instances. A
system whose models predict something else registers its own, in the module that registers its models.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from occforge.datasets import occ3d
from occforge.datasets.scannet import STUFF
from occforge.errors import ConfigError, DataError
from occforge.fileio import atomic_write
from occforge.visualization import (
    Camera,
    Layer,
    box_layer,
    box_mesh,
    draw_camera_grid,
    draw_map,
    draw_occupancy_sample,
    draw_point_cloud,
    draw_points_top,
    draw_sensor_sample,
    instance_colours,
    instance_palette,
    read_image,
    side_by_side,
    voxel_mesh,
    write_occupancy_page,
    write_ply,
    write_png,
)
from occforge.visualization.canvas import Pen, blank, paste
from occforge.visualization.clouds import map_colours
from occforge.visualization.sensors import class_colour

FORMATS = ('npz', 'ply', 'png', 'html')


@dataclass(frozen=True)
class Setting:
    """What a model's config says about its answers.

    Attributes:
        class_names: of the data set.
        palette: (classes, 3) RGB of these, or None.
        point_cloud_range: metres, of occupancy grids and of pictures from above.
        map_classes: of the model's map head.
        map_range: (x0, y0, x1, y1) metres of its masks, or None.
    """

    class_names: tuple = ()
    palette: np.ndarray | None = None
    point_cloud_range: tuple = tuple(occ3d.POINT_CLOUD_RANGE)
    map_classes: tuple = ()
    map_range: tuple | None = None


@dataclass
class Scene:
    """The sample that a result is about: its item of the info file and what the pipeline made of it.

    Attributes:
        name: token, or the sample's number.
        info: item of the info file with absolute paths (mmdet3d-v2 layout).
        inputs: the packed ``inputs`` of the pipeline.
        truth: what :func:`truth_of` finds where labels have been loaded, else None.
    """

    name: str
    info: Mapping = field(default_factory=dict)
    inputs: Mapping = field(default_factory=dict)
    truth: Mapping | None = None

    def load(self) -> None:
        """Read images and points now; else they are read when they are first wanted."""
        _ = self.images, self.points

    @property
    def title(self) -> str:
        return '   '.join(part for part in (str(self.info.get('scene_name') or ''), self.name) if part)

    @property
    def cameras(self) -> dict:
        """{name: dict with lidar2cam and cam2img} of the cameras that have both."""
        images = self.info.get('images') or {}
        return {name: item for name, item in images.items() if 'lidar2cam' in item and 'cam2img' in item}

    @cached_property
    def images(self) -> dict:
        """{name: (H, W, 3) uint8 RGB} of the cameras with a file."""
        images = self.info.get('images') or {}
        return {name: read_image(item['img_path']) for name, item in images.items() if item.get('img_path')}

    @cached_property
    def points(self) -> np.ndarray | None:
        """(P, F) float32 of the key frame's LiDAR file, LiDAR frame, metres."""
        lidar = self.info.get('lidar_points') or {}
        if not lidar.get('lidar_path'):
            return None
        width = int(lidar.get('num_pts_feats', 5))
        raw = np.fromfile(lidar['lidar_path'], np.float32)
        if raw.size % width:
            raise DataError(f'{lidar["lidar_path"]}: {raw.size} numbers, expected a multiple of {width} a point')
        return raw.reshape(-1, width)


def scene_of(dataset, number: int, inputs: Mapping, sample, with_labels: bool = True) -> Scene:
    """Sample ``number`` of a data set, with what the pipeline packed for it."""
    info = dataset.get_data_info(number)
    known = {**(sample.get('eval_ann_info') or {}), **sample.metainfo, **info}
    name = str(known.get('token', known.get('lidar_idx', known.get('sample_idx', number))))
    return Scene(name, info, inputs, truth_of(sample, info) if with_labels else None)


def truth_of(sample, info: Mapping) -> dict | None:
    """The labels that a packed data sample and its item of the info file hold; None without any.

    ``semantics`` (X, Y, Z), ``mask_camera``, ``mask_lidar``: voxels (``gt_occ``). ``boxes`` (M, 7 or 9) by their
    middles, ``labels`` (M,): objects (``eval_ann_info``, LiDAR frame). ``map`` (classes, X, Y) bool (``gt_masks_bev``).
    ``instances`` (P,) numbers of the points' instances (``eval_ann_info``), -1: none, walls and floors.
    """
    truth = {}
    voxels, masks = sample.get('gt_occ'), sample.get('gt_masks_bev')
    if voxels is not None and voxels.get('semantics') is not None:
        fields = {name: voxels.get(name) for name in ('semantics', 'mask_camera', 'mask_lidar')}
        truth.update({name: array_of(value) for name, value in fields.items() if value is not None})
    if masks is not None:
        truth['map'] = array_of(masks.masks).astype(bool)
    annotations = info.get('eval_ann_info') or sample.get('eval_ann_info') or {}
    if annotations.get('gt_bboxes_3d') is not None:
        truth['boxes'] = box_array(annotations['gt_bboxes_3d'])
        truth['labels'] = array_of(annotations['gt_labels_3d']).astype(np.int64)
    if annotations.get('pts_instance_mask') is not None:
        truth['instances'] = np.maximum(array_of(annotations['pts_instance_mask']).astype(np.int64) - STUFF, -1)
    return truth or None


def setting_of(cfg, model, meta: Mapping | None) -> Setting:
    """Class names, colours and ranges of a config's data set (its ``metainfo``) and model."""
    meta = meta or {}
    area = cfg.get('occ_range') or cfg.get('point_cloud_range') or occ3d.POINT_CLOUD_RANGE
    palette = meta.get('palette')
    head = getattr(model, 'map_head', None)
    scope = getattr(getattr(head, 'transform', None), 'output_scope', None)
    return Setting(
        tuple(meta.get('classes') or ()),
        None if palette is None else np.asarray(palette)[:, :3],
        tuple(float(value) for value in area),
        tuple(getattr(head, 'classes', ())),
        None if scope is None else (scope[0][0], scope[1][0], scope[0][1], scope[1][1]),
    )


RESULTS: dict[str, type['Result']] = {}


def register_result(kind: type['Result']) -> type['Result']:
    """Class decorator: predictions are searched for this task, too; a later class of the same task replaces it."""
    RESULTS[kind.task] = kind
    return kind


class Result(ABC):
    """A model's answer to one task for one sample. Subclasses are dataclasses with numpy fields."""

    task: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_sample(cls, sample, setting: Setting, scene: Scene) -> 'Result | None':
        """This task's answer in a predicted ``Det3DDataSample``; None where it holds none."""

    @abstractmethod
    def arrays(self) -> dict:
        """Name -> array, what the npz file holds; names in it make no pickles."""

    @abstractmethod
    def picture(self, scene: Scene) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    def write_ply(self, path, scene: Scene) -> None:
        raise ConfigError(f'{self.task} has no 3D form; save it as npz or png')

    def write_html(self, path, scene: Scene) -> None:
        raise ConfigError(f'{self.task} has no 3D form; save it as npz or png')

    def save(self, path, scene: Scene) -> Path:
        """Write as the path's suffix says: .npz, .ply, .png or .html.

        Raises:
            ConfigError: another suffix, or a form that this task does not have.
        """
        path = Path(path)
        if path.suffix[1:] not in FORMATS:
            raise ConfigError(f'{path}: expected a name ending in {", ".join("." + name for name in FORMATS)}')
        if path.suffix == '.png':
            write_png(path, self.picture(scene))
        elif path.suffix == '.npz':
            with atomic_write(path, 'wb') as file:
                np.savez_compressed(file, **self.arrays())
        else:
            getattr(self, f'write_{path.suffix[1:]}')(path, scene)
        return path


@register_result
@dataclass
class Occupancy(Result):
    """Classes of a voxel grid.

    Reads ``pred_occ.semantics``. Saved as npz it is a prediction file of the Occ3D challenge, ``arr_0``, which
    ``tools/eval_occ.py`` scores.

    Attributes:
        semantics: (X, Y, Z) uint8, ego frame at the LiDAR's moment; the last class is free.
        setting: class names, colours and range of the grid.
    """

    semantics: np.ndarray
    setting: Setting = field(default_factory=Setting, repr=False)
    task: ClassVar[str] = 'occupancy'

    @classmethod
    def from_sample(cls, sample, setting, scene):
        found = sample.get('pred_occ')
        if found is None or found.get('semantics') is None:
            return None
        semantics = array_of(found.semantics).astype(np.uint8)
        classes = occ3d.NUM_CLASSES if not setting.class_names else len(setting.class_names)
        if setting.palette is None or len(setting.palette) != classes:
            setting = replace(setting, class_names=tuple(occ3d.CLASS_NAMES), palette=np.asarray(occ3d.PALETTE))
        return cls(semantics, setting)

    def arrays(self):
        return dict(arr_0=self.semantics)

    def _options(self) -> dict:
        own = self.setting
        names = own.class_names or occ3d.CLASS_NAMES
        return dict(class_names=names, palette=own.palette, point_cloud_range=own.point_cloud_range)

    def picture(self, scene, mask: str | None = None, camera: Camera | None = None):
        """Images, prediction and, where labels have been loaded, the truth.

        Args:
            scene: the sample.
            mask: 'camera' or 'lidar': only voxels of that mask of the labels count. None: all.
            camera: the view; see ``draw_occupancy_sample``.
        """
        truth = scene.truth or {}
        target = truth.get('semantics')
        hidden = None if mask is None else truth.get(f'mask_{mask}')
        return draw_occupancy_sample(
            self.semantics, target, scene.images or None, hidden, title=scene.title, mask_name=mask or '',
            camera=camera, **self._options(),
        )  # fmt: skip

    def write_ply(self, path, scene):
        points, colours, labels, faces = voxel_mesh(
            self.semantics, self.setting.palette, self.setting.point_cloud_range
        )
        write_ply(path, points, colours, faces, label=labels)

    def write_html(self, path, scene):
        grids, mask = {'Prediction': self.semantics}, None
        if 'semantics' in (scene.truth or {}):
            grids['Truth'] = scene.truth['semantics']
            mask = scene.truth.get('mask_camera')
        layers = []
        points = scene.points
        if points is not None and 'lidar2ego' in (scene.info.get('lidar_points') or {}):
            matrix = np.asarray(scene.info['lidar_points']['lidar2ego'], np.float64)
            places = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
            layers.append(Layer('LiDAR points', places[np.isfinite(places).all(1)], visible=False))
        write_occupancy_page(
            path, grids, mask=mask, mask_name='camera mask', layers=layers, title=scene.title, **self._options()
        )


@register_result
@dataclass
class Boxes(Result):
    """Detected objects.

    Reads mmdet3d's ``pred_instances_3d`` (``bboxes_3d``, ``scores_3d``, ``labels_3d``).

    Attributes:
        boxes: (M, 7 or 9) float32 x, y, z of the middle, dx, dy, dz, yaw (, vx, vy); LiDAR frame, metres, radians.
        scores: (M,) float32.
        labels: (M,) int64 into ``class_names``.
        class_names: of the data set.
        point_cloud_range: of the picture from above.
        min_score: boxes below it are saved but not drawn.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple = ()
    point_cloud_range: tuple = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    min_score: float = 0.25
    task: ClassVar[str] = 'boxes'

    @classmethod
    def from_sample(cls, sample, setting, scene):
        found = sample.get('pred_instances_3d')
        if found is None or found.get('bboxes_3d') is None:
            return None
        return cls(
            box_array(found.bboxes_3d),
            array_of(found.scores_3d).astype(np.float32),
            array_of(found.labels_3d).astype(np.int64),
            tuple(setting.class_names),
            tuple(setting.point_cloud_range),
        )

    def arrays(self):
        return dict(
            boxes=self.boxes, scores=self.scores, labels=self.labels, class_names=np.array(self.class_names, dtype=str)
        )

    def _drawn(self):
        chosen = self.scores >= self.min_score
        return self.boxes[chosen], self.labels[chosen]

    def picture(self, scene):
        """The images with points and boxes, and both from above; where labels have been loaded, the true boxes there,
        too, beside the predicted ones."""
        boxes, labels = self._drawn()
        sides = {'Prediction': (boxes, labels)}
        if 'boxes' in (scene.truth or {}):
            sides = {'Truth': (scene.truth['boxes'], scene.truth['labels']), **sides}
        tops = {
            name: draw_points_top(scene.points, *side, self.class_names, point_cloud_range=self.point_cloud_range)
            for name, side in sides.items()
        }
        images = {name: image for name, image in (scene.images or {}).items() if name in scene.cameras}
        if not images:
            return side_by_side(tops) if len(tops) > 1 else tops['Prediction']
        return draw_sensor_sample(
            images, scene.cameras, scene.points, boxes, labels, self.class_names, below=side_by_side(tops),
            title=scene.title,
        )  # fmt: skip

    def _colours(self, labels):
        return np.array([class_colour(int(label), self.class_names) for label in labels]).reshape(-1, 3)

    def write_ply(self, path, scene):
        boxes, labels = self._drawn()
        points, faces = box_mesh(boxes)
        write_ply(path, points, np.repeat(self._colours(labels), 8, 0), faces, label=np.repeat(labels, 8))

    def write_html(self, path, scene):
        boxes, labels = self._drawn()
        layers = [box_layer('boxes', boxes, self._colours(labels) * 0.75)]
        if scene.points is not None:
            places = scene.points[:, :3]
            layers.insert(0, Layer('points', places[np.isfinite(places).all(1)], (120, 126, 134)))
        write_occupancy_page(path, {}, layers=layers, title=scene.title, point_cloud_range=self.point_cloud_range)


@register_result
@dataclass
class Map(Result):
    """Map classes on the ground plane.

    Reads ``pred_masks_bev.probs`` (classes, X, Y), x forward, y to the left; names and range are those of the model's
    ``map_head`` (its ``classes`` and ``output_scope``).

    Attributes:
        masks: (classes, X, Y) float32 probabilities, or bool.
        class_names: of the map.
        point_cloud_range: metres, of the masks.
    """

    masks: np.ndarray
    class_names: tuple
    point_cloud_range: tuple = (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
    task: ClassVar[str] = 'map'

    @classmethod
    def from_sample(cls, sample, setting, scene):
        found = sample.get('pred_masks_bev')
        if found is None or found.get('probs') is None:
            return None
        masks = array_of(found.probs).astype(np.float32)
        names = setting.map_classes or [str(number) for number in range(len(masks))]
        if setting.map_range is None:
            return cls(masks, tuple(names))
        x0, y0, x1, y1 = setting.map_range
        return cls(masks, tuple(names), (x0, y0, -5.0, x1, y1, 3.0))

    def arrays(self):
        return dict(
            masks=self.masks,
            class_names=np.array(self.class_names, dtype=str),
            point_cloud_range=np.array(self.point_cloud_range),
        )

    def picture(self, scene):
        ground = draw_map(self.masks, self.class_names)
        if 'map' in (scene.truth or {}):
            ground = side_by_side({'Truth': draw_map(scene.truth['map'], self.class_names), 'Prediction': ground})
        cameras = draw_camera_grid(scene.images, 1600) if scene.images else blank(0, ground.shape[1] + 220)
        top = cameras.shape[0] + (12 if scene.images else 0)
        picture = blank(top + ground.shape[0], max(cameras.shape[1], ground.shape[1] + 220))
        paste(picture, cameras, 0, 0)
        paste(picture, ground, 220, top)
        with Pen(picture) as pen:
            for row, (name, colour) in enumerate(zip(self.class_names, map_colours(self.class_names))):
                pen.box(12, top + 12 + 28 * row, 18, 18, tuple(colour), (150, 152, 156), 3)
                pen.text(38, top + 21 + 28 * row, name, 16, anchor='lm')
        return picture


@register_result
@dataclass
class Instances(Result):
    """Instances and classes of an indoor scene's points.

    Reads mmdet3d's ``pred_pts_seg``: ``pts_instance_mask`` (M, P) bool (or a list that holds it), ``instance_labels``,
    ``instance_scores``, ``pts_semantic_mask`` (P,). Their points: ``pred_pts_seg.points`` (P, 3 or more) where a model
    gives them, else the pipeline's ``inputs['points']`` if they are as many.

    Attributes:
        masks: (M, P) bool; they may overlap.
        labels: (M,) int64.
        scores: (M,) float32.
        semantics: (P,) int64, or None.
        points: (P, 3) float32 metres, or None.
        class_names: of the data set.
        min_score: instances below it are saved but not drawn.
        ids: (M,) int64 numbers that an instance of a growing scene keeps, with its colour; None: of a finished scene.
    """

    masks: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    semantics: np.ndarray | None = None
    points: np.ndarray | None = None
    class_names: tuple = ()
    min_score: float = 0.25
    ids: np.ndarray | None = None
    task: ClassVar[str] = 'instances'

    @classmethod
    def from_sample(cls, sample, setting, scene):
        found = sample.get('pred_pts_seg')
        if found is None or found.get('pts_instance_mask') is None:
            return None
        masks, semantics = _unwrapped(found.pts_instance_mask), _unwrapped(found.get('pts_semantic_mask'))
        masks = array_of(masks)
        if masks.ndim != 2 or masks.dtype != bool:
            raise DataError(f'pred_pts_seg.pts_instance_mask: {masks.dtype} {masks.shape}, expected bool (M, P)')
        points = found.get('points')
        if points is None:
            points = scene.inputs.get('points')
            points = getattr(points, 'tensor', points)
        if points is not None:
            points = array_of(points).reshape(-1, np.shape(points)[-1])[:, :3]
            points = points if len(points) == masks.shape[1] else None
        return cls(
            masks,
            array_of(found.instance_labels).astype(np.int64),
            array_of(found.instance_scores).astype(np.float32),
            None if semantics is None else array_of(semantics).astype(np.int64),
            points,
            tuple(setting.class_names),
        )

    def arrays(self):
        arrays = dict(masks=self.masks, labels=self.labels, scores=self.scores)
        arrays['class_names'] = np.array(self.class_names, dtype=str)
        for name in ('semantics', 'points', 'ids'):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        return arrays

    def _coloured(self):
        if self.points is None:
            raise DataError('instances: their points are not known, so they cannot be drawn; save them as npz')
        chosen = self.scores >= self.min_score
        ids = None if self.ids is None else self.ids[chosen]
        return instance_colours(self.masks[chosen], self.scores[chosen], ids)

    def picture(self, scene):
        """The points in colours of their instances; where labels have been loaded, the true instances beside them."""
        found, numbers = draw_point_cloud(self.points, self._coloured()), (scene.truth or {}).get('instances')
        if numbers is None or len(numbers) != len(self.points):
            return found
        true = instance_colours(numbers == np.unique(numbers[numbers >= 0])[:, None])
        return side_by_side({'Truth': draw_point_cloud(self.points, true), 'Prediction': found})

    def write_ply(self, path, scene):
        numbers = np.full(self.masks.shape[1], -1)
        for index in np.argsort(self.scores, kind='stable'):
            numbers[self.masks[index]] = index
        extra = {} if self.semantics is None else dict(label=self.semantics)
        write_ply(path, self.points, self._coloured(), instance=numbers, **extra)

    def write_html(self, path, scene):
        colours = self._coloured()
        layers = [Layer('instances', self.points, colours, width=3.0)]
        if self.semantics is not None:
            palette = instance_palette(max(int(self.semantics.max(initial=0)) + 1, 1))
            layers.append(Layer('classes', self.points, palette[self.semantics.clip(0)], width=3.0, visible=False))
        area = (*self.points.min(0).tolist(), *self.points.max(0).tolist())
        write_occupancy_page(path, {}, layers=layers, title=scene.title, point_cloud_range=area)


def results_of(sample, setting: Setting, scene: Scene) -> dict:
    """{task: result} of a predicted data sample.

    Raises:
        DataError: it holds no answer of a known task.
    """
    found = {task: kind.from_sample(sample, setting, scene) for task, kind in RESULTS.items()}
    found = {task: result for task, result in found.items() if result is not None}
    if not found:
        raise DataError(
            f'sample {scene.name}: the model predicts {sorted(sample.keys())}, known tasks are {", ".join(RESULTS)}'
        )
    return found


def box_array(boxes) -> np.ndarray:
    """mmdet3d's boxes as (M, 7 or 9) float32 by their middles."""
    tensor = array_of(boxes.tensor).astype(np.float32)
    tensor[:, :3] = array_of(boxes.gravity_center)
    return tensor


def array_of(value) -> np.ndarray:
    """A tensor, list or array as numpy."""
    return value.detach().cpu().numpy() if hasattr(value, 'detach') else np.asarray(value)


def _unwrapped(value: Sequence | None):
    """mmdet3d's panoptic models put their masks into lists of one."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) else value
