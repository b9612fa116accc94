"""The table of what a transfer is worth, the commands that fill it, and its configs on the real model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transfer_study
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from occforge.datasets.occ3d import CLASS_NAMES, label_map
from occforge.engine import Trainability, load_config
from occforge.engine.param_groups import names_of_groups
from occforge.engine.partial_load import load_partially, parse_load_from

TOOLS = Path(__file__).parents[2] / 'tools'


def test_help_and_wrong_arguments():
    done = subprocess.run([sys.executable, str(TOOLS / 'transfer_study.py'), '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'progressive unfreezing' in done.stdout
    for wrong in (
        ['--source', 'no.pth'], ['--seeds', '1', '1'], ['--configs', 'a'], ['--only', 'luck'], ['--share', '0'],
        ['--system', 'bevfusion', '--share', '2'],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            transfer_study.parse_args(wrong)
        assert end.value.code == 2


def test_a_part_of_the_strategies_and_of_the_data():
    args = transfer_study.parse_args(['--system', 'bevfusion_lidar', '--only', 'finer voxels', '--share', '0.25'])
    assert list(args.configs) == ['from scratch', 'finer voxels'] and args.work_dir.endswith('_bevfusion_lidar')
    for system in ('bevfusion', 'bevfusion_lidar'):
        args = transfer_study.parse_args(['--system', system, '--work-dir', 'here'])
        assert list(args.configs) == list(transfer_study.BEVFUSION_STRATEGIES) and args.work_dir == 'here'
        assert transfer_study.SYSTEMS[system]['source'].is_file()


def test_a_share_of_the_scenes():
    cfg = load_config(
        transfer_study.CONFIGS['frozen encoders'], [f'{transfer_study.SYSTEMS["fusion_occ"]["share"]}=0.25']
    )
    assert cfg.train_dataloader.dataset.scene_fraction == 0.25


def test_fractions_become_percent():
    numbers = [dict(name='mAP', unit='fraction'), dict(name='mATE', unit='m'), dict(name='mIoU', unit='%')]
    results = dict(metrics=dict(mAP=0.25, mATE=0.5, mIoU=40.0), numbers=numbers)
    assert transfer_study.metrics_in_percent(results) == dict(mAP=25.0, mATE=0.5, mIoU=40.0)
    assert transfer_study.metrics_in_percent(dict(metrics=dict(mIoU=3.0))) == dict(mIoU=3.0)


def test_the_share_reused(tmp_path):
    assert transfer_study.share_reused(tmp_path) == ''
    counts = {key: dict(elements=0) for key in ('loaded', 'adapted', 'shape', 'missing', 'kept', 'unexpected')}
    modules = dict(
        backbone={**counts, 'loaded': dict(elements=5), 'unexpected': dict(elements=99)},
        head={**counts, 'adapted': dict(elements=1), 'kept': dict(elements=6)},  # left to its initialisation on purpose
    )
    (tmp_path / 'load_report.json').write_text(json.dumps(dict(modules=modules)))
    assert transfer_study.share_reused(tmp_path) == '50.0 %'


def test_mean_error_and_verdict():
    # deviations -1, 0, 1: variance 1, standard error sqrt(1 / 3)
    assert transfer_study.mean_and_error([9, 10, 11]) == (10, pytest.approx(math.sqrt(1 / 3)))
    assert math.isnan(transfer_study.mean_and_error([9])[1])
    rows = transfer_study.compare(
        {'scratch': [9, 10, 11], 'good': [13, 14, 15], 'small': [12, 12.5, 13], 'wild': [8, 14, 20]}
    )
    assert rows['good']['gain'] == 4 and rows['good']['gain_error'] == pytest.approx(math.sqrt(2 / 3))
    assert [row['better'] for row in rows.values()] == [False, True, False, False]
    text = transfer_study.markdown(rows)
    assert '| good | 14.0 ± 0.6 | 13.0, 14.0, 15.0 | +4.0 ± 0.8 | yes |' in text
    assert not transfer_study.compare({'scratch': [1], 'one seed': [99]})['one seed']['better']  # no error, no verdict


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    called = []
    scores = {'from_scratch': 20.0, 'full_fine-tuning': 26.0, 'frozen_encoders': 24.0, 'progressive_unfreezing': 25.0}

    def call(self, arguments, entry):
        called.append(arguments)
        value = dict(zip(arguments[2::2], arguments[3::2]))
        if 'train.py' in arguments[0]:
            folder = Path(arguments[arguments.index('--work-dir') + 1])
            folder.mkdir(parents=True)
            (folder / 'epoch_1.pth').write_bytes(b'x')
            (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
        elif 'test.py' in arguments[0]:
            out = Path(arguments[arguments.index('--out') + 1])
            out.parent.mkdir(parents=True)
            name, _, seed = out.parts[-3].partition('_seed')
            score = scores.get(name, 30.0) + int(seed or 0) / 5
            out.write_text(json.dumps(dict(metrics={transfer_study.METRIC: score}, samples=1)))
        else:
            root = Path(value['--root-path'])
            root.mkdir(parents=True)
            for split in ('train', 'val'):
                (root / f'nuscenes_infos_{split}.pkl').write_bytes(b'x')
        return 0

    monkeypatch.setattr(transfer_study.StageRunner, '_call', call)
    assert transfer_study.main(['--seeds', '0', '1', '--work-dir', 'work']) == 0
    assert '| full fine-tuning | 26.1 ± 0.1 | 26.0, 26.2 | +6.0 ± 0.1 | yes |' in capsys.readouterr().out
    trainings = [arguments for arguments in called if 'train.py' in arguments[0]]
    assert len(trainings) == 1 + 2 * 4
    starts = ['--load-from' in arguments for arguments in trainings]
    assert starts == [False] + [False, True, True, True] * 2
    assert all('randomness.seed=1' in arguments for arguments in trainings[5:])
    written = json.loads(Path('work/transfer.json').read_text())
    assert written['runs']['frozen encoders']['gain'] == pytest.approx(4) and written['seeds'] == [0, 1]
    before = len(called)
    assert transfer_study.main(['--seeds', '0', '1', '--work-dir', 'work']) == 0 and len(called) == before

    # each strategy's learning rate by the first seed; that training is not run again
    scores.update({'from_scratch_lr0.001': 10.0, 'from_scratch_lr0.002': 22.0, 'full_fine-tuning_lr0.001': 40.0})
    tuned = ['--only', 'full fine-tuning', *'--seeds 0 5 --work-dir work --learning-rates 1e-3 2e-3'.split()]
    assert transfer_study.main(tuned) == 0 and len(called) == before + 2 * (4 + 2)
    table = capsys.readouterr().out
    assert '| from scratch | 22.5 ± 0.5 | 22.0, 23.0 |' in table and '| 0.002 |' in table
    assert '| full fine-tuning | 40.5 ± 0.5 | 40.0, 41.0 | +18.0 ± 0.7 | yes |' in table and '| 0.001 |' in table
    assert sum('lr=0.001' in arguments for arguments in called[before:]) == 2 * 3
    written = json.loads(Path('work/transfer.json').read_text())
    assert written['learning_rates'] == {'from scratch': 0.002, 'full fine-tuning': 0.001}

    # those rates for another share: nothing is tried again
    Path('work/transfer.json').rename('rates.json')
    before = len(called)
    only = ['--only', 'full fine-tuning', *'--seeds 0 --work-dir work --share 0.5'.split()]
    assert transfer_study.main([*only, '--rates-of', 'rates.json']) == 0 and len(called) == before + 2 * 2
    assert ['lr=0.002' in call for call in called[before::2]] == [True, False]
    assert ['lr=0.001' in call for call in called[before::2]] == [False, True]
    assert '| learning rate |' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        transfer_study.main(['--rates-of', 'rates.json'])
    assert 'rates.json: no learning rate of frozen encoders, progressive unfreezing' in capsys.readouterr().err


@pytest.fixture(scope='module')
def model():
    cfg = load_config(transfer_study.SOURCE)
    init_default_scope('mmdet3d')
    return MODELS.build(cfg.model)


def test_the_names_of_the_guide_find_the_modules_of_fusion_occ(model):
    cfg = load_config(transfer_study.CONFIGS['full fine-tuning'])
    build = dict(type='OccOptimWrapperConstructor', optim_wrapper_cfg=dict(cfg.optim_wrapper))
    build['paramwise_cfg'] = build['optim_wrapper_cfg'].pop('paramwise_cfg')
    optimizer = OPTIM_WRAPPER_CONSTRUCTORS.build(build)(model).optimizer
    rates = {}
    for group, names in zip(optimizer.param_groups, names_of_groups(optimizer, model)):
        for name in names:
            rates.setdefault(name.split('.')[0], set()).add(round(group['lr'] / cfg.lr, 6))
    assert rates['img_backbone'] == {0.1} and rates['lidar_encoder'] == {0.3}
    assert rates['img_bev_encoder_backbone'] == rates['img_bev_encoder_neck'] == {0.5}
    assert rates['final_conv'] == {1.0}
    assert cfg.optim_wrapper.optimizer.lr == cfg.lr


def test_frozen_encoders_of_fusion_occ(model):
    cfg = load_config(transfer_study.CONFIGS['frozen encoders'])
    trainability = Trainability(model)
    trainability.freeze(cfg['freeze'])  # an attribute of that name is a method of every config
    trained = {name.split('.')[0] for name, each in model.named_parameters() if each.requires_grad}
    assert (
        not trained & {'img_backbone', 'img_neck', 'img_view_transformer', 'lidar_encoder'} and 'final_conv' in trained
    )
    trainability.freeze([])


def test_the_stages_name_modules_of_fusion_occ(model):
    cfg = load_config(transfer_study.CONFIGS['progressive unfreezing'])
    trainability = Trainability(model)
    seen = []
    for stage in cfg.custom_hooks[0].stages[:-1]:
        seen += trainability.resolve(stage.train, 'stages')
    assert 'final_conv' in seen and 'img_bev_encoder_backbone' in seen and 'img_backbone' not in seen
    assert sum(parameter.numel() for parameter in model.parameters()) > 0 and torch.is_grad_enabled()


def test_eight_classes_take_the_rows_of_seventeen(model, tmp_path):
    """The guide's second story: a vehicle with other classes starts from the whole of another's checkpoint."""
    cfg = load_config(transfer_study.CONFIGS['full fine-tuning'])
    init_default_scope('mmdet3d')
    own = MODELS.build(cfg.model)
    assert own.loss_occ.free_index == 8 and own.loss_occ.num_classes == 9
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASS_NAMES)))
    spec = parse_load_from(dict(cfg.load_from, path='other.pth'))
    report = load_partially(own, spec, list(cfg.classes), lambda _: content, fingerprints=False)
    assert report.share == 1 and not report.mismatched and not report.missing
    adapted = {each.name for each in report.adapted}
    assert {name.rpartition('.')[0] for name in adapted} == {
        'predicter.2',
        'img_seg_head.classify',
        'img_view_transformer.depth_seg_net.seg_out',
        'lidar_encoder.conv_input.0',
    }
    rows = [CLASS_NAMES.index(name) for name in ('car', 'truck', 'bus', 'bicycle', 'pedestrian', 'driveable_surface',
                                                 'sidewalk', 'manmade', 'free')]  # fmt: skip
    assert torch.equal(own.predicter[2].weight, model.predicter[2].weight[rows])
    theirs, ours = (each.lidar_encoder.conv_input[0].weight for each in (model, own))
    points = model.lidar_encoder.in_channels + 3  # their own features and their offsets; then the paint
    assert torch.equal(ours[..., :points], theirs[..., :points])
    assert torch.equal(ours[..., points:], theirs[..., [points + row for row in rows]])
    assert label_map(cfg.classes, cfg.class_map) is not None
    assert cfg.val_dataloader.dataset.metainfo.classes == cfg.classes
