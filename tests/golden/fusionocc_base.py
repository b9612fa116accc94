"""Checks of the occupancy base: image and BEV augmentation, sparse depth, mIoU."""

import numpy as np
import torch
from cases import assert_close, config
from occforge.datasets.transforms.bev_aug import bda_boxes, bda_matrix
from occforge.datasets.transforms.depth import depth_map
from occforge.datasets.transforms.images import ImageAugmentation, augment_image, augmentation_matrices
from occforge.evaluation.occupancy_metric import OccupancyMetric, iou_per_class, masked_confusions, mean_iou
from occforge.models.data_preprocessor import OccDataPreprocessor
from PIL import Image


def check_augment(npz):
    height, width = config(npz)['input_size']
    image = Image.fromarray(npz['image'])
    segmentation = Image.fromarray(npz['seg'])
    for k, (resize, left, top, flip, rotate) in enumerate(npz['cases']):
        size = (int(image.width * resize), int(image.height * resize))
        crop = (int(left), int(top), int(left) + width, int(top) + height)
        augmentation = ImageAugmentation(resize, size, crop, bool(flip), float(rotate))
        augmented = np.asarray(augment_image(image, augmentation))
        difference = np.abs(augmented.astype(int) - npz[f'out_image_{k}'])
        assert difference.max() <= 1, f'image {k}: differs by {difference.max()}'  # Pillow's resampling may round
        labels = np.asarray(augment_image(segmentation, augmentation, Image.Resampling.NEAREST))
        np.testing.assert_array_equal(labels, npz[f'out_seg_{k}'])
        rot, tran = augmentation_matrices(augmentation)
        assert_close(rot.astype(np.float32), npz[f'post_rot_{k}'], f'post_rot {k}')
        assert_close(tran.astype(np.float32), npz[f'post_tran_{k}'], f'post_tran {k}', atol=1e-4)
        # from the stored image, so that the normalisation is compared apart from the resampling
        normalised = OccDataPreprocessor().normalise(torch.from_numpy(npz[f'out_image_{k}'])[None])[0]
        expected = npz[f'out_norm_chw_{k}']
        step = (height // expected.shape[1], width // expected.shape[2])
        assert_close(normalised[:, :: step[0], :: step[1]], expected, f'normalised image {k}')

    for k, (rotate, scale, flip_dx, flip_dy) in enumerate(npz['bda_cases_rotdeg_scale_flipdx_flipdy']):
        draw = (rotate, scale, bool(flip_dx), bool(flip_dy))
        assert_close(bda_matrix(*draw).astype(np.float32), npz[f'bda_{k}'], f'bda {k}')
        assert_close(bda_boxes(npz['boxes'], *draw), npz[f'boxes_{k}'], f'boxes {k}', atol=1e-4)

    for name in npz.files:
        if name.startswith('depth_map_ds'):
            _check_depth_map(npz['uvd'], (height, width), int(name.removeprefix('depth_map_ds')), npz[name])


def _check_depth_map(uvd, size, downsample, expected):
    depth_range = (1.0, 45.0)
    ours = depth_map(uvd, size, depth_range, downsample)
    assert ours.shape == expected.shape
    np.testing.assert_array_equal(ours > 0, expected > 0)
    different = np.argwhere(ours != expected)
    # The reference sorts by a float32 key (pixel index + depth / 100), so among points of a pixel that are closer
    # than the key's resolution it takes any. Ours is the nearest, and theirs must be such a neighbour.
    resolution = 100 * float(np.spacing(np.float32(expected.size)))
    cells = np.rint(uvd[:, :2] / downsample)
    for row, column in different:
        candidates = uvd[(cells == (column, row)).all(axis=1), 2]
        assert ours[row, column] == candidates[(candidates >= 1) & (candidates < 45)].min()
        assert expected[row, column] in candidates
        assert 0 < expected[row, column] - ours[row, column] <= max(0.1, 2 * resolution)


def check_miou(npz):
    classes = config(npz)['num_classes']
    total = 0
    for pred, gt, lidar, camera in zip(npz['pred'], npz['gt'], npz['mask_lidar'], npz['mask_camera']):
        total = total + masked_confusions(
            *(torch.from_numpy(np.array(a)) for a in (pred, gt, camera, lidar)), num_classes=classes
        )
    for matrix, mask in zip(total.numpy(), ('none', 'camera', 'lidar')):
        np.testing.assert_array_equal(matrix, npz[f'hist_{mask}'])
        np.testing.assert_allclose(iou_per_class(matrix), npz[f'iou_{mask}'], rtol=1e-12, equal_nan=True)
        np.testing.assert_allclose(100 * mean_iou(matrix, free=classes - 1), npz[f'miou17_{mask}'], rtol=1e-12)

    # the same through the registered metric
    metric = OccupancyMetric(eval_mask='camera', class_names=[str(c) for c in range(classes)], free=classes - 1)
    for index in range(len(npz['pred'])):
        truth = dict(semantics=npz['gt'][index], mask_camera=npz['mask_camera'][index])
        truth['mask_lidar'] = npz['mask_lidar'][index]
        metric.process(None, [dict(token=index, pred_occ=dict(semantics=npz['pred'][index]), gt_occ=truth)])
    results = metric.evaluate(len(npz['pred']))
    np.testing.assert_allclose(results['mIoU'], npz['miou17_camera'], rtol=1e-12)
    np.testing.assert_allclose(results['mIoU/no_mask'], npz['miou17_none'], rtol=1e-12)
    np.testing.assert_allclose(results['mIoU/lidar_mask'], npz['miou17_lidar'], rtol=1e-12)
