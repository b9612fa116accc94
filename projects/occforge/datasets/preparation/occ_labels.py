"""Occupancy labels in Occ3D's form, from LiDAR sweeps, boxes and (where there is any) lidarseg.

For a scene:

1. Every sweep is split into points on annotated objects (inside a box, moved along its track to the sweep's time) and
   points on the static world. Points on the own vehicle and lidarseg "noise" are dropped.
2. Static points of all sweeps are gathered in the world frame, the points of each object in the frame of its box.
3. Points of key frames carry their lidarseg class. A point of another sweep takes the class of the nearest one that has
   a class. Without lidarseg a point on an object has the class of its box, any other point a background class.
4. For each key frame both are put into the ego frame of its LiDAR time, objects where their boxes are now, and each
   voxel takes the class of most of its points.
5. LiDAR mask: cells that a beam of a key frame crossed or ended in, and all that were hit. Camera mask: cells of the
   LiDAR mask that a camera ray reaches before anything occupied.

The idea of accumulating sweeps and of the two masks follows Tian et al., "Occ3D: A Large-Scale 3D Occupancy Prediction
Benchmark for Autonomous Driving", NeurIPS 2023.
"""

import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import DataError
from ...fileio import atomic_write
from ..info_files import DETECTION_CLASSES
from ..occ3d import (
    CLASS_NAMES,
    FREE,
    LIDARSEG_TO_OCC,
    POINT_CLOUD_RANGE,
    VOXEL_SIZE,
    read_labels,
)

UNLABELLED = 255
RAW_NOISE = 0
RAW_EGO_VEHICLE = 31
#: classes that move or could: everything a box can hold. ``others`` (animals, debris) belongs to no box.
OBJECT_CLASSES = tuple(range(1, 11))
GROUND_CLASSES = tuple(range(11, 15))
TIE_ORDER = np.array([*OBJECT_CLASSES, *range(16, 10, -1), 0], dtype=np.uint8)
OCC_OF_DETECTION = np.array([CLASS_NAMES.index(name) for name in DETECTION_CLASSES], dtype=np.uint8)


class LabelSettings(NamedTuple):
    """What labels depend on.

    Attributes:
        point_cloud_range: x, y, z of the lower and of the upper corner, metres, ego frame.
        voxel_size: x, y, z, metres.
        background_class: class of points outside boxes where there is no lidarseg.
        ground_class: class of such points on the ground; None: as the background.
        use_lidarseg: take lidarseg where items name it.
        ego_box: x, y of the lower and of the upper corner of the own vehicle in the ego frame; points in it, at any
            height, are dropped.
        box_margin: metres by which boxes grow on each side before points are sought in them.
        min_points: points that make a voxel occupied.
        fill_ground: gaps in the ground of up to so many voxels are closed (0: none). They stay outside the masks.
        mask_frames: what counts for the LiDAR mask: 'scene' (the beams of all its key frames, and whatever was hit by
            any sweep), or 'key' (the key frame's own beams).
        camera_step: pixels between two camera rays.
    """

    point_cloud_range: tuple = POINT_CLOUD_RANGE
    voxel_size: tuple = VOXEL_SIZE
    background_class: int = 0
    ground_class: int | None = CLASS_NAMES.index('other_flat')
    use_lidarseg: bool = True
    ego_box: tuple = (-1.2, -1.1, 3.5, 1.1)
    box_margin: float = 0.1
    min_points: int = 1
    fill_ground: int = 5
    mask_frames: str = 'scene'
    camera_step: int = 4

    @property
    def grid_size(self) -> tuple[int, int, int]:
        lower, upper = np.array(self.point_cloud_range[:3]), np.array(self.point_cloud_range[3:])
        cells = (upper - lower) / np.array(self.voxel_size)
        size = np.rint(cells).astype(int)
        if np.any(size < 1) or np.any(np.abs(cells - size) > 1e-6):
            raise DataError(
                f'point_cloud_range {self.point_cloud_range} is not a whole number of voxels of {self.voxel_size}'
            )
        return tuple(int(value) for value in size)


DEFAULT_SETTINGS = LabelSettings()


class Labels(NamedTuple):
    """Occ3D arrays of one key frame, each (X, Y, Z) uint8."""

    semantics: np.ndarray
    mask_lidar: np.ndarray
    mask_camera: np.ndarray


class _Frame(NamedTuple):
    path: str
    lidar2global: np.ndarray
    ego2global: np.ndarray
    time: float
    key: int | None  # index among the scene's key frames
    seg_path: str | None
    features: int


class _Box(NamedTuple):
    time: float
    centre: np.ndarray  # world frame
    yaw: float  # world frame
    size: np.ndarray  # length, width, height
    velocity: np.ndarray  # world frame, (2,)
    label: int


class _Cloud(NamedTuple):
    """Points with classes: (P, 3) float64, (P,) uint8 (255: not known yet)."""

    points: np.ndarray
    labels: np.ndarray


def _join(clouds) -> _Cloud:
    if not clouds:
        return _Cloud(np.zeros((0, 3)), np.zeros(0, dtype=np.uint8))
    return _Cloud(np.concatenate([c.points for c in clouds]), np.concatenate([c.labels for c in clouds]))


def _transform(points, pose):
    return points @ pose[:3, :3].T + pose[:3, 3]


# --------------------------------------------------------------------------------------------------------- reading
def read_points(path: str, features: int = 5) -> np.ndarray:
    """Point file -> (P, features) float32, rows with a non-finite coordinate dropped.

    Raises:
        DataError: missing, empty, or a size that is no whole number of points.
    """
    try:
        values = np.fromfile(path, dtype=np.float32)
        size = os.path.getsize(path)
    except OSError as error:
        raise DataError(f'{path}: point file cannot be read ({error.strerror})') from error
    if size == 0 or size % (4 * features):
        raise DataError(f'{path}: point file has {size} bytes; expected a multiple of {features} float32 values')
    points = values.reshape(-1, features)
    return points[np.isfinite(points[:, :3]).all(axis=1)]


def read_lidarseg(path: str, count: int) -> np.ndarray:
    """Raw lidarseg labels (count,) uint8.

    Raises:
        DataError: missing, another length than the point file, or a label beyond 31.
    """
    try:
        labels = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f'{path}: lidarseg file cannot be read ({error.strerror})') from error
    if len(labels) != count:
        raise DataError(f'{path}: {len(labels)} labels for {count} points')
    if len(labels) and labels.max() >= len(LIDARSEG_TO_OCC):
        raise DataError(f'{path}: label {labels.max()} is unknown; expected 0..{len(LIDARSEG_TO_OCC) - 1}')
    return labels


def lidar_file(root, path: str, channel: str = 'LIDAR_TOP') -> str:
    """Where a ``lidar_path`` of an item lies: a bare name in ``samples/<channel>``, else from the data root."""
    return os.path.join(root, 'samples', channel, path) if '/' not in path else os.path.join(root, path)


def _scene_frames(items, root, settings) -> list[_Frame]:
    frames, seen = [], set()
    for key, item in enumerate(items):
        points = item['lidar_points']
        path = lidar_file(root, points['lidar_path'])
        seg = item.get('pts_semantic_mask_path') if settings.use_lidarseg else None
        ego2global = np.asarray(item['ego2global'], dtype=np.float64)
        lidar2global = ego2global @ np.asarray(points['lidar2ego'], dtype=np.float64)
        features = int(points.get('num_pts_feats', 5))
        seen.add(os.path.basename(path))
        frames.append(
            _Frame(
                path,
                lidar2global,
                ego2global,
                item['timestamp'],
                key,
                os.path.join(root, seg) if seg else None,
                features,
            )
        )
    for item in items:
        for sweep in item.get('lidar_sweeps', ()):
            points = sweep['lidar_points']
            if os.path.basename(points['lidar_path']) in seen:
                continue
            seen.add(os.path.basename(points['lidar_path']))
            ego2global = np.asarray(sweep['ego2global'], dtype=np.float64)
            lidar2global = ego2global @ np.asarray(points['lidar2ego'], dtype=np.float64)
            features = int(item['lidar_points'].get('num_pts_feats', 5))
            path = os.path.join(root, points['lidar_path'])
            frames.append(_Frame(path, lidar2global, ego2global, sweep['timestamp'], None, None, features))
    return frames


# --------------------------------------------------------------------------------------------------------- objects
def _scene_tracks(items) -> dict[str, list[_Box]]:
    """Boxes of each object in order of time, upright in the world frame (as nuScenes annotates them)."""
    tracks = defaultdict(list)
    for item in items:
        lidar2global = np.asarray(item['ego2global']) @ np.asarray(item['lidar_points']['lidar2ego'])
        for number, instance in enumerate(item.get('instances', ())):
            label = instance['bbox_label_3d']
            box = np.asarray(instance['bbox_3d'], dtype=np.float64)
            if not np.isfinite(box).all() or np.any(box[3:6] <= 0):
                raise DataError(f'sample {item["token"]}: box {number} is {box.tolist()}, which is no box')
            heading = lidar2global[:3, :3] @ (math.cos(box[6]), math.sin(box[6]), 0.0)
            velocity = np.nan_to_num(np.append(instance.get('velocity', (0.0, 0.0)), 0.0))
            token = instance.get('instance_token') or f'{item["token"]}/{number}'
            tracks[token].append(
                _Box(
                    item['timestamp'],
                    _transform(box[:3], lidar2global),
                    math.atan2(heading[1], heading[0]),
                    box[3:6],
                    (lidar2global[:3, :3] @ velocity)[:2],
                    int(OCC_OF_DETECTION[label]) if 0 <= label < len(OCC_OF_DETECTION) else 0,
                )
            )
    for track in tracks.values():
        track.sort(key=lambda box: box.time)
    return tracks


def _box_at(track: list[_Box], time: float, reach: float = 0.6) -> _Box | None:
    """The box of a track at a time: interpolated; up to ``reach`` seconds beyond its ends carried on by velocity."""
    times = [box.time for box in track]
    after = int(np.searchsorted(times, time))
    if after < len(track) and abs(times[after] - time) < 1e-4:
        return track[after]
    if after > 0 and abs(times[after - 1] - time) < 1e-4:
        return track[after - 1]
    if 0 < after < len(track):
        a, b = track[after - 1], track[after]
        if b.time - a.time <= 2 * reach:
            share = (time - a.time) / (b.time - a.time)
            return a._replace(
                time=time,
                centre=a.centre + share * (b.centre - a.centre),
                yaw=a.yaw + share * _turn(a, b),
                velocity=b.velocity,
            )
        near = after - 1 if time - a.time < b.time - time else after  # unseen for a while in between
    else:
        near = 0 if after == 0 else len(track) - 1
    box = track[near]
    step = time - box.time
    if abs(step) > reach:
        return None
    centre = box.centre.copy()
    centre[:2] += step * box.velocity
    # it goes on turning as it did between this box and the neighbour on the track's side
    other = near + 1 if step < 0 else near - 1
    rate = 0.0
    if 0 <= other < len(track) and abs(track[other].time - box.time) <= 2 * reach:
        rate = _turn(box, track[other]) / (track[other].time - box.time)
    return box._replace(time=time, centre=centre, yaw=box.yaw + rate * step)


def _turn(a: _Box, b: _Box) -> float:
    """Change of heading from one box to the other, the short way round, radians."""
    return (b.yaw - a.yaw + math.pi) % (2 * math.pi) - math.pi


def _in_box_frame(points, box: _Box):
    """World -> frame of the box (centre, x along its length)."""
    cos, sin = math.cos(box.yaw), math.sin(box.yaw)
    offset = points - box.centre
    return np.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]], 1)


def _from_box_frame(points, box: _Box):
    cos, sin = math.cos(box.yaw), math.sin(box.yaw)
    x = cos * points[:, 0] - sin * points[:, 1]
    y = sin * points[:, 0] + cos * points[:, 1]
    return np.stack([x, y, points[:, 2]], axis=1) + box.centre


# ----------------------------------------------------------------------------------------------------- accumulation
class SceneClouds(NamedTuple):
    """What :func:`accumulate` makes of a scene.

    Attributes:
        static: points of the static world, world frame.
        objects: per instance token the object's points in the frame of its box.
        tracks: per instance token its boxes.
        rays: per key frame ``(index, origin (3,), ends (P, 3))``, world frame.
    """

    static: _Cloud
    objects: dict
    tracks: dict
    rays: list


def accumulate(items: list[dict], root: str, settings: LabelSettings) -> SceneClouds:
    """Gather the points of a scene (steps 1 to 3 of the module docstring).

    Args:
        items: v2 items of one scene's key frames in order of time.
        root: data root.
        settings: see there.

    Raises:
        DataError: a file that cannot be read.
    """
    tracks = _scene_tracks(items)
    static, objects, rays = [], defaultdict(list), []
    any_seg = False
    for frame in _scene_frames(items, root, settings):
        raw = read_points(frame.path, frame.features)
        labels = np.full(len(raw), UNLABELLED, dtype=np.uint8)
        keep = np.ones(len(raw), dtype=bool)
        if frame.seg_path:
            any_seg = True
            seg = read_lidarseg(frame.seg_path, len(raw))
            labels = LIDARSEG_TO_OCC[seg]
            keep &= (seg != RAW_NOISE) & (seg != RAW_EGO_VEHICLE)
        points = _transform(raw[:, :3].astype(np.float64), frame.lidar2global)
        ego = (points - frame.ego2global[:3, 3]) @ frame.ego2global[:3, :3]
        x0, y0, x1, y1 = settings.ego_box
        keep &= ~((ego[:, 0] > x0) & (ego[:, 0] < x1) & (ego[:, 1] > y0) & (ego[:, 1] < y1))
        points, labels = points[keep], labels[keep]
        is_static = np.ones(len(points), dtype=bool)
        for token, track in tracks.items():
            box = _box_at(track, frame.time)
            if box is None:
                continue
            half = box.size / 2 + settings.box_margin
            near = np.flatnonzero(
                is_static
                & (np.abs(points[:, 0] - box.centre[0]) < half[0] + half[1])
                & (np.abs(points[:, 1] - box.centre[1]) < half[0] + half[1])
            )
            if not len(near):
                continue
            local = _in_box_frame(points[near], box)
            inside = (np.abs(local) < half).all(axis=1)
            if frame.seg_path:
                # lidarseg knows better than the box where the ground under the object begins
                inside &= ~np.isin(labels[near], (*GROUND_CLASSES, 15, 16))
            else:
                inside &= local[:, 2] > -box.size[2] / 2 + min(0.15, 0.25 * box.size[2])
            if inside.any():
                chosen = near[inside]
                own = labels[chosen] if frame.seg_path else np.full(len(chosen), box.label, dtype=np.uint8)
                objects[token].append(_Cloud(local[inside], own))
                is_static[chosen] = False
        static.append(_Cloud(points[is_static], labels[is_static]))
        if frame.key is not None:
            rays.append((frame.key, frame.lidar2global[:3, 3], points))
    cloud = _thin(_join(static), 0.1)
    if any_seg:
        cloud = _label_from_neighbours(cloud)
    else:
        cloud = _label_background(cloud, settings)
    return SceneClouds(cloud, {token: _join(clouds) for token, clouds in objects.items()}, dict(tracks), rays)


def _thin(cloud: _Cloud, size: float) -> _Cloud:
    """One point for each class in a cell of ``size`` metres: keeps the work of a long scene in bounds."""
    if not len(cloud.points):
        return cloud
    cells = np.floor(cloud.points / size).astype(np.int64)
    cells -= cells.min(axis=0)
    extent = cells.max(axis=0) + 1
    key = ((cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]) * 256 + cloud.labels
    _, first = np.unique(key, return_index=True)
    return _Cloud(cloud.points[first], cloud.labels[first])


def _label_from_neighbours(cloud: _Cloud) -> _Cloud:
    """Points without a class take that of the nearest point that has one."""
    from scipy.spatial import cKDTree

    known = cloud.labels != UNLABELLED
    if known.all() or not known.any():
        return cloud
    tree = cKDTree(cloud.points[known])
    _, nearest = tree.query(cloud.points[~known], workers=1)
    labels = cloud.labels.copy()
    labels[~known] = cloud.labels[known][nearest]
    return _Cloud(cloud.points, labels)


def _label_background(cloud: _Cloud, settings: LabelSettings, cell: float = 1.0, height: float = 0.25) -> _Cloud:
    """Without lidarseg: ground or background, by the height over the lowest points around.

    The ground of a cell of ``cell`` metres is the median of the 3x3 minima around it, which a single stray echo below
    the ground does not pull down, and at most 0.3 m above the lower end of the 7x7 minima, so that a wall is no ground.
    """
    labels = np.full(len(cloud.points), settings.background_class, dtype=np.uint8)
    if settings.ground_class is not None and len(cloud.points):
        from scipy import ndimage

        cells = np.floor(cloud.points[:, :2] / cell).astype(np.int64)
        cells -= cells.min(axis=0) - 1
        lowest = np.full(tuple(cells.max(axis=0) + 2), np.inf)
        np.minimum.at(lowest, (cells[:, 0], cells[:, 1]), cloud.points[:, 2])
        known = np.isfinite(lowest)
        # empty cells take their nearest neighbour's height so that the filters see a whole picture
        index = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        filled = lowest[tuple(index)]
        ground = np.minimum(ndimage.median_filter(filled, size=3), ndimage.percentile_filter(filled, 20, size=7) + 0.3)
        above = cloud.points[:, 2] - ground[cells[:, 0], cells[:, 1]]
        labels[above < height] = settings.ground_class
    return _Cloud(cloud.points, labels)


# ------------------------------------------------------------------------------------------------------- voxel labels
def _vote(points, labels, settings, min_points=1):
    """(X, Y, Z) uint8: the class of most points in each voxel; among equals the object before its surroundings."""
    lower, size = np.array(settings.point_cloud_range[:3]), settings.grid_size
    cells = np.floor((points - lower) / np.array(settings.voxel_size)).astype(np.int64)
    inside = ((cells >= 0) & (cells < size)).all(axis=1) & (labels < FREE)
    flat = np.ravel_multi_index(tuple(cells[inside].T), size)
    votes = np.zeros((np.prod(size), FREE), dtype=np.int32)
    np.add.at(votes, (flat, labels[inside]), 1)
    semantics = np.full(len(votes), FREE, dtype=np.uint8)
    hit = votes.sum(axis=1) >= min_points
    semantics[hit] = TIE_ORDER[votes[hit][:, TIE_ORDER].argmax(axis=1)]
    return semantics.reshape(size)


def frame_labels(item: dict, key: int, clouds: SceneClouds, settings: LabelSettings) -> Labels:
    """Labels and masks of one key frame (steps 4 and 5 of the module docstring).

    Args:
        item: the key frame.
        key: its index in the scene.
        clouds: of the scene.
        settings: those that made ``clouds``.
    """
    ego2global = np.asarray(item['ego2global'], dtype=np.float64)
    reach = max(np.abs(settings.point_cloud_range)) * 1.5
    near = (np.abs(clouds.static.points - ego2global[:3, 3]) < reach).all(axis=1)
    parts = [_Cloud(clouds.static.points[near], clouds.static.labels[near])]
    for token, cloud in clouds.objects.items():
        box = next((box for box in clouds.tracks[token] if abs(box.time - item['timestamp']) < 1e-4), None)
        if box is not None:
            parts.append(_thin(_Cloud(_from_box_frame(cloud.points, box), cloud.labels), 0.05))
    cloud = _join(parts)
    points = (cloud.points - ego2global[:3, 3]) @ ego2global[:3, :3]
    semantics = _vote(points, cloud.labels, settings, settings.min_points)
    mask_lidar = _lidar_mask(semantics, key, clouds, ego2global, settings)
    if settings.fill_ground:
        semantics = _fill_ground(semantics, settings)
    mask_camera = _camera_mask(semantics, item, ego2global, settings) & mask_lidar
    return Labels(semantics, mask_lidar.astype(np.uint8), mask_camera.astype(np.uint8))


def _lidar_mask(semantics, key, clouds, ego2global, settings):
    import torch

    from ...ops import observed_cells

    lower, upper = np.array(settings.point_cloud_range[:3]), np.array(settings.point_cloud_range[3:])
    reach = np.linalg.norm(np.maximum(np.abs(lower), np.abs(upper)))
    seen = semantics != FREE if settings.mask_frames == 'scene' else np.zeros(semantics.shape, dtype=bool)
    grid = torch.from_numpy(semantics)
    for frame_key, origin, ends in clouds.rays:
        if settings.mask_frames == 'key' and frame_key != key:
            continue
        if np.linalg.norm(origin - ego2global[:3, 3]) > 2 * reach:
            continue
        start = (origin - ego2global[:3, 3]) @ ego2global[:3, :3]
        targets = (ends - ego2global[:3, 3]) @ ego2global[:3, :3]
        cells = observed_cells(
            grid,
            torch.from_numpy(np.broadcast_to(start, targets.shape).copy()),
            torch.from_numpy(targets),
            lower.tolist(),
            list(settings.voxel_size),
            free=FREE,
            through_occupied=True,
        )
        seen = seen | cells.numpy()
    return seen


def _camera_mask(semantics, item, ego2global, settings):
    import torch

    from ...ops import observed_cells

    lower, upper = np.array(settings.point_cloud_range[:3]), np.array(settings.point_cloud_range[3:])
    reach = 2 * np.linalg.norm(upper - lower)
    grid, seen = torch.from_numpy(semantics), np.zeros(semantics.shape, dtype=bool)
    for image in item.get('images', {}).values():
        intrinsics = np.asarray(image['cam2img'], dtype=np.float64)[:3, :3]
        camera2ego = np.linalg.inv(ego2global) @ np.asarray(image['ego2global']) @ np.asarray(image['cam2ego'])
        # the principal point sits near the middle of the image, which gives its size where the item does not
        width = image.get('width') or 2 * intrinsics[0, 2]
        height = image.get('height') or 2 * intrinsics[1, 2]
        step = settings.camera_step
        u, v = np.meshgrid(np.arange(step / 2, width, step), np.arange(step / 2, height, step), indexing='ij')
        pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
        directions = pixels @ np.linalg.inv(intrinsics).T @ camera2ego[:3, :3].T
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        origins = np.broadcast_to(camera2ego[:3, 3], directions.shape).copy()
        cells = observed_cells(
            grid,
            torch.from_numpy(origins),
            torch.from_numpy(origins + reach * directions),
            lower.tolist(),
            list(settings.voxel_size),
            free=FREE,
            through_occupied=False,
        )
        seen |= cells.numpy()
    return seen


def _fill_ground(semantics, settings):
    """Close gaps between ground voxels: a column without anything in it up to the ground's height, with ground within
    ``fill_ground`` cells on opposite sides, takes the nearest ground column's class, at the median height."""
    from scipy import ndimage

    ground_classes = list(GROUND_CLASSES)
    if settings.ground_class is not None:
        ground_classes.append(settings.ground_class)
    is_ground = np.isin(semantics, ground_classes)
    has = is_ground.any(axis=2)
    if not has.any():
        return semantics
    level = is_ground.argmax(axis=2)
    reach = settings.fill_ground
    closed = ndimage.binary_closing(np.pad(has, reach), np.ones((2 * reach + 1,) * 2))[reach:-reach, reach:-reach]
    empty = closed & ~has
    if not empty.any():
        return semantics
    index = ndimage.distance_transform_edt(~has, return_distances=False, return_indices=True)
    at = np.nonzero(empty)
    source = (index[0][at], index[1][at])
    # the neighbourhood's height: a single odd column (the foot of a wall) must not raise the ground around it
    height = ndimage.median_filter(level[tuple(index)], size=5)[at]
    filled = semantics.copy()
    free = semantics[at[0], at[1], height] == FREE
    target = (at[0][free], at[1][free], height[free])
    filled[target] = semantics[source[0][free], source[1][free], level[source][free]]
    return filled


# ------------------------------------------------------------------------------------------------------------ scenes
def group_scenes(items: list[dict]) -> list[list[dict]]:
    """Items by scene, each in order of time."""
    scenes = defaultdict(list)
    for item in items:
        scenes[item['scene_token']].append(item)
    return [sorted(scene, key=lambda item: item['timestamp']) for scene in scenes.values()]


def label_path(out_dir: str | os.PathLike, item: dict) -> Path:
    """``<out_dir>/<scene name>/<sample token>/labels.npz``."""
    return Path(out_dir) / (item.get('scene_name') or item['scene_token']) / item['token'] / 'labels.npz'


def make_scene_labels(items: list[dict], root: str, out_dir: str, settings: LabelSettings, overwrite=False) -> int:
    """Label files of one scene; those that are there already stay. Returns how many were written."""
    todo = [
        (key, item) for key, item in enumerate(items) if overwrite or not _is_done(label_path(out_dir, item), settings)
    ]
    if not todo:
        return 0
    clouds = accumulate(items, root, settings)
    for key, item in todo:
        labels = frame_labels(item, key, clouds, settings)
        with atomic_write(label_path(out_dir, item)) as file:
            np.savez_compressed(file, **labels._asdict())
    return len(todo)


def _is_done(path, settings):
    if not path.exists():
        return False
    try:
        read_labels(path, grid_size=settings.grid_size)
    except DataError:
        return False
    return True


def check_settings(out_dir: str | os.PathLike, settings: LabelSettings, overwrite: bool = False) -> None:
    """Record the settings beside the labels, so that a later run never mixes two kinds in one folder.

    Raises:
        DataError: the folder holds labels of other settings, or labels that this tool did not make.
    """
    path = Path(out_dir) / 'label_settings.json'
    wanted = json.loads(json.dumps(settings._asdict()))
    if path.exists() and not overwrite:
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f'{path}: not valid JSON ({error})') from error
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if different:
            raise DataError(
                f'{out_dir}: holds labels made with another {", ".join(different)} ({path}); '
                'choose another --out-dir, or --overwrite'
            )
        return
    if not overwrite and next(Path(out_dir).glob('*/*/labels.npz'), None) is not None:
        raise DataError(
            f'{out_dir}: holds labels that this tool did not make; choose another --out-dir, or --overwrite'
        )
    with atomic_write(path, 'w') as file:
        json.dump(wanted, file, indent=1)


def _make(state, number):
    scenes, root, out_dir, settings, overwrite = state
    return make_scene_labels(scenes[number], root, out_dir, settings, overwrite)


def make_labels(
    items: list[dict],
    root: str | os.PathLike,
    out_dir: str | os.PathLike,
    settings: LabelSettings = DEFAULT_SETTINGS,
    workers: int = 1,
    overwrite: bool = False,
    quiet: bool = False,
) -> int:
    """Label files for all items, scenes in parallel; a killed run goes on where it stopped.

    Args:
        items: v2 items (of whole scenes: a scene's sweeps are accumulated over its items).
        root: data root.
        out_dir: ``gts`` folder; files go to ``<scene name>/<token>/labels.npz``.
        settings: see there.
        workers: processes.
        overwrite: make files again that are there.
        quiet: no progress bar.

    Returns:
        How many files were written.

    Raises:
        DataError: unreadable input, or labels of other settings in ``out_dir``.
    """
    from .progress import parallel_map

    settings.grid_size  # noqa: B018  raises early where range and voxel size do not fit
    check_settings(out_dir, settings, overwrite)
    scenes = group_scenes(items)
    state = (scenes, os.fspath(root), os.fspath(out_dir), settings, overwrite)
    return sum(count for _, count in parallel_map(_make, state, range(len(scenes)), workers, 'scenes', quiet))


# -------------------------------------------------------------------------------------------------------- comparison
def compare_labels(items: list[dict], labels_dir, truth_dir, mask: str = 'mask_lidar') -> np.ndarray:
    """Confusion of our labels (columns) with others (rows) in the voxels of the others' mask.

    Args:
        items: which key frames; those without a file in either folder are an error.
        labels_dir, truth_dir: ``gts`` folders.
        mask: 'mask_lidar', 'mask_camera' or 'none'.

    Returns:
        (18, 18) int64.
    """
    matrix = np.zeros((FREE + 1, FREE + 1), dtype=np.int64)
    for item in items:
        ours = read_labels(label_path(labels_dir, item), grid_size=None)
        truth = read_labels(label_path(truth_dir, item), grid_size=ours.semantics.shape)
        keep = np.ones(ours.semantics.shape, dtype=bool) if mask == 'none' else getattr(truth, mask).astype(bool)
        pairs = truth.semantics[keep].astype(np.int64) * (FREE + 1) + ours.semantics[keep]
        matrix += np.bincount(pairs, minlength=(FREE + 1) ** 2).reshape(FREE + 1, FREE + 1)
    return matrix


def scores(matrix: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Geometric IoU, mIoU over the semantic classes that occur in the truth or the labels, IoU by class; in percent."""
    occupied = matrix[:FREE, :FREE].sum()
    wrong = matrix[:FREE, FREE].sum() + matrix[FREE, :FREE].sum()
    geometric = 100.0 * occupied / max(1, occupied + wrong)
    diagonal = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    iou = 100.0 * np.divide(diagonal, union, out=np.full(len(diagonal), np.nan), where=union > 0)[:FREE]
    return geometric, float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan'), iou
