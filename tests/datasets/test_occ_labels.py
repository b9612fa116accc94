"""Occupancy labels of a world whose answer is known."""

import importlib.util
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from occforge.datasets.info_files import load_infos, save_infos
from occforge.datasets.occ3d import CLASS_NAMES, FREE, read_labels
from occforge.datasets.preparation import occ_labels
from occforge.errors import DataError

sys.path.insert(0, os.path.dirname(__file__))
import mini_world

CAR, ROAD, WALL = CLASS_NAMES.index('car'), CLASS_NAMES.index('driveable_surface'), CLASS_NAMES.index('manmade')
OTHERS, OTHER_FLAT = CLASS_NAMES.index('others'), CLASS_NAMES.index('other_flat')


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    root = tmp_path_factory.mktemp('mini_world')
    return root, mini_world.write_scene(root)


def voxel_centres(settings=occ_labels.DEFAULT_SETTINGS):
    size = settings.grid_size
    cells = np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'), axis=-1)
    return np.array(settings.point_cloud_range[:3]) + (cells + 0.5) * np.array(settings.voxel_size)


def in_car(centres, item, margin):
    """Voxel centres (ego frame) within ``margin`` of the car at the key frame's time."""
    time = item['timestamp'] - 1000.0
    centre, yaw = mini_world.car_pose(time)
    local = centres + [5.0 * time, 0, 0] - centre
    x = np.cos(yaw) * local[..., 0] + np.sin(yaw) * local[..., 1]
    y = np.cos(yaw) * local[..., 1] - np.sin(yaw) * local[..., 0]
    half = mini_world.CAR_SIZE / 2 + margin
    return (np.abs(x) < half[0]) & (np.abs(y) < half[1]) & (np.abs(local[..., 2]) < half[2])


def make(scene, number, **settings):
    root, items = scene
    settings = occ_labels.DEFAULT_SETTINGS._replace(**settings)
    clouds = occ_labels.accumulate(items, str(root), settings)
    return occ_labels.frame_labels(items[number], number, clouds, settings)


@pytest.mark.parametrize('lidarseg', [True, False])
@pytest.mark.parametrize('number', [0, 1, 2])
def test_each_class_is_where_it_should_be(scene, number, lidarseg):
    labels = make(scene, number, use_lidarseg=lidarseg)
    semantics = labels.semantics
    road, wall = (ROAD, WALL) if lidarseg else (OTHER_FLAT, OTHERS)
    centres = voxel_centres()
    # the car: nowhere but where it is now, although the sweeps saw it at fifteen other places
    is_car = semantics == CAR
    assert is_car.sum() > 60
    assert in_car(centres[is_car], scene[1][number], 0.4).all()
    assert not (semantics[in_car(centres, scene[1][number], 0.0) & (centres[..., 2] > 0.3)] == road).any()
    # road and wall: in the layer of z = 0 and of y = 10.1; only at the wall's foot may one be taken for the other
    _, y, z = np.nonzero(semantics == road)
    assert ((z == 2) | (y == 125)).all() and (z != 2).mean() < 0.02
    _, y, z = np.nonzero(semantics == wall)
    assert ((y == 125) | (z == 2)).all() and (y != 125).mean() < 0.08
    assert (semantics == road).sum() > 5000 and (semantics == wall).sum() > 400
    assert set(np.unique(semantics)) == {CAR, road, wall, FREE}
    # everything solid was seen by the LiDAR, apart from filled holes in the road
    unseen = (semantics != FREE) & (labels.mask_lidar == 0)
    assert set(np.unique(semantics[unseen])) <= {road}
    assert not ((labels.mask_camera == 1) & (labels.mask_lidar == 0)).any()
    # nothing behind the wall is seen, and the camera looks ahead
    assert not labels.mask_lidar[:, 127:].any()
    assert not labels.mask_camera[:95].any() and labels.mask_camera[110:].any()


def test_without_lidarseg_the_background_is_what_was_asked_for(scene):
    labels = make(scene, 1, use_lidarseg=False, background_class=WALL, ground_class=None)
    assert set(np.unique(labels.semantics)) == {CAR, WALL, FREE}


def test_the_mask_of_the_key_frame_alone_is_smaller(scene):
    whole, alone = make(scene, 1), make(scene, 1, mask_frames='key')
    assert 0 < alone.mask_lidar.sum() < whole.mask_lidar.sum()
    assert not (alone.mask_lidar & ~whole.mask_lidar & 1).any()


def test_other_grids(scene):
    labels = make(scene, 1, point_cloud_range=(-20, -20, -2, 20, 20, 4), voxel_size=(0.5, 0.5, 0.25))
    assert labels.semantics.shape == (80, 80, 24)
    assert set(np.nonzero(labels.semantics == ROAD)[2]) <= {7, 8}
    with pytest.raises(DataError, match='whole number of voxels'):
        make(scene, 1, voxel_size=(0.3, 0.4, 0.4))


def test_ground_gaps_are_filled_between_ground_only():
    settings = occ_labels.DEFAULT_SETTINGS
    semantics = np.full((200, 200, 16), FREE, dtype=np.uint8)
    semantics[:100, :, 2] = ROAD
    semantics[50:53, 80:83, 2] = FREE
    semantics[51, 81, 2] = CAR
    filled = occ_labels._fill_ground(semantics, settings)
    assert (filled[50:53, 80:83, 2] == ROAD).sum() == 8 and filled[51, 81, 2] == CAR
    assert (filled[100:] == FREE).all()  # no ground beyond its edge
    assert (occ_labels._fill_ground(np.full_like(semantics, FREE), settings) == FREE).all()


def test_files_are_kept_resumed_and_never_mixed(scene, tmp_path):
    root, items = scene
    assert occ_labels.make_labels(items, root, tmp_path, quiet=True) == 3
    paths = [occ_labels.label_path(tmp_path, item) for item in items]
    for path in paths:
        assert read_labels(path).semantics.shape == (200, 200, 16)
    before = [path.stat().st_mtime_ns for path in paths]
    paths[1].write_bytes(paths[1].read_bytes()[:1000])  # as a kill in the middle would not leave it, but a disk might
    assert occ_labels.make_labels(items, root, tmp_path, quiet=True) == 1
    assert [path.stat().st_mtime_ns == time for path, time in zip(paths, before)] == [True, False, True]
    with pytest.raises(DataError, match='made with another min_points'):
        occ_labels.make_labels(items, root, tmp_path, occ_labels.DEFAULT_SETTINGS._replace(min_points=2))
    (tmp_path / 'label_settings.json').unlink()
    with pytest.raises(DataError, match='did not make'):
        occ_labels.make_labels(items, root, tmp_path)


def test_bad_input_is_named(tmp_path):
    items = mini_world.write_scene(tmp_path, frames=1, sweeps=0)
    points = tmp_path / 'samples/LIDAR_TOP' / items[0]['lidar_points']['lidar_path']
    seg = tmp_path / items[0]['pts_semantic_mask_path']
    seg.write_bytes(seg.read_bytes()[:-1])
    with pytest.raises(DataError, match=r'_lidarseg\.bin: \d+ labels for \d+ points'):
        occ_labels.accumulate(items, str(tmp_path), occ_labels.DEFAULT_SETTINGS)
    points.write_bytes(points.read_bytes()[:-3])
    with pytest.raises(DataError, match=r'\.pcd\.bin: point file has \d+ bytes'):
        occ_labels.accumulate(items, str(tmp_path), occ_labels.DEFAULT_SETTINGS)
    items[0]['instances'][0]['bbox_3d'][3] = float('nan')
    with pytest.raises(DataError, match='box 0 is'):
        occ_labels.accumulate(items, str(tmp_path), occ_labels.DEFAULT_SETTINGS)


def test_box_tracks():
    box = occ_labels._Box(1.0, np.array([0.0, 0, 0]), 3.0, np.ones(3), np.array([2.0, 0]), CAR)
    later = box._replace(time=1.5, centre=np.array([1.0, 0, 0]), yaw=-3.0)
    middle = occ_labels._box_at([box, later], 1.25)
    np.testing.assert_allclose(middle.centre, [0.5, 0, 0])
    assert abs(abs(middle.yaw) - np.pi) < 1e-9  # the short way round
    np.testing.assert_allclose(occ_labels._box_at([box, later], 0.5).centre, [-1, 0, 0])
    assert occ_labels._box_at([box, later], 0.3) is None
    assert occ_labels._box_at([box, later], 1.5) is later


def test_scores_of_known_labels():
    matrix = np.zeros((18, 18), dtype=np.int64)
    matrix[4, 4], matrix[4, 17], matrix[17, 4], matrix[17, 17], matrix[11, 11] = 6, 2, 2, 100, 10
    geometric, mean, by_class = occ_labels.scores(matrix)
    assert geometric == pytest.approx(100 * 16 / 20) and by_class[4] == pytest.approx(60) and by_class[11] == 100
    assert mean == pytest.approx(80) and np.isnan(by_class[0])


@pytest.mark.parametrize('lidarseg', [True, False])
def test_on_the_city_they_come_near_the_true_labels(tiny_city, tmp_path, lidarseg):
    _, items = load_infos(tiny_city / 'nuscenes_infos_val.pkl')
    settings = occ_labels.DEFAULT_SETTINGS._replace(use_lidarseg=lidarseg)
    assert occ_labels.make_labels(items, tiny_city, tmp_path, settings, workers=2, quiet=True) == 3
    matrix = occ_labels.compare_labels(items, tmp_path, tiny_city / 'gts', 'mask_lidar')
    geometric, mean, by_class = occ_labels.scores(matrix)
    assert geometric > 60
    assert mean > (50 if lidarseg else 20)
    objects = [number for number in occ_labels.OBJECT_CLASSES if matrix[number].sum() > 100]
    assert objects and np.nanmean(by_class[objects]) > 45


def run_tool(name, *arguments):
    """main() of a tool in this process (a new one would spend its time on imports)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_the_tool_goes_on_after_a_kill(tmp_path, capsys):
    items = mini_world.write_scene(tmp_path, frames=4, sweeps=0)
    save_infos(tmp_path / 'mini_infos_train.pkl', dict(version='mini'), items)
    arguments = ('create_occ_labels', '--info', tmp_path / 'mini_infos_train.pkl', '--workers', 1)
    process = multiprocessing.get_context('fork').Process(target=run_tool, args=arguments)
    process.start()
    first = occ_labels.label_path(tmp_path / 'gts', items[0])
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    for path in (tmp_path / 'gts').rglob('labels.npz'):
        read_labels(path)  # whole, or not there
    run_tool(*arguments, '--compare-with', tmp_path / 'gts')
    printed = capsys.readouterr().out
    assert 'label files written' in printed and 'mIoU' in printed
    assert len(list((tmp_path / 'gts').rglob('labels.npz'))) == 4
    assert json.loads((tmp_path / 'gts/label_settings.json').read_text())['use_lidarseg'] is True


def test_the_tool_reports_an_unknown_class_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_tool('create_occ_labels', '--root-path', tmp_path, '--background-class', 'unicorn')
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') == 1 and "'unicorn' is unknown" in error
