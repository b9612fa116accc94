"""Checks of RayIoU, RayPQ and the origins of their rays."""

import numpy as np
import torch
from cases import config, tensor
from occforge.datasets.info_files import pose_matrix
from occforge.datasets.ray_origins import scene_ray_origins
from occforge.evaluation import rays
from occforge.ops import cast_rays, ray_counts


def check_rayiou(npz):
    cfg = config(npz)
    lower, size = cfg['pc_range'][:3], [cfg['voxel_size']] * 3
    thresholds, names = cfg['thresholds'], cfg['occ_class_names']
    free = len(names) - 1
    directions = rays.ray_directions()
    np.testing.assert_array_equal(directions, npz['rays'])
    samples = sum(name.startswith('origins_') for name in npz.files)
    counts, segments = 0, 0
    for k in range(samples):
        origins = tensor(npz, f'origins_{k}')
        start = origins.repeat_interleave(len(directions), 0)
        along = torch.from_numpy(directions).repeat(len(origins), 1)
        seen = {}
        for side in ('gt', 'pred'):
            semantics = tensor(npz, f'sem_{side}_{k}')
            hits = cast_rays(semantics, start, along, lower, size, free)
            expected = npz[f'ray_{side}_{k}']
            np.testing.assert_array_equal(hits.label, expected[:, 0])
            # Rays through an edge of cells: the reference sums up its steps, so it may take the other cell.
            off = np.abs(hits.exit.numpy() - expected[:, 1]) > 1e-3
            assert off.mean() < 1e-3, f'{side} {k}: {off.sum()} of {len(off)} depths differ'
            cell = hits.cell.long()
            instance = tensor(npz, f'inst_{side}_{k}').long()[tuple(cell.clamp(min=0).T)]
            seen[side] = hits.label.numpy(), instance.numpy(), hits.exit.numpy()
        semantics, instances = npz[f'sem_gt_{k}'], npz[f'inst_gt_{k}']
        things = [names.index(name) for name in rays.THING_CLASSES]
        unmixed, _ = rays.drop_mixed_instances(semantics, instances, things, free)
        np.testing.assert_array_equal(unmixed, semantics)  # what this check does not go into
        met = seen['gt'][0] != free
        sides = [array[met] for side in ('pred', 'gt') for array in seen[side]]
        segments = segments + rays.panoptic_counts(*sides, free, things, thresholds)
        counts = counts + ray_counts(
            tensor(npz, f'sem_pred_{k}'), tensor(npz, f'sem_gt_{k}'), origins, torch.from_numpy(directions), lower,
            size, free, thresholds, free,
        )[0]  # fmt: skip

    iou, quality = rays.ray_iou(counts), rays.ray_pq(segments)
    np.testing.assert_allclose(iou, npz['iou_threshold_by_class'], rtol=1e-9, equal_nan=True)
    for name, table in (('RayIoU', iou), ('RayPQ', quality)):
        np.testing.assert_allclose(rays.nan_mean(table), npz[name], rtol=1e-9)
        for threshold, row in zip(thresholds, table):
            np.testing.assert_allclose(rays.nan_mean(row), npz[f'{name}_at_{threshold:g}'], rtol=1e-9)


def check_ray_origins(npz):
    cfg = config(npz)
    lidar2ego = pose_matrix(npz['lidar2ego_rotation_wxyz'], npz['lidar2ego_translation'])
    infos = [
        dict(
            token=str(k),
            scene_token=str(scene),
            timestamp=float(k),
            ego2global=pose_matrix(rotation, translation).tolist(),
            lidar_points=dict(lidar2ego=lidar2ego.tolist()),
        )
        for k, (scene, rotation, translation) in enumerate(
            zip(npz['scene_id'], npz['ego2global_rotation_wxyz'], npz['ego2global_translation'])
        )
    ]
    found = scene_ray_origins(infos, limit=cfg['limit_xy'], max_origins=cfg['max_origins'])
    for k in range(len(infos)):
        np.testing.assert_allclose(found[str(k)], npz[f'origins_{k}'], rtol=0, atol=1e-5)
