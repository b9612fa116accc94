"""Detection data in the LiDAR frame: points, boxes, maps, augmentation with their matrices, the object database."""

import json
import os
import pickle
from pathlib import Path

import mini_world
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from occforge.datasets.detection.gt_database import create_gt_database, points_in_boxes
from occforge.datasets.detection.maps import MAP_CLASSES, map_masks
from occforge.datasets.detection.transforms import BEVLoadPoints, ImageAug3D, LoadBEVSegmentation, thin_rings
from occforge.datasets.info_files import load_infos, save_infos
from occforge.datasets.preparation.nuscenes_converter import make_infos, write_infos
from occforge.errors import ConfigError, DataError
from occforge.evaluation import BEVBoxMetric, BEVMapMetric, BEVNuScenesMetric
from PIL import Image

LOCATION = 'boston-seaport'
ROAD = ((580.0, 1190.0), (640.0, 1190.0), (640.0, 1215.0), (580.0, 1215.0))  # global frame, metres
RANGE = [-50, -50, -5, 50, 50, 3]
PIPELINE = [
    dict(type='BEVLoadMultiViewImageFromFiles'),
    dict(type='BEVLoadPoints', sweeps_num=3, remove_close=False),
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='ImageAug3D', final_dim=(64, 96), rand_flip=True, rot_lim=(-5, 5), is_train=True),
    dict(type='BEVFusionGlobalRotScaleTrans'),
    dict(type='LoadBEVSegmentation', xbound=[-30, 30, 0.5], ybound=[-30, 30, 0.5]),
    dict(type='BEVFusionRandomFlip3D'),
    dict(type='PointsRangeFilter', point_cloud_range=RANGE),
    dict(type='ObjectRangeFilter', point_cloud_range=RANGE),
    dict(type='PackBEVInputs'),
]


def write_map(root):
    """A map with one road and a divider down its middle."""
    names = 'abcd'
    nodes = [dict(token=t, x=x, y=y) for t, (x, y) in zip(names, ROAD)]
    nodes += [dict(token='e', x=580.0, y=1202.5), dict(token='f', x=640.0, y=1202.5)]
    layers = (
        'road_segment road_block lane ped_crossing walkway stop_line carpark_area road_divider lane_divider '
        'traffic_light lane_connector'
    ).split()
    expansion = dict(
        {name: [] for name in layers},
        version='1.3',
        canvas_edge=[2979.5, 2118.1],
        arcline_path_3={},
        connectivity={},
        polygon=[dict(token='p', exterior_node_tokens=list(names), holes=[])],
        line=[dict(token='l', node_tokens=['e', 'f'])],
        node=nodes,
        drivable_area=[dict(token='d', polygon_tokens=['p'])],
        lane_divider=[dict(token='v', line_token='l', lane_divider_segments=[])],
    )
    folder = root / 'maps' / 'expansion'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{LOCATION}.json').write_text(json.dumps(expansion))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('detection')
    mini_world.write_tables(root)
    write_map(root)
    metainfo, lists, _ = make_infos(root, 'v1.0-mini', quiet=True)
    write_infos(root, metainfo, lists)
    return root


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet3d')


def dataset(root, split='train', pipeline=(), **kwargs):
    kwargs.setdefault('classes', ['pedestrian', 'car'])
    return DATASETS.build(
        dict(type='BEVNuScenesDataset', data_root=str(root), ann_file=f'nuscenes_infos_{split}.pkl',
             pipeline=list(pipeline), test_mode=split == 'val', **kwargs)
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- points
def test_sweeps_come_into_the_key_frame_by_the_poses(root):
    data = dataset(root)
    info = data.get_data_info(1)
    info['test_mode'] = True
    points = BEVLoadPoints(sweeps_num=2, remove_close=False)(info)['points'].tensor.numpy()
    global2lidar = np.linalg.inv(np.array(info['ego2global']) @ np.array(info['lidar_points']['lidar2ego']))
    start = (points[:, 4] == 0).sum()
    ages = np.unique(points[:, 4])
    assert len(ages) == 3 and ages[0] == 0 and (ages >= 0).all()
    for sweep in info['lidar_sweeps'][:2]:
        raw = np.fromfile(sweep['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)
        motion = global2lidar @ np.array(sweep['ego2global']) @ np.array(sweep['lidar_points']['lidar2ego'])
        expected = raw[:, :3] @ motion[:3, :3].T + motion[:3, 3]
        found = points[start : start + len(raw)]
        np.testing.assert_allclose(found[:, :3], expected, atol=1e-3)
        np.testing.assert_allclose(found[:, 4], info['timestamp'] - sweep['timestamp'], atol=1e-4)
        start += len(raw)
    assert start == len(points)


def test_close_points_leave_sweeps_alone_and_missing_sweeps_are_padded(root):
    info = dataset(root).get_data_info(1)
    everything = BEVLoadPoints(sweeps_num=1, remove_close=False)(dict(info, test_mode=True))['points'].tensor
    kept = BEVLoadPoints(sweeps_num=1, remove_close=8.0)(dict(info, test_mode=True))['points'].tensor
    key = (everything[:, 4] == 0).sum()
    assert (kept[:, 4] == 0).sum() == key and len(kept) < len(everything)
    alone = BEVLoadPoints(sweeps_num=2, remove_close=False)(dict(info, lidar_sweeps=[]))['points'].tensor
    assert len(alone) == 3 * key
    alone = BEVLoadPoints(sweeps_num=2, pad_empty_sweeps=False)(dict(info, lidar_sweeps=[]))['points'].tensor
    assert len(alone) == key


def test_training_draws_any_sweeps_and_testing_takes_the_nearest(root):
    info = dataset(root).get_data_info(1)
    load = BEVLoadPoints(sweeps_num=1, remove_close=False)
    ages = {float(load(dict(info, rng=np.random.default_rng(seed)))['points'].tensor[:, 4].max()) for seed in range(20)}
    assert len(ages) > 1
    nearest = float(load(dict(info, test_mode=True))['points'].tensor[:, 4].max())
    assert nearest <= min(ages) and nearest == pytest.approx(0.1)


def test_rings_of_another_sensor():
    points = np.random.default_rng(0).random((8000, 5)).astype(np.float32)
    rings = np.arange(8000) % 80
    thinned = thin_rings(points, rings, 40)
    assert len(thinned) == 4000
    assert len(thin_rings(points, rings, 80)) == 8000 and len(thin_rings(points, rings, 128)) == 8000
    with pytest.raises(ConfigError, match='reduce_beams is 20'):
        BEVLoadPoints(reduce_beams=20)


def test_damaged_clouds_are_named(root, tmp_path):
    info = dataset(root).get_data_info(0)
    path = tmp_path / 'short.bin'
    np.zeros(7, np.float32).tofile(path)
    with pytest.raises(DataError, match=r'short\.bin: 7 numbers are no rows of 5'):
        BEVLoadPoints()(dict(info, lidar_points=dict(lidar_path=str(path))))


# ------------------------------------------------------------------------------------------------------------- boxes
def test_labels_go_by_name(root):
    for classes, label in ((['pedestrian', 'car'], 1), (['car', 'pedestrian'], 0)):
        info = dataset(root, classes=classes).get_data_info(0)['ann_info']
        assert info['gt_labels_3d'].tolist() == [label]
        assert info['gt_bboxes_3d'].tensor.shape == (1, 9)
    others = dataset(root, classes=['pedestrian'], filter_empty_gt=False).get_data_info(0)['ann_info']
    assert others['gt_labels_3d'].tolist() == [-1]
    with pytest.raises(ConfigError, match='no class tram among'):
        dataset(root, classes=['tram', 'car'])


def test_points_of_the_car_are_in_its_box(root):
    info = dataset(root).get_data_info(1)
    points = BEVLoadPoints(sweeps_num=0)(dict(info, test_mode=True))['points'].tensor.numpy()
    inside = points_in_boxes(
        points, info['ann_info']['gt_bboxes_3d'].tensor.numpy() * [1, 1, 1, 1.1, 1.1, 1.1, 1, 1, 1]
    )
    assert inside.sum() > 20


def test_cameras_are_checked(root):
    with pytest.raises(DataError, match='CAM_LEFT are wanted'):
        dataset(root, camera_names=['CAM_FRONT', 'CAM_LEFT'])
    with pytest.raises(DataError, match='4 of them'):
        dataset(root, num_cameras=4)
    with pytest.raises(ConfigError, match='num_cameras is 2'):
        dataset(root, camera_names=['CAM_FRONT'], num_cameras=2)


def test_samples_are_the_same_for_one_seed_and_epoch(root):
    data = dataset(root, pipeline=PIPELINE, seed=3)
    first, again = data[0], data[0]
    assert torch.equal(first['inputs']['points'], again['inputs']['points'])
    assert torch.equal(first['inputs']['img'], again['inputs']['img'])
    data.set_epoch(1)
    assert not np.array_equal(data[0]['data_samples'].lidar_aug_matrix, first['data_samples'].lidar_aug_matrix)


def test_a_subset_keeps_its_places_in_the_file(root):
    data = dataset(root, num_samples=2)
    assert len(data) == 2 and [data.get_data_info(i)['sample_idx'] for i in range(2)] == [0, 2]
    assert [len(dataset(root, num_samples=share)) for share in (0.1, 0.5, 0.7)] == [1, 2, 2]
    with pytest.raises(ConfigError, match=r'num_samples is 1\.5'):
        dataset(root, num_samples=1.5)


def test_custom_dataset_needs_little(root, tmp_path):
    metainfo, items = load_infos(root / 'nuscenes_infos_train.pkl')
    least = []
    for item in items:
        box = dict(bbox_3d=item['instances'][0]['bbox_3d'], bbox_label_3d=0)
        least.append(
            {k: item[k] for k in ('token', 'timestamp', 'ego2global', 'images', 'lidar_points')} | dict(instances=[box])
        )
    categories = dict(tram=0, cyclist=1)
    save_infos(tmp_path / 'custom_infos_train.pkl', dict(metainfo, categories=categories), least)
    data = DATASETS.build(
        dict(
            type='CustomDataset', dataset_root=str(root), ann_file=str(tmp_path / 'custom_infos_train.pkl'),
            classes=['cyclist', 'tram'], num_cameras=1, pipeline=PIPELINE,
        )
    )  # fmt: skip
    sample = data[0]['data_samples']
    assert sample.gt_instances_3d.labels_3d.tolist() == [1] and 'gt_masks_bev' not in sample
    assert sample.gt_instances_3d.bboxes_3d.tensor[:, 7:].abs().max() == 0


# ---------------------------------------------------------------------------------------------------------------- maps
def expected_masks(lidar2global, side=30, step=0.5):
    """(X, Y): whose cell centre lies on the road, computed the other way: cells to the map."""
    centres = np.arange(-side + step / 2, side, step)
    x, y = np.meshgrid(centres, centres, indexing='ij')
    points = np.stack([x, y, 0 * x, 0 * x + 1], -1) @ lidar2global.T
    (low_x, low_y), (high_x, high_y) = ROAD[0], ROAD[2]
    return (points[..., 0] > low_x) & (points[..., 0] < high_x) & (points[..., 1] > low_y) & (points[..., 1] < high_y)


@pytest.mark.parametrize('turned', [False, True])
def test_masks_are_the_map_in_the_lidar_frame(root, turned):
    data = dataset(root)
    info = data.get_data_info(0)
    assert info['map_location'] == LOCATION  # from the tables
    matrix = np.eye(4)
    if turned:
        angle, scale = 0.7, 1.2
        matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix[2, 2], matrix[:2, 3] = scale, (3.0, -2.0)
        info['lidar_aug_matrix'] = matrix
    draw = LoadBEVSegmentation(xbound=[-30, 30, 0.5], ybound=[-30, 30, 0.5])
    masks = draw(info)['gt_masks_bev']
    assert masks.shape == (6, 120, 120)
    lidar2global = np.array(info['ego2global']) @ np.array(info['lidar_points']['lidar2ego']) @ np.linalg.inv(matrix)
    expected = expected_masks(lidar2global)
    drivable = masks[MAP_CLASSES.index('drivable_area')].astype(bool)
    assert 0.1 < expected.mean() < 0.9
    assert (drivable != expected).mean() < 0.02  # the border
    divider = masks[MAP_CLASSES.index('divider')].astype(bool)
    assert 30 < divider.sum() < 600 and not (divider & ~expected).sum() > 10
    if turned:
        plain = LoadBEVSegmentation(xbound=[-30, 30, 0.5], ybound=[-30, 30, 0.5], follow_scale=False)(info)
        assert (plain['gt_masks_bev'][0].astype(bool) != expected).mean() > 0.02
    else:
        assert np.array_equal(draw(data.get_data_info(0))['gt_masks_bev'], masks)  # kept


def test_masks_agree_with_the_devkits(root):
    from nuscenes.map_expansion.map_api import NuScenesMap

    info = dataset(root).get_data_info(0)
    lidar2global = np.array(info['ego2global']) @ np.array(info['lidar_points']['lidar2ego'])
    found = map_masks(root, LOCATION, lidar2global, [-30, 30, 0.5], [-30, 30, 0.5], ['drivable_area'])
    angle = np.degrees(np.arctan2(lidar2global[1, 0], lidar2global[0, 0]))
    box = (*lidar2global[:2, 3], 60.0, 60.0)
    theirs = NuScenesMap(str(root), LOCATION).get_map_mask(box, angle, ['drivable_area'], (120, 120))
    assert np.array_equal(found, theirs.transpose(0, 2, 1))


def test_missing_maps_are_named(root):
    info = dataset(root).get_data_info(0)
    with pytest.raises(DataError, match=r'singapore-queenstown\.json: no such file'):
        LoadBEVSegmentation(xbound=[-30, 30, 0.5], ybound=[-30, 30, 0.5])(
            dict(info, map_location='singapore-queenstown')
        )
    with pytest.raises(ConfigError, match='symmetric'):
        map_masks(root, LOCATION, np.eye(4), [-30, 20, 0.5], [-30, 30, 0.5])
    with pytest.raises(ConfigError, match="'river' is unknown"):
        map_masks(root, LOCATION, np.eye(4), [-30, 30, 0.5], [-30, 30, 0.5], ['river'])


# -------------------------------------------------------------------------------------------------------- augmentation
def test_matrices_say_what_was_done(root):
    data = dataset(root, pipeline=PIPELINE, seed=1)
    plain = dataset(root, pipeline=[*PIPELINE[:3], dict(type='ImageAug3D', final_dim=(64, 96)), PIPELINE[-1]], seed=1)
    for index in range(3):
        found, before = data[index], plain[index]
        matrix = torch.from_numpy(found['data_samples'].lidar_aug_matrix).float()
        points = before['inputs']['points']
        moved = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
        moved = moved[((moved > low) & (moved < high)).all(1)]
        torch.testing.assert_close(found['inputs']['points'][:, :3], moved, rtol=1e-4, atol=1e-3)
        boxes, old = (x['data_samples'].gt_instances_3d.bboxes_3d for x in (found, before))
        centre = old.gravity_center @ matrix[:3, :3].T + matrix[:3, 3]
        torch.testing.assert_close(boxes.gravity_center, centre, rtol=1e-4, atol=1e-3)
        heading = torch.stack([old.yaw.cos(), old.yaw.sin(), torch.zeros(1)], -1) @ matrix[:3, :3].T
        turned = torch.atan2(heading[:, 1], heading[:, 0]) - boxes.yaw
        assert (turned.sin().abs() < 1e-3).all()
        velocity = torch.cat([old.tensor[:, 7:], torch.zeros(1, 1)], 1) @ matrix[:3, :3].T
        torch.testing.assert_close(boxes.tensor[:, 7:], velocity[:, :2], rtol=1e-3, atol=1e-3)


def test_image_matrix_moves_pixels_with_the_image():
    image = np.zeros((90, 160, 3), np.uint8)
    image[40:44, 70:74] = 255
    augment = ImageAug3D(final_dim=(64, 96), rand_flip=True, rot_lim=(-10, 10), is_train=True)
    flips = set()
    for seed in range(8):
        found = augment(dict(img=[Image.fromarray(image)], rng=np.random.default_rng(seed)))
        matrix = found['img_aug_matrix'][0]
        flips.add(np.sign(matrix[0, 0]))
        u, v = matrix[:2, :2] @ [72.0, 42.0] + matrix[:2, 3]
        rows, columns = np.nonzero(found['img'][0][..., 0] > 128)
        assert len(rows) and abs(columns.mean() + 0.5 - u) < 1.0 and abs(rows.mean() + 0.5 - v) < 1.0
    assert flips == {-1.0, 1.0}


def test_projection_survives_the_augmentation(root):
    """A point seen by the camera falls on the same thing of the augmented image."""
    sample = dataset(root, pipeline=PIPELINE, seed=2)[0]
    meta = sample['data_samples'].metainfo
    assert meta['lidar2img'].shape == (1, 4, 4) and sample['inputs']['img'].shape == (1, 3, 64, 96)
    np.testing.assert_allclose(meta['lidar2img'][0], meta['cam2img'][0] @ meta['lidar2cam'][0])
    np.testing.assert_allclose(meta['cam2lidar'][0] @ meta['lidar2cam'][0], np.eye(4), atol=1e-9)


def test_grid_mask_only_when_asked(root):
    image = np.ones((40, 60, 3), np.float32)
    always = TRANSFORMS.build(dict(type='GridMask', prob=1.0, fixed_prob=True, mode=1))
    never = TRANSFORMS.build(dict(type='GridMask', prob=0.0))
    found = always(dict(img=[image, image], rng=np.random.default_rng(0)))['img']
    assert np.array_equal(found[0], found[1]) and 0 < found[0].mean() < 1
    assert never(dict(img=[image], rng=np.random.default_rng(0)))['img'][0].mean() == 1


# ------------------------------------------------------------------------------------------------------------ database
def test_objects_are_cut_out_and_pasted(root):
    path = create_gt_database(root, sweeps_num=1, classes=['car'])
    entries = pickle.loads(path.read_bytes())['car']
    assert len(entries) == 3 and all(entry['box3d_lidar'].shape == (9,) for entry in entries)
    for entry in entries:
        cut = np.fromfile(root / entry['path'], np.float32).reshape(-1, 5)
        assert len(cut) == entry['num_points_in_gt'] > 0
        assert np.abs(cut[:, :3]).max() < 4  # relative to the box
    # the same car at other places; the last would meet the one that is there
    here = dataset(root).get_data_info(0)['ann_info']['gt_bboxes_3d'].tensor.numpy()[0]
    for entry, place in zip(entries, ([20.0, -20.0], [30.0, 10.0], here[:2])):
        entry['box3d_lidar'][:2] = place
    path.write_bytes(pickle.dumps(dict(car=entries)))
    sampler = dict(
        data_root=str(root), info_path=str(path), rate=1.0, classes=['pedestrian', 'car'], sample_groups=dict(car=3),
        prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict(car=1)),
        points_loader=dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=[0, 1, 2, 3, 4]),
    )  # fmt: skip
    pipeline = [
        PIPELINE[1],
        PIPELINE[2],
        dict(type='BEVObjectSample', db_sampler=dict(sampler, sample_groups=dict(car=9))),
    ]
    results = dataset(root, pipeline=pipeline, filter_empty_gt=False)[0]
    boxes = results['gt_bboxes_3d'].tensor.numpy()
    assert len(boxes) == 3 and results['gt_labels_3d'].tolist() == [1, 1, 1]
    inside = points_in_boxes(results['points'].tensor.numpy(), boxes * [1, 1, 1, 1.02, 1.02, 1.02, 1, 1, 1])
    sizes = {tuple(entry['box3d_lidar'][:2].round(2)): entry['num_points_in_gt'] for entry in entries}
    for box, number in zip(boxes[1:], inside.sum(axis=0)[1:]):
        # the object's points, and of the scene at most those that lie on the box's margin
        assert 0 <= number - sizes[tuple(box[:2].round(2))] <= 5
    transform = TRANSFORMS.build(dict(type='BEVObjectSample', db_sampler=sampler))
    transform.disabled = True
    assert len(transform(dict(gt_bboxes_3d=[1]))['gt_bboxes_3d']) == 1
    with pytest.raises(ConfigError, match='sample_groups has tram'):
        TRANSFORMS.build(dict(type='BEVObjectSample', db_sampler=dict(sampler, sample_groups=dict(tram=1))))


def test_class_balance(root):
    data = DATASETS.build(
        dict(type='OccCBGSDataset', dataset=dict(type='BEVNuScenesDataset', data_root=str(root),
             ann_file='nuscenes_infos_train.pkl', classes=['pedestrian', 'car'], pipeline=[]))
    )  # fmt: skip
    assert len(data) == 3


# ------------------------------------------------------------------------------------------------------------- metrics
def predictions(root, shift=0.0, classes=('pedestrian', 'car')):
    data = dataset(root, 'val', classes=list(classes))
    samples = []
    for index in range(len(data)):
        info = data.get_data_info(index)['eval_ann_info']
        boxes = info['gt_bboxes_3d'].tensor.clone().float()
        boxes[:, 0] += shift
        number = len(boxes)
        samples.append(
            dict(
                sample_idx=data.get_data_info(index)['sample_idx'],
                pred_instances_3d=dict(
                    bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
                    scores_3d=torch.full((number,), 0.9),
                    labels_3d=torch.from_numpy(info['gt_labels_3d']),
                ),
            )
        )
    return data.metainfo, samples


@pytest.mark.parametrize('shift', [0.0, 0.7, 3.0])
def test_both_box_metrics_agree(root, shift):
    metainfo, samples = predictions(root, shift)
    found = []
    for metric in (
        BEVNuScenesMetric(str(root), 'nuscenes_infos_val.pkl'),
        BEVBoxMetric('nuscenes_infos_val.pkl', data_root=str(root)),
    ):
        metric.dataset_meta = dict(metainfo, classes=['car', 'trailer'])  # there are no trailers
        for sample in samples:
            metric.process({}, [dict(sample, pred_instances_3d=dict(sample['pred_instances_3d'],
                                     labels_3d=0 * sample['pred_instances_3d']['labels_3d']))])  # fmt: skip
        found.append(metric.compute_metrics(metric.results))
    devkit, ours = found
    assert abs(devkit['mAP'] - ours['mAP']) < 1e-6
    # a threshold of 0.5, 1, 2 and 4 m each gives a quarter; a class that the truth has not counts 0, as nuScenes has it
    assert abs(ours['present/mAP'] - {0.0: 1.0, 0.7: 0.75, 3.0: 0.25}[shift]) < 0.01
    assert ours['mAP'] == ours['present/mAP'] / 2 and ours['AP/trailer'] == 0
    assert devkit['present/mAP'] == devkit['mAP'] * 2
    for name in ('mATE', 'mASE', 'mAOE', 'mAVE'):
        assert abs(devkit[name] - ours[name]) < 1e-3, name
    if shift == 0:
        # the errors of such a class count 1
        assert abs(ours['mATE'] - 0.5) < 1e-3 and abs(ours['mAOE'] - 0.5) < 1e-3 and ours['present/NDS'] > 0.99


def test_classes_that_nuscenes_does_not_know(root):
    metainfo, samples = predictions(root)
    metric = BEVNuScenesMetric(str(root), 'nuscenes_infos_val.pkl')
    metric.dataset_meta = dict(metainfo, classes=['tram'])
    metric.process({}, samples)
    with pytest.raises(ConfigError, match='tram: nuScenes has no such class'):
        metric.compute_metrics(metric.results)


def test_map_metric_counts_over_all_samples():
    metric = BEVMapMetric(thresholds=(0.5,), classes=['road', 'park'])
    truth = torch.zeros(2, 4, 4)
    truth[0, :2] = 1
    for probs in (truth * 0.9, torch.full_like(truth, 0.6)):
        metric.process({}, [dict(pred_masks_bev=dict(probs=probs), gt_masks_bev=dict(masks=truth))])
    metric.process({}, [dict(pred_masks_bev=dict(probs=truth), token='no map')])
    found = metric.compute_metrics(metric.results)
    assert abs(found['map/road/iou@max'] - 16 / 24) < 1e-6 and found['map/park/iou@max'] == 0
    assert abs(found['map/mean/iou@max'] - 8 / 24) < 1e-6 and abs(found['map/present/iou@max'] - 16 / 24) < 1e-6


def test_data_without_a_map_have_no_iou_of_maps(monkeypatch):
    said = []
    monkeypatch.setattr('occforge.evaluation.map_metric.print_log', lambda text, **options: said.append(text))
    metric = BEVMapMetric()
    metric.process({}, [dict(pred_masks_bev=dict(probs=torch.ones(2, 4, 4)), token='no map')])
    assert metric.evaluate(1) == {} and metric.document is None
    assert len(said) == 1 and 'no sample has map masks' in said[0]


# ----------------------------------------------------------------------------------------------------------- real data
def test_real_key_frame_goes_through_the_pipeline(tmp_path):
    """Of its 69 boxes one has no class of the ten; of the other 68 three hold no point, and some lie beyond 54 m."""
    source = os.environ.get('OCCFORGE_REAL_DATA')
    if not source:
        pytest.skip('OCCFORGE_REAL_DATA is not set')
    folder = Path(source) / 'nuscenes_keyframe'
    for file in folder.iterdir():
        channel = file.name.split('__')[1] if '__' in file.name else ''
        if channel:
            (tmp_path / 'samples' / channel).mkdir(parents=True)
            (tmp_path / 'samples' / channel / file.name).symlink_to(file)
    info_file = str(next(folder.glob('*.pkl')))
    classes = [
        'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle', 'pedestrian',
        'traffic_cone',
    ]  # fmt: skip
    bounds = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    pipeline = [
        PIPELINE[0],
        dict(type='BEVLoadPoints', sweeps_num=9),
        PIPELINE[2],
        dict(type='ImageAug3D', final_dim=(256, 704), resize_lim=[0.48, 0.48]),
        dict(type='PointsRangeFilter', point_cloud_range=bounds),
        dict(type='ObjectRangeFilter', point_cloud_range=bounds),
        dict(type='ObjectNameFilter', classes=classes),
        PIPELINE[-1],
    ]
    instances = load_infos(info_file)[1][0]['instances']
    labelled = [item for item in instances if item['bbox_label_3d'] >= 0]
    seen = [item for item in labelled if item['bbox_3d_isvalid']]
    near = [item for item in seen if max(map(abs, item['bbox_3d'][:2])) < 54]
    assert (len(instances), len(labelled)) == (69, 68) and 65 <= len(seen) <= 66
    data = DATASETS.build(
        dict(type='BEVNuScenesDataset', data_root=str(tmp_path), ann_file=info_file, classes=classes, pipeline=pipeline,
             use_valid_flag=True)
    )  # fmt: skip
    sample = data[0]
    assert len(sample['data_samples'].gt_instances_3d.labels_3d) == len(near) > 40
    assert sample['inputs']['img'].shape == (6, 3, 256, 704)
    # the boxes hold the points that the file counts
    points = sample['inputs']['points'].numpy()
    points = points[: len(points) // 10]  # the frame itself: without sweeps it is repeated
    boxes = sample['data_samples'].gt_instances_3d.bboxes_3d.tensor.numpy()
    counted = points_in_boxes(points, boxes).sum(axis=0)
    expected = np.array([item['num_lidar_pts'] for item in near])
    assert np.mean(np.abs(counted - expected) <= 2 + 0.1 * expected) > 0.9
