"""ESAM's benchmark and stream over a folder, with a small model of random weights."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine import Config
from PIL import Image

TESTS = Path(__file__).parents[1]
TOOLS = TESTS.parent / 'tools'


def load(path):
    spec = importlib.util.spec_from_file_location(f'esam_{path.parent.name}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


world = load(TESTS / 'systems/esam/esam_world.py')
benchmark = load(TOOLS / 'benchmarks/esam.py')
stream_tool = load(TOOLS / 'esam_stream.py')


def write_config(folder, kind='ScanNet200MixFormer3D_Online', bi_fusion=False):
    model = world.model_config(kind, bi_fusion)
    if kind.endswith('Online'):
        model['test_cfg'].update(stream=dict(num_sample=500))
    cfg = dict(
        model=model,
        test_dataloader=dict(dataset=dict()),
        default_scope='mmdet3d',
        custom_imports=dict(imports=['occforge']),
    )
    path = folder / f'{kind}.py'
    Config(cfg).dump(path)
    return str(path)


def write_frames(folder):
    for name in ('color', 'depth', 'pose'):
        (folder / name).mkdir(parents=True)
    for number in (0, 5, 10):
        rgb, depth, pose, masks = world.view(number // 5)
        Image.fromarray(rgb).save(folder / 'color' / f'{number}.jpg')
        Image.fromarray(depth.astype(np.uint16)).save(folder / 'depth' / f'{number}.png')
        Image.fromarray(masks.astype(np.uint16)).save(folder / 'color' / f'{number}.png')
        np.savetxt(folder / 'pose' / f'{number}.txt', np.full((4, 4), -np.inf) if number == 5 else pose)


def test_a_stage_does_not_count_what_is_inside_it():
    now = [0.0]
    watch = benchmark.Stopwatch()
    watch.clock = lambda: now[0]

    def work(seconds, inner=None):
        now[0] += seconds
        if inner is not None:
            inner()

    inner = watch.timed('inner', lambda: work(3))
    outer = watch.timed('outer', lambda: (work(2, inner), work(1, inner)))
    inner()  # outside of any frame
    with watch.frame():
        work(5)
        outer()
    with watch.frame():
        inner()
    assert watch.frames == [dict(other=5, outer=3, inner=6), dict(other=0, inner=3)]
    numbers = benchmark.summary([{'other': 1.0, 'masks': 3.0}, {'other': 1.0, 'masks': 3.0}])
    assert (numbers['frames_per_second'], numbers['frames_per_second_without_masks']) == (0.25, 1.0)
    assert 'late_over_early' not in numbers
    walk = [{'other': 2.0 if 50 <= number < 100 else 3.0, 'masks': float(number)} for number in range(500)]
    assert benchmark.summary(walk)['late_over_early'] == 1.5


@pytest.mark.parametrize('bi_fusion', [False, True])
def test_the_benchmark_runs_and_leaves_the_model_as_it_was(tmp_path, capsys, bi_fusion):
    config = write_config(tmp_path, 'BiFusionSegOnline' if bi_fusion else 'ScanNet200MixFormer3D_Online', bi_fusion)
    out = tmp_path / 'out' / 'numbers.json'
    assert benchmark.main([config, '--frames', '2', '--warmup', '1', '--device', 'cpu', '--out', str(out)]) == 0
    assert '| stage | ms | share |' in capsys.readouterr().out
    numbers = json.loads(out.read_text())
    expected = {'points', 'masks', 'voxels', 'memory', 'superpoints', 'decoder', 'instances', 'merging', 'other'}
    expected |= {'Bi-Fusion', 'U-Net (Bi-Fusion)', 'CLIP'} if bi_fusion else {'U-Net'}
    assert expected <= set(numbers['seconds']) and numbers['frames'] == 2
    whole = sum(numbers['seconds'].values())
    assert numbers['frames_per_second'] == pytest.approx(1 / whole, rel=0.5)


def test_probes_end():
    model = SimpleNamespace(merge_frame=lambda: 1)
    model.get_submodule = lambda name: model if name == '' else getattr(model, name)
    watch, before = benchmark.Stopwatch(), model.merge_frame
    with benchmark.probes(model, watch), watch.frame():
        assert model.merge_frame() == 1 and model.merge_frame is not before
    assert model.merge_frame is before and 'merging' in watch.frames[0]


def test_a_folder_becomes_a_map(tmp_path, capsys):
    write_frames(tmp_path / 'scene')
    out = [str(tmp_path / f'map.{suffix}') for suffix in ('html', 'png', 'npz')]
    command = [write_config(tmp_path), '-', str(tmp_path / 'scene'), '--device', 'cpu', '--out', *out]
    assert stream_tool.main([*command, '--masks', str(tmp_path / 'scene/color')]) == 0
    assert '2 frames (1 without a pose left out)' in capsys.readouterr().out
    stored = np.load(out[2])
    assert stored['points'].shape == (1000, 6) and stored['masks'].shape == (len(stored['ids']), 1000)
    assert np.asarray(Image.open(out[1])).std() > 0 and '"steps":[' in Path(out[0]).read_text()


def test_wrong_arguments_of_the_stream(tmp_path, capsys):
    for wrong in (['--out', 'map.txt'], ['--out', 'map.html', '--cell', '0']):
        with pytest.raises(SystemExit) as end:
            stream_tool.parse_args(['config.py', '-', 'folder', *wrong])
        assert end.value.code == 2
    write_frames(tmp_path / 'scene')
    single = write_config(tmp_path, 'ScanNet200MixFormer3D')
    for config, folder, message in (
        (single, 'scene', 'an online model is expected'),
        (single, 'none', 'no frame <n>.jpg'),
    ):
        with pytest.raises(SystemExit):
            stream_tool.main([config, '-', str(tmp_path / folder), '--device', 'cpu', '--out', 'map.html'])
        assert message in capsys.readouterr().err
