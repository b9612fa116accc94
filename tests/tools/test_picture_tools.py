"""visualize_results.py and browse_dataset.py: what they choose, and that what they draw lies where it belongs."""

import os
from pathlib import Path

import browse_dataset
import numpy as np
import pytest
import visualize_results
from occforge.datasets.info_files import load_infos
from occforge.datasets.occ3d import read_labels
from occforge.visualization import box_corners, read_image

CONFIG = Path(__file__).resolve().parents[2] / 'configs/fusion_occ/fusion_occ_synthetic.py'


@pytest.fixture(scope='module')
def predictions(tiny_city, tmp_path_factory):
    """(folder, tokens): the truth of the validation samples with 0, a third and all of the cells emptied."""
    folder, tokens = tmp_path_factory.mktemp('predictions'), []
    for share, item in zip((0, 1 / 3, 1), load_infos(tiny_city / 'nuscenes_infos_val.pkl')[1]):
        semantics = read_labels(tiny_city / item['occ_path']).semantics
        semantics[: round(len(semantics) * share)] = 17
        np.savez_compressed(folder / f'{item["token"]}.npz', arr_0=semantics)
        tokens.append(item['token'])
    return folder, tokens


def pictures(folder):
    return sorted(os.listdir(folder))


def test_results_beside_the_truth(predictions, tiny_city, tmp_path, capsys):
    folder, tokens = predictions
    infos = str(tiny_city / 'nuscenes_infos_val.pkl')
    visualize_results.main([str(folder), infos, '--out-dir', str(tmp_path), '--worst', '2', '--html'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'{tokens[2]}: mIoU 0.0') and lines[1].startswith(tokens[1])
    assert [name.split('_')[-1] for name in lines[2::2]] == [f'{tokens[2]}.png', f'{tokens[1]}.png']
    assert len(pictures(tmp_path)) == 4
    page = (tmp_path / lines[3]).read_bytes()
    assert b'"name":"Prediction"' in page and b'"name":"Truth"' in page
    assert read_image(lines[2]).shape[1] == 1920


def test_a_perfect_prediction_has_no_errors_in_its_picture(predictions, tiny_city, tmp_path):
    folder, tokens = predictions
    command = [str(folder), str(tiny_city / 'nuscenes_infos_val.pkl'), '--out-dir', str(tmp_path), '--mask', 'camera']
    missed = (60, 110, 230)  # the colour of the map of errors and of its legend
    shares = []
    for token in (tokens[0], tokens[2]):
        visualize_results.main([*command, '--tokens', token, '--eye', '-20', '0', '20', '--target', '5', '0', '0'])
        (name,) = (name for name in pictures(tmp_path) if token in name)
        shares.append((read_image(tmp_path / name)[:, -340:] == missed).all(-1).sum())
    assert shares[0] < 1000 < 2000 < shares[1]


def test_mistakes_of_visualize_results(predictions, tiny_city, tmp_path, capsys):
    folder, tokens = predictions
    train, val = (str(tiny_city / f'nuscenes_infos_{split}.pkl') for split in ('train', 'val'))
    np.savez_compressed(tmp_path / f'{tokens[0]}.npz', arr_0=np.zeros((4, 4, 2), np.uint8))
    for arguments, message in (
        (['no/folder', val], 'no/folder: no such folder'),
        ([str(folder), train], 'none of its 3 predictions is of a sample of'),
        ([str(folder), val, '--tokens', 'abc'], 'holds no sample abc'),
        ([str(tmp_path), val], 'shape (4, 4, 2), expected (200, 200, 16)'),
        ([str(folder), 'no.pkl'], 'no.pkl'),
    ):
        with pytest.raises(SystemExit) as stop:
            visualize_results.main([*arguments, '--out-dir', str(tmp_path / 'out')])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count('\n') == 1


def test_boxes_go_the_way_of_the_points():
    """Corners of a box as fed are the corners of the box in the LiDAR frame, through lidar2ego and the augmentation."""
    rng = np.random.default_rng(0)
    angle = 0.4
    lidar2ego = np.eye(4)
    lidar2ego[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    lidar2ego[:3, 3] = 0.9, 0.1, 1.8
    instances = [dict(bbox_3d=[*rng.normal(0, 9, 3), 4, 2, 1.5, yaw], bbox_label_3d=k, bbox_3d_isvalid=k != 1)
                 for k, yaw in enumerate(rng.uniform(-3, 3, 4))]  # fmt: skip
    info = dict(instances=instances, lidar_points=dict(lidar2ego=lidar2ego.tolist()))
    for bda in (np.eye(3), np.diag([-1.0, 1, 1]), np.diag([1.0, -1, 1]) * 1.05):
        boxes, labels = browse_dataset.boxes_as_fed(info, bda)
        assert labels == [0, 2, 3]
        own = box_corners([item['bbox_3d'] for item in instances if item['bbox_3d_isvalid']])
        expected = (own @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]) @ bda.T
        for corners, wanted in zip(box_corners(boxes), expected):
            assert {tuple(c) for c in corners.round(6).tolist()} == {tuple(c) for c in wanted.round(6).tolist()}
            # the front stays the front
            np.testing.assert_allclose(corners[:4].mean(0), wanted[:4].mean(0), atol=1e-6)
    boxes, labels = browse_dataset.boxes_as_fed(dict(instances=[]), np.eye(3))
    assert boxes.shape == (0, 7) and labels == []


@pytest.mark.parametrize('show', [['points', 'boxes'], ['depth', 'segs']])
def test_browse_dataset(tiny_city, tmp_path, show):
    browse_dataset.main(
        [str(CONFIG), '--out-dir', str(tmp_path), '-n', '1', '--mask', 'camera', '--show', *show, '--cfg-options',
         f'data_root={tiny_city}']
    )  # fmt: skip
    (name,) = pictures(tmp_path)
    picture = read_image(tmp_path / name)
    browse_dataset.main(
        [str(CONFIG), '--out-dir', str(tmp_path), '-n', '1', '--show', 'points', '--cfg-options',
         f'data_root={tiny_city}']
    )  # fmt: skip
    assert (read_image(tmp_path / name) != picture[:, :]).any(-1).mean() > 0.01


def test_browse_dataset_says_what_is_not_fed(tiny_city, tmp_path, capsys):
    config = CONFIG.with_name('fusion_occ_synthetic.py')
    with pytest.raises(SystemExit) as stop:
        browse_dataset.main([str(config), '--out-dir', str(tmp_path), '--split', 'test', '--show', 'segs',
                             '--cfg-options', f'data_root={tiny_city}'])  # fmt: skip
    assert stop.value.code == 2 and '--show segs: the pipeline feeds no such labels' in capsys.readouterr().err
