"""check_data: every kind of damage is found, named and counted."""

import copy
import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from occforge.datasets.info_files import save_infos
from occforge.datasets.preparation import check
from occforge.errors import DataError

sys.path.insert(0, os.path.dirname(__file__))
import mini_world


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp('mini_world')
    return root, mini_world.write_scene(root, frames=2, sweeps=1, labels=True)


@pytest.fixture
def dataset(original, tmp_path):
    """A copy whose files may be damaged (hard links: a damaged file is a new one) and its items."""
    root, items = original
    for path in root.rglob('*'):
        if path.is_file():
            target = tmp_path / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return tmp_path, copy.deepcopy(items)


def run(root, items):
    path = root / 'mini_infos_train.pkl'
    save_infos(path, dict(version='mini'), items)
    return check.check_dataset(root, quiet=True)[0]


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def image(root):
    return root / 'samples/CAM_FRONT/scene-0001-0.jpg'


def points(root):
    return root / 'samples/LIDAR_TOP/scene-0001-0.pcd.bin'


def labels(root):
    return root / 'gts/scene-0001/scene-0001-0/labels.npz'


def write_labels(path, **changes):
    arrays = dict(np.load(path))
    arrays.update(changes)
    path.unlink()
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


def set_nan(items):
    items[0]['ego2global'][0][3] = float('nan')


def stretch(items):
    items[0]['images']['CAM_FRONT']['cam2ego'][0][2] = 1.5


def mirror(items):
    items[0]['lidar_points']['lidar2ego'][2] = [-value for value in items[0]['lidar_points']['lidar2ego'][2][:3]] + [
        1.8
    ]


def move_camera(items):
    items[0]['images']['CAM_FRONT']['lidar2cam'][0][3] += 1.0


def nan_points(root):
    values = np.fromfile(points(root), dtype=np.float32)
    values[3] = np.nan
    replace(points(root), values.tobytes())


DAMAGE = {
    'image missing': ('image', 'is missing', lambda root, items: image(root).unlink()),
    'image empty': ('image', 'is empty', lambda root, items: replace(image(root), b'')),
    'image truncated': (
        'image',
        'cannot be decoded',
        lambda root, items: replace(image(root), image(root).read_bytes()[:-500]),
    ),
    'image is text': ('image', 'no image', lambda root, items: replace(image(root), b'hello' * 100)),
    'image of another size': (
        'image',
        'is 160x90; expected 320x90',
        lambda root, items: items[0]['images']['CAM_FRONT'].update(width=320),
    ),
    'camera missing': ('image', 'has no camera CAM_FRONT', lambda root, items: items[0]['images'].clear()),
    'points missing': ('point file', 'is missing', lambda root, items: points(root).unlink()),
    'points empty': ('point file', 'is empty', lambda root, items: replace(points(root), b'')),
    'points cut': (
        'point file',
        'no whole number of points',
        lambda root, items: replace(points(root), points(root).read_bytes()[:-3]),
    ),
    'points NaN': ('point file', '1 of', lambda root, items: nan_points(root)),
    'sweep missing': (
        'sweep',
        'is missing',
        lambda root, items: (root / items[0]['lidar_sweeps'][0]['lidar_points']['lidar_path']).unlink(),
    ),
    'labels missing': ('occupancy labels', 'is missing', lambda root, items: labels(root).unlink()),
    'labels not listed': ('occupancy labels', 'has no label file', lambda root, items: items[0].pop('occ_path')),
    'labels truncated': (
        'occupancy labels',
        '',
        lambda root, items: replace(labels(root), labels(root).read_bytes()[:300]),
    ),
    'labels without mask': (
        'occupancy labels',
        'mask_camera',
        lambda root, items: write_labels(labels(root), mask_camera=None),
    ),
    'labels of another grid': (
        'occupancy labels',
        'shape',
        lambda root, items: write_labels(labels(root), semantics=np.zeros((100, 200, 16), np.uint8)),
    ),
    'labels of another type': (
        'occupancy labels',
        'type',
        lambda root, items: write_labels(labels(root), semantics=np.zeros((200, 200, 16), np.float32)),
    ),
    'labels unknown': (
        'occupancy labels',
        '\\[42\\]',
        lambda root, items: write_labels(labels(root), semantics=np.full((200, 200, 16), 42, np.uint8)),
    ),
    'lidarseg too short': (
        'lidarseg',
        'labels for',
        lambda root, items: replace(root / items[0]['pts_semantic_mask_path'], b'\x18' * 10),
    ),
    'lidarseg unknown': (
        'lidarseg',
        'unknown label 77',
        lambda root, items: replace(
            root / items[0]['pts_semantic_mask_path'], b'\x4d' * (points(root).stat().st_size // 20)
        ),
    ),
    'pose NaN': ('pose', 'NaN', lambda root, items: set_nan(items)),
    'pose stretched': ('pose', 'not rigid', lambda root, items: stretch(items)),
    'pose mirrored': ('pose', 'mirrors', lambda root, items: mirror(items)),
    'poses that disagree': ('pose', 'differs from', lambda root, items: move_camera(items)),
    'intrinsics': (
        'intrinsics',
        'focal lengths',
        lambda root, items: items[0]['images']['CAM_FRONT'].update(cam2img=[[0, 0, 8], [0, 1, 8], [0, 0, 1]]),
    ),
    'intrinsics of another size': (
        'intrinsics',
        'outside the 160x90',
        lambda root, items: items[0]['images']['CAM_FRONT'].update(cam2img=[[9, 0, 800], [0, 9, 8], [0, 0, 1]]),
    ),
    'unknown class': (
        'annotation',
        'unknown class 10',
        lambda root, items: items[0]['instances'][0].update(bbox_label_3d=10),
    ),
    'box without size': (
        'annotation',
        'has the size',
        lambda root, items: items[0]['instances'][0].update(bbox_3d=[0, 0, 0, 0, 1, 1, 0]),
    ),
    'duplicate token': (
        'duplicate token',
        'occurs 2 times',
        lambda root, items: items[1].update(token=items[0]['token']),
    ),
    'disorder': ('adjacency', 'not in order', lambda root, items: items.reverse()),
    'not linked': ('adjacency', 'not linked', lambda root, items: items[1].update(prev='')),
}


def test_a_good_dataset_has_no_problem(dataset):
    assert run(*dataset) == []


@pytest.mark.parametrize('name', DAMAGE)
def test_damage_is_found(dataset, name):
    root, items = dataset
    kind, words, damage = DAMAGE[name]
    damage(root, items)
    problems = run(root, items)
    found = [problem for problem in problems if problem.kind == kind]
    assert found, problems
    assert any(re.search(words, problem.what) for problem in found), found
    others = [problem for problem in problems if problem.kind != kind]
    if name not in ('duplicate token',):  # frames of one token do not follow each other either
        assert not others, others


def test_all_are_listed_once_and_the_exit_status_says_so(dataset, capsys):
    root, items = dataset
    image(root).unlink()
    points(root).unlink()
    set_nan(items)
    save_infos(root / 'mini_infos_train.pkl', dict(version='mini'), items)
    save_infos(root / 'mini_infos_val.pkl', dict(version='mini'), items)
    (root / 'broken_infos_val.pkl').write_bytes(b'\x80\x04')
    tool = load_tool()
    assert tool.main([str(root), '--workers', '2']) == 1
    out = capsys.readouterr().out
    assert out.count('scene-0001-0.jpg') == 1 and out.count('scene-0001-0.pcd.bin') == 1
    assert 'info file: ' in out and 'broken_infos_val.pkl: not a readable info file' in out
    assert out.rstrip().splitlines()[-1].split() == ['problems', '4']


def test_no_problem_exits_with_zero(dataset):
    root, items = dataset
    save_infos(root / 'mini_infos_train.pkl', dict(version='mini'), items)
    assert load_tool().main([str(root)]) == 0


def test_nothing_to_check_is_an_error(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / 'nothing'):
        with pytest.raises(SystemExit) as ended:
            load_tool().main([str(folder)])
        assert ended.value.code == 2 and capsys.readouterr().err.count('\n') == 1
    with pytest.raises(DataError, match='no such folder'):
        check.check_dataset(tmp_path / 'nothing')


def load_tool():
    spec = importlib.util.spec_from_file_location('check_data', Path(__file__).parents[2] / 'tools/check_data.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
