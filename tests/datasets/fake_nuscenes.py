"""A few key frames of noise in nuScenes' folders, with a mmdet3d-v2 info file: for tests of loading alone."""

import os
import pickle

import numpy as np
from occforge.datasets import occ3d
from occforge.datasets.nuscenes_occupancy import CAMERA_NAMES
from PIL import Image

# camera axes (x right, y down, z forward) in ego axes (x forward, y left, z up)
CAMERA_TO_EGO = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float)
YAWS = dict(zip(CAMERA_NAMES, np.deg2rad([55, 0, -55, 110, 180, -110])))


def pose(yaw=0.0, translation=(0, 0, 0), rotation=None):
    """4x4 pose from a yaw about z, after ``rotation``."""
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ (np.eye(3) if rotation is None else rotation)
    matrix[:3, 3] = translation
    return matrix


LIDAR_TO_EGO = pose(np.deg2rad(-89.9), (0.94, 0, 1.84))


def ego_pose(scene, frame, offset=0.0):
    """The ego's pose in the world, far from its origin as in nuScenes; ``offset`` in frames."""
    t = frame + offset
    return pose(0.3 + 0.1 * t + scene, (600 + 4 * t, 1600 + 2 * t - 50 * scene, 0.5))


def camera_to_ego(name):
    return pose(YAWS[name], (1.5, 0.2, 1.5), CAMERA_TO_EGO)


def write_world(root, scenes=2, frames=4, image_size=(160, 90), points=400, seed=0):
    """Writes files and ``nuscenes_infos_val.pkl`` under ``root``; returns the list of infos."""
    root, rng, infos = str(root), np.random.default_rng(seed), []
    focal = image_size[0] * 0.8
    cam2img = [[focal, 0, image_size[0] / 2], [0, focal, image_size[1] / 2], [0, 0, 1]]
    for scene in range(scenes):
        for frame in range(frames):
            token = f'token{scene}{frame}'
            info = dict(
                sample_idx=len(infos),
                token=token,
                scene_token=f'scene{scene}',
                scene_name=f'scene-000{scene}',
                timestamp=1000.0 * scene + 0.5 * frame,
                ego2global=ego_pose(scene, frame).tolist(),
                images={},
                lidar_points=dict(lidar_path=f'{token}.pcd.bin', num_pts_feats=5, lidar2ego=LIDAR_TO_EGO.tolist()),
                lidar_sweeps=[],
                instances=[],
                occ_path=f'gts/scene-000{scene}/{token}/labels.npz',
                pts_semantic_mask_path=f'lidarseg/v1.0-mini/{token}_lidarseg.bin',
            )
            for n, name in enumerate(CAMERA_NAMES):
                folder = os.path.join(root, 'samples', name)
                os.makedirs(folder, exist_ok=True)
                coarse = rng.integers(0, 255, (9, 16, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize(image_size).save(os.path.join(folder, f'{token}.jpg'))
                cam2ego, at_image = camera_to_ego(name), ego_pose(scene, frame, 0.02 * n)
                lidar2cam = np.linalg.inv(at_image @ cam2ego) @ ego_pose(scene, frame) @ LIDAR_TO_EGO
                info['images'][name] = dict(
                    img_path=f'{token}.jpg',
                    cam2img=cam2img,
                    cam2ego=cam2ego.tolist(),
                    ego2global=at_image.tolist(),
                    lidar2cam=lidar2cam.tolist(),
                    timestamp=info['timestamp'] + 0.01 * n,
                    sample_data_token=f'{token}{n}',
                )
            for folder in ('samples/LIDAR_TOP', 'lidarseg/v1.0-mini', os.path.dirname(info['occ_path'])):
                os.makedirs(os.path.join(root, folder), exist_ok=True)
            cloud = np.concatenate(
                [
                    rng.uniform((-30, -30, -2), (30, 30, 3), (points, 3)),
                    rng.uniform(0, 255, (points, 1)),
                    rng.integers(0, 32, (points, 1)),
                ],
                axis=1,
            ).astype(np.float32)
            cloud.tofile(os.path.join(root, 'samples/LIDAR_TOP', f'{token}.pcd.bin'))
            rng.integers(0, 32, points, dtype=np.uint8).tofile(os.path.join(root, info['pts_semantic_mask_path']))
            labels = {
                name: rng.integers(0, high, (25, 25, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1).repeat(4, 2)
                for name, high in (('semantics', 18), ('mask_lidar', 2), ('mask_camera', 2))
            }
            assert labels['semantics'].shape == occ3d.GRID_SIZE
            np.savez_compressed(os.path.join(root, info['occ_path']), **labels)
            infos.append(info)
    write_infos(root, infos)
    return infos


def write_infos(root, infos):
    metainfo = dict(categories=dict(car=0), dataset='nuscenes', version='v1.0-mini', info_version='1.1')
    with open(os.path.join(str(root), 'nuscenes_infos_val.pkl'), 'wb') as file:
        pickle.dump(dict(metainfo=metainfo, data_list=infos), file)
