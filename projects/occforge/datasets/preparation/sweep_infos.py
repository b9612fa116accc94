"""Moments between key frames as samples without labels, for semi-supervised training."""

import os

import numpy as np

from occforge.errors import DataError

from ..info_files import load_infos, save_infos
from ..transforms.common import lidar_matrices, matrix, where


def sweep_samples(info: dict, places, max_gap: float) -> list[dict]:
    """The moments before a key frame at which all its cameras have looked, each with the LiDAR sweep nearest in time.

    Args:
        info: item of an info file with ``image_sweeps`` and ``lidar_sweeps``.
        places: which of ``image_sweeps``, 0 for the last before the key frame.
        max_gap: seconds between the cameras and the LiDAR; moments without a sweep that near are left out.

    Returns:
        Items without labels (``with_gt`` is False, token ``<key frame's>_<place>``). Those of one place belong to a
        sequence of their own (``<scene>#<place>``), so that the frame before is as far away as with key frames.
    """
    samples = []
    for place in places:
        if place >= len(info.get('image_sweeps') or ()):
            continue
        images = info['image_sweeps'][place]['images']
        moment = float(np.median([image['timestamp'] for image in images.values()]))
        sweeps = info.get('lidar_sweeps') or ()
        if not sweeps:
            continue
        sweep = min(sweeps, key=lambda each: abs(each['timestamp'] - moment))
        if abs(sweep['timestamp'] - moment) > max_gap:
            continue
        points = dict(num_pts_feats=info['lidar_points'].get('num_pts_feats', 5))
        points.update({name: sweep['lidar_points'][name] for name in ('lidar_path', 'lidar2ego')})
        item = dict(
            token=f'{info["token"]}_{place}',
            scene_token=f'{info["scene_token"]}#{place}',
            scene_name=info.get('scene_name', ''),
            prev='',
            next='',
            timestamp=sweep['timestamp'],
            ego2global=sweep['ego2global'],
            images={},
            lidar_points=points,
            lidar_sweeps=[],
            instances=[],
            with_gt=False,
        )
        lidar2ego, ego2global = lidar_matrices(item)
        for name, image in images.items():
            cam2global = matrix(item, image, 'ego2global', f'images.{name}.') @ matrix(
                item, image, 'cam2ego', f'images.{name}.'
            )
            item['images'][name] = dict(image, lidar2cam=(np.linalg.inv(cam2global) @ ego2global @ lidar2ego).tolist())
        samples.append(item)
    return samples


def add_sweeps(path, out, places=(2,), max_gap: float = 0.06) -> tuple[int, int]:
    """Write an info file with the key frames of ``path`` and the moments between them.

    Args:
        path, out: info files.
        places, max_gap: see ``sweep_samples``.

    Returns:
        Key frames, and samples added.

    Raises:
        DataError: no item has ``image_sweeps``.
    """
    metainfo, items = load_infos(path)
    if not any(item.get('image_sweeps') for item in items):
        raise DataError(
            f"{path}: no item has the field 'image_sweeps': make the file with tools/create_data.py nuscenes "
            '--camera-sweeps 6'
        )
    added = []
    for item in items:
        if 'lidar_points' not in item:
            raise DataError(f"{where(dict(item, source=path))}: field 'lidar_points' is missing")
        added += sweep_samples(item, places, max_gap)
    whole = [dict(item, sample_idx=index) for index, item in enumerate([*items, *added])]
    save_infos(os.fspath(out), metainfo, whole)
    return len(items), len(added)
