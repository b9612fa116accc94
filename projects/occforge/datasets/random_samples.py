"""Samples of noise in the real formats: what a benchmark needs where there is no data set.

Images, points and labels are random, cameras and LiDAR sit where they do on the nuScenes car (or another rig), so every
transform runs and every tensor has its usual size. Nothing can be learnt from them.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from occforge.fileio import atomic_write

from .info_files import DETECTION_CLASSES, save_infos
from .occ3d import FREE, GRID_SIZE
from .synthetic_city.rig import load_rig, quaternion_matrix


def write_random_samples(
    root,
    ann_files: Sequence[str] = ('nuscenes_infos_train.pkl', 'nuscenes_infos_val.pkl'),
    samples: int = 2,
    rig=None,
    image_size: tuple | None = None,
    points: int = 30000,
    sweeps: int = 10,
    grid_size: Sequence[int] = GRID_SIZE,
    seed: int = 0,
) -> None:
    """Write ``samples`` key frames, 0.5 s apart in one scene, and info files that list them.

    Args:
        root: folder, made when needed.
        ann_files: names of the info files; all list the same samples.
        samples: key frames.
        rig: of ``synthetic_city.rig.load_rig``; None: nuScenes' six cameras.
        image_size: (width, height); None: the rig's own. Intrinsics follow.
        points: of a cloud.
        sweeps: between key frames; each is the cloud of the key frame before it.
        grid_size: of the labels, (X, Y, Z).
        seed: of all random numbers.
    """
    root = Path(root)
    rng = np.random.default_rng(seed)
    rig = load_rig(rig)
    size = tuple(image_size or rig.image_size)
    lidar2ego = _pose(rig.lidar)
    items = []
    for number in range(samples):
        token, time = f'{number:032x}', 1e9 + 0.5 * number
        motion = np.eye(4)
        motion[0, 3] = 2.0 * number
        images = {}
        for camera in rig.cameras:
            path = root / 'samples' / camera.name / f'{token}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, size))  # JPEG of natural size, not of pure noise
            scale = np.array([size[0] / rig.image_size[0], size[1] / rig.image_size[1], 1.0])
            cam2ego = _pose(camera)
            images[camera.name] = dict(
                img_path=path.name,
                cam2img=(camera.intrinsic * scale[:, None]).tolist(),
                cam2ego=cam2ego.tolist(),
                ego2global=motion.tolist(),
                lidar2cam=(np.linalg.inv(cam2ego) @ lidar2ego).tolist(),
                timestamp=time,
                sample_data_token=f'{token}{camera.name}',
                width=size[0],
                height=size[1],
            )
        cloud = np.stack([rng.normal(0, 18, points), rng.normal(0, 18, points), rng.uniform(-3, 2, points),
                          rng.uniform(0, 255, points), rng.integers(0, 32, points)], -1).astype(np.float32)  # fmt: skip
        lidar = root / 'samples' / 'LIDAR_TOP' / f'{token}.pcd.bin'
        lidar.parent.mkdir(parents=True, exist_ok=True)
        cloud.tofile(lidar)
        classes = root / 'lidarseg' / f'{token}_lidarseg.bin'
        classes.parent.mkdir(exist_ok=True)
        rng.integers(0, 32, points, np.uint8).tofile(classes)
        semantics = np.full(grid_size, FREE, np.uint8)
        occupied = rng.random(grid_size) < 0.05
        semantics[occupied] = rng.integers(0, FREE, int(occupied.sum()), np.uint8)
        masks = {name: (rng.random(grid_size) < 0.3).astype(np.uint8) for name in ('mask_lidar', 'mask_camera')}
        labels = root / 'gts' / 'random' / token / 'labels.npz'
        labels.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(labels, 'wb', durable=False) as file:
            np.savez_compressed(file, semantics=semantics, **masks)
        sweep = dict(
            timestamp=time,
            ego2global=motion.tolist(),
            sample_data_token=token,
            lidar_points=dict(
                lidar_path=os.path.relpath(lidar, root), lidar2ego=lidar2ego.tolist(), lidar2sensor=np.eye(4).tolist()
            ),
        )
        boxes = np.concatenate([rng.normal(0, 15, (20, 2)), rng.normal(-1, 0.3, (20, 1)), rng.uniform(0.5, 5, (20, 3)),
                                rng.uniform(-3, 3, (20, 1))], 1)  # fmt: skip
        items.append(
            dict(
                sample_idx=number,
                token=token,
                scene_token='random',
                scene_name='random',
                timestamp=time,
                prev='' if number == 0 else f'{number - 1:032x}',
                next='' if number + 1 == samples else f'{number + 1:032x}',
                ego2global=motion.tolist(),
                images=images,
                lidar_points=dict(lidar_path=lidar.name, num_pts_feats=5, lidar2ego=lidar2ego.tolist()),
                lidar_sweeps=[dict(sweep, timestamp=time - 0.05 * (k + 1)) for k in range(sweeps)],
                instances=[
                    dict(bbox_3d=box.tolist(), bbox_label_3d=k % 10, bbox_label=k % 10, bbox_3d_isvalid=True,
                         num_lidar_pts=9, num_radar_pts=1, velocity=[0.0, 0.0])
                    for k, box in enumerate(boxes)
                ],
                occ_path=os.path.relpath(labels, root),
                pts_semantic_mask_path=os.path.relpath(classes, root),
            )
        )  # fmt: skip
    metainfo = dict(dataset='nuscenes', version='random', info_version='1.1')
    metainfo['categories'] = {name: number for number, name in enumerate(DETECTION_CLASSES)}
    for name in ann_files:
        save_infos(root / name, metainfo, items)


def use_random_samples(cfg, root, **options) -> None:
    """Write random samples and point all data sets of a config to them, in place.

    Args:
        cfg: a config with data loaders of nuScenes data sets.
        root: folder.
        **options: of :func:`write_random_samples`.
    """
    datasets = []
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        waiting = [cfg[loader]['dataset']] if cfg.get(loader) else []
        while waiting:
            dataset = waiting.pop()
            inner = dataset.get('dataset', dataset.get('datasets'))
            if inner is None:
                datasets.append(dataset)
            else:
                waiting += inner if isinstance(inner, (list, tuple)) else [inner]
    names = sorted({os.path.basename(dataset['ann_file']) for dataset in datasets})
    write_random_samples(root, names, **options)
    for dataset in datasets:
        dataset['ann_file'], dataset['data_root'] = os.path.basename(dataset['ann_file']), str(root)


def _pose(sensor) -> np.ndarray:
    """(4, 4) sensor to ego."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = quaternion_matrix(sensor.rotation), sensor.translation
    return pose
