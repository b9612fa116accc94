"""What trains and how fast: learning rates by module, frozen parts, stages."""

import copy
import itertools
import re

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from occforge.engine import Trainability
from occforge.engine.hooks import ProgressiveUnfreezeHook
from occforge.engine.names import expand, group_names, matches
from occforge.engine.param_groups import fit_optimizer_state, names_of_groups
from occforge.errors import ConfigError
from torch import nn
from training import assert_equal_training, output, run, weights


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(4, 4)
        self.heatmap = nn.Linear(4, 2)


class Detector(nn.Module):
    """Named as mmdet3d's BEVFusion, with a head that has a decoder of its own."""

    def __init__(self):
        super().__init__()
        self.img_backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.img_backbone.pos_embed = nn.Parameter(torch.zeros(1, 4))
        self.img_neck = nn.Linear(4, 4)
        self.pts_middle_encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.fusion_layer = nn.Linear(4, 4)
        self.pts_backbone, self.pts_neck = nn.Linear(4, 4), nn.Linear(4, 4)
        self.bbox_head = Head()


def names():
    return [name for name, _ in Detector().named_parameters()]


# -------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    'pattern, name, expected',
    [
        ('decoder', 'decoder.0.weight', True),
        ('decoder', 'decoder', True),
        ('decoder', 'decoder2.weight', False),
        ('decoder', 'heads.object.decoder.weight', False),
        ('*.decoder', 'heads.object.decoder.weight', True),
        ('*norm*', 'stages.0.norm1.weight', True),
        ('img.conv', 'img_conv.weight', False),
        (r're:\.norm\d', 'stages.0.norm1.weight', True),
        (r're:^norm\d', 'stages.0.norm1.weight', False),
    ],
)
def test_a_name_ends_at_a_module_boundary(pattern, name, expected):
    assert matches(pattern, name) == expected


@pytest.mark.parametrize(
    'pattern, expected',
    [
        ('encoders.camera.backbone', ['img_backbone']),
        ('encoders.camera', ['img_backbone', 'img_neck']),
        ('encoders.camera.backbone.0', ['img_backbone.0']),
        ('encoders', ['img_backbone', 'img_neck', 'pts_middle_encoder']),
        ('decoder', ['pts_backbone', 'pts_neck']),
        ('decoder.neck', ['pts_neck']),
        ('heads', ['bbox_head']),
        ('heads.object.decoder', ['bbox_head.decoder']),
        ('bbox_head.decoder', ['bbox_head.decoder']),
        ('heads.map', []),
    ],
)
def test_the_names_of_mit_are_understood(pattern, expected):
    assert expand(pattern, names()) == expected


def test_a_model_may_have_aliases_of_its_own():
    model = Detector()
    model.module_aliases = {'eyes': ('img_backbone', 'img_neck')}
    trainability = Trainability(model)
    assert trainability.resolve(['eyes'], 'freeze') == ['img_backbone', 'img_neck']


def test_tables_go_by_the_first_part_that_differs():
    assert group_names(['a.b.c', 'a.b.d', 'a.e.f']) == {'a.b.c': 'a.b', 'a.b.d': 'a.b', 'a.e.f': 'a.e'}
    assert group_names(['a.b', 'c']) == {'a.b': 'a', 'c': 'c'}


# ------------------------------------------------------------------------------------------------------ learning rates
def settings(paramwise_cfg, model=None):
    """name -> (lr, weight decay) of the optimizer that the config gives."""
    model = model or Detector()
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.01))
    build = dict(type='OccOptimWrapperConstructor', optim_wrapper_cfg=cfg, paramwise_cfg=paramwise_cfg)
    optimizer = OPTIM_WRAPPER_CONSTRUCTORS.build(build)(model).optimizer
    found = {}
    for group, members in zip(optimizer.param_groups, names_of_groups(optimizer, model)):
        found.update({name: (group['lr'], group['weight_decay']) for name in members})
    assert set(found) == set(names())
    return found


def test_the_rates_of_the_transfer_guide():
    keys = {
        'encoders.camera.backbone': 0.01, 'encoders.camera.neck': 0.1, 'encoders.lidar': 0.1, 'fuser': 0.5,
        'decoder': 0.5, 'heads': 1.0,
    }  # fmt: skip
    found = settings(dict(custom_keys={key: dict(lr_mult=value) for key, value in keys.items()}))
    expected = dict(
        img_backbone=0.01, img_neck=0.1, pts_middle_encoder=0.1, fusion_layer=0.5, pts_backbone=0.5, pts_neck=0.5,
        bbox_head=1.0,
    )  # fmt: skip
    for name, (rate, decay) in found.items():
        assert rate == expected[name.split('.')[0]] and decay == 0.01, name  # bbox_head.decoder is 1.0, not 0.5


def test_each_field_is_decided_by_the_longest_key_that_sets_it():
    found = settings(
        dict(
            norm_decay_mult=0.0,
            custom_keys={
                'img_backbone': dict(lr_mult=0.1),
                'pos_embed': dict(decay_mult=0.0),
                'img_backbone.0.bias': dict(lr_mult=0.5),
            },
        )
    )
    assert found['img_backbone.0.weight'] == (0.1, 0.01)
    assert found['img_backbone.pos_embed'] == (0.1, 0.0)
    assert found['img_backbone.1.weight'] == (0.1, 0.0)  # a norm keeps its exclusion
    assert found['img_backbone.0.bias'] == (0.5, 0.01)
    assert found['pts_middle_encoder.1.bias'] == (1.0, 0.0) and found['bbox_head.heatmap.bias'] == (1.0, 0.01)


def test_mmengines_rules_by_kind_of_parameter():
    found = settings(dict(bias_lr_mult=2.0, bias_decay_mult=0.5, norm_decay_mult=0.0, flat_decay_mult=0.1))
    assert found['fusion_layer.bias'] == (2.0, 0.005) and found['fusion_layer.weight'] == (1.0, 0.01)
    assert found['img_backbone.1.bias'] == (1.0, 0.0)


@pytest.mark.parametrize(
    'paramwise_cfg, message',
    [
        (dict(custom_keys={'norm': dict(decay_mult=0)}), r"custom_keys\['norm'\] matches no parameter"),
        (dict(custom_keys={'heatmap': {}}), r"'\*heatmap\*' would match anywhere, e.g. in bbox_head.heatmap.weight"),
        (dict(custom_keys={'img_backbon': {}}), r'Did you mean img_backbone\?'),
        (dict(custom_keys={'img_backbone': 0.1}), r'dict\(lr_mult=, decay_mult=\) is expected, found 0.1'),
        (dict(custom_key={}), r'paramwise_cfg.custom_key: no such field, did you mean custom_keys\?'),
    ],
)
def test_a_wrong_key_is_one_clear_error(paramwise_cfg, message):
    with pytest.raises(ConfigError, match=message):
        settings(paramwise_cfg)


def test_an_optimizers_state_is_found_by_name_when_the_groups_change():
    def build(paramwise_cfg, model):
        cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.01))
        build = dict(type='OccOptimWrapperConstructor', optim_wrapper_cfg=cfg, paramwise_cfg=paramwise_cfg)
        return OPTIM_WRAPPER_CONSTRUCTORS.build(build)(model).optimizer

    model = Detector()
    old = build(dict(custom_keys={'bbox_head': dict(lr_mult=0.5)}), model)
    for group in old.param_groups:
        group['initial_lr'] = group['lr']
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    old.step()
    for group in old.param_groups:
        group['lr'] *= 0.25  # a schedule
    saved = names_of_groups(old, model)
    new = build(dict(custom_keys={'img_backbone': dict(lr_mult=0.1), 'pts_neck': dict(decay_mult=0)}), model)
    state, remark = fit_optimizer_state(copy.deepcopy(old.state_dict()), saved, new, names_of_groups(new, model))
    new.load_state_dict(state)
    for parameter in model.parameters():
        assert torch.equal(new.state[parameter]['exp_avg'], old.state[parameter]['exp_avg'])
    assert re.search(rf'the state of {len(names())} of {len(names())} tensors was found by name', remark)
    rates = {name: group['lr'] for group, members in zip(new.param_groups, names_of_groups(new, model))
             for name in members}  # fmt: skip
    assert rates['img_backbone.0.weight'] == pytest.approx(0.025) and rates['bbox_head.heatmap.bias'] == 0.25
    same, remark = fit_optimizer_state(state, saved, old, saved)
    assert same is state and not remark


# ---------------------------------------------------------------------------------------------------------- freezing
def test_a_frozen_part_keeps_its_statistics_and_stays_so_after_train():
    model = Detector()
    model.img_neck.weight.requires_grad_(False)  # by the model itself
    trainability = Trainability(model)
    assert trainability.freeze(['encoders.camera.backbone'])
    before = {name: value.clone() for name, value in model.img_backbone.state_dict().items()}
    model.train()
    trainability.hold()
    assert not any(module.training for module in model.img_backbone.modules()) and model.pts_neck.training
    image = torch.randn(2, 3, 6, 6)
    assert torch.equal(model.img_backbone(image), model.img_backbone(image))  # no dropout
    for name, value in model.img_backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in model.img_backbone.parameters())
    trainability.train_only(['heads'])
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        name for name in names() if name.startswith('bbox_head')
    ]
    model.train(), trainability.hold()
    assert not model.pts_middle_encoder.training and model.bbox_head.training
    trainability.train_only(None)
    assert model.pts_middle_encoder.training
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {name for name in names() if name.startswith('img_backbone')} | {'img_neck.weight'}


def test_the_table_counts_by_module():
    trainability = Trainability(Detector())
    trainability.freeze(['img_backbone', 'bbox_head.heatmap'])
    rows = {line.split()[0]: line.split()[1:] for line in trainability.table()}
    assert rows['img_backbone'] == ['0', '124'] and rows['bbox_head'] == ['20', '10']
    total = sum(each.numel() for each in Detector().parameters())
    assert rows['all'] == [str(total - 134), '134']


def test_what_cannot_be_frozen():
    with pytest.raises(ConfigError, match=r"freeze: 'img_bakbone' names nothing in the model. Did you mean"):
        Trainability(Detector()).freeze(['img_bakbone'])
    with pytest.raises(ConfigError, match='nothing is left that trains'):
        Trainability(Detector()).freeze(['*'])


# ------------------------------------------------------------------------------------------------- in a real training
QUIET = ['model.dropout=0', 'train_dataloader.dataset.noise=0', 'default_hooks.checkpoint.max_keep_ckpts=-1']


def state_of(folder, name):
    return weights(folder, name)['state_dict']


@pytest.mark.parametrize('world', [None, 2])
def test_a_frozen_module_does_not_change_in_training(tmp_path, world):
    assert run(tmp_path, QUIET, world=world, freeze=['norm', 'first']) == 0, output(tmp_path)
    first, last = state_of(tmp_path, 'epoch_1.pth'), state_of(tmp_path, 'epoch_3.pth')
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {'head.weight', 'head.bias'}
    assert int(last['norm.num_batches_tracked']) == 0
    text = output(tmp_path)
    assert 'frozen: norm, first' in text and re.search(r'all +9 +48', text)


STAGES = [dict(epoch=0, train=['head']), dict(epoch=1, train=['norm']), dict(epoch=2, train='all', lr_factor=0.1)]
HOOK = dict(custom_hooks=[dict(type='ProgressiveUnfreezeHook', stages=STAGES)])
CONSTANT = dict(HOOK, param_scheduler=[dict(type='ConstantLR', factor=1.0, by_epoch=True, begin=0, end=9)])
FOUR = [*QUIET, 'train_cfg.max_epochs=4']


def check_stages(folder):
    states = [state_of(folder, f'epoch_{epoch}.pth') for epoch in (1, 2, 3, 4)]
    changed = [
        {name.split('.')[0] for name in a if not torch.equal(a[name], b[name])} for a, b in itertools.pairwise(states)
    ]
    assert changed == [{'head', 'norm'}, {'head', 'norm', 'first'}, {'head', 'norm', 'first'}]
    assert int(states[0]['norm.num_batches_tracked']) == 0 and int(states[1]['norm.num_batches_tracked']) > 0
    rates = [weights(folder, f'epoch_{epoch}.pth')['optimizer']['param_groups'][0]['lr'] for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])  # once, not every epoch


@pytest.fixture(scope='module')
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp('staged')
    assert run(folder, FOUR, **CONSTANT) == 0, output(folder)
    return folder


def test_stages_by_epoch(staged):
    check_stages(staged)
    text = output(staged)
    assert 'from epoch 1 on head trains' in text and 'from epoch 2 on head, norm trains' in text
    assert 'from epoch 3 on everything trains, learning rates x 0.1' in text
    assert len(re.findall('ProgressiveUnfreezeHook: ', text)) == 3 and re.search(r'all +9 +48', text)


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_stages_resume_equal(tmp_path, staged, epoch):
    overrides = [*FOUR, f'resume={staged / f"epoch_{epoch}.pth"}']
    assert run(tmp_path, overrides, **CONSTANT) == 0, output(tmp_path)
    assert_equal_training(weights(tmp_path, 'epoch_4.pth'), weights(staged, 'epoch_4.pth'))


def test_stages_resume_equal_in_the_middle_of_an_epoch(tmp_path):
    by_iter = ['default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=2']
    assert run(tmp_path / 'a', [*FOUR, *by_iter], **CONSTANT) == 0
    resume = f'resume={tmp_path / "a" / "iter_14.pth"}'  # inside of the epoch whose beginning divided the rate by ten
    assert run(tmp_path / 'b', [*FOUR, *by_iter, resume], **CONSTANT) == 0, output(tmp_path / 'b')
    assert_equal_training(weights(tmp_path / 'b', 'iter_24.pth'), weights(tmp_path / 'a', 'iter_24.pth'))


def test_stages_in_two_processes_are_those_of_one(tmp_path):
    overrides = [*FOUR, 'sync_bn=True']
    assert run(tmp_path / 'one', [*overrides, 'data.samples_per_gpu=8'], **CONSTANT) == 0
    assert run(tmp_path / 'two', [*overrides, 'data.samples_per_gpu=4'], world=2, **CONSTANT) == 0, output(
        tmp_path / 'two'
    )
    check_stages(tmp_path / 'two')
    ours, theirs = state_of(tmp_path / 'one', 'epoch_4.pth'), state_of(tmp_path / 'two', 'epoch_4.pth')
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-4)


def test_a_resumed_training_may_freeze_other_modules_and_have_other_rates(tmp_path, staged):
    resume = [*FOUR, f'resume={staged / "epoch_2.pth"}', '+optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult=0.5']
    fields = dict(param_scheduler=CONSTANT['param_scheduler'], freeze=['first'])
    assert run(tmp_path, resume, **fields) == 0, output(tmp_path)
    assert 'tensors was found by name' in output(tmp_path)
    before, after = state_of(staged, 'epoch_2.pth'), state_of(tmp_path, 'epoch_4.pth')
    assert torch.equal(before['first.weight'], after['first.weight'])
    assert not torch.equal(before['head.weight'], after['head.weight'])
    steps = weights(tmp_path, 'epoch_4.pth')
    names = [name for group in steps['occforge']['optimizer_names'] for name in group]
    count = {name: int(steps['optimizer']['state'][i]['step']) for i, name in enumerate(names)
             if i in steps['optimizer']['state']}  # fmt: skip
    assert count == {'head.weight': 24, 'head.bias': 24, 'norm.weight': 18, 'norm.bias': 18}


@pytest.mark.parametrize(
    'stages, message',
    [
        ([dict(epoch=1, train='all')], 'rise from 0, found'),
        ([dict(epoch=0, train='all'), dict(epoch=0, train='all')], 'rise from 0, found'),
        ([], 'rise from 0'),
        ([dict(epoch=0, modules='all')], r'dict\(epoch=, train=, lr_factor=\) is expected'),
    ],
)
def test_wrong_stages(stages, message):
    with pytest.raises(ConfigError, match=message):
        ProgressiveUnfreezeHook(stages)


def test_a_stage_that_names_nothing_stops_before_training(tmp_path):
    stages = [*STAGES[:2], dict(epoch=2, train=['neck'])]
    assert run(tmp_path, custom_hooks=[dict(type='ProgressiveUnfreezeHook', stages=stages)]) == 1
    assert "stages.2.train: 'neck' names nothing in the model" in output(tmp_path)
    assert 'Epoch(train) [1]' not in output(tmp_path)
