"""Every config of ESAM: inheritance, fields, parameters."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.optim import build_optim_wrapper
from occforge.engine import load_config

ROOT = Path(__file__).parents[3]
FOLDERS = ('ESAM', 'ESAM_CA', 'ESAM-E', 'ESAM-E_CA', 'ESAM-E+FF')
FILES = sorted(path for folder in FOLDERS for path in (ROOT / 'configs' / folder).glob('*.py'))
# The document's table: file, what it inherits from, model, learning rate, epochs, warm-up iterations.
TABLE = [
    ('sv_3d', '../ESAM_CA/ESAM_sv_scannet200_CA.py', 'ScanNet200MixFormer3D', 6e-4, 128, 1000),
    ('online_3d', '../ESAM_CA/ESAM_online_scannet200_CA.py', 'ScanNet200MixFormer3D_Online', 6e-4, 128, 1000),
    ('sv_3dtsa', './ESAM_sv_3d_scannet.py', 'ScanNet200MixFormer3D', 6e-4, 128, 1000),
    ('online_3dtsa', './ESAM_online_3d_scannet.py', 'ScanNet200MixFormer3D_Online', 6e-4, 128, 1000),
    ('sv_bifusion', './ESAM_sv_3dtsa_scannet.py', 'BiFusionSeg', 5e-4, 160, 2000),
    ('online_bifusion', './ESAM_online_3dtsa_scannet.py', 'BiFusionSegOnline', 5e-4, 160, 2000),
]


@functools.cache
def read(path):
    return load_config(str(path))


def meta_model(cfg):
    """The model with parameters that need no memory."""
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_builds(path):
    cfg = read(path)
    model = meta_model(cfg)
    assert type(model).__name__ == cfg.model.type
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type in DATASETS.module_dict
        for step in loader.dataset.pipeline:
            TRANSFORMS.build(step)
    METRICS.build(cfg.val_evaluator)


@pytest.mark.parametrize(('name', 'base', 'model', 'lr', 'epochs', 'warmup'), TABLE)
def test_table_of_the_document(name, base, model, lr, epochs, warmup):
    path = ROOT / f'configs/ESAM/ESAM_{name}_scannet.py'
    own = {}
    exec(path.read_text().split('\n\n')[0].split('load_from')[0], own)
    assert own['_base_'] == [base]
    cfg = read(path)
    online = name.startswith('online')
    assert cfg.model.type == model
    assert cfg.optim_wrapper.type == 'OccAmpOptimWrapper'
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-2)
    assert cfg.train_cfg.max_epochs == epochs
    cosine, linear = cfg.param_scheduler
    assert (linear.type, linear.end, linear.by_epoch) == ('LinearLR', warmup, False)
    assert (cosine.type, cosine.T_max, cosine.end) == ('CosineAnnealingLR', epochs, epochs)
    assert cfg.default_hooks.logger.interval == 50
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 3
    assert cfg.default_hooks.metrics_csv.type == 'MetricsCsvHook'
    if online:
        assert cfg.model.memory.queue == -1 and cfg.model.test_cfg.topk_insts == 20
        assert cfg.train_dataloader.dataset.pipeline[0].num_frames == 8
        assert cfg.model.use_bbox is False
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    if 'bifusion' in name:
        assert cfg.model.backbone is None and cfg.model.neck is None
        assert cfg.model.bi_encoder.backbone3d.type == 'Res16UNet34C' and cfg.model.bi_encoder.neck3d.type == 'TinySA'
        assert kinds[1:3] == ['LoadClipFeature', 'ProjectPointsToImage']
        assert {'clip_pix', 'clip_global', 'clip_uv'} <= set(cfg.train_dataloader.dataset.pipeline[-1]['keys'])
        assert cfg.custom_hooks[0].type == 'PartialLoadHook'
        assert cfg.train_dataloader.batch_size == (4 if online else 8)
    else:
        assert 'LoadClipFeature' not in kinds
        assert (cfg.model.neck is None) == ('tsa' not in name)
    other = read(path.with_name(f'ESAM_{name}_scannet200.py'))
    assert other.model == cfg.model and other.train_dataloader == cfg.train_dataloader


def test_later_ideas():
    inside = read(ROOT / 'configs/ESAM/ESAM_sv_3dtsa_scannet_inside.py')
    names = set(meta_model(inside).state_dict())
    assert any(name.startswith('backbone.inserted.4.layers.0.pos_embed.') for name in names)
    assert not any(name.startswith('neck.') for name in names)
    unfrozen = meta_model(read(ROOT / 'configs/ESAM/ESAM_sv_bifusion_scannet_unfreeze.py')).bi_encoder.backbone3d
    trained = {name.split('.')[0] for name, p in unfrozen.named_parameters() if p.requires_grad}
    assert trained == {'block1', 'block2'}
    averaged = load_config(str(ROOT / 'configs/ESAM/ESAM_sv_3d_scannet_swa.py'), ['swa_begin=100'])
    assert averaged.custom_hooks == [dict(type='OccEMAHook', ramp='mean', begin_epoch=100)]
    assert (averaged.param_scheduler[0].end, averaged.param_scheduler[0].T_max) == (100, 100)


def test_position_codes_do_not_decay():
    cfg = load_config(str(ROOT / 'configs/ESAM/ESAM_sv_3dtsa_scannet.py'))
    model = MODELS.build(dict(cfg.model, backbone=dict(cfg.model.backbone, planes=[4] * 8, init_dim=4, layers=[1] * 8),
        neck=dict(type='TinySA', in_channels=4), pool=dict(cfg.model.pool, channel_proj=4),
        decoder=dict(cfg.model.decoder, in_channels=4)))  # fmt: skip
    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper', constructor='OccOptimWrapperConstructor')
    wrapper.pop('loss_scale')
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    for group in groups:
        for parameter in group['params']:
            inside = '.pos_embed.' in names[id(parameter)]
            assert (group['weight_decay'] == 0) == inside
            assert group['lr'] == pytest.approx(6e-5 if inside else 6e-4)
    assert any('.pos_embed.' in name for name in names.values())


@pytest.mark.parametrize(
    ('change', 'reaches'),
    [
        ('max_epochs=7', lambda cfg: (cfg.train_cfg.max_epochs, cfg.param_scheduler[0].T_max) == (7, 7)),
        ('num_frames=6', lambda cfg: cfg.train_dataloader.dataset.pipeline[0].num_frames == 6),
        ('data_root=x/', lambda cfg: cfg.val_dataloader.dataset.data_root == 'x/'),
        ('rec_root=y', lambda cfg: cfg.val_dataloader.dataset.pipeline[0].rec_root == 'y'),
    ],
)
def test_one_field_reaches_all_places(change, reaches):
    assert reaches(load_config(str(ROOT / 'configs/ESAM/ESAM_online_bifusion_scannet.py'), [change]))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_published_parameters(path):
    listed_in = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs')) / 'ESAM_params.json'
    if not listed_in.is_file():
        pytest.skip(f'{listed_in.name} not found: set OCCFORGE_SPECS to the folder that holds it')
    listed = json.loads(listed_in.read_text())
    key = f'{path.parent.name}/{path.stem}'
    if key not in listed:
        pytest.skip('a config of our own')
    state = meta_model(read(path)).state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == listed[key]
