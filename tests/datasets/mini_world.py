"""A world small enough to know the answer: flat road, one wall and one driving car, seen by a 32-beam LiDAR.

Written as the files and the info items of one scene. Geometry: road z = 0; wall y = 10.1, 4 m high; the car is 4.5 x
1.9 x 1.6 m, turns and starts at (14, -4). The own vehicle drives along x at 5 m/s.
"""

import numpy as np
from occforge.datasets.info_files import invert_pose, make_instance, pose_matrix
from PIL import Image

CAR_SIZE = np.array([4.5, 1.9, 1.6])
WALL_Y, WALL_HEIGHT = 10.1, 4.0
ROAD, CAR, WALL = 24, 17, 28  # raw lidarseg
LIDAR2EGO = pose_matrix([0.5**0.5, 0, 0, -(0.5**0.5)], [0.94, 0.0, 1.84])
# x right, y down, z forward -> ego
CAM2EGO = np.array([[0, 0, 1, 1.7], [-1, 0, 0, 0.0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])
IMAGE_SIZE = (160, 90)
INTRINSICS = [[126.6, 0.0, 80.0], [0.0, 126.6, 45.0], [0.0, 0.0, 1.0]]


def ego_pose(time):
    return pose_matrix([np.cos(0.2), 0, 0, np.sin(0.2)], [600.0, 1200.0, 0.0]) @ pose_matrix(
        [1, 0, 0, 0], [5.0 * time, 0, 0]
    )


def world():
    """World frame of the description above -> global frame."""
    return pose_matrix([np.cos(0.2), 0, 0, np.sin(0.2)], [600.0, 1200.0, 0.0])


def car_pose(time):
    """In the world frame: speed 4 m/s, turning 0.2 rad/s."""
    yaw = 0.3 + 0.2 * time
    return np.array([14.0 + 4.0 * time, -4.0 + 1.0 * time, CAR_SIZE[2] / 2]), yaw


def scan(time, seed=0):
    """Points (P, 5) in the LiDAR frame and raw labels (P,)."""
    azimuth, elevation = np.meshgrid(np.radians(np.arange(0, 360, 0.5)), np.radians(np.linspace(-30, 10, 32)))
    d = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    d = d.reshape(-1, 3)
    ring = np.repeat(np.arange(32), azimuth.shape[1])
    lidar2world = invert_pose(world()) @ ego_pose(time) @ LIDAR2EGO
    d, o = d @ lidar2world[:3, :3].T, lidar2world[:3, 3]
    distance, label = np.full(len(d), np.inf), np.zeros(len(d), dtype=np.uint8)
    with np.errstate(divide='ignore', invalid='ignore'):
        road = np.where(d[:, 2] < 0, -o[2] / d[:, 2], np.inf)
        wall = np.where(d[:, 1] > 0, (WALL_Y - o[1]) / d[:, 1], np.inf)
        wall[(o[2] + wall * d[:, 2] > WALL_HEIGHT) | (o[2] + wall * d[:, 2] < 0)] = np.inf
        centre, yaw = car_pose(time)
        turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        bo, bd = turn @ (o - centre), d @ turn.T
        near, far = (-CAR_SIZE / 2 - bo) / bd, (CAR_SIZE / 2 - bo) / bd
        enter, leave = np.minimum(near, far).max(axis=1), np.maximum(near, far).min(axis=1)
        car = np.where((enter < leave) & (enter > 0), enter, np.inf)
    for hits, raw in ((road, ROAD), (wall, WALL), (car, CAR)):
        closer = hits < distance
        distance, label = np.where(closer, hits, distance), np.where(closer, raw, label)
    hit = distance < 60
    noise = np.random.default_rng(seed).normal(0, 0.01, hit.sum())
    points = o + (distance[hit] + noise)[:, None] * d[hit]
    local = (points - lidar2world[:3, 3]) @ lidar2world[:3, :3]
    extra = np.stack([np.full(hit.sum(), 30.0), ring[hit]], axis=1)
    return np.concatenate([local, extra], axis=1).astype(np.float32), label[hit].astype(np.uint8)


def write_scene(root, frames=3, sweeps=4, scene='scene-0001', lidarseg=True, labels=False, start=1000.0):
    """Write sensor files below ``root``; returns the v2 items of the key frames (2 Hz)."""
    items = []
    for folder in ('samples/LIDAR_TOP', 'sweeps/LIDAR_TOP', 'samples/CAM_FRONT', 'lidarseg/mini'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    tokens = [f'{scene}-{frame}' for frame in range(frames)]
    for frame in range(frames):
        time, token = 0.5 * frame, tokens[frame]
        points, raw = scan(time, frame)
        name = f'{token}.pcd.bin'
        points.tofile(root / 'samples/LIDAR_TOP' / name)
        Image.fromarray(np.random.default_rng(frame).integers(0, 255, (*IMAGE_SIZE[::-1], 3), dtype=np.uint8)).save(
            root / 'samples/CAM_FRONT' / f'{token}.jpg'
        )
        lidar2global = ego_pose(time) @ LIDAR2EGO
        camera_ego = ego_pose(time - 0.02)
        centre, yaw = car_pose(time)
        world2lidar = invert_pose(lidar2global) @ world()
        heading = world2lidar[:3, :3] @ [np.cos(yaw), np.sin(yaw), 0]
        box = [*(world2lidar[:3, :3] @ centre + world2lidar[:3, 3]), *CAR_SIZE, np.arctan2(heading[1], heading[0])]
        item = dict(
            sample_idx=frame,
            token=token,
            scene_token=f'token-of-{scene}',
            scene_name=scene,
            prev=tokens[frame - 1] if frame else '',
            next=tokens[frame + 1] if frame + 1 < frames else '',
            timestamp=start + time,
            ego2global=ego_pose(time).tolist(),
            images=dict(
                CAM_FRONT=dict(
                    img_path=f'{token}.jpg',
                    cam2img=INTRINSICS,
                    cam2ego=CAM2EGO.tolist(),
                    ego2global=camera_ego.tolist(),
                    lidar2cam=(invert_pose(camera_ego @ CAM2EGO) @ lidar2global).tolist(),
                    width=IMAGE_SIZE[0],
                    height=IMAGE_SIZE[1],
                    timestamp=start + time - 0.02,
                )
            ),
            lidar_points=dict(num_pts_feats=5, lidar_path=name, lidar2ego=LIDAR2EGO.tolist()),
            lidar_sweeps=[],
            instances=[
                make_instance(box, 'car', world2lidar[:2, :3] @ [4.0, 1.0, 0.0], 100, 0, True, instance_token='car')
            ],
        )
        if lidarseg:
            raw.tofile(root / 'lidarseg/mini' / f'{token}_lidarseg.bin')
            item['pts_semantic_mask_path'] = f'lidarseg/mini/{token}_lidarseg.bin'
        for sweep in range(1, sweeps + 1):
            earlier = time - 0.5 * sweep / (sweeps + 1)
            path = f'sweeps/LIDAR_TOP/{token}-{sweep}.pcd.bin'
            scan(earlier, 100 * frame + sweep)[0].tofile(root / path)
            item['lidar_sweeps'].append(
                dict(
                    timestamp=start + earlier,
                    ego2global=ego_pose(earlier).tolist(),
                    sample_data_token=f'{token}-{sweep}',
                    lidar_points=dict(lidar_path=path, lidar2ego=LIDAR2EGO.tolist()),
                )
            )
        if labels:
            item['occ_path'] = f'gts/{scene}/{token}/labels.npz'
            folder = root / 'gts' / scene / token
            folder.mkdir(parents=True, exist_ok=True)
            grid = np.full((200, 200, 16), 17, dtype=np.uint8)
            grid[:, :, 2] = 11
            mask = np.ones_like(grid)
            np.savez_compressed(folder / 'labels.npz', semantics=grid, mask_lidar=mask, mask_camera=mask)
        items.append(item)
    return items


def write_tables(root, scenes=('scene-0061', 'scene-0103'), version='v1.0-mini', frames=3, sweeps=4):
    """A nuScenes data set of such scenes (the same world, at other times): files and tables. Returns the v2 items."""
    import json

    from occforge.datasets.info_files import quaternion_of

    tables = {name: [] for name in TABLES}
    tables['sensor'] = [
        dict(token='lidar', channel='LIDAR_TOP', modality='lidar'),
        dict(token='camera', channel='CAM_FRONT', modality='camera'),
    ]
    for name, pose, intrinsic in (('lidar', LIDAR2EGO, []), ('camera', CAM2EGO, INTRINSICS)):
        tables['calibrated_sensor'].append(
            dict(
                token=f'calibrated-{name}',
                sensor_token=name,
                translation=pose[:3, 3].tolist(),
                rotation=quaternion_of(pose),
                camera_intrinsic=intrinsic,
            )
        )
    tables['category'] = [
        dict(token=name, name=name, description='', index=index)
        for index, name in ((CAR, 'vehicle.car'), (0, 'noise'), (1, 'animal'), (ROAD, 'flat.driveable_surface'))
    ]
    tables['log'] = [
        dict(token='log', logfile='n015', vehicle='n015', date_captured='2018-07-24', location='boston-seaport')
    ]
    (root / 'maps').mkdir(parents=True, exist_ok=True)
    Image.new('L', (8, 8)).save(root / 'maps/map.png')
    tables['map'] = [dict(token='map', log_tokens=['log'], category='semantic_prior', filename='maps/map.png')]
    tables['visibility'] = [dict(token='4', level='v80-100', description='')]
    all_items = []
    for number, scene in enumerate(scenes):
        start = 1.6e9 + 100 * number
        items = write_scene(root, frames, sweeps, scene, start=start)
        all_items += items
        tables['scene'].append(
            dict(
                token=f'token-of-{scene}',
                name=scene,
                log_token='log',
                nbr_samples=frames,
                first_sample_token=items[0]['token'],
                last_sample_token=items[-1]['token'],
                description='',
            )
        )
        tables['instance'].append(
            dict(
                token=f'{scene}-car',
                category_token='vehicle.car',
                nbr_annotations=frames,
                first_annotation_token=f'{items[0]["token"]}-car',
                last_annotation_token=f'{items[-1]["token"]}-car',
            )
        )
        lidar_records = []
        for item in items:
            token, time = item['token'], item['timestamp'] - start
            tables['sample'].append(
                {
                    'token': token,
                    'timestamp': round(item['timestamp'] * 1e6),
                    'scene_token': item['scene_token'],
                    'prev': item['prev'],
                    'next': item['next'],
                }
            )
            for sweep in reversed(item['lidar_sweeps']):
                lidar_records.append((sweep['sample_data_token'], sweep['timestamp'], sweep['ego2global'], item, sweep))
            lidar_records.append((f'{token}-lidar', item['timestamp'], item['ego2global'], item, None))
            tables['lidarseg'].append(
                dict(
                    token=f'{token}-lidar', sample_data_token=f'{token}-lidar', filename=item['pts_semantic_mask_path']
                )
            )
            image = item['images']['CAM_FRONT']
            tables['ego_pose'].append(_ego_record(f'{token}-camera', image['timestamp'], image['ego2global']))
            tables['sample_data'].append(
                _data_record(f'{token}-camera', item, 'camera', image['timestamp'], f'samples/CAM_FRONT/{token}.jpg')
            )
            centre, yaw = car_pose(time)
            car = world() @ pose_matrix([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], centre)
            tables['sample_annotation'].append(
                dict(
                    token=f'{token}-car',
                    sample_token=token,
                    instance_token=f'{scene}-car',
                    translation=car[:3, 3].tolist(),
                    rotation=quaternion_of(car),
                    size=CAR_SIZE[[1, 0, 2]].tolist(),
                    prev=f'{item["prev"]}-car' if item['prev'] else '',
                    next=f'{item["next"]}-car' if item['next'] else '',
                    num_lidar_pts=100,
                    num_radar_pts=0,
                    visibility_token='4',
                    attribute_tokens=[],
                )
            )
        for index, (token, timestamp, ego2global, item, sweep) in enumerate(lidar_records):
            path = (
                sweep['lidar_points']['lidar_path']
                if sweep
                else f'samples/LIDAR_TOP/{item["lidar_points"]["lidar_path"]}'
            )
            record = _data_record(token, item, 'lidar', timestamp, path, key=sweep is None)
            record['prev'] = lidar_records[index - 1][0] if index else ''
            record['next'] = lidar_records[index + 1][0] if index + 1 < len(lidar_records) else ''
            tables['sample_data'].append(record)
            tables['ego_pose'].append(_ego_record(token, timestamp, ego2global))
    folder = root / version
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        (folder / f'{name}.json').write_text(json.dumps(records))
    (root / 'lidarseg' / version).mkdir(parents=True)
    for path in (root / 'lidarseg/mini').iterdir():
        path.rename(root / 'lidarseg' / version / path.name)
    text = (folder / 'lidarseg.json').read_text()
    (folder / 'lidarseg.json').write_text(text.replace('lidarseg/mini', f'lidarseg/{version}'))
    return all_items


TABLES = (
    'attribute calibrated_sensor category ego_pose instance log map sample sample_annotation sample_data scene sensor '
    'visibility lidarseg'
).split()


def _ego_record(token, timestamp, ego2global):
    from occforge.datasets.info_files import quaternion_of

    ego2global = np.asarray(ego2global)
    return dict(
        token=token,
        timestamp=round(timestamp * 1e6),
        translation=ego2global[:3, 3].tolist(),
        rotation=quaternion_of(ego2global),
    )


def _data_record(token, item, sensor, timestamp, path, key=True):
    size = IMAGE_SIZE if sensor == 'camera' else (0, 0)
    return dict(
        token=token,
        sample_token=item['token'],
        ego_pose_token=token,
        calibrated_sensor_token=f'calibrated-{sensor}',
        timestamp=round(timestamp * 1e6),
        fileformat=path.rsplit('.', 1)[-1],
        is_key_frame=key,
        height=size[1],
        width=size[0],
        filename=path,
        prev='',
        next='',
    )
