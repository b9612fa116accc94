"""Errors name the part of the config that they come from."""

import pytest
import torch
from mmengine.registry import HOOKS, MODELS, TRANSFORMS
from occforge.engine import OccRunner
from occforge.engine.blame import part_of_config
from torch import nn


@MODELS.register_module()
class _Neck(nn.Module):
    def __init__(self, channels, scale=1):
        super().__init__()
        self.layer = nn.Linear(channels, 2 * scale)

    def forward(self, x):
        return self.layer(x)


@MODELS.register_module()
class _Detector(nn.Module):
    def __init__(self, neck, head):
        super().__init__()
        self.neck = MODELS.build(dict(neck, scale=1))  # changed on the way, as models do
        self.head = nn.ModuleDict({name: MODELS.build(each) for name, each in head.items()})

    def forward(self, x):
        return self.head['one'](self.neck(x))


@TRANSFORMS.register_module()
class _Divide:
    def __init__(self, by):
        self.by = by

    def __call__(self, number):
        return number / self.by


def error_of(function, *arguments):
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


CFG = dict(
    model=dict(
        type='_Detector',
        neck=dict(type='_Neck', channels=3),
        head=dict(one=dict(type='_Neck', channels=2), two=dict(type='_Neck', channels=5)),
    ),
    train_dataloader=dict(dataset=dict(type='D', pipeline=[dict(type='_Divide', by=2), dict(type='_Divide', by=0)])),
)


def changed(neck=(), one=()):
    model = CFG['model']
    head = dict(model['head'], one={**model['head']['one'], **dict(one)})
    return dict(CFG, model=dict(model, neck={**model['neck'], **dict(neck)}, head=head))


def test_what_was_being_built():
    cfg = changed(neck=dict(channels='3'))
    error = error_of(MODELS.build, cfg['model'])
    assert part_of_config(error, cfg) == "model.neck: _Neck(channels='3')"
    cfg = changed(one=dict(chanels=4))
    error = error_of(MODELS.build, cfg['model'])
    assert part_of_config(error, cfg) == 'model.head.one: _Neck(channels=2, chanels=4)'
    cfg = dict(CFG, model=dict(CFG['model'], bone=dict(type='X', depth=18), names=['a'] * 30))
    error = error_of(MODELS.build, cfg['model'])
    said = part_of_config(error, cfg)
    assert said.startswith('model: _Detector(neck=dict(type, channels), head=dict(one, two), bone=dict(type, depth)')
    assert len(said) < 200 and said.endswith('...)')


def test_the_module_that_was_running():
    model = MODELS.build(CFG['model'])
    assert part_of_config(error_of(model, torch.ones(1, 4)), CFG) == 'model.neck: _Neck(channels=3)'
    cfg = changed(one=dict(channels=7))
    error = error_of(MODELS.build(cfg['model']), torch.ones(1, 3))
    assert part_of_config(error, cfg) == 'model.head.one: _Neck(channels=7)'


def test_an_object_of_a_type_that_the_config_names():
    step = TRANSFORMS.build(CFG['train_dataloader']['dataset']['pipeline'][1])
    found = part_of_config(error_of(step, 1), CFG)
    assert found.startswith('train_dataloader.dataset.pipeline.') and '_Divide(by=' in found
    hook = HOOKS.build(dict(type='LoggerHook', interval=5))
    cfg = dict(default_hooks=dict(logger=dict(type='LoggerHook', interval=5)))
    error = error_of(hook.after_train_iter, None, None)
    assert part_of_config(error, cfg) == 'default_hooks.logger: LoggerHook(interval=5)'


def test_a_loader_and_a_loop():
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=2, num_workers=dict(wrong=1), sampler=sampler, dataset=[1])
    loop = dict(by_epoch=True, max_epochs=['wrong', 1])
    cfg = dict(CFG, train_dataloader=loader, val_dataloader=dict(loader, num_workers=0), train_cfg=loop)
    runner = object.__new__(OccRunner)
    runner._train_dataloader, runner._experiment_name = [1], 'a'
    with pytest.raises(TypeError) as caught:
        runner.build_dataloader(loader)
    assert part_of_config(caught.value, cfg).startswith('train_dataloader(batch_size=2, num_workers=dict(wrong), ')
    with pytest.raises(TypeError) as caught:
        runner.build_train_loop(loop)
    assert part_of_config(caught.value, cfg) == "train_cfg(by_epoch=True, max_epochs=['wrong', 1])"
    # a field in common with a loop does not make a hook that the config does not name a part of it
    error = error_of(HOOKS.build, dict(type='LoggerHook', by_epoch=True))
    assert part_of_config(error, cfg) is None


def test_nothing_of_the_config():
    assert part_of_config(error_of(lambda: 1 / 0), CFG) is None
