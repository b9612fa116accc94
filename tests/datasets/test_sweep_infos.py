"""Moments between key frames as unlabelled samples."""

import copy

import create_sweep_infos
import numpy as np
import pytest
from mmdet3d.registry import DATASETS
from occforge.datasets.info_files import load_infos, save_infos


@pytest.fixture
def sweeps(tiny_city, tmp_path):
    """An info file in which the moment 0 before each key frame is the key frame before, so that it is known."""
    metainfo, items = load_infos(str(tiny_city / 'nuscenes_infos_train.pkl'))
    made = []
    for index, item in enumerate(items):
        item = copy.deepcopy(item)
        item['images'] = {
            name: dict(image, img_path=str(tiny_city / 'samples' / name / image['img_path']))
            for name, image in item['images'].items()
        }
        item['lidar_points']['lidar_path'] = str(
            tiny_city / 'samples' / 'LIDAR_TOP' / item['lidar_points']['lidar_path']
        )
        if index:
            before = made[index - 1]
            item['image_sweeps'] = [dict(images=before['images'])]
            item['lidar_sweeps'] = [
                dict(
                    timestamp=before['timestamp'],
                    ego2global=before['ego2global'],
                    lidar_points=dict(
                        lidar_path=before['lidar_points']['lidar_path'],
                        lidar2ego=before['lidar_points']['lidar2ego'],
                    ),
                )
            ]
        made.append(item)
    save_infos(str(tmp_path / 'with_sweeps.pkl'), metainfo, made)
    return tmp_path / 'with_sweeps.pkl', made


def test_a_moment_is_a_sample_without_labels(tiny_city, sweeps, tmp_path):
    path, items = sweeps
    out = tmp_path / 'all.pkl'
    assert create_sweep_infos.main([str(path), '--out', str(out), '--places', '0', '--max-gap', '0.1']) == 0
    _, found = load_infos(str(out))
    assert len(found) == len(items) + len(items) - 1
    for index, item in enumerate(found[len(items) :]):
        assert item['with_gt'] is False and item['scene_token'].endswith('#0')
        for name, image in item['images'].items():
            np.testing.assert_allclose(image['lidar2cam'], items[index]['images'][name]['lidar2cam'], atol=1e-6)

    data = dict(input_size=(96, 192))
    dataset = DATASETS.build(
        dict(
            type='NuScenesOccDataset',
            ann_file=str(out),
            data_root=str(tiny_city),
            num_adjacent=1,
            pipeline=[
                dict(type='PrepareImageInputs', data_config=data, num_adjacent=1),
                dict(type='LoadOccGTFromFile'),
                dict(type='GenerateRays', key_ego='lidar', class_balance=None),
            ],
        )
    )
    tokens = [dataset.get_data_info(index)['token'] for index in range(len(dataset))]
    key, sweep = dataset[tokens.index(items[0]['token'])], dataset[tokens.index(f'{items[1]["token"]}_0')]
    np.testing.assert_array_equal(sweep['imgs'][0], key['imgs'][0])
    np.testing.assert_allclose(sweep['rays'][:, :3], key['rays'][:, :3], atol=1e-3)
    np.testing.assert_allclose(sweep['rays'][:, 4:], key['rays'][:, 4:], atol=1e-4)
    assert (sweep['rays'][:, 3] == 255).all() and (key['rays'][:, 3] < 17).all()
    assert (sweep['voxel_semantics'] == 255).all()
    # the frame before a moment is the same moment before the key frame before, never a key frame in between
    later = dataset.get_data_info(tokens.index(f'{items[2]["token"]}_0'))
    assert later['adjacent'][0]['token'] == f'{items[1]["token"]}_0'
    assert dataset.get_data_info(tokens.index(items[1]['token']))['adjacent'][0]['token'] == items[0]['token']


def test_moments_without_a_lidar_sweep_near_are_left_out(sweeps, tmp_path, capsys):
    path, items = sweeps
    metainfo, made = load_infos(str(path))
    for item in made[1:]:
        item['lidar_sweeps'][0]['timestamp'] -= 1.0
    save_infos(str(path), metainfo, made)
    create_sweep_infos.main([str(path), '--out', str(tmp_path / 'b.pkl'), '--places', '0'])
    assert f'{len(items)} key frames and 0 samples' in capsys.readouterr().out


def test_files_without_camera_sweeps_are_refused(tiny_city, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        create_sweep_infos.main([str(tiny_city / 'nuscenes_infos_train.pkl'), '--out', str(tmp_path / 'b.pkl')])
    assert stop.value.code == 2 and '--camera-sweeps' in capsys.readouterr().err
    assert not (tmp_path / 'b.pkl').exists()
