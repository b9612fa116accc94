"""The inferencer and browse_dataset.py with each system, on shrunk configs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import browse_dataset
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.registry import init_default_scope
from occforge.apis import Inferencer
from occforge.engine import OccRunner, load_config
from occforge.engine.checkpoint import write_checkpoint
from occforge.visualization import read_image
from shrink import shrink

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
TOOLS = CONFIGS.parent / 'tools'
SYSTEMS = {
    'fusion_occ/fusion_occ.py': ['occupancy'],
    'fbocc/fbocc_synthetic.py': ['occupancy'],
    'uniocc/uniocc_synthetic.py': ['occupancy'],
    'bevfusion/bevfusion_synthetic.py': ['boxes', 'map'],
    'ESAM/ESAM_sv_3d_rooms.py': ['instances'],
    'ESAM/ESAM_online_3d_rooms.py': ['instances'],
}


@pytest.mark.parametrize('path', SYSTEMS)
def test_inferencer(path, worlds, tmp_path):
    torch.manual_seed(0)
    cfg = load_config(CONFIGS / path)
    shrink(cfg, worlds['rooms' if path.startswith('ESAM') else 'city'])
    inferencer = Inferencer(cfg, device='cpu')
    number = len(inferencer.dataset)
    predictions = inferencer(list(range(number)), batch_size=1, out_dir=tmp_path, formats=('npz', 'png'))
    assert len(predictions) == number
    for prediction in predictions:
        assert list(prediction.results) == SYSTEMS[path]
        for task in SYSTEMS[path]:
            name = tmp_path / task / prediction.name
            with np.load(f'{name}.npz', allow_pickle=False) as stored:
                assert stored.files
            assert read_image(f'{name}.png').std() > 0
    # frame after frame: the first answer is that of a sample alone
    with inferencer.stream() as stream:
        first = stream.step(0)
        again = predictions[0]
        for task in SYSTEMS[path]:
            for name, values in first.results[task].arrays().items():
                np.testing.assert_array_equal(values, again.results[task].arrays()[name])


@pytest.mark.slow
@pytest.mark.parametrize('path', SYSTEMS)
def test_two_processes_train(path, worlds, tmp_path):
    """As users start it; the shrunk config trains once and evaluates."""
    cfg = load_config(CONFIGS / path)
    shrink(cfg, worlds['rooms' if path.startswith('ESAM') else 'city'])
    if path.startswith('fbocc'):  # a sequence for each process
        cfg.train_dataloader.dataset.sequences_split_num = 2
    cfg.dump(tmp_path / 'config.py')
    command = [TOOLS / 'dist_train.sh', tmp_path / 'config.py', '2', '--work-dir', tmp_path / 'work']
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert '2 processes (gloo)' in log or torch.cuda.is_available()
    assert (tmp_path / 'work/last_checkpoint').is_file() and (tmp_path / 'work/metrics.csv').is_file()


@pytest.mark.parametrize('path', ['fusion_occ/fusion_occ_synthetic.py', 'fbocc/fbocc_synthetic.py'])
def test_two_checkpoints_are_tested_as_their_mean(path, worlds, tmp_path):
    """Of two models the second is sure of one class everywhere: so is the mean, whatever the first one says."""
    cfg = load_config(CONFIGS / path)
    shrink(cfg, worlds['city'])
    cfg.dump(tmp_path / 'config.py')
    init_default_scope('mmdet3d')
    model, sure = MODELS.build(cfg.model), 3
    files = [tmp_path / 'usual.pth', tmp_path / 'sure.pth']
    write_checkpoint(dict(state_dict=model.state_dict()), files[0])
    with torch.no_grad():
        if hasattr(model, 'predicter'):
            model.predicter[-1].bias[sure] += 100.0
        else:  # FB-OCC's last layer has no bias, and a row for "void" in front
            norm, _, last = model.occupancy_head.occ_pred_conv[-3:]
            norm.weight.zero_(), norm.bias.fill_(1.0), last.weight.zero_()
            last.weight[1 + sure] = 100.0
    write_checkpoint(dict(state_dict=model.state_dict()), files[1])
    command = [sys.executable, TOOLS / 'test.py', tmp_path / 'config.py', *files, '--work-dir', tmp_path / 'work']
    done = subprocess.run([*command, '--out', tmp_path / 'found'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'work/load_report_test.json').read_text())
    assert report['share_of_parameters'] == 1 and [Path(each['path']).name for each in report['files']] == [
        'usual.pth',
        'sure.pth',
    ]
    found = sorted((tmp_path / 'found').glob('*.npz'))
    assert found and all((np.load(each)['arr_0'] == sure).all() for each in found)


@pytest.mark.parametrize('path', SYSTEMS)
def test_pictures_of_a_test(path, worlds, tmp_path):
    """What tools/test.py --show-dir adds."""
    torch.manual_seed(0)
    cfg = load_config(CONFIGS / path)
    shrink(cfg, worlds['rooms' if path.startswith('ESAM') else 'city'])
    cfg.work_dir, cfg.log_level = str(tmp_path / 'work'), 'WARNING'
    look = dict(type='PredictionVisHook', out_dir=str(tmp_path / 'look'), max_samples=1)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), look]
    OccRunner.from_cfg(cfg).test()
    tasks = SYSTEMS[path]
    pictures = sorted((tmp_path / 'look').iterdir())
    assert len(pictures) == len(tasks)
    for task, picture in zip(tasks, pictures):
        assert len(tasks) == 1 or picture.stem.endswith(f'_{task}')
        assert read_image(picture).std() > 5


@pytest.mark.parametrize('path', SYSTEMS)
def test_browse_dataset(path, worlds, tmp_path, capsys):
    cfg = load_config(CONFIGS / path)
    shrink(cfg, worlds['rooms' if path.startswith('ESAM') else 'city'])
    cfg.dump(tmp_path / 'config.py')
    browse_dataset.main([str(tmp_path / 'config.py'), '--out-dir', str(tmp_path / 'look'), '-n', '1'])
    (name,) = capsys.readouterr().out.split()
    picture = read_image(name)
    assert picture.shape[1] > 400 and picture.std() > 10


def test_boxes_and_points_of_bevfusion_are_where_the_model_sees_them(worlds, monkeypatch):
    """A point of the fed cloud, by the matrices of the picture, is where the model's own matrices put it."""
    cfg = load_config(CONFIGS / 'bevfusion/bevfusion_synthetic.py')
    shrink(cfg, worlds['city'])
    init_default_scope('mmdet3d')
    item = DATASETS.build(cfg.train_dataloader.dataset)[0]
    seen = {}

    def keep(images, cameras, *_, **__):
        seen.update(cameras)
        return next(iter(images.values()))

    monkeypatch.setattr('occforge.visualization.draw_sensor_sample', keep)
    browse_dataset.draw_boxes_and_map(item, SimpleNamespace(show=['points', 'boxes']), '')
    meta = item['data_samples'].metainfo
    points = item['inputs']['points'].numpy()[:500, :3].astype(np.float64)
    raw = np.linalg.solve(np.asarray(meta['lidar_aug_matrix']), np.c_[points, np.ones(len(points))].T)
    for i, camera in enumerate(seen.values()):
        place = np.asarray(meta['lidar2img'][i]) @ raw
        front = place[2] > 1
        pixels = place[:2] / place[2]
        matrix = np.asarray(meta['img_aug_matrix'][i])
        pixels = matrix[:2, :2] @ pixels + matrix[:2, 3:4]
        own = camera['cam2img'] @ (camera['lidar2cam'] @ np.c_[points, np.ones(len(points))].T)[:3]
        np.testing.assert_allclose((own[:2] / own[2])[:, front], pixels[:, front], atol=1e-3)
