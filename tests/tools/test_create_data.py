"""The data tools from the outside: arguments, files they write, errors in one line."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from occforge.datasets.info_files import load_infos, load_pickle, save_infos
from occforge.datasets.occ3d import read_labels

TOOLS = Path(__file__).parents[2] / 'tools'
NAMES = ('create_data', 'create_data_bevdet', 'check_data', 'create_occ_labels')
sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', 'datasets'))
import mini_world  # noqa: E402


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('mini_nuscenes')
    mini_world.write_tables(root)
    return root


@pytest.mark.parametrize('name', NAMES)
def test_help_is_quick_and_loads_nothing(name):
    code = (
        f'import sys, runpy; sys.argv = [{name!r}, "--help"]; sys.path.insert(0, {str(TOOLS)!r})\n'
        f'try:\n    runpy.run_path({str(TOOLS / f"{name}.py")!r}, run_name="__main__")\n'
        'except SystemExit as error:\n    assert error.code == 0\n'
        'assert not {"torch", "mmengine", "numpy"} & set(sys.modules)'
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'usage' in done.stdout and time.monotonic() - start < 3
    assert os.access(TOOLS / f'{name}.py', os.X_OK)


@pytest.mark.parametrize(
    'name, arguments, words',
    [
        ('create_data', ['nuscenes', '--root-path', '{tmp}/nothing'], 'no such folder'),
        ('create_data', ['nuscenes', '--root-path', '{root}', '--version', 'v9'], 'versions found in'),
        ('create_data', ['keyframe', '--source', '{tmp}', '--out-dir', '{tmp}/out'], 'expected one info file'),
        ('create_data_bevdet', ['--root-path', '{tmp}/nothing'], 'no such folder'),
        ('create_occ_labels', ['--info', '{tmp}/nothing.pkl'], 'cannot be read'),
        ('create_occ_labels', ['--root-path', '{root}', '--version', 'v1.0-mini', '--scenes', 'x'], 'has no scene x'),
    ],
)
def test_wrong_paths_exit_with_2_and_one_line(root, tmp_path, capsys, name, arguments, words):
    arguments = [argument.format(tmp=tmp_path, root=root) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        load(name).main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') == 1 and words in error


@pytest.mark.parametrize('arguments', [[], ['nuscenes', '--workers', '0'], ['synthetic_city', '--image-size', '800']])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        load('create_data').parse_args(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err


def test_nuscenes(root, tmp_path, capsys):
    load('create_data').main(
        ['nuscenes', '--root-path', str(root), '--version', 'v1.0-mini', '--out-dir', str(tmp_path), '--workers', '2']
    )
    assert '3 key frames of 1 scenes' in capsys.readouterr().out
    for split, scene in (('train', 'scene-0061'), ('val', 'scene-0103')):
        metainfo, items = load_infos(tmp_path / f'nuscenes_infos_{split}.pkl')
        assert metainfo['version'] == 'v1.0-mini' and {item['scene_name'] for item in items} == {scene}


def test_bevdet_names_and_paths(tmp_path, monkeypatch, capsys):
    """As the users' documents call it: from the project folder, without arguments."""
    root = tmp_path / 'data/nuscenes'
    mini_world.write_tables(root, scenes=('a', 'b'), version='v1.0-trainval', frames=1, sweeps=1)
    (root / 'v1.0-trainval/splits.json').write_text('{"train": ["a"], "val": ["b"]}')
    monkeypatch.chdir(tmp_path)
    load('create_data_bevdet').main([])
    for split in ('train', 'val'):
        content = load_pickle(f'data/nuscenes/bevdetv2-nuscenes_infos_{split}.pkl')
        assert set(content) == {'infos', 'metadata'} and content['metadata'] == {'version': 'v1.0-trainval'}
        (info,) = content['infos']
        assert os.path.isfile(info['cams']['CAM_FRONT']['data_path']) and os.path.isfile(info['lidar_path'])
        assert info['sweeps'] == [] and info['gt_names'].tolist() == ['car']


@pytest.mark.parametrize('copy', [False, True])
def test_keyframe_makes_a_dataset_of_sample_files(tmp_path, copy, capsys):
    from occforge.datasets.preparation import check

    source = tmp_path / 'source'
    items = mini_world.write_scene(source, frames=2, sweeps=0)
    for item in items:
        for field in ('scene_token', 'scene_name', 'prev', 'next', 'pts_semantic_mask_path', 'lidar_sweeps'):
            del item[field]
        for image in item['images'].values():
            del image['ego2global'], image['width'], image['height']
    save_infos(source / 'infos.pkl', dict(version='v1.0-mini'), items)
    out = tmp_path / 'out'
    arguments = ['keyframe', '--source', str(source), '--out-dir', str(out)] + ['--copy'] * copy
    load('create_data').main(arguments)
    load('create_data').main(arguments)  # again: the same
    assert '2 key frames of 2 scenes, 2 with occupancy labels' in capsys.readouterr().out
    assert check.check_dataset(out, quiet=True)[0] == []
    _, loaded = load_infos(out / 'nuscenes_infos_train.pkl')
    labels = read_labels(out / loaded[0]['occ_path'])
    assert set(np.unique(labels.semantics)) == {0, 4, 12, 17}
    assert (out / 'samples/LIDAR_TOP/scene-0001-0.pcd.bin').is_symlink() == (not copy)


def test_keyframe_names_the_file_that_is_not_there(tmp_path, capsys):

    source = tmp_path / 'source'
    items = mini_world.write_scene(source, frames=1, sweeps=0)
    save_infos(source / 'infos.pkl', dict(version='v1.0-mini'), items)
    (source / 'samples/CAM_FRONT/scene-0001-0.jpg').unlink()
    with pytest.raises(SystemExit) as ended:
        load('create_data').main(['keyframe', '--source', str(source), '--out-dir', str(tmp_path / 'out')])
    assert ended.value.code == 2 and 'scene-0001-0.jpg of sample' in capsys.readouterr().err


@pytest.mark.skipif('OCCFORGE_REAL_DATA' not in os.environ, reason='OCCFORGE_REAL_DATA is not set')
def test_the_real_key_frame(tmp_path, capsys):
    from occforge.datasets.occ3d import class_counts
    from occforge.datasets.preparation import check

    source = os.path.join(os.environ['OCCFORGE_REAL_DATA'], 'nuscenes_keyframe')
    load('create_data').main(['keyframe', '--source', source, '--out-dir', str(tmp_path)])
    assert check.check_dataset(tmp_path, quiet=True)[0] == []
    _, (item,) = load_infos(tmp_path / 'nuscenes_infos_train.pkl')
    labels = read_labels(tmp_path / item['occ_path'])
    counts = class_counts(labels.semantics)
    # trucks, barriers, cars, pedestrians by their boxes; ground and the rest
    assert all(counts[number] > 30 for number in (1, 4, 7, 10)) and counts[12] > 3000 and counts[0] > 1000
    assert (counts[:17] > 0).sum() >= 6
    assert np.all(labels.mask_camera <= labels.mask_lidar)
