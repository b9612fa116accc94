"""nuScenes tables -> info files."""

import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..info_files import DETECTION_CLASSES, invert_pose, make_instance, pose_matrix, save_classic_infos, save_infos
from .progress import parallel_map

#: the order in which all our configs list the cameras of the nuScenes rig
CAMERA_ORDER = ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT')

#: nuScenes categories that make up the ten detection classes (nuScenes detection task)
DETECTION_CATEGORIES = {
    'movable_object.barrier': 'barrier',
    'vehicle.bicycle': 'bicycle',
    'vehicle.bus.bendy': 'bus',
    'vehicle.bus.rigid': 'bus',
    'vehicle.car': 'car',
    'vehicle.construction': 'construction_vehicle',
    'vehicle.motorcycle': 'motorcycle',
    'human.pedestrian.adult': 'pedestrian',
    'human.pedestrian.child': 'pedestrian',
    'human.pedestrian.construction_worker': 'pedestrian',
    'human.pedestrian.police_officer': 'pedestrian',
    'movable_object.trafficcone': 'traffic_cone',
    'vehicle.trailer': 'trailer',
    'vehicle.truck': 'truck',
}

_TABLES = (
    'attribute calibrated_sensor category ego_pose instance log map sample sample_annotation sample_data scene sensor '
    'visibility'
).split()


def open_tables(root: str | os.PathLike, version: str):
    """nuscenes-devkit's ``NuScenes`` on a checked folder.

    Args:
        root: data root that holds ``samples/`` and ``<version>/``.
        version: table folder, e.g. 'v1.0-trainval'.

    Raises:
        DataError: a folder or table is missing, or a table is not JSON.
    """
    root = Path(root)
    tables = root / version
    if not root.is_dir():
        raise DataError(f'{root}: no such folder; expected a nuScenes data root')
    if not tables.is_dir():
        others = sorted(path.parent.name for path in root.glob('*/sample_data.json'))
        raise DataError(f'{tables}: no such folder; versions found in {root}: {", ".join(others) or "none"}')
    missing = [name for name in _TABLES if not (tables / f'{name}.json').is_file()]
    if missing:
        raise DataError(f'{tables}: tables are missing: {", ".join(name + ".json" for name in missing)}')

    from nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except json.JSONDecodeError as error:
        broken = next((path for path in sorted(tables.glob('*.json')) if not _is_json(path)), tables)
        raise DataError(f'{broken}: not valid JSON ({error})') from error
    except (KeyError, AssertionError) as error:
        raise DataError(f'{tables}: the tables do not fit together ({type(error).__name__}: {error})') from error


def _is_json(path):
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def split_scenes(tables) -> dict[str, list[str]]:
    """Scene names of each info file: ``{'train': ..., 'val': ...}``, for a test version ``{'test': ...}``.

    ``<version>/splits.json`` (nuscenes-devkit's custom splits) counts before the official lists; it may name
    ``train``, ``val``, ``test``. Scenes in no list are left out by the caller, who counts them.
    """
    custom = Path(tables.dataroot) / tables.version / 'splits.json'
    if custom.is_file():
        try:
            lists = json.loads(custom.read_text())
        except ValueError as error:
            raise DataError(f'{custom}: not valid JSON ({error})') from error
        lists = {name: lists[name] for name in ('train', 'val', 'test') if name in lists} if lists else {}
        if lists:
            return lists
    from nuscenes.utils.splits import create_splits_scenes

    lists = create_splits_scenes()
    if 'test' in tables.version:
        return {'test': lists['test']}
    if 'mini' in tables.version:
        return {'train': lists['mini_train'], 'val': lists['mini_val']}
    return {'train': lists['train'], 'val': lists['val']}


def lidar_channel(tables, sample: dict) -> str:
    """LIDAR_TOP, or the rig's first LiDAR channel by name."""
    if 'LIDAR_TOP' in sample['data']:
        return 'LIDAR_TOP'
    channels = sorted(
        channel
        for channel, token in sample['data'].items()
        if tables.get('sample_data', token)['sensor_modality'] == 'lidar'
    )
    if not channels:
        raise DataError(f'{tables.table_root}/sample.json: sample {sample["token"]} has no LiDAR channel')
    return channels[0]


def camera_channels(tables, sample: dict) -> list[str]:
    """The nuScenes rig's cameras in our order, then the rig's own by name."""
    cameras = {
        channel
        for channel, token in sample['data'].items()
        if tables.get('sample_data', token)['sensor_modality'] == 'camera'
    }
    return [name for name in CAMERA_ORDER if name in cameras] + sorted(cameras - set(CAMERA_ORDER))


def scene_samples(tables, scene: dict) -> list[dict]:
    """Key frames of a scene in order of time."""
    samples, token = [], scene['first_sample_token']
    while token:
        samples.append(tables.get('sample', token))
        token = samples[-1]['next']
    return samples


def _poses(tables, record):
    """(sensor2ego, ego2global) of a sample_data record, float64."""
    sensor = tables.get('calibrated_sensor', record['calibrated_sensor_token'])
    ego = tables.get('ego_pose', record['ego_pose_token'])
    return (
        pose_matrix(sensor['rotation'], sensor['translation']),
        pose_matrix(ego['rotation'], ego['translation']),
    )


def _relative_name(filename: str, channel: str) -> str:
    """Bare name where mmdet3d's data_prefix ``samples/<channel>`` leads to the file, else the path from the root."""
    folder, _, name = filename.rpartition('/')
    return name if folder == f'samples/{channel}' else filename


def _image(tables, record, channel, lidar2global, bare=True):
    cam2ego, ego2global = _poses(tables, record)
    sensor = tables.get('calibrated_sensor', record['calibrated_sensor_token'])
    image = dict(
        img_path=_relative_name(record['filename'], channel) if bare else record['filename'],
        cam2img=np.asarray(sensor['camera_intrinsic'], dtype=np.float64).tolist(),
        cam2ego=cam2ego.tolist(),
        ego2global=ego2global.tolist(),
        lidar2cam=(invert_pose(ego2global @ cam2ego) @ lidar2global).tolist(),
        sample_data_token=record['token'],
        timestamp=record['timestamp'] / 1e6,
    )
    if record.get('width') and record.get('height'):
        image.update(width=int(record['width']), height=int(record['height']))
    return image


def _lidar_sweep(tables, record, lidar2global):
    lidar2ego, ego2global = _poses(tables, record)
    return dict(
        timestamp=record['timestamp'] / 1e6,
        ego2global=ego2global.tolist(),
        sample_data_token=record['token'],
        lidar_points=dict(
            lidar_path=record['filename'],
            lidar2ego=lidar2ego.tolist(),
            lidar2sensor=(invert_pose(ego2global @ lidar2ego) @ lidar2global).tolist(),
        ),
    )


def _earlier(tables, record, count):
    while count > 0 and record['prev']:
        record = tables.get('sample_data', record['prev'])
        count -= 1
        yield record


def _instance(tables, annotation, global2lidar):
    centre = global2lidar[:3, :3] @ annotation['translation'] + global2lidar[:3, 3]
    rotation = global2lidar[:3, :3] @ pose_matrix(annotation['rotation'], (0, 0, 0))[:3, :3]
    width, length, height = annotation['size']
    velocity = global2lidar[:3, :3] @ np.append(tables.box_velocity(annotation['token'])[:2], 0.0)
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    lidar_count, radar_count = annotation['num_lidar_pts'], annotation['num_radar_pts']
    return make_instance(
        [*centre, length, width, height, yaw],
        DETECTION_CATEGORIES.get(annotation['category_name'], annotation['category_name']),
        velocity,
        lidar_count,
        radar_count,
        lidar_count + radar_count > 0,
        annotation['instance_token'],
    )


def sample_info(tables, sample: dict, scene: dict, max_sweeps: int = 10, camera_sweeps: int = 0) -> dict:
    """Item of a key frame (layout: :mod:`occforge.datasets.info_files`), without ``sample_idx``.

    All matrices come from float64 products. ``occ_path`` and ``pts_semantic_mask_path`` are there where the files are.

    Args:
        tables: ``NuScenes``.
        sample, scene: records.
        max_sweeps: LiDAR sweeps before the key frame, at most.
        camera_sweeps: camera sweeps before the key frame, at most (a step counts only where every camera has it).
    """
    channel = lidar_channel(tables, sample)
    key = tables.get('sample_data', sample['data'][channel])
    lidar2ego, ego2global = _poses(tables, key)
    lidar2global = ego2global @ lidar2ego
    info = dict(
        token=sample['token'],
        scene_token=scene['token'],
        scene_name=scene['name'],
        prev=sample['prev'],
        next=sample['next'],
        timestamp=sample['timestamp'] / 1e6,
        ego2global=ego2global.tolist(),
        images={},
        lidar_points=dict(
            num_pts_feats=5, lidar_path=_relative_name(key['filename'], channel), lidar2ego=lidar2ego.tolist()
        ),
        lidar_sweeps=[_lidar_sweep(tables, record, lidar2global) for record in _earlier(tables, key, max_sweeps)],
        instances=[],
    )
    cameras = camera_channels(tables, sample)
    records = {camera: tables.get('sample_data', sample['data'][camera]) for camera in cameras}
    for camera, record in records.items():
        info['images'][camera] = _image(tables, record, camera, lidar2global)
    if camera_sweeps > 0:
        steps = zip(*(_earlier(tables, record, camera_sweeps) for record in records.values()))
        info['image_sweeps'] = [
            dict(
                images={
                    camera: _image(tables, record, camera, lidar2global, bare=False)
                    for camera, record in zip(cameras, step)
                }
            )
            for step in steps
        ]
    global2lidar = invert_pose(lidar2global)
    for token in sample['anns']:
        info['instances'].append(_instance(tables, tables.get('sample_annotation', token), global2lidar))
    occ_path = f'gts/{scene["name"]}/{sample["token"]}/labels.npz'
    if os.path.isfile(os.path.join(tables.dataroot, occ_path)):
        info['occ_path'] = occ_path
    if 'lidarseg' in tables.table_names:
        try:
            info['pts_semantic_mask_path'] = tables.get('lidarseg', key['token'])['filename']
        except KeyError as error:  # the table covers only some key frames
            raise DataError(
                f'{tables.table_root}/lidarseg.json: no record for {channel} of sample {sample["token"]}'
            ) from error
    return info


def _scene_infos(state, scene_token):
    tables, max_sweeps, camera_sweeps = state
    scene = tables.get('scene', scene_token)
    samples = scene_samples(tables, scene)
    return [sample_info(tables, sample, scene, max_sweeps, camera_sweeps) for sample in samples]


def make_infos(
    root: str | os.PathLike,
    version: str = 'v1.0-trainval',
    workers: int = 1,
    max_sweeps: int = 10,
    camera_sweeps: int = 0,
    quiet: bool = False,
) -> tuple[dict, dict[str, list[dict]], Counter]:
    """Items of every split.

    Args:
        root, version: see :func:`open_tables`.
        workers: processes.
        max_sweeps, camera_sweeps: see :func:`sample_info`.
        quiet: no progress bar.

    Returns:
        ``metainfo``; items by split, scenes in order of time; and how many scenes were left out, by reason: their
        sensor files are not there (a partly downloaded nuScenes), or they are in no split.

    Raises:
        DataError: bad tables, or no scene is left.
    """
    tables = open_tables(root, version)
    splits = split_scenes(tables)
    split_of = {name: split for split, names in splits.items() for name in names}
    left_out, chosen = Counter(), []
    for scene in tables.scene:
        first = tables.get('sample', scene['first_sample_token'])
        lidar = tables.get('sample_data', first['data'][lidar_channel(tables, first)])
        if scene['name'] not in split_of:
            left_out['in no split'] += 1
        elif not os.path.isfile(os.path.join(tables.dataroot, lidar['filename'])):
            left_out['sensor files not there'] += 1
        else:
            chosen.append((first['timestamp'], scene['token'], split_of[scene['name']]))
    if not chosen:
        reasons = '; '.join(f'{count} {reason}' for reason, count in left_out.items())
        raise DataError(f'{tables.table_root}: none of its {len(tables.scene)} scenes can be used ({reasons})')
    chosen.sort()
    per_scene = [None] * len(chosen)
    tokens = [token for _, token, _ in chosen]
    state = (tables, max_sweeps, camera_sweeps)
    for index, items in parallel_map(_scene_infos, state, tokens, workers, 'scenes', quiet):
        per_scene[index] = items
    data_lists = {split: [] for split in splits}
    for (_, _, split), items in zip(chosen, per_scene):
        for item in items:
            data_lists[split].append(dict(sample_idx=len(data_lists[split]), **item))
    categories = {name: index for index, name in enumerate(DETECTION_CLASSES)}
    used = {record['name'] for record in tables.category}
    categories.update({name: -1 for name in sorted(used - set(DETECTION_CATEGORIES))})
    metainfo = dict(categories=categories, dataset='nuscenes', version=version, info_version='1.1')
    return metainfo, data_lists, left_out


def write_infos(
    out_dir: str | os.PathLike,
    metainfo: dict,
    data_lists: dict[str, list[dict]],
    prefix: str = 'nuscenes',
    classic_root: str | None = None,
) -> list[Path]:
    """Write ``<prefix>_infos_<split>.pkl`` for every split; returns the paths.

    Args:
        out_dir: folder, made where missing.
        metainfo, data_lists: from :func:`make_infos`.
        prefix: first part of the names.
        classic_root: write the BEVDet layout instead, with paths that start with this folder.
    """
    paths = []
    for split, items in data_lists.items():
        path = Path(out_dir) / f'{prefix}_infos_{split}.pkl'
        if classic_root is None:
            save_infos(path, metainfo, items)
        else:
            save_classic_infos(path, metainfo, items, classic_root)
        paths.append(path)
    return paths
