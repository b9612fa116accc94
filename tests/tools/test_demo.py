"""demo.py and ablation.py on made-up commands' results, and label_prior.py and visualize_infos.py on small data."""

import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import ablation
import demo
import mask_study
import numpy as np
import pytest
import torch
from occforge.datasets import occ3d
from occforge.engine import read_checkpoint
from stage_runner import StageError

TOOLS = Path(__file__).parents[2] / 'tools'
NAMES = list(occ3d.CLASS_NAMES)


def results(value, voxels=1000):
    metrics = {}
    for mask in demo.MASKS:
        metrics.update({f'IoU/{mask}/{name}': value for name in NAMES}, **{f'mIoU/{mask}': value})
        metrics[f'geo_IoU/{mask}'] = value
    metrics['IoU/no_mask/bicycle'] = None  # absent
    counts = {mask: dict.fromkeys(NAMES, voxels) for mask in demo.MASKS}
    return dict(metrics=metrics, voxels=counts, class_names=NAMES, samples=7)


def run(tool, *arguments):
    return subprocess.run([sys.executable, str(TOOLS / tool), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    'tool',
    [
        'demo.py',
        'ablation.py',
        'mask_study.py',
        'transfer_study.py',
        'browse_dataset.py',
        'visualize_infos.py',
        'visualize_results.py',
        'demo_inference.py',
        'analysis/label_prior.py',
    ],
)
def test_help_and_wrong_arguments(tool):
    done = run(tool, '--help')
    assert done.returncode == 0 and 'usage' in done.stdout
    done = run(tool, '--no-such-option')
    assert done.returncode == 2 and 'Traceback' not in done.stderr


def test_summary_table():
    table = demo.summary_table(results(51.234), results(9.0))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1  # columns line up
    car = next(line for line in lines if line.startswith('car')).split()
    assert car == ['car', '51.2', '51.2', '51.2', '9.0', '1,000']
    assert next(line for line in lines if line.startswith('bicycle')).split()[1:3] == ['-', '51.2']
    assert 'free' not in table


def test_mask_study_table_and_gaps():
    def scored(none, camera):
        metrics = {'mIoU/no_mask': none, 'mIoU/camera_mask': camera, 'mIoU/lidar_mask': 1.0, 'RayIoU': 2.0}
        return [dict(metrics={**metrics, 'geo_IoU/no_mask': 3.0})]

    text = mask_study.markdown(
        {('scratch', 'all voxels'): scored(30.0, 35.0), ('scratch', 'camera mask'): scored(26.0, 38.5)}
    )
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('| s')]
    assert rows[1] == ['scratch', 'all voxels', '**30.0**', '**35.0**', '**1.0**', '**2.0**', '**3.0**']
    # the gap is the training mask's share under either score plus that of the metric's mask for the other model
    assert rows[-1] == ['scratch', '+8.5', '-4.0', '+3.5', '+5.0', '+12.5']


@pytest.mark.parametrize('interrupted', [False, True])
def test_mask_study_runs_what_it_says(tmp_path, monkeypatch, interrupted):
    calls = []

    def run_stage(stages, name, arguments, outputs=(), after=(), folders=()):
        arguments = [str(argument) for argument in arguments]
        calls.append((name, arguments, tuple(after)))
        stages.seconds[name] = 1.0
        for path in map(Path, outputs):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(path.with_name('epoch_1.pth')))
            path.with_name('epoch_1.pth').touch()
            if path.name == 'results.json':
                path.write_text(json.dumps(results(20.0)))
        if interrupted and 'then all' in name:
            raise StageError('it stopped')

    monkeypatch.setattr(mask_study.StageRunner, 'run', run_stage)
    monkeypatch.chdir(tmp_path)
    work_dir = tmp_path / 'study'
    options = ['--data-root', 'city', '--work-dir', str(work_dir), '--no-amp', '--cfg-options', 'lr=0.01']
    code = mask_study.main(['--seeds', '3', *options])
    assert code == (1 if interrupted else 0)
    if interrupted:
        return
    trainings = {name: arguments for name, arguments, _ in calls if name.endswith('training')}
    assert len(trainings) == 1 + 4 + 2
    pretrained = trainings['pretrained, all voxels, seed 3: training']
    assert '+load_from.take=[img_backbone]' in pretrained and 'use_mask=False' in pretrained
    assert any(a.endswith('pretraining_seed3/training/epoch_1.pth') for a in pretrained if 'load_from.path' in a)
    further = trainings['scratch, camera mask, then all, seed 3: training']
    assert {'use_mask=False', 'max_epochs=2', 'lr=0.002', 'randomness.seed=3'} <= set(further)
    # what is tested has no option of the training
    assert not [a for name, some, _ in calls if name.endswith('test') for a in some if 'load_from' in a]
    inputs = {name: after for name, _, after in calls}
    assert 'pretraining, seed 3: training' in inputs['pretrained, camera mask, seed 3: training']
    table = (work_dir / 'mask_study.md').read_text()
    assert table.count('camera mask, then all voxels') == 2
    assert len(json.loads((work_dir / 'mask_study.json').read_text())['runs']) == 6


def test_ablation_table_is_the_mean_of_the_seeds():
    text = ablation.markdown({'fusion': [results(50.0), results(60.0)], 'camera only': [results(30.0), results(20.0)]})
    rows = {
        line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
        for line in text.splitlines()
        if line
    }
    assert rows['fusion'][:2] == ['2', '**55.0** (50.0, 60.0)']
    assert rows['car'] == ['55.0', '25.0', '1,000']
    assert rows['bicycle'] == ['-', '-', '1,000']


def test_ablation_of_uniocc_starts_from_depth_and_prints_gains(tmp_path, monkeypatch, capsys):
    scores = {'10 % of the labels': (10.0, 12.0), 'all labels': (20.0, 22.0)}
    asked = {}

    def run_study(args, pretraining):
        asked.update(pretraining)
        runs = {name: [results(x) for x in scores.get(name, (15.0, 15.0))] for name in args.configs}
        return runs, types.SimpleNamespace(seconds={})

    monkeypatch.setattr(ablation, 'run_study', run_study)
    assert ablation.main(['--study', 'uniocc-labels', '--work-dir', str(tmp_path)]) == 0
    assert '| all labels | 21.0 ± 1.0 | 20.0, 22.0 | +10.0 ± 1.4 | yes |' in capsys.readouterr().out
    assert {path.stem for path in asked.values()} == {'uniocc_synthetic_depth_pretrain'} and len(asked) == 4
    assert (tmp_path / 'ablation_uniocc-labels.md').is_file()
    study = ['--study', 'uniocc']
    assert ablation.parse_args(study).pretraining['stronger setting'].stem == 'uniocc_synthetic_stronger_depth_pretrain'
    assert ablation.parse_args([*study, '--no-pretraining']).pretraining == {}
    assert ablation.parse_args([]).pretraining == {}


def test_overrides_name_only_what_differs():
    assert demo.config_overrides('data/synthetic_city', 0) == []
    flag, *options = demo.config_overrides('d', 1, ['a=b'])
    assert flag == '--cfg-options' and options == ['data_root=d', 'randomness.seed=1', 'a=b']


def test_unknown_config_and_foreign_work_dir(tmp_path):
    done = run('demo.py', '--config', tmp_path / 'none.py')
    assert done.returncode == 2 and 'none.py' in done.stderr
    (tmp_path / 'thesis.txt').touch()
    done = run('demo.py', '--config', __file__, '--work-dir', tmp_path, '--fresh')
    assert done.returncode == 1 and 'not made by this tool' in done.stderr and 'Traceback' not in done.stderr
    assert (tmp_path / 'thesis.txt').exists()


@pytest.mark.slow
def test_goes_on_after_sigkill_in_the_training(tmp_path):
    """Killed after the first checkpoint, called again: the stages before are used again, the training resumes and ends
    with the weights of a training that was left alone."""
    short = ['default_hooks.logger.interval=1', 'model.loss_occ.lovasz_samples=2000', 'val_cfg=None',
             'val_dataloader=None', 'val_evaluator=None', 'image_epochs=1', 'max_epochs=3']  # fmt: skip
    options = ['--scenes', 2, '--keyframes', 4, '--pictures', 1, '--no-amp', '--cfg-options', *short]

    def start(folder):
        command = [TOOLS / 'demo.py', '--data-root', tmp_path / 'city', '--work-dir', tmp_path / folder, *options]
        log = open(tmp_path / f'{folder}.txt', 'a')
        with log:
            return subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=subprocess.STDOUT)

    killed = start('killed')
    training = tmp_path / 'killed' / 'training'
    while killed.poll() is None and not (training / 'last_checkpoint').exists():
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, (tmp_path / 'killed.txt').read_text()
    assert not (training / 'epoch_3.pth').exists()
    before = len((tmp_path / 'killed.txt').read_text())
    assert start('killed').wait() == 0, (tmp_path / 'killed.txt').read_text()
    again = (tmp_path / 'killed.txt').read_text()[before:]
    assert '[city] done before' in again and '[label prior] done before' in again
    assert 'Resumed after 1 epochs' in again or 'Resumed after 2 epochs' in again
    assert (tmp_path / 'killed' / 'summary.txt').exists() and len(
        list((tmp_path / 'killed/pictures').glob('*.png'))
    ) == 1

    assert start('straight').wait() == 0, (tmp_path / 'straight.txt').read_text()
    ours, theirs = (read_checkpoint(tmp_path / name / 'training/epoch_3.pth') for name in ('killed', 'straight'))
    assert all(torch.equal(value, theirs['state_dict'][key]) for key, value in ours['state_dict'].items())


def make_data(root, split, grids):
    """Label files and an info file (mmdet3d-v2 layout) with a camera in front of the LiDAR."""
    from occforge.datasets.info_files import DETECTION_CLASSES
    from occforge.visualization import write_png

    items = []
    for i, grid in enumerate(grids):
        token = f'{split}{i}'
        folder = root / 'gts' / 'scene-0001' / token
        folder.mkdir(parents=True)
        mask = np.ones(grid.shape, np.uint8)
        np.savez_compressed(folder / 'labels.npz', semantics=grid, mask_lidar=mask, mask_camera=mask)
        write_png(root / 'samples' / 'CAM_FRONT' / f'{token}.png', np.full((90, 160, 3), 90, np.uint8))
        points = np.random.default_rng(i).uniform(-20, 20, (500, 5)).astype(np.float32)
        (root / 'samples' / 'LIDAR_TOP').mkdir(exist_ok=True)
        points.tofile(root / 'samples' / 'LIDAR_TOP' / f'{token}.bin')
        camera = dict(
            img_path=f'{token}.png',
            cam2img=[[100, 0, 80], [0, 100, 45], [0, 0, 1]],
            cam2ego=np.eye(4).tolist(),
            ego2global=np.eye(4).tolist(),
            lidar2cam=[[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]],
        )
        box = dict(bbox_3d=[10, 0, 0, 4, 2, 2, 0.1], bbox_label_3d=0, bbox_3d_isvalid=True, num_lidar_pts=5)
        items.append(
            dict(
                sample_idx=i,
                token=token,
                scene_token='s',
                scene_name='scene-0001',
                timestamp=float(i),
                ego2global=np.eye(4).tolist(),
                images=dict(CAM_FRONT=camera),
                lidar_points=dict(lidar_path=f'{token}.bin', num_pts_feats=5, lidar2ego=np.eye(4).tolist()),
                instances=[box],
                occ_path=f'gts/scene-0001/{token}/labels.npz',
            )
        )
    import pickle

    categories = {name: i for i, name in enumerate(DETECTION_CLASSES)}
    path = root / f'nuscenes_infos_{split}.pkl'
    metainfo = dict(categories=categories, dataset='nuscenes', version='v1.0-trainval', info_version='1.1')
    path.write_bytes(pickle.dumps(dict(metainfo=metainfo, data_list=items)))
    return path


def grid(*labels):
    """A small grid whose first voxels hold these labels."""
    cells = np.full(occ3d.GRID_SIZE, occ3d.FREE, np.uint8)
    cells[0, 0, : len(labels)] = labels
    return cells


def test_label_prior_by_hand(tmp_path):
    train = make_data(tmp_path, 'train', [grid(4, 4, 11), grid(4, 11, 11), grid(3, 4, 16)])  # most frequent: 4, 4, 11
    val = make_data(tmp_path, 'val', [grid(4, 11, 11)])
    done = run(
        'analysis/label_prior.py', train, val, '--out', tmp_path / 'out.json', '--save-prior', tmp_path / 'prior.npz'
    )
    assert done.returncode == 0, done.stderr
    prior = np.load(tmp_path / 'prior.npz')['semantics']
    assert prior[0, 0, :4].tolist() == [4, 4, 11, 17] and (prior != 17).sum() == 3
    metrics = json.loads((tmp_path / 'out.json').read_text())['metrics']
    assert metrics['IoU/no_mask/car'] == pytest.approx(50) and metrics[
        'IoU/no_mask/driveable_surface'
    ] == pytest.approx(50)
    assert metrics['mIoU/no_mask'] == pytest.approx(50)
    done = run('analysis/label_prior.py', train, tmp_path / 'none.pkl')
    assert done.returncode == 2 and 'none.pkl' in done.stderr and 'Traceback' not in done.stderr


def test_visualize_infos(tmp_path):
    from PIL import Image

    info = make_data(tmp_path, 'train', [grid(4), grid(11), grid(3)])
    done = run('visualize_infos.py', info, '--out-dir', tmp_path / 'out', '-n', 2, '--width', 800)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / 'out').iterdir())
    assert [file.name for file in files] == ['scene-0001_train0.png', 'scene-0001_train2.png']
    with Image.open(files[0]) as picture:
        assert picture.size[0] == 800
    done = run('visualize_infos.py', info, '--out-dir', tmp_path / 'out', '--tokens', 'nobody')
    assert done.returncode == 2 and 'nobody' in done.stderr
    (tmp_path / 'samples' / 'LIDAR_TOP' / 'train0.bin').write_bytes(b'1234567')
    done = run('visualize_infos.py', info, '--out-dir', tmp_path / 'out', '--tokens', 'train0')
    assert done.returncode == 2 and 'train0.bin' in done.stderr and 'Traceback' not in done.stderr


def test_browse_dataset_undoes_every_augmentation(tmp_path):
    """A point painted into the image is found where the augmented matrices say."""
    import browse_dataset
    import torch

    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sensor2ego = np.eye(4)
    sensor2ego[:3] = [[0, 0, 1, 1.5], [-1, 0, 0, 0.1], [0, -1, 0, 1.6]]
    camera_pose, key_pose = np.eye(4), np.eye(4)
    key_pose[:3, :3] = turn
    camera_pose[:3, :3], camera_pose[:3, 3] = turn, [0.3, -0.2, 0.0]
    intrinsics = np.array([[300.0, 0, 200], [0, 300, 100], [0, 0, 1]])
    post_rot = np.array([[-0.5, 0.02, 0], [-0.02, 0.5, 0], [0, 0, 1]])
    post_tran = np.array([180.0, -12, 0])
    bda = np.diag([-1.0, 1, 1])
    inputs = dict(imgs=torch.zeros(1, 1, 8, 8, 3), bda=torch.from_numpy(bda))
    for key, value in dict(
        ego2global=camera_pose, sensor2ego=sensor2ego, intrins=intrinsics, post_rots=post_rot, post_trans=post_tran
    ).items():
        inputs[key] = torch.from_numpy(value)[None, None]
    (camera,) = browse_dataset.cameras_of(inputs, dict(ego2global=key_pose.tolist()), 0)
    point = np.array([12.0, 1.0, 0.5])  # key ego frame, before the flip
    world = key_pose[:3, :3] @ point + key_pose[:3, 3]
    eye = np.linalg.inv(camera_pose @ sensor2ego) @ np.append(world, 1)
    u, v = (intrinsics @ eye[:3])[:2] / eye[2]
    expected = post_rot[:2, :2] @ [u, v] + post_tran[:2]
    seen = camera['lidar2cam'] @ np.append(bda @ point, 1)
    found = (camera['cam2img'] @ seen[:3])[:2] / seen[2]
    assert np.allclose(found, expected)
