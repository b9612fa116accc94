"""The JSON tables of a nuScenes dataset: schema of https://www.nuscenes.org/nuscenes#data-format."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np

from occforge.fileio import atomic_write

from .cameras import scaled_intrinsic
from .maps import MapWriter
from .objects import CATEGORIES
from .rig import matrix_quaternion
from .world import KEYFRAME_STEP, SWEEP_STEP, SWEEPS, World

ATTRIBUTES = {
    'vehicle.moving': 'Vehicle is moving.',
    'vehicle.stopped': 'Vehicle, with a driver/rider in/on it, is currently stationary but has an intent to move.',
    'vehicle.parked': 'Vehicle is stationary (usually for longer duration) with no immediate intent to move.',
    'cycle.with_rider': 'There is a rider on the bicycle or motorcycle.',
    'cycle.without_rider': 'There is NO rider on the bicycle or motorcycle.',
    'pedestrian.sitting_lying_down': 'The human is sitting or lying down.',
    'pedestrian.standing': 'The human is standing.',
    'pedestrian.moving': 'The human is moving.',
}
VISIBILITY = {'1': 'v0-40', '2': 'v40-60', '3': 'v60-80', '4': 'v80-100'}
LAYERS = (
    'category',
    'attribute',
    'visibility',
    'instance',
    'sensor',
    'calibrated_sensor',
    'ego_pose',
    'log',
    'scene',
    'sample',
    'sample_data',
    'sample_annotation',
    'map',
)


def token(text: str) -> str:
    """A token of 32 hexadecimal digits, the same for the same text."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def scene_part(world: World, job, shift, description) -> dict:
    """Records of one scene that need its world: poses, instances, boxes. ``shift``: scene frame to map, metres."""
    rig, name = job.rig, f'{job.seed} {job.scene_name}'
    out = {table: [] for table in LAYERS}
    out['log'] = [
        {
            'token': token(f'{name} log'),
            'logfile': job.log_name,
            'vehicle': rig.name,
            'date_captured': '2031-01-01',
            'location': '',
        }
    ]
    sensors = [(rig.lidar.name, 'lidar', None), *((c.name, 'camera', c) for c in rig.cameras)]
    for channel, _, camera in sensors:
        source = camera or rig.lidar
        intrinsic = scaled_intrinsic(camera, rig.image_size, job.image_size).tolist() if camera else []
        out['calibrated_sensor'].append(
            {
                'token': token(f'{name} calibration {channel}'),
                'sensor_token': token(f'sensor {channel}'),
                'translation': source.translation.tolist(),
                'rotation': source.rotation.tolist(),
                'camera_intrinsic': intrinsic,
            }
        )

    def add_pose(t, data_token):
        pose = world.ego.pose(t)
        out['ego_pose'].append(
            {
                'token': data_token,
                'timestamp': job.timestamp(t),
                'rotation': matrix_quaternion(pose[:3, :3]).tolist(),
                'translation': (pose[:3, 3] + np.append(shift, 0)).tolist(),
            }
        )

    def chain(records):
        for before, after in itertools.pairwise(records):
            before['next'], after['prev'] = after['token'], before['token']
        return records

    w, h = job.image_size
    for channel, _kind, camera in sensors:
        records = []
        if camera is None:
            shots = []
            for number in range((job.keyframes - 1) * SWEEPS + 1):
                # a sweep belongs to the sample that follows it
                shots.append((number * SWEEP_STEP, -(-number // SWEEPS), number % SWEEPS, job.lidar_file(number)))
        else:
            shots = [(t, frame + (between > 0), between, path) for t, frame, between, path in job.camera_shots(camera)]
        for number, (t, frame, between, path) in enumerate(shots):
            key = (
                job.key_lidar_tokens[frame] if camera is None and between == 0 else token(f'{name} {channel} {number}')
            )
            add_pose(t, key)
            records.append(
                {
                    'token': key,
                    'sample_token': job.sample_tokens[frame],
                    'ego_pose_token': key,
                    'calibrated_sensor_token': token(f'{name} calibration {channel}'),
                    'timestamp': job.timestamp(t),
                    'fileformat': 'jpg' if camera else 'pcd',
                    'is_key_frame': between == 0,
                    'height': h if camera else 0,
                    'width': w if camera else 0,
                    'filename': path,
                    'prev': '',
                    'next': '',
                }
            )
        out['sample_data'] += chain(records)
    samples = [
        {
            'token': s,
            'timestamp': job.timestamp(k * KEYFRAME_STEP),
            'prev': '',
            'next': '',
            'scene_token': job.scene_token,
        }
        for k, s in enumerate(job.sample_tokens)
    ]
    out['sample'] = chain(samples)
    out['scene'] = [
        {
            'token': job.scene_token,
            'log_token': token(f'{name} log'),
            'nbr_samples': job.keyframes,
            'first_sample_token': job.sample_tokens[0],
            'last_sample_token': job.sample_tokens[-1],
            'name': job.scene_name,
            'description': description,
        }
    ]
    tracks = {}
    for frame in range(job.keyframes):
        t = frame * KEYFRAME_STEP
        boxes = world.boxes(world.places(t))
        for agent, points, visibility in json.loads((job.state / f'{job.scene_name}_{frame:04d}.json').read_text()):
            x, y, z, length, width, height, yaw = boxes[agent]
            attribute = _attribute(world, agent, t)
            tracks.setdefault(agent, []).append(
                {
                    'token': token(f'{name} annotation {agent} {frame}'),
                    'sample_token': job.sample_tokens[frame],
                    'instance_token': token(f'{name} instance {agent}'),
                    'visibility_token': visibility,
                    'attribute_tokens': [token(f'attribute {attribute}')] if attribute else [],
                    'translation': [x + shift[0], y + shift[1], z],
                    'size': [width, length, height],
                    'rotation': [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
                    'prev': '',
                    'next': '',
                    'num_lidar_pts': points,
                    'num_radar_pts': 0,
                }
            )
    for agent in sorted(tracks):
        records = chain(tracks[agent])
        out['sample_annotation'] += records
        out['instance'].append(
            {
                'token': token(f'{name} instance {agent}'),
                'category_token': token(f'category {world.agents[agent].model.category}'),
                'nbr_annotations': len(records),
                'first_annotation_token': records[0]['token'],
                'last_annotation_token': records[-1]['token'],
            }
        )
    return out


def _attribute(world, number, t):
    """What the agent does now: one that follows the ego stops where the ego stops."""
    agent = world.agents[number]
    if agent.path is None or agent.attribute not in ('vehicle.moving', 'pedestrian.moving'):
        return agent.attribute
    a, b = agent.path(t - 0.1), agent.path(t + 0.1)
    moving = np.hypot(b[0] - a[0], b[1] - a[1]) > 0.04
    if moving:
        return agent.attribute
    return 'vehicle.stopped' if agent.attribute.startswith('vehicle') else 'pedestrian.standing'


def write_tables(jobs, parts, locations, layers, edges) -> None:
    """Write tables, lidarseg index and maps of all scenes.

    Args:
        jobs, parts: per scene its Job and the result of :func:`scene_part`.
        locations: per scene its location name.
        layers: per scene (map polygons, shift, lower, upper).
        edges: location -> (x, y) metres of its map.
    """
    root, version = Path(jobs[0].root), jobs[0].version
    tables = {name: [record for part in parts for record in part[name]] for name in LAYERS}
    for log, location in zip(tables['log'], locations):
        log['location'] = location
    tables['category'] = [
        {'token': token(f'category {name}'), 'name': name, 'description': '', 'index': index}
        for index, name in enumerate(CATEGORIES)
    ]
    tables['attribute'] = [
        {'token': token(f'attribute {name}'), 'name': name, 'description': text} for name, text in ATTRIBUTES.items()
    ]
    tables['visibility'] = [
        {'token': key, 'level': level, 'description': f'visibility of the whole object is between {level[1:]}%'}
        for key, level in VISIBILITY.items()
    ]
    rig = jobs[0].rig
    tables['sensor'] = [
        {'token': token(f'sensor {channel}'), 'channel': channel, 'modality': modality}
        for channel, modality in [(rig.lidar.name, 'lidar'), *((c.name, 'camera') for c in rig.cameras)]
    ]
    for location in sorted(set(locations)):
        writer = MapWriter(location, edges[location], token)
        for place, layer in zip(locations, layers):
            if place == location:
                writer.add_scene(*layer)
        logs = [log['token'] for log in tables['log'] if log['location'] == location]
        tables['map'].append(
            {
                'category': 'semantic_prior',
                'token': token(f'map {location}'),
                'filename': writer.write(root),
                'log_tokens': logs,
            }
        )
    lidarseg = [
        {'token': key, 'sample_data_token': key, 'filename': f'lidarseg/{version}/{key}_lidarseg.bin'}
        for job in jobs
        for key in job.key_lidar_tokens
    ]
    for name, records in {**tables, 'lidarseg': lidarseg}.items():
        with atomic_write(root / version / f'{name}.json', 'w') as file:
            json.dump(records, file, indent=0)
