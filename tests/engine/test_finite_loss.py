"""Losses and gradients that are not finite, float32 islands."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import LinearLR, OptimWrapper
from mmengine.registry import MODELS
from occforge.engine import OccAmpOptimWrapper, float32_island, read_checkpoint
from occforge.engine.amp import make_float32_island
from occforge.engine.hooks import FiniteLossHook
from occforge.errors import ConfigError
from torch import nn
from toy import ToyModel
from training import assert_equal_training, output, run, weights


class Breaking(nn.Module):
    """Turns its answer into nan, or only its gradient, at call number ``at`` (from 1) and where training is rerun."""

    def __init__(self, at, rank, gradient):
        super().__init__()
        self.at, self.rank, self.gradient, self.calls = at, rank, gradient, 0

    def forward(self, x):
        import os

        # batch normalisation's counter tells a rerun of the batch from the next one: the hook restores it
        if self.at and self.owner[0].training and self.rank in (None, int(os.environ.get('RANK', 0))):
            if int(self.owner[0].norm.num_batches_tracked) in (self.at, *self.again):
                return x + (x - x).abs().sqrt() if self.gradient else x * float('nan')
        return x


@MODELS.register_module()
class BreakingToyModel(ToyModel):
    """``bad_at``: after how many batches the answer breaks."""

    def __init__(self, bad_at=None, bad_rank=None, bad_gradient=False, stop=True, **kwargs):
        super().__init__(**kwargs)
        self.breaking = Breaking(bad_at, bad_rank, bad_gradient)
        self.breaking.owner = [self]
        self.breaking.again = (bad_at + 1,) if stop and bad_at else ()
        self.dropout = nn.Sequential(self.dropout, self.breaking)


# the default guard is off: the tests bring their own
OFF = ['default_hooks.finite_loss=None']
QUIET = [*OFF, 'model.type=BreakingToyModel', 'default_hooks.checkpoint.max_keep_ckpts=-1']


def guard(**fields):
    return dict(custom_hooks=[dict(type='FiniteLossHook', **fields)])


def test_the_guard_changes_nothing_of_a_sound_training(tmp_path):
    for name, fields in (('a', {}), ('b', guard()), ('c', guard(action='skip'))):
        assert run(tmp_path / name, OFF, **fields) == 0, output(tmp_path / name)
        assert_equal_training(weights(tmp_path / 'a'), weights(tmp_path / name))


def test_schedulers_do_not_warn_of_the_guard():
    """mmengine's schedulers mark the optimizer's step and warn where the mark is gone."""
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    scheduler = LinearLR(wrapper, start_factor=0.5, end=4)
    hook, runner = FiniteLossHook(), SimpleNamespace(optim_wrapper=wrapper)
    hook.before_train(runner)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        wrapper.step()
        scheduler.step()
    hook.after_train(runner)
    assert wrapper.step._with_counter and wrapper._global_step == 0


@pytest.mark.parametrize('world', [None, 2])
def test_a_loss_that_is_not_finite_stops_the_training_and_is_traced(tmp_path, world):
    bad = ['+model.bad_at=4', f'+model.bad_rank={0 if world else None}']
    assert run(tmp_path, [*QUIET, *bad], world=world, **guard()) == 1
    text = output(tmp_path)
    assert f'iteration 4 (epoch {2 if world else 1}): the loss is not finite' in text
    assert 'loss_fit is nan' in text and 'first bad module: dropout.1 (Breaking)' in text
    batch = read_checkpoint(tmp_path / 'bad_batches' / 'iter_4_rank0.pth')
    assert len(batch['batch']['inputs']) == 4 and batch['iteration'] == 4
    assert all(torch.isfinite(value).all() for value in batch['batch']['inputs'])
    if world:
        assert 'iteration 4' in output(tmp_path, 1) and 'on another process' in output(tmp_path, 1)


@pytest.mark.parametrize('world', [None, 2])
def test_skipping_leaves_weights_and_statistics_as_they_were(tmp_path, world):
    bad = ['+model.bad_at=4', '+model.stop=False', 'optim_wrapper.optimizer.lr=1e-3', 'sync_bn=True']
    assert run(tmp_path, [*QUIET, *bad], world=world, **guard(action='skip', max_skips=99)) == 0, output(tmp_path)
    final = weights(tmp_path)
    assert all(torch.isfinite(value).all() for value in final['state_dict'].values())
    # from the bad batch on every one is: the counter that makes it bad is restored each time
    assert int(final['state_dict']['norm.num_batches_tracked']) == 3
    assert int(final['optimizer']['state'][0]['step']) == 3
    assert f'{(9 if world else 18) - 3} batches were skipped' in output(tmp_path)


def test_too_many_skips_in_a_row_end_the_training(tmp_path):
    bad = ['+model.bad_at=4', '+model.stop=False']
    assert run(tmp_path, [*QUIET, *bad], **guard(action='skip', max_skips=3)) == 1
    assert output(tmp_path).count('The batch is skipped') == 2 and 'NonFiniteError: iteration 6' in output(tmp_path)


def test_a_gradient_that_is_not_finite(tmp_path):
    assert run(tmp_path, [*QUIET, '+model.bad_at=4', '+model.bad_gradient=True'], **guard()) == 1
    text = output(tmp_path)
    assert 'a gradient is not finite' in text and 'first bad gradient of 3: first.weight' in text


def test_a_batch_that_is_not_finite_is_named(tmp_path):
    assert run(tmp_path, ['train_dataloader.dataset.noise=inf']) == 1  # the guard that every training has
    assert 'the batch itself is not finite: inputs.0' in output(tmp_path)


def test_an_unknown_action():
    with pytest.raises(ConfigError, match="'stop' or 'skip'"):
        FiniteLossHook(action='ignore')


# ------------------------------------------------------------------------------------------------------ float32 islands
class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, more=None):
        self.seen = (x.dtype, self.linear(x).dtype, None if more is None else more['y'][0].dtype)
        return self.linear(x)


def test_an_island_computes_in_float32_and_so_do_its_inputs():
    module = Scale()
    make_float32_island(module)
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        assert module(half, more=dict(y=[half])).dtype == torch.float32
        assert module.seen == (torch.float32,) * 3
        assert module.linear(half).dtype == torch.bfloat16  # autocast is on again after it
        with pytest.raises(RuntimeError):
            module(torch.ones(2, 5))
        assert torch.is_autocast_enabled('cpu')
    assert module(half.double()[:, :4].float()).dtype == torch.float32


def test_a_function_as_an_island():
    @float32_island
    def product(a, b):
        return a @ b

    half = torch.ones(2, 2, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        assert product(half, half).dtype == torch.float32
    assert product(half, half).dtype == torch.bfloat16


def test_islands_by_name_in_a_config():
    model = nn.ModuleDict(dict(a=Scale(), b=Scale()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    wrapper = OccAmpOptimWrapper(dtype='bfloat16', optimizer=optimizer, float32_modules=['b'])
    for _ in range(2):
        with wrapper.optim_context(model):
            assert model['a'](torch.ones(1, 4)).dtype == torch.bfloat16
            assert model['b'](torch.ones(1, 4)).dtype == torch.float32
    with pytest.raises(ConfigError, match=r"float32_modules: 'c' names nothing"):
        with OccAmpOptimWrapper(dtype='bfloat16', optimizer=optimizer, float32_modules=['c']).optim_context(model):
            pass
