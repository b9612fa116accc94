"""Info files from frames of any rig: N cameras, one LiDAR."""

from collections.abc import Iterable, Mapping

import numpy as np

from occforge.errors import DataError

from ..info_files import DETECTION_CLASSES, invert_pose, make_instance, save_infos


def checked_matrix(value, shape, where: str) -> np.ndarray:
    """``value`` as float64 of a shape.

    Raises:
        DataError: another shape, or values that are not finite.
    """
    try:
        matrix = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f'{where}: expected {shape} finite numbers') from None
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise DataError(f'{where}: expected {shape} finite numbers, found shape {matrix.shape}')
    return matrix


def checked_pose(value, where: str) -> np.ndarray:
    """(4, 4) of a rotation and a translation.

    Raises:
        DataError: it is none.
    """
    pose = checked_matrix(value, (4, 4), where)
    turn = pose[:3, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > 1e-3 or np.linalg.det(turn) < 0 or (pose[3] != (0, 0, 0, 1)).any():
        raise DataError(f'{where}: no pose: its upper left 3 x 3 is no rotation, or its last row is not 0 0 0 1')
    return pose


def complete_frame(frame: Mapping, number: int) -> dict:
    """An item of an info file (``occforge.datasets.info_files``) from what a rig's owner knows.

    Args:
        frame: an item with at least ``images`` {name: dict(img_path, cam2img (3, 3), cam2ego (4, 4))} or
            ``lidar_points`` dict(lidar_path, lidar2ego (4, 4)). Where they are missing: ``ego2global`` is the identity,
            ``timestamp`` half a second a frame, ``token`` the number, a camera's ``ego2global`` that of the frame;
            ``lidar2cam`` follows from the rest.
        number: of the frame.

    Raises:
        DataError: a field is missing or no pose.
    """
    token = str(frame.get('token', f'frame{number:06d}'))
    where = f'frame {token!r}'
    if not (frame.get('images') or frame.get('lidar_points')):
        raise DataError(f"{where}: has neither 'images' nor 'lidar_points'")
    item = dict(frame, token=token, sample_idx=number, timestamp=float(frame.get('timestamp', 0.5 * number)))
    item['scene_token'] = str(frame.get('scene_token', f'scene of {token}'))
    item.setdefault('scene_name', item['scene_token'])
    item.setdefault('instances', [])
    item.setdefault('lidar_sweeps', [])
    pose = checked_pose(frame.get('ego2global', np.eye(4)), f'{where}: ego2global')
    lidar = dict(frame.get('lidar_points') or {})
    lidar2ego = checked_pose(lidar.get('lidar2ego', np.eye(4)), f'{where}: lidar_points.lidar2ego')
    item.update(ego2global=pose.tolist(), lidar_points=dict(lidar, lidar2ego=lidar2ego.tolist()), images={})
    for name, camera in (frame.get('images') or {}).items():
        at = f'{where}: images.{name}'
        for key in ('img_path', 'cam2img', 'cam2ego'):
            if not np.size(camera.get(key, ())):
                raise DataError(f'{at}.{key} is missing')
        intrinsics = checked_matrix(camera['cam2img'], (3, 3), f'{at}.cam2img')
        cam2ego = checked_pose(camera['cam2ego'], f'{at}.cam2ego')
        own = checked_pose(camera.get('ego2global', pose), f'{at}.ego2global')
        lidar2cam = camera.get('lidar2cam', invert_pose(own @ cam2ego) @ pose @ lidar2ego)
        item['images'][name] = dict(
            camera,
            cam2img=intrinsics.tolist(),
            cam2ego=cam2ego.tolist(),
            ego2global=own.tolist(),
            lidar2cam=checked_pose(lidar2cam, f'{at}.lidar2cam').tolist(),
        )
    return item


def instances_of(boxes, names, velocities=None, points=None) -> list:
    """``instances`` of an item.

    Args:
        boxes: (M, 7) x, y, z of the middle, length, width, height, yaw; LiDAR frame, metres and radians.
        names: (M,) detection classes (``DETECTION_CLASSES``); any other name is kept as "none of them".
        velocities: (M, 2) metres a second in the LiDAR frame; None: not known.
        points: (M,) LiDAR points on each; None: not known, all count as seen.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    velocities = np.full((len(boxes), 2), np.nan) if velocities is None else np.asarray(velocities)
    counts = np.ones(len(boxes), int) if points is None else np.asarray(points)
    return [
        make_instance(box, name, velocity, count, 0, count > 0)
        for box, name, velocity, count in zip(boxes, names, velocities, counts, strict=True)
    ]


def write_custom_infos(path, frames: Iterable[Mapping], version: str = 'custom') -> int:
    """Write an info file of frames (see :func:`complete_frame`); returns their number.

    Frames of one ``scene_token`` are one drive: they get their neighbours' tokens, by time. Paths may be relative to
    the data root, or absolute.

    Raises:
        DataError: a frame cannot be used, or two have one token.
    """
    items = [complete_frame(frame, number) for number, frame in enumerate(frames)]
    seen: set = set()
    for item in items:
        if item['token'] in seen:
            raise DataError(f'two frames have the token {item["token"]!r}')
        seen.add(item['token'])
    items.sort(key=lambda item: (item['scene_token'], item['timestamp']))
    for number, item in enumerate(items):
        item['sample_idx'] = number
        for key, other in (('prev', number - 1), ('next', number + 1)):
            near = items[other] if 0 <= other < len(items) else None
            item[key] = near['token'] if near and near['scene_token'] == item['scene_token'] else ''
    metainfo = dict(dataset='nuscenes', version=version, info_version='1.1')
    metainfo['categories'] = {name: index for index, name in enumerate(DETECTION_CLASSES)}
    save_infos(path, metainfo, items)
    return len(items)
