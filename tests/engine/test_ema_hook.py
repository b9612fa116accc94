"""Averaged weights: schedules, buffers, evaluation, checkpoints, resume."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from occforge.engine.hooks.ema_hook import RampedAverage, ema_decay
from occforge.errors import ConfigError
from torch import nn
from torch.optim.swa_utils import AveragedModel
from training import assert_equal_training, losses, output, run, weights


def golden(name):
    folder = os.environ.get('OCCFORGE_GOLDEN')
    if not folder:
        pytest.skip('OCCFORGE_GOLDEN is not set')
    return np.load(Path(folder) / name, allow_pickle=False)


def test_the_ramps_of_the_systems():
    data = golden('UniOcc/ema_schedules.npz')
    ours = [ema_decay(int(update), 0.999, 'exp', 2000) for update in data['model_ema_updates']]
    np.testing.assert_allclose(ours, data['model_ema_decay'], rtol=1e-12)
    # a mean teacher counts its iterations from 0
    ours = [ema_decay(int(iteration) + 1, 0.999, 'inverse', 100) for iteration in data['mean_teacher_iter']]
    np.testing.assert_allclose(ours, data['mean_teacher_momentum'], rtol=1e-12)


def test_the_average_of_the_published_ramp():
    data = golden('FBOCC/sampler_flags_ema.npz')
    model = nn.Module()
    model.value = nn.Parameter(torch.from_numpy(data['ema/init']))
    average = RampedAverage(model, decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560)
    for update, expected in zip(data['ema/updates'], data['ema/out']):
        with torch.no_grad():
            model.value.copy_(torch.from_numpy(update))
        average.update_parameters(model)
        np.testing.assert_allclose(average.module.value.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_statistics_are_averaged_and_counters_are_not():
    model = nn.BatchNorm1d(2)
    average = RampedAverage(model, decay=0.5, ramp=None)
    model.running_mean.fill_(2.0)
    model.num_batches_tracked.fill_(5)
    average.update_parameters(model)
    assert average.module.running_mean.tolist() == [1, 1] and average.module.num_batches_tracked == 0
    model.running_mean.fill_(3.0)
    average.start_from(model, {'running_mean'})
    assert average.module.running_mean.tolist() == [3, 3] and average.module.running_var.tolist() == [1, 1]


def test_the_mean_of_all_updates():
    model = nn.Linear(3, 2)
    average, peer = RampedAverage(model, ramp='mean', interval=2), AveragedModel(model)
    for step in range(1, 11):
        nn.init.normal_(model.weight)
        average.update_parameters(model)
        if step % 2 == 0:
            peer.update_parameters(model)
    torch.testing.assert_close(average.module.weight, peer.module.weight)


@pytest.mark.parametrize('fields', [dict(decay=1.0), dict(ramp='linear')])
def test_wrong_fields(fields):
    with pytest.raises(ConfigError, match='EMA: '):
        RampedAverage(nn.Linear(1, 1), **fields)


HOOK = dict(custom_hooks=[dict(type='OccEMAHook', decay=0.9, ramp='exp', ramp_length=3)])
ALL = ['default_hooks.checkpoint.max_keep_ckpts=-1', 'default_hooks.logger.interval=1']


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp('averaged')
    assert run(folder, ALL, **HOOK) == 0, output(folder)
    return folder


def test_the_average_is_saved_ready_for_use_beside_what_is_trained(averaged, tmp_path):
    assert run(tmp_path, ALL) == 0
    plain = weights(tmp_path)['state_dict']
    saved = weights(averaged)
    for name, value in plain.items():  # averaging changes nothing of the training
        assert torch.equal(saved['ema_state_dict'][f'module.{name}'], value), name
    assert not torch.equal(saved['state_dict']['first.weight'], plain['first.weight'])
    assert not torch.equal(saved['state_dict']['norm.running_mean'], plain['norm.running_mean'])
    assert losses(averaged) == losses(tmp_path)


def test_validation_uses_the_average(averaged, tmp_path):
    from occforge.engine.hooks.metrics_csv_hook import read_table

    _, rows = read_table(averaged / 'metrics.csv')
    errors = [row['error'] for row in rows if row['phase'] == 'val']
    # the last average, loaded as any weights, without a hook that knows of it
    load = [f'load_from={averaged / "epoch_3.pth"}', 'train_cfg.max_epochs=1', 'optim_wrapper.optimizer.lr=0']
    frozen = dict(freeze=['first', 'norm'])
    assert run(tmp_path, load, **frozen) == 0, output(tmp_path)
    _, rows = read_table(tmp_path / 'metrics.csv')
    assert next(row['error'] for row in rows if row['phase'] == 'val') == errors[-1]


def test_resume_with_the_average(averaged, tmp_path):
    assert run(tmp_path, [*ALL, f'resume={averaged / "epoch_2.pth"}'], **HOOK) == 0, output(tmp_path)
    ours, theirs = weights(tmp_path), weights(averaged)
    assert_equal_training(ours, theirs)
    assert int(ours['ema_state_dict']['steps']) == 18


def test_epochs_before_the_first_do_not_count(averaged, tmp_path):
    hook = dict(custom_hooks=[dict(type='OccEMAHook', ramp='mean', begin_epoch=2)])
    assert run(tmp_path / 'a', ALL, **hook) == 0, output(tmp_path / 'a')
    early, late = weights(tmp_path / 'a', 'epoch_2.pth'), weights(tmp_path / 'a')
    assert int(early['ema_state_dict']['steps']) == 0 and int(late['ema_state_dict']['steps']) == 6
    for name, value in early['state_dict'].items():
        assert torch.equal(early['ema_state_dict'][f'module.{name}'], value), name
    assert not torch.equal(late['state_dict']['first.weight'], late['ema_state_dict']['module.first.weight'])
    resume = [*ALL, f'resume={tmp_path / "a" / "epoch_2.pth"}']
    assert run(tmp_path / 'b', resume, **hook) == 0, output(tmp_path / 'b')
    assert_equal_training(weights(tmp_path / 'b'), late)


def test_resume_in_two_processes(tmp_path):
    assert run(tmp_path / 'a', [*ALL, 'sync_bn=True'], world=2, **HOOK) == 0, output(tmp_path / 'a')
    resume = [*ALL, 'sync_bn=True', f'resume={tmp_path / "a" / "epoch_2.pth"}']
    assert run(tmp_path / 'b', resume, world=2, **HOOK) == 0, output(tmp_path / 'b')
    assert_equal_training(weights(tmp_path / 'b'), weights(tmp_path / 'a'))


def test_the_average_begins_at_what_was_loaded(averaged, tmp_path):
    load = [f'load_from={averaged / "epoch_3.pth"}', 'optim_wrapper.optimizer.lr=0', 'train_cfg.max_epochs=1']
    assert run(tmp_path, load, freeze=['norm'], **HOOK) == 0, output(tmp_path)
    for name, value in weights(averaged)['state_dict'].items():
        torch.testing.assert_close(weights(tmp_path, 'epoch_1.pth')['state_dict'][name], value, atol=1e-6, rtol=1e-6)


def test_a_training_without_an_average_resumes_with_one(averaged, tmp_path):
    assert run(tmp_path, ALL) == 0
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert run(tmp_path, [*ALL, 'resume=auto'], **HOOK) == 0, output(tmp_path)
    assert 'holds no averaged weights; the average begins here' in output(tmp_path)
    assert int(weights(tmp_path)['ema_state_dict']['steps']) == 6
