"""The analysis tools: numbers that can be written down, and their way through a real config."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from occforge.datasets.info_files import load_infos, save_infos
from occforge.datasets.random_samples import use_random_samples, write_random_samples
from occforge.engine import load_config
from occforge.visualization import read_image
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/analysis'))
sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/benchmarks'))
import analyze_logs
import check_calibration
import estimate_memory
import get_flops
import loader
import model as model_benchmark

ROOT = Path(__file__).resolve().parents[2]

LIDAR_ONLY = str(ROOT / 'configs/fusion_occ/fusion_occ_synthetic_lidar.py')
TOOLS = ['analyze_logs', 'check_calibration', 'estimate_memory', 'get_flops', 'label_prior', 'step_time']


@pytest.mark.parametrize('tool', [f'analysis/{name}.py' for name in TOOLS] + ['benchmarks/loader.py'])
def test_help_and_wrong_arguments(tool):
    path = str(ROOT / 'tools' / tool)
    code = (
        f'import os, sys, runpy; sys.argv = [{tool!r}, "--help"]; sys.path.insert(0, os.path.dirname({path!r}))\n'
        f'try:\n    runpy.run_path({path!r}, run_name="__main__")\n'
        'except SystemExit as error:\n    assert error.code == 0\n'
        'assert "torch" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and 'usage' in done.stdout, done.stderr
    done = subprocess.run([sys.executable, ROOT / 'tools' / tool, '--wrong'], capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr


def message(capsys, run, arguments):
    with pytest.raises(SystemExit) as stop:
        run(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ analyze_logs
def write_table(folder, rows, head='phase,epoch,iter,loss,mIoU/no_mask,mIoU/camera_mask'):
    folder.mkdir(exist_ok=True)
    (folder / 'metrics.csv').write_text('\n'.join([head, *rows]) + '\n')
    return str(folder)


def test_curves(tmp_path, capsys):
    first = write_table(tmp_path / 'a', ['train,1,10,4,,', 'train,1,20,2,,', 'val,1,20,,30,40', 'train,2,30,nan,,'])
    second = write_table(tmp_path / 'b', ['train,1,10,5,,'])
    table = analyze_logs.read_table(first)
    assert table['loss'] == [('train', 10, 1.0, 4.0), ('train', 20, 1.0, 2.0)]  # nan is left out
    assert table['mIoU/camera_mask'] == [('val', 20, 1.0, 40.0)]
    tables = [table, analyze_logs.read_table(second)]
    assert analyze_logs.chosen_columns(tables, None) == ['loss', 'mIoU/no_mask']
    assert analyze_logs.chosen_columns(tables, ['mIoU/*', 'loss']) == ['mIoU/no_mask', 'mIoU/camera_mask', 'loss']
    np.testing.assert_allclose(analyze_logs.smoothed([1, 2, 3, 6], 2), [1, 1.5, 2.5, 4.5])
    args = analyze_logs.parse_args([first, second, '--keys', 'loss', 'mIoU/no_mask'])
    figure = analyze_logs.draw(tables, ['a', 'b'], ['loss', 'mIoU/no_mask'], args)
    lines = [[line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes]
    assert lines == [[[[10, 4], [20, 2]], [[10, 5]]], [[[20, 30]]]]
    analyze_logs.main([first, second, '--out', str(tmp_path / 'curves.png')])
    assert read_image(tmp_path / 'curves.png').std() > 5
    capsys.readouterr()
    analyze_logs.main([first, '--list'])
    assert 'mIoU/camera_mask  (last 40, val)' in capsys.readouterr().out
    for arguments, text in (
        ([str(tmp_path / 'c')], 'no such file'),
        ([first, '--keys', 'nothing*'], '--keys nothing*: no such column'),
        ([first, '--labels', 'x', 'y'], '2 names for 1 trainings'),
        ([write_table(tmp_path / 'd', ['train,1,x,4,,'])], 'line 2: invalid literal'),
        ([write_table(tmp_path / 'e', ['1,2'], head='a,b')], 'no table of a training'),
    ):
        assert text in message(capsys, analyze_logs.main, arguments)


# -------------------------------------------------------------------------------------------------- check_calibration
FOCAL, WIDTH, HEIGHT = 400.0, 640, 360


def posts(shift=(0, 0), seed=0):
    """Image, points (LiDAR = camera axes) and camera of grey posts of 10 m before a noisy wall; the image moved."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    camera = dict(lidar2cam=np.eye(4), cam2img=[[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    azimuth, elevation = np.meshgrid(np.arange(-0.75, 0.75, 0.006), np.arange(-0.4, 0.4, 0.04))
    pixels = np.stack([np.tan(azimuth), np.tan(elevation)], -1) * FOCAL + (WIDTH / 2, HEIGHT / 2)
    depth = np.full(azimuth.shape, 30.0)
    for left in range(30, WIDTH - 50, 70):
        right, top = left + int(rng.integers(18, 40)), int(rng.integers(60, 200))
        near = (pixels[..., 0] >= left) & (pixels[..., 0] < right) & (pixels[..., 1] >= top)
        depth[near] = rng.uniform(8, 12)
        x, y = left + shift[0], top + shift[1]
        image[max(y, 0) :, max(x, 0) : right + shift[0]] = rng.integers(0, 60)
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    points = np.concatenate([(pixels - (WIDTH / 2, HEIGHT / 2)) / FOCAL, np.ones((*depth.shape, 1))], -1)
    return image, (points * depth[..., None]).reshape(-1, 3), camera


@pytest.mark.parametrize('shift', [(0, 0), (8, 0), (-11, 0), (0, 14)])
def test_the_shift_of_a_made_up_camera_is_found(shift):
    shifts = check_calibration.shifts_of(WIDTH)
    sums, counts = np.zeros((2, len(shifts))), np.zeros(2)
    for seed in range(6):
        image, points, camera = posts(shift, seed)
        pixels, depth = check_calibration.project(points, camera, (WIDTH, HEIGHT))
        pairs = check_calibration.outlines(pixels, depth, WIDTH)
        for near, far in pairs[0].round().astype(int):
            assert abs(far[0] - near[0]) < 12 and abs(far[1] - near[1]) <= 1
        for axis, strength in enumerate(check_calibration.edges(image)):
            sums[axis] += check_calibration.shifted_sums(strength, pairs[axis], axis, shifts)
            counts[axis] += len(pairs[axis])
    found = check_calibration.verdict(sums, counts, shifts, 0.005 * WIDTH)
    assert found['shift'][0] == pytest.approx(shift[0], abs=1.5)
    assert found['shift'][1] == pytest.approx(shift[1], abs=6)  # beams are 16 pixels apart
    assert found['ok'] is (shift == (0, 0))
    # a quarter as many outlines may all be those of one thing; beams a tenth of the image apart leave the height open
    few = check_calibration.verdict(sums, [100, 100], shifts, 0.005 * WIDTH)
    assert few['ok'] is None and few['shift'] == [None, None]
    coarse = check_calibration.verdict(sums, counts, shifts, 0.005 * WIDTH, gap=0.1 * HEIGHT)
    assert coarse['ok'] is (shift[0] == 0)


def test_no_verdict_without_outlines():
    shifts = check_calibration.shifts_of(WIDTH)
    flat = np.ones((2, len(shifts)))
    assert check_calibration.verdict(flat, [1000, 1000], shifts, 3.0)['ok'] is None  # nothing stands out
    _, points, camera = posts()
    pixels, _ = check_calibration.project(points, camera, (WIDTH, HEIGHT))
    pairs = check_calibration.outlines(pixels, np.full(len(pixels), 30.0), WIDTH)  # a wall alone
    assert len(pairs[0]) == len(pairs[1]) == 0
    pairs = check_calibration.outlines(pixels[:3], np.ones(3), WIDTH)
    assert pairs[0].shape == pairs[1].shape == (0, 2, 2)


def test_projection_leaves_out_what_no_image_shows():
    camera = dict(lidar2cam=np.eye(4), cam2img=[[FOCAL, 0, 320], [0, FOCAL, 180], [0, 0, 1]])
    points = np.array([[0, 0, 10], [1, 0, 10], [0, 0, -10], [9, 0, 10], [np.nan, 0, 10], [0, 0, 0.5]])
    pixels, depth = check_calibration.project(points, camera, (640, 360))
    assert pixels.tolist() == [[320, 180], [360, 180]] and depth.tolist() == [10, 10]


def test_a_turned_camera_of_the_city_is_noticed(tiny_city, tmp_path, capsys):
    metainfo, items = load_infos(tiny_city / 'nuscenes_infos_train.pkl')
    items += load_infos(tiny_city / 'nuscenes_infos_val.pkl')[1]
    angle = np.deg2rad(3.0)
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    for item in items:
        front = item['images']['CAM_BACK']
        front['lidar2cam'] = (turn @ np.array(front['lidar2cam'])).tolist()
    focal = items[0]['images']['CAM_BACK']['cam2img'][0][0]
    path = tmp_path / 'infos.pkl'
    save_infos(path, metainfo, items)
    arguments = [
        str(path),
        '--data-root',
        str(tiny_city),
        '-n',
        '0',
        '--out-dir',
        str(tmp_path),
        '--tolerance',
        '0.008',
    ]
    assert check_calibration.main(arguments) == 1
    cameras = json.loads((tmp_path / 'calibration.json').read_text())['cameras']
    assert cameras['CAM_BACK']['ok'] is False
    assert cameras['CAM_BACK']['shift'][0] == pytest.approx(-focal * np.tan(angle), abs=3)
    others = [camera['shift'][0] for name, camera in cameras.items() if name != 'CAM_BACK']
    assert np.median(np.abs([shift for shift in others if shift is not None])) < 2
    assert 'CAM_BACK ' in capsys.readouterr().out and read_image(tmp_path / 'CAM_FRONT.png').shape == (225, 400, 3)


# ------------------------------------------------------------------------------- random samples, FLOPs, memory, loader
def test_random_samples_go_through_the_pipelines(tmp_path):
    cfg = load_config(ROOT / 'configs/fusion_occ/fusion_occ_synthetic.py')
    use_random_samples(cfg, tmp_path, samples=2, image_size=(400, 225), points=2000)
    for split in ('train', 'test'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        item = dataset[1]
        frames = dict(train=2, test=5)[split]  # with those whose images paint points
        assert item['inputs']['imgs'].shape == (frames, 6, 160, 448, 3)
        assert item['data_samples'].gt_occ.semantics.shape == (200, 200, 16)
    own = load_infos(tmp_path / 'nuscenes_infos_val.pkl')[1][1]
    camera = own['images']['CAM_BACK_LEFT']
    lidar2cam = np.linalg.inv(np.array(camera['ego2global']) @ camera['cam2ego']) @ own['ego2global']
    np.testing.assert_allclose(lidar2cam @ own['lidar_points']['lidar2ego'], camera['lidar2cam'], atol=1e-9)
    assert cv2.imread(str(tmp_path / 'samples/CAM_BACK_LEFT' / camera['img_path'])).shape == (225, 400, 3)
    assert camera['cam2img'][0][2] == pytest.approx(400 / 1600 * 792.1)
    write_random_samples(tmp_path / 'b', samples=1, rig='four_cameras_80_beams', points=100)
    assert len(load_infos(tmp_path / 'b/nuscenes_infos_train.pkl')[1][0]['images']) == 4


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 3))

    def forward(self, x):
        return self.second(self.first(x) * 2)


def test_tables_of_flops_and_kept_memory():
    model, x = Two(), torch.randn(5, 4, requires_grad=True)
    counts = get_flops.count_flops(lambda: model(x))
    rows = get_flops.table(model, counts, 1)
    assert rows == [('first', 40, 2 * 5 * 4 * 8), ('second', 27, 2 * 5 * 8 * 3)]
    assert [row[0] for row in get_flops.table(model, counts, 2)] == ['first', 'second', 'second.0']
    assert estimate_memory.kept_bytes(model, lambda: model(x)) == 4 * (5 * 4 + 5 * 8)  # both layers' inputs
    sizes = estimate_memory.fixed_bytes(model, dict(type='AdamW'), True)
    assert sizes == {'weights': 268, 'gradients': 268, 'optimizer': 536, 'averaged weights': 268}
    model.first.requires_grad_(False)
    sizes = estimate_memory.fixed_bytes(model, dict(type='SGD', momentum=0.9), False)
    assert sizes == dict(weights=268, gradients=108, optimizer=108)


def test_flops_and_memory_of_a_config(tmp_path, capsys):
    get_flops.main([LIDAR_ONLY, '--out', str(tmp_path / 'flops.json')])
    document = json.loads((tmp_path / 'flops.json').read_text())
    assert document['flops'] > 1e9 and document['modules']['lidar_encoder']['flops'] > 0
    assert sum(part['flops'] for part in document['modules'].values()) <= document['flops']
    capsys.readouterr()
    estimate_memory.main([LIDAR_ONLY, '--batch', '1', '3'])
    lines = capsys.readouterr().out.splitlines()
    one, three = (float(line.split()[3]) for line in lines if line.startswith('training'))
    kept = float(next(line for line in lines if line.startswith('kept')).split()[-3])
    assert three - one == pytest.approx(2 * kept, abs=0.03) and kept > 0.01


@pytest.mark.parametrize('tool', [get_flops, estimate_memory, model_benchmark], ids=lambda tool: tool.__name__)
def test_a_field_that_the_model_does_not_have_is_named_in_one_line(tool, capsys):
    options = ['--random'] if tool is model_benchmark else []
    with pytest.raises(SystemExit) as stop:
        tool.main([LIDAR_ONLY, *options, '--cfg-options', '+model.lidar_encoder.no_such_field=1'])
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert 'no_such_field' in text and 'while building model.lidar_encoder' in text and 'Traceback' not in text


def test_the_loader_benchmark(tmp_path, capsys):
    assert loader.stage_table(dict(a=0.01, b=0.03)) == [('b', 30.0, 0.75), ('a', 10.0, 0.25)]
    loader.main([LIDAR_ONLY, '--random', '--samples', '2', '--workers', '0', '--out', str(tmp_path / 'speed.json')])
    out = capsys.readouterr().out
    assert 'limits: ' in out and '0 workers, batches of 1: ' in out
    document = json.loads((tmp_path / 'speed.json').read_text())
    assert document['samples_per_second']['0'] > 0 and 'LoadOccGTFromFile' in document['milliseconds']
    assert 'no such column' not in out
