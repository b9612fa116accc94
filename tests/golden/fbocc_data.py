"""FB-OCC's data side against the reference implementation's outputs."""

from types import SimpleNamespace

import numpy as np
import torch
from cases import assert_close, config, tensor
from mmengine.structures import BaseDataElement
from occforge.datasets.info_files import pose_matrix
from occforge.datasets.nuscenes_occupancy import sequence_groups
from occforge.datasets.samplers import SequenceBatchSampler
from occforge.datasets.transforms import PointToMultiViewDepth
from occforge.datasets.transforms.bev_aug import bda_boxes, bda_matrix
from occforge.datasets.transforms.images import (
    ImageAugmentation,
    augment_image,
    augmentation_matrices,
    draw_augmentation,
)
from occforge.datasets.transforms.loading import augment_labels
from occforge.engine.hooks.ema_hook import RampedAverage, ema_decay
from occforge.evaluation.occupancy_metric import iou_per_class, masked_confusions, mean_iou
from occforge.models.data_preprocessor import OccDataPreprocessor
from occforge.systems.fbocc import FBOCC
from PIL import Image


def _cases(npz):
    return sorted({name.split('/')[0] for name in npz.files if '/in/' in name})


def check_bda_transform(npz):
    for case in _cases(npz):
        draw = [npz[f'{case}/in/{name}'].item() for name in ('rotate_deg', 'scale', 'flip_dx', 'flip_dy')]
        assert_close(bda_matrix(*draw).astype(np.float32), npz[f'{case}/out/bda'], f'{case} bda')
        assert_close(bda_boxes(npz[f'{case}/in/boxes'], *draw), npz[f'{case}/out/boxes'], f'{case} boxes', atol=1e-4)


class _ReferenceDraws:
    """numpy's global generator asked as the reference asks it, behind the interface that ours uses."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)
        self.uniform = self.state.uniform

    def random(self):
        return 0.0 if self.state.choice([0, 1]) else 1.0


def check_image_augmentation(npz):
    cfg = config(npz)
    for case in _cases(npz):
        image = Image.fromarray(npz[f'{case}/in/image'])
        draws = _ReferenceDraws(int(npz[f'{case}/in/np_random_seed'])) if npz[f'{case}/in/is_train'] else None
        drawn = draw_augmentation(image.size, cfg, draws)
        expected = ImageAugmentation(
            float(npz[f'{case}/aug/resize']),
            tuple(npz[f'{case}/aug/resize_dims_wh'].tolist()),
            tuple(npz[f'{case}/aug/crop_xyxy'].tolist()),
            bool(npz[f'{case}/aug/flip']),
            float(npz[f'{case}/aug/rotate_deg']),
        )
        assert drawn == expected, f'{case}: {drawn}'
        augmented = np.asarray(augment_image(image, drawn))
        difference = np.abs(augmented.astype(int) - npz[f'{case}/out/image'])
        assert difference.max() <= 1, f'{case}: differs by {difference.max()}'  # Pillow's resampling may round
        rot, tran = augmentation_matrices(drawn)
        assert_close(rot.astype(np.float32), npz[f'{case}/out/post_rot2'], f'{case} post_rot2', atol=1e-4)
        assert_close(tran.astype(np.float32), npz[f'{case}/out/post_tran2'], f'{case} post_tran2', atol=1e-4)
        normalised = OccDataPreprocessor().normalise(tensor(npz, f'{case}/out/image')[None])[0]
        expected = npz[f'{case}/out/normalized'].astype(np.float32)
        assert_close(normalised, expected, f'{case} normalized', rtol=1e-3, atol=2e-3)


def check_label_transform(npz):
    for case in _cases(npz):
        results = dict(
            voxel_semantics=npz[f'{case}/in/semantics'],
            mask_camera=npz[f'{case}/in/mask_camera'],
            mask_lidar=None,
            rotate_bda=float(npz[f'{case}/in/rotate_bda_deg']),
            flip_dx=bool(npz[f'{case}/in/flip_dx']),
            flip_dy=bool(npz[f'{case}/in/flip_dy']),
            bda_scales=False,
            bda_rotates=True,
        )
        augment_labels(results, results)
        volumes = (torch.from_numpy(np.array(results[name])) for name in ('voxel_semantics', 'mask_camera'))
        truth = dict(semantics=next(volumes), mask_camera=next(volumes).bool())
        truth = BaseDataElement(**truth)
        network = SimpleNamespace(use_mask=True, mask='mask_camera', occupancy_head=SimpleNamespace(has_void=True))
        target = FBOCC.targets(network, [SimpleNamespace(gt_occ=truth)], 'cpu')[0]
        assert torch.equal(target, tensor(npz, f'{case}/out/gt_occupancy')), f'{case} gt_occupancy'


def check_geometry_and_depth_map(npz):
    cfg = config(npz)

    def pose(name, index=...):
        return pose_matrix(npz[f'{name}_rotation'][index], npz[f'{name}_translation'][index])

    motion = np.linalg.inv(pose('in/prev/ego2global')) @ pose('in/cur/ego2global')
    assert_close(motion, npz['out/rt_cur_ego_to_prev_ego'], 'rt_cur_ego_to_prev_ego', atol=1e-6)
    sensor2ego, ego2global = (
        torch.from_numpy(np.stack([pose(f'in/cur/cams/{name}', n) for n in range(len(cfg['cams']))]))[None, None]
        for name in ('sensor2ego', 'ego2global')
    )
    eye = torch.eye(3)
    inputs = dict(sensor2ego=sensor2ego, ego2global=ego2global, bda=eye[None])
    inputs.update(intrins=eye[None, None, None], post_rots=eye[None, None, None], post_trans=torch.zeros(1, 1, 1, 3))
    sample = SimpleNamespace(metainfo=dict(cam_names=cfg['cams']))
    found = FBOCC.cameras(SimpleNamespace(key_ego=cfg['ego_cam']), inputs, [sample]).sensor2keyego[0]
    assert_close(found, npz['out/sensor2keyego_CAM_FRONT'], 'sensor2keyego', atol=1e-4)

    points = npz['in/points_lidar']
    lidar2ego = pose('in/cur/lidar2ego')
    ego_points = points[:, :3] @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    assert_close(ego_points.astype(np.float32), npz['out/points_ego'], 'points_ego', atol=1e-4)
    images = {
        name: dict(
            img_path='-',
            cam2img=npz['in/cur/cams/cam_intrinsic'][n],
            cam2ego=sensor2ego[0, 0, n].numpy(),
            ego2global=ego2global[0, 0, n].numpy(),
        )
        for n, name in enumerate(cfg['cams'])
    }
    results = dict(
        key_points=points,
        points=points,
        post_rots=npz['in/post_rots'][None],
        post_trans=npz['in/post_trans'][None],
        input_size=tuple(cfg['image_size']),
        used_cameras=cfg['cams'],
        images=images,
        lidar_points=dict(lidar2ego=lidar2ego),
        ego2global=pose('in/cur/ego2global'),
    )
    depth = PointToMultiViewDepth(dict(depth=cfg['depth']))(results)['sparse_depth']
    expected = npz['out/gt_depth']
    # float32 in another order: a point at the edge of a pixel may have changed sides
    same = (np.abs(depth - expected) < 1e-3).mean()
    assert same > 0.9995, f'{100 * (1 - same):.3f} % of the pixels differ'


def check_sampler_flags_ema(npz):
    cfg = config(npz)
    scenes = np.cumsum(~npz['in/has_prev'])
    for split in sorted({name.split('/')[0] for name in npz.files if name.startswith('split_')}):
        number = split.removeprefix('split_')
        groups = sequence_groups(scenes.tolist(), number if number == 'all' else int(number))
        assert np.array_equal(groups, npz[f'{split}/flag']), f'{split} flag'
        start = np.diff(groups, prepend=-1) != 0
        assert np.array_equal(start, npz[f'{split}/start_of_sequence']), f'{split} start_of_sequence'
        dataset = SimpleNamespace(sequence_groups=groups)
        for rank in range(cfg['world_size']):
            order = SequenceBatchSampler(
                SimpleNamespace(dataset=dataset, seed=cfg['seed'], epoch=0),
                cfg['batch_size'],
                rank_and_world=(rank, cfg['world_size']),
            )
            expected = npz[f'{split}/rank{rank}/batches']
            found = []
            while len(found) < len(expected):
                found += [[visit.index for visit in batch] for batch in order]
                order.sampler.epoch += 1
            assert found[: len(expected)] == expected.tolist(), f'{split} rank {rank}'

    decays = [ema_decay(int(update), cfg['ema_decay'], 'exp', 2000) for update in npz['ema/x']]
    np.testing.assert_allclose(decays, npz['ema/decay'], rtol=1e-9)
    weight = torch.nn.Module()
    weight.register_parameter('values', torch.nn.Parameter(tensor(npz, 'ema/init')))
    average = RampedAverage(weight, cfg['ema_decay'], 'exp', 2000, cfg['ema_init_updates'])
    for step, (update, expected) in enumerate(zip(npz['ema/updates'], npz['ema/out'])):
        weight.values.data.copy_(torch.from_numpy(update))
        average.update_parameters(weight)
        assert_close(average.module.values, expected, f'average after update {step}', atol=1e-6)


def check_metric_miou(npz):
    cfg = config(npz)
    cells = (np.arange(200) - 100) * 0.4
    radius = np.hypot(cells[:, None], cells[None])
    inside = (radius >= cfg['range']['min_d']) & (radius <= cfg['range']['max_d'])
    for part, column in (('full', np.ones_like(inside)), ('range', inside)):
        total = 0
        for case in _cases_of_metric(npz):
            gt, pred, mask = (tensor(npz, f'in/{case}/{name}') for name in ('gt', 'pred', 'mask_camera'))
            mask = mask & torch.from_numpy(column)[..., None]
            total = total + masked_confusions(pred, gt, mask, mask, cfg['num_classes'])[1].numpy()
        np.testing.assert_array_equal(total, npz[f'out/{part}/hist'])
        np.testing.assert_allclose(
            100 * iou_per_class(total), npz[f'out/{part}/iou_percent'], atol=6e-3, equal_nan=True
        )
        found = 100 * mean_iou(total, free=cfg['num_classes'] - 1)
        np.testing.assert_allclose(found, npz[f'out/{part}/mIoU_percent'], atol=6e-3)


def _cases_of_metric(npz):
    return sorted({name.split('/')[1] for name in npz.files if name.startswith('in/s')})
