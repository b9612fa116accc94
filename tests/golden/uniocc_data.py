"""UniOcc's data side against the reference implementation's outputs."""

import numpy as np
from cases import assert_close, tensor
from fusionocc_base import _check_depth_map
from occforge.datasets.rays import class_balance_weights, ray_rows, sampling_weights
from occforge.datasets.transforms.bev_aug import bda_boxes, bda_matrix
from occforge.datasets.transforms.images import ImageAugmentation, augmentation_matrices
from occforge.engine.hooks.ema_hook import ema_decay
from occforge.evaluation.occupancy_metric import iou_per_class, masked_confusions, mean_iou


def check_aug(npz):
    for k, (resize, left, top, right, bottom, flip, rotate) in enumerate(npz['aug_params']):
        size = (int(1600 * resize), int(900 * resize))
        crop = (int(left), int(top), int(right), int(bottom))
        rot, tran = augmentation_matrices(ImageAugmentation(resize, size, crop, bool(flip), float(rotate)))
        assert_close(rot.astype(np.float32), npz['post_rot'][k, :2, :2], f'post_rot {k}', atol=1e-5)
        assert_close(tran.astype(np.float32), npz['post_tran'][k, :2], f'post_tran {k}', atol=1e-3)
    for k, (rotate, scale, flip_dx, flip_dy) in enumerate(npz['bda_params']):
        draw = (rotate, scale, bool(flip_dx), bool(flip_dy))
        assert_close(bda_matrix(*draw).astype(np.float32), npz['bda'][k], f'bda {k}', atol=1e-6)
        before, after = npz['boxes_in_out'][k]
        assert_close(bda_boxes(before, *draw), after, f'boxes {k}', atol=1e-4)
    expected = np.zeros((256, 704), dtype=np.float32)
    expected[tuple(npz['depth_map_nonzero_vu'].T)] = npz['depth_map_nonzero_d']
    _check_depth_map(npz['depth_points_uvd'], (256, 704), 1, expected)
    _check_depth_map(npz['depth_points_uvd'], (256, 704), 4, npz['depth_map_ds4'])


def check_rays(npz):
    rows, weights = [], []
    class_weight = class_balance_weights(npz['class_nums'])
    np.testing.assert_allclose(class_weight, npz['class_balance_weight'], rtol=1e-4)
    for k, offset in enumerate(npz['frame_offset']):
        # the reference's pixels are whole numbers, and its rays go through their middles
        uv = npz['pixel'][k] + 0.5
        rows.append(ray_rows(uv, npz['depth'][k], npz['seg'][k], npz['cam2keyego'][k], npz['intrin'][k]))
        weights.append(sampling_weights(npz['seg'][k], offset != 0, class_weight, npz['dynamic_class'].tolist()))
    assert_close(np.concatenate(rows), npz['rays'], 'rays', rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(weights), npz['sample_weight'], rtol=1e-4)


def check_metric(npz):
    for name, use_mask in (('cam', True), ('none', False)):
        total = 0
        for case in range(len(npz['pred'])):
            pred, gt, mask = (tensor(npz, key)[case] for key in ('pred', 'gt', 'mask_camera'))
            total = total + masked_confusions(pred, gt, mask, mask, 18)[int(use_mask)].numpy()
        np.testing.assert_array_equal(total, npz[f'hist_{name}'])
        found = iou_per_class(total)
        scale = 100 if np.nanmax(npz[f'iou_{name}']) > 1 else 1
        np.testing.assert_allclose(scale * found, npz[f'iou_{name}'], rtol=1e-9, equal_nan=True)
        np.testing.assert_allclose(100 * mean_iou(total, free=17), npz[f'miou_{name}'], rtol=1e-9)


def check_ema_schedules(npz):
    # the mean teacher counts its updates from 0
    teacher = [ema_decay(int(k) + 1, 0.999, 'inverse', 100) for k in npz['mean_teacher_iter']]
    np.testing.assert_allclose(teacher, npz['mean_teacher_momentum'], rtol=1e-7, atol=1e-12)
    average = [ema_decay(int(k), 0.999, 'exp', 2000) for k in npz['model_ema_updates']]
    np.testing.assert_allclose(average, npz['model_ema_decay'], rtol=1e-9)
