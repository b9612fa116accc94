"""BEVFusion's data preparation, augmentation and map metric against the reference implementation's outputs."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from cases import assert_close, config, tensor
from mmdet3d.structures import LiDARInstance3DBoxes
from mmdet3d.structures.points import LiDARPoints
from occforge.datasets.detection.maps import map_masks
from occforge.datasets.detection.transforms import (
    augment_image,
    flip_scene,
    grid_mask,
    image_matrix,
    reduce_beams,
    rotate_scale_translate,
)
from occforge.evaluation.map_metric import BEVMapMetric
from PIL import Image


def check_reduce_beams(npz):
    for beams in (16, 4, 1):
        assert np.array_equal(reduce_beams(npz['in/points'], beams), npz[f'out/beams{beams}']), beams
    assert np.array_equal(reduce_beams(npz['in/points'], 32), npz['in/points'])


def check_image_aug(npz):
    image = Image.fromarray(npz['in/img'])
    for index, draw in enumerate(config(npz)['draws']):
        found = augment_image(image, draw['resize_dims'], draw['crop'], draw['flip'], draw['rotate_deg'])
        difference = np.abs(np.asarray(found, np.int16) - npz[f'out/img{index}'].astype(np.int16))
        # versions of Pillow differ by rounding, and in which pixel a turned border falls into
        assert np.mean(difference > 2) < 0.01, f'img{index}'
        matrix = image_matrix(draw['resize'], draw['crop'], draw['flip'], draw['rotate_deg'])
        assert_close(torch.from_numpy(matrix), npz[f'out/mat{index}'], f'mat{index}', atol=1e-4)


def check_aug3d(npz):
    points = LiDARPoints(tensor(npz, 'in/points'), points_dim=5)
    boxes = LiDARInstance3DBoxes(tensor(npz, 'in/boxes'), box_dim=9)
    rotation = npz['out/pcd_rotation']  # points @ rotation
    angle = float(np.arctan2(rotation[0, 1], rotation[0, 0]))
    assert abs(angle - float(npz['in/draw_angle'])) < 1e-5
    matrix = rotate_scale_translate(points, boxes, angle, float(npz['out/pcd_scale']), npz['out/pcd_trans'])
    close = dict(rtol=1e-4, atol=1e-4)
    assert_close(points.tensor, npz['out/rts_points'], 'rts_points', **close)
    assert_close(boxes.tensor, npz['out/rts_boxes'], 'rts_boxes', **close)
    assert_close(torch.from_numpy(matrix), npz['out/rts_matrix'], 'rts_matrix', **close)
    results = dict(points=points, gt_bboxes_3d=boxes, gt_masks_bev=npz['in/masks'], lidar_aug_matrix=matrix)
    flip_scene(results, *map(bool, config(npz)['flips_horizontal_vertical']))
    assert_close(points.tensor, npz['out/points'], 'points', **close)
    assert_close(boxes.tensor, npz['out/boxes'], 'boxes', **close)
    assert_close(torch.from_numpy(results['lidar_aug_matrix']), npz['out/matrix'], 'matrix', **close)
    assert np.array_equal(results['gt_masks_bev'], npz['out/masks']), 'masks'


def check_gridmask(npz):
    cfg = config(npz)
    period = cfg['d']
    strip = min(max(int(period * cfg['ratio'] + 0.5), 1), period - 1)
    mask = grid_mask(cfg['h'], cfg['w'], period, strip, cfg['st_h'], cfg['st_w'], mode=cfg['mode'])
    assert np.array_equal(npz['in/img'] * mask[..., None], npz['out/img'])


def check_map_raster(npz):
    cfg = config(npz)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'maps', 'expansion', f'{cfg["location"]}.json')
        file.parent.mkdir(parents=True)
        file.write_text(str(npz['in/map_expansion_json']))
        frame = 0
        while f'out/gt_masks_bev{frame}' in npz.files:
            aug, lidar2ego, ego2global = (
                npz[f'in/{name}{frame}'] for name in ('lidar_aug_matrix', 'lidar2ego', 'ego2global')
            )
            lidar2global = ego2global @ lidar2ego @ np.linalg.inv(aug)
            # the reference does not follow the scale
            masks = map_masks(folder, cfg['location'], lidar2global, cfg['xbound'], cfg['ybound'], cfg['classes'])
            assert np.array_equal(masks, npz[f'out/gt_masks_bev{frame}']), f'frame {frame}'
            frame += 1
        assert frame


def check_map_metric(npz):
    cfg = config(npz)
    metric = BEVMapMetric(thresholds=cfg['thresholds'])
    metric.dataset_meta = dict(map_classes=cfg['classes'])
    for probs, labels in zip(tensor(npz, 'in/probs'), tensor(npz, 'in/labels')):
        metric.process({}, [dict(pred_masks_bev=dict(probs=probs), gt_masks_bev=dict(masks=labels))])
    found = metric.compute_metrics(metric.results)
    for index, name in enumerate(cfg['classes']):
        for place, threshold in enumerate(cfg['thresholds']):
            assert abs(found[f'map/{name}/iou@{threshold:.2f}'] - npz['out/iou'][index, place]) < 1e-5
        assert abs(found[f'map/{name}/iou@max'] - npz['out/iou_max'][index]) < 1e-5
    assert abs(found['map/mean/iou@max'] - float(npz['out/mean_iou_max'])) < 1e-5
