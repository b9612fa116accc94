"""YAML configs in the schema of MIT's BEVFusion."""

import textwrap

import pytest
from occforge.engine import load_config
from occforge.engine.mit_config import read_merged, translate
from occforge.errors import ConfigError

BASE = """
max_epochs = 24
lr = 1e-4
width = 8
model = dict(type='A', width=width)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.99)))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=4, persistent_workers=True, dataset=dict(type='D', data_root='x'))
val_dataloader = dict(batch_size=1, num_workers=2, persistent_workers=True, dataset=dict(type='D', data_root='x'))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(type='C', interval=1), logger=dict(type='L', interval=50))
linked_fields = [
    dict(name='max_epochs', value=max_epochs, to=['train_cfg.max_epochs', 'param_scheduler.0.end',
                                                  'param_scheduler.0.T_max']),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
    dict(name='width', value=width, to='model.width'),
]
"""
# The recommended config of the transfer guide, on a base of ours.
GUIDE = """
_base_: ../base.py
dataset_root: data/custom_dataset/
num_cameras: 4
reduce_beams: 80
max_epochs: 12
optimizer:
  type: AdamW
  lr: 5.0e-5
  weight_decay: 0.01
  paramwise_cfg:
    custom_keys:
      encoders:
        lr_mult: 0.1
      encoders.camera.backbone:
        lr_mult: 0.01
lr_config:
  policy: CosineAnnealing
  warmup: linear
  warmup_iters: 500
  warmup_ratio: 0.1
  min_lr_ratio: 1.0e-5
freeze_encoder: true
load_from: runs/latest.pth
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    write('configs/base.py', BASE)
    return write


def test_the_config_of_the_guide(write):
    notes = []
    path = write('configs/custom/finetune.yaml', GUIDE)
    cfg = load_config(path, note=notes.append)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=5e-5, betas=(0.9, 0.99), weight_decay=0.01)
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys == {'encoders': dict(lr_mult=0.1), 'encoders.camera.backbone': dict(lr_mult=0.01)}
    assert cfg.train_cfg.max_epochs == cfg.max_epochs == 12 and cfg.lr == 5e-5
    assert cfg.param_scheduler == [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=12, T_max=12, eta_min_ratio=1e-5),
    ]
    assert cfg.freeze_encoder is True and cfg.load_from == 'runs/latest.pth'
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == 'data/custom_dataset/'
    assert notes == [f'{path}: these fields have no counterpart here and are not used: num_cameras, reduce_beams']
    assert cfg.filename == str(path)


@pytest.mark.parametrize(
    'override, field, value',
    [
        ('optimizer.lr=1e-3', 'optim_wrapper.optimizer.lr', 1e-3),
        ('data.workers_per_gpu=0', 'train_dataloader.num_workers', 0),
        ('data.workers_per_gpu=0', 'train_dataloader.persistent_workers', False),
        ('max_epochs=6', 'param_scheduler.1.T_max', 6),
        ('lr_config.min_lr_ratio=0.1', 'param_scheduler.1.eta_min_ratio', 0.1),
        ('freeze_encoder=False', 'freeze_encoder', False),
        ('model.width=4', 'width', 4),
        ('load_from=other.pth', 'load_from', 'other.pth'),
    ],
)
def test_the_command_line(write, override, field, value):
    cfg = load_config(write('configs/custom/finetune.yaml', GUIDE), [override], note=lambda _: None)
    found = cfg
    for part in field.split('.'):
        found = found[int(part)] if part.isdigit() else found[part]
    assert found == value


def test_a_mistyped_override_is_still_an_error(write):
    with pytest.raises(ConfigError, match=r'Did you mean optim_wrapper.optimizer.lr\?'):
        load_config(write('configs/custom/finetune.yaml', GUIDE), ['optimizer.lrr=1'], note=lambda _: None)


def test_parents_bases_and_references(write):
    write('configs/default.yaml', 'voxel_size: [0.1, 0.1, 0.2]\nmax_epochs: 3\noptimizer: {type: SGD, lr: 1e-2}\n')
    write('configs/det/default.yaml', 'range: [-51.2, 51.2]\noptimizer: {weight_decay: 0.1}\n')
    write('configs/det/base.yaml', 'max_epochs: 5\nmodel: {type: A, size: "${max_epochs}"}\n')
    path = write(
        'configs/det/leaf.yaml',
        """
        _base_: base.yaml
        optimizer: {lr: "${2 * base_lr}"}
        base_lr: 1e-3
        model:
          grid: ${[round_x, 40]}
          root: ${root}/samples
          cells: ${(range[1] - range[0]) / voxel_size[0]}
          many: ${'yes' if max_epochs > 6 else 'no'}
        round_x: ${voxel_size[2]}
        root: data
        """,
    )
    cfg = load_config(path, ['max_epochs=7'], note=lambda _: None)
    assert cfg.model == dict(type='A', size=7, grid=[0.2, 40], root='data/samples', cells=1024, many='yes')
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=2e-3, weight_decay=0.1)
    assert cfg.train_cfg.max_epochs == 7
    raw, others = read_merged(path)
    assert raw['voxel_size'] == [0.1, 0.1, 0.2] and others == []


@pytest.mark.parametrize(
    'text, message',
    [
        ('a: ${b}', r"leaf.yaml: \$\{b\}: 'b' is not defined"),
        ('a: ${__import__("os")}', 'Call is not allowed'),
        ('a: ${(1).real}', r'\$\{\(1\).real\}'),
        ('a: ${2 ** 1000}', 'the exponent is too large'),
        ('a: ${b}\nb: ${a}', 'round in circles'),
        ('a: ${1 +}', 'invalid syntax'),
        ('optimizer: SGD', "optimizer: dict is expected, found 'SGD'"),
        ('lr_config: {policy: warp}\nmax_epochs: 1', "'warp' is not one of CosineAnnealing"),
        ('lr_config: {policy: step}', 'lr_config needs max_epochs'),
        ('max_epochs: 1\n_base_: none.yaml', '_base_ none.yaml: no such file'),
        ('- 1', 'a mapping of fields is expected'),
        ('max_epochs: [', 'no readable YAML'),
    ],
)
def test_a_wrong_file_is_one_clear_error(write, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write('configs/leaf.yaml', text))
    assert '\n' not in str(error.value)


def fields(text):
    import yaml

    return translate(yaml.safe_load(textwrap.dedent(text)), 'x.yaml')


def test_the_cyclic_schedules_of_the_published_configs():
    out, lost = fields(
        """
        max_epochs: 20
        optimizer: {type: AdamW, lr: 1.0e-4, weight_decay: 0.01}
        optimizer_config: {grad_clip: {max_norm: 35, norm_type: 2}}
        lr_config: {policy: cyclic, target_ratio: 5.0, cyclic_times: 1, step_ratio_up: 0.4}
        momentum_config: {policy: cyclic, cyclic_times: 1, step_ratio_up: 0.4, target_ratio: [0.5, 1]}
        """
    )
    up, down, momentum_up, momentum_down = out['param_scheduler']
    assert up == dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, begin=0, end=8, T_max=8,
                      eta_min=pytest.approx(5e-4))  # fmt: skip
    assert (down['begin'], down['end'], down['T_max']) == (8, 20, 12) and down['eta_min'] == pytest.approx(5e-9)
    assert momentum_up['type'] == 'CosineAnnealingMomentum' and momentum_up['eta_min'] == pytest.approx(0.45)
    assert momentum_down['eta_min'] == pytest.approx(0.9) and not lost
    assert out['optim_wrapper']['clip_grad'] == dict(max_norm=35, norm_type=2)


def test_the_other_fields_of_a_training():
    out, lost = fields(
        """
        seed: 3
        deterministic: true
        cudnn_benchmark: false
        run_dir: runs/a
        runner: {type: CustomEpochBasedRunner, max_epochs: 6}
        fp16: {loss_scale: {growth_interval: 2000, mode: dynamic}}
        data: {samples_per_gpu: 4, workers_per_gpu: 2, train: {type: CBGSDataset}}
        evaluation: {interval: 2, pipeline: []}
        checkpoint_config: {interval: 1, max_keep_ckpts: 2}
        log_config: {interval: 10, hooks: []}
        lr_config: {policy: step, step: [3, 5], gamma: 0.5}
        model: {encoders: {camera: {}}}
        """
    )
    assert out['randomness'] == dict(seed=3, deterministic=True) and out['env_cfg'] == dict(cudnn_benchmark=False)
    assert out['work_dir'] == 'runs/a' and out['train_cfg'] == dict(max_epochs=6, val_interval=2)
    assert out['optim_wrapper'] == dict(type='OccAmpOptimWrapper', loss_scale=dict(growth_interval=2000))
    assert out['train_dataloader'] == dict(batch_size=4, num_workers=2)
    assert out['default_hooks'] == dict(checkpoint=dict(interval=1, max_keep_ckpts=2), logger=dict(interval=10))
    assert out['param_scheduler'][0]['milestones'] == [3, 5] and out['param_scheduler'][0]['gamma'] == 0.5
    assert [name.split(' ')[0] for name in lost] == ['data.train', 'evaluation.pipeline', 'log_config.hooks', 'model']


def test_the_dumped_config_reads_as_the_same(write, tmp_path):
    cfg = load_config(write('configs/custom/finetune.yaml', GUIDE), ['max_epochs=6'], note=lambda _: None)
    cfg.dump(str(tmp_path / 'dumped.py'))
    assert load_config(tmp_path / 'dumped.py')._cfg_dict == cfg._cfg_dict
