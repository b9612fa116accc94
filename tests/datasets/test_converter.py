"""nuScenes tables -> info files: content, mmdet3d's own reader, splits, errors."""

import json
import os
import sys

import numpy as np
import pytest
from occforge.datasets.info_files import load_infos
from occforge.datasets.preparation import check, nuscenes_converter
from occforge.errors import DataError

sys.path.insert(0, os.path.dirname(__file__))
import mini_world


@pytest.fixture(scope='module')
def tables(tmp_path_factory):
    """(data root, expected items, metainfo, data lists)"""
    root = tmp_path_factory.mktemp('mini_nuscenes')
    expected = mini_world.write_tables(root)
    metainfo, data_lists, left_out = nuscenes_converter.make_infos(root, 'v1.0-mini', quiet=True)
    assert not left_out
    nuscenes_converter.write_infos(root, metainfo, data_lists)
    return root, expected, metainfo, data_lists


def test_items_are_what_the_tables_say(tables):
    _, expected, metainfo, data_lists = tables
    assert metainfo['version'] == 'v1.0-mini' and metainfo['categories']['barrier'] == 9
    assert metainfo['categories']['animal'] == -1
    assert [item['scene_name'] for item in data_lists['train']] == ['scene-0061'] * 3
    assert [item['scene_name'] for item in data_lists['val']] == ['scene-0103'] * 3
    for item, other in zip(data_lists['train'] + data_lists['val'], expected):
        for field in ('token', 'scene_token', 'prev', 'next'):
            assert item[field] == other[field]
        assert item['timestamp'] == pytest.approx(other['timestamp'], abs=1e-6)
        np.testing.assert_allclose(item['ego2global'], other['ego2global'], atol=1e-9)
        np.testing.assert_allclose(item['lidar_points']['lidar2ego'], other['lidar_points']['lidar2ego'], atol=1e-9)
        assert item['lidar_points']['lidar_path'] == other['lidar_points']['lidar_path']
        assert item['pts_semantic_mask_path'] == f'lidarseg/v1.0-mini/{item["token"]}_lidarseg.bin'
        assert 'occ_path' not in item
        image, other_image = item['images']['CAM_FRONT'], other['images']['CAM_FRONT']
        for field in ('cam2img', 'cam2ego', 'ego2global', 'lidar2cam'):
            np.testing.assert_allclose(image[field], other_image[field], atol=1e-8)
        assert (image['img_path'], image['width'], image['height']) == (other_image['img_path'], 160, 90)
        (instance,), (other_instance,) = item['instances'], other['instances']
        np.testing.assert_allclose(instance['bbox_3d'], other_instance['bbox_3d'], atol=1e-6)
        np.testing.assert_allclose(instance['velocity'], other_instance['velocity'], atol=1e-5)
        assert instance['instance_token'] == f'{item["scene_name"]}-car' and instance['bbox_label_3d'] == 0


def test_sweeps_run_back_in_time(tables):
    first, second, third = tables[3]['train']
    assert len(first['lidar_sweeps']) == 4 and len(second['lidar_sweeps']) == 9  # 10, but the scene begins
    assert len(third['lidar_sweeps']) == 10
    for item in (first, second, third):
        times = [sweep['timestamp'] for sweep in item['lidar_sweeps']]
        assert times == sorted(times, reverse=True) and times[0] < item['timestamp']
    # the previous key frame is among them, under samples/
    path = f'samples/LIDAR_TOP/{first["token"]}.pcd.bin'
    assert [sweep['lidar_points']['lidar_path'] for sweep in second['lidar_sweeps']].index(path) == 4
    # a point of the wall through lidar2sensor
    sweep = third['lidar_sweeps'][0]
    key2global = np.array(third['ego2global']) @ third['lidar_points']['lidar2ego']
    sweep2global = np.array(sweep['ego2global']) @ sweep['lidar_points']['lidar2ego']
    np.testing.assert_allclose(
        np.linalg.inv(sweep2global) @ key2global, sweep['lidar_points']['lidar2sensor'], atol=1e-7
    )


def test_the_checker_finds_nothing_wrong(tables):
    problems, looked_at = check.check_dataset(tables[0], quiet=True)
    assert problems == [] and looked_at['samples'] == 6 and looked_at['images'] == 6


@pytest.mark.parametrize('split, test_mode', [('train', False), ('val', True)])
def test_mmdet3d_reads_the_file(tables, split, test_mode):
    from mmdet3d.datasets import NuScenesDataset
    from mmdet3d.registry import TRANSFORMS

    root = str(tables[0])
    dataset = NuScenesDataset(
        data_root=root,
        ann_file=f'nuscenes_infos_{split}.pkl',
        data_prefix=dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP', CAM_FRONT='samples/CAM_FRONT'),
        modality=dict(use_lidar=True, use_camera=True),
        # built here, as a Runner with mmdet3d's scope would build it
        pipeline=[
            TRANSFORMS.build(dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5)),
            TRANSFORMS.build(
                dict(type='LoadPointsFromMultiSweeps', load_dim=5, sweeps_num=2, use_dim=[0, 1, 2, 4], test_mode=True)
            ),
        ],
        test_mode=test_mode,
        filter_empty_gt=False,
    )
    assert len(dataset) == 3
    item = dataset[1]
    assert len(item['points']) > 10000
    assert os.path.isfile(item['images']['CAM_FRONT']['img_path'])
    annotations = item['eval_ann_info'] if test_mode else item['ann_info']
    boxes = annotations['gt_bboxes_3d']
    assert len(boxes) == 1 and annotations['gt_labels_3d'].tolist() == [0]
    expected = tables[1][1 if split == 'train' else 4]['instances'][0]['bbox_3d']
    np.testing.assert_allclose(boxes.gravity_center[0], expected[:3], atol=1e-4)
    assert boxes.dims[0].tolist() == pytest.approx([4.5, 1.9, 1.6], abs=1e-5)


def test_our_dataset_reads_the_file(tables):
    from occforge.datasets.nuscenes_occupancy import NuScenesOccDataset

    dataset = NuScenesOccDataset(
        'nuscenes_infos_train.pkl', str(tables[0]), camera_names=['CAM_FRONT'], num_adjacent=1, test_mode=True
    )
    assert len(dataset) == 3


def test_workers_change_nothing(tables):
    again = nuscenes_converter.make_infos(tables[0], 'v1.0-mini', workers=2, quiet=True)
    assert again[1] == tables[3]


def test_occupancy_labels_are_named_where_they_are(tables, tmp_path):
    root = tmp_path
    for name in ('v1.0-mini', 'samples', 'sweeps', 'maps', 'lidarseg'):
        (root / name).symlink_to(tables[0] / name)
    token = tables[1][0]['token']
    (root / f'gts/scene-0061/{token}').mkdir(parents=True)
    (root / f'gts/scene-0061/{token}/labels.npz').write_bytes(b'x')
    items = nuscenes_converter.make_infos(root, 'v1.0-mini', quiet=True)[1]['train']
    assert items[0]['occ_path'] == f'gts/scene-0061/{token}/labels.npz' and 'occ_path' not in items[1]


def test_the_city(tiny_city):
    problems, looked_at = check.check_dataset(tiny_city, quiet=True)
    assert problems == []
    assert looked_at['samples'] == looked_at['occupancy labels'] == 6 and looked_at['images'] == 36
    _, items = load_infos(tiny_city / 'nuscenes_infos_val.pkl')
    assert list(items[0]['images']) == list(nuscenes_converter.CAMERA_ORDER)
    assert all(item['instances'] and item['pts_semantic_mask_path'] for item in items)
    assert [len(item['lidar_sweeps']) for item in items] == [0, 10, 10]


def test_custom_splits_and_missing_files(tmp_path):
    mini_world.write_tables(tmp_path, scenes=('a', 'b', 'c'), frames=1, sweeps=0)
    with pytest.raises(DataError, match=r'none of its 3 scenes can be used \(3 in no split'):
        nuscenes_converter.make_infos(tmp_path, 'v1.0-mini', quiet=True)
    (tmp_path / 'v1.0-mini/splits.json').write_text(json.dumps(dict(train=['a', 'c'], val=['b'])))
    (tmp_path / 'samples/LIDAR_TOP/c-0.pcd.bin').unlink()
    _, data_lists, left_out = nuscenes_converter.make_infos(tmp_path, 'v1.0-mini', quiet=True)
    assert [item['scene_name'] for item in data_lists['train']] == ['a']
    assert [item['scene_name'] for item in data_lists['val']] == ['b']
    assert left_out == {'sensor files not there': 1}


def test_bevdet_files_say_the_same(tables, tmp_path):
    _, _, metainfo, data_lists = tables
    paths = nuscenes_converter.write_infos(tmp_path, metainfo, data_lists, 'bevdetv2-nuscenes', './data/nuscenes')
    assert [path.name for path in paths] == [
        'bevdetv2-nuscenes_infos_train.pkl',
        'bevdetv2-nuscenes_infos_val.pkl',
    ]
    _, items = load_infos(paths[0])
    for item, other in zip(items, data_lists['train']):
        np.testing.assert_allclose(item['ego2global'], other['ego2global'], atol=1e-9)
        np.testing.assert_allclose(
            item['images']['CAM_FRONT']['lidar2cam'], other['images']['CAM_FRONT']['lidar2cam'], atol=1e-8
        )
        assert item['images']['CAM_FRONT']['img_path'] == other['images']['CAM_FRONT']['img_path']
        assert [sweep['lidar_points']['lidar_path'] for sweep in item['lidar_sweeps']] == [
            sweep['lidar_points']['lidar_path'] for sweep in other['lidar_sweeps']
        ]


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda root: None, 'v1.0-trainval: no such folder; versions found in .*: v1.0-mini'),
        (lambda root: (root / 'v1.0-trainval').mkdir(), 'tables are missing: attribute.json'),
    ],
)
def test_wrong_folders(tables, tmp_path, damage, words):
    (tmp_path / 'v1.0-mini').symlink_to(tables[0] / 'v1.0-mini')
    damage(tmp_path)
    with pytest.raises(DataError, match=words):
        nuscenes_converter.make_infos(tmp_path, 'v1.0-trainval')
    with pytest.raises(DataError, match='no such folder'):
        nuscenes_converter.make_infos(tmp_path / 'nothing')


def test_a_broken_table_is_named(tmp_path):
    mini_world.write_tables(tmp_path, frames=1, sweeps=0)
    path = tmp_path / 'v1.0-mini/ego_pose.json'
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r'ego_pose\.json: not valid JSON'):
        nuscenes_converter.make_infos(tmp_path, 'v1.0-mini')
