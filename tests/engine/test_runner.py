"""Training in one and in several processes, loading, mixed precision, what the log says."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from occforge.engine import read_checkpoint, write_checkpoint
from occforge.engine.hooks.metrics_csv_hook import read_table
from ranks import free_port
from training import assert_equal_training, finish, losses, output, run, start, weights

QUIET = ['model.dropout=0', 'train_dataloader.dataset.noise=0', 'default_hooks.logger.interval=1']


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp('straight')
    assert run(folder) == 0, output(folder)
    return folder


@pytest.mark.parametrize('sync', ['config', 'hook'])
def test_two_processes_train_as_one_does_at_equal_total_batch(tmp_path, sync):
    fields = dict(custom_hooks=[dict(type='SyncbnControlHook', syncbn_start_epoch=0)]) if sync == 'hook' else {}
    overrides = [*QUIET, f'sync_bn={sync == "config"}']
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run(one, [*overrides, 'data.samples_per_gpu=8'], **fields) == 0, output(one)
    assert run(two, [*overrides, 'data.samples_per_gpu=4'], world=2, **fields) == 0, output(two)
    ours, theirs = losses(one), losses(two)
    assert list(ours) == list(theirs) == list(range(1, 10))
    torch.testing.assert_close(
        torch.tensor(list(ours.values())), torch.tensor(list(theirs.values())), atol=1e-4, rtol=1e-4
    )
    for name, value in weights(one)['state_dict'].items():
        torch.testing.assert_close(weights(two)['state_dict'][name], value, atol=1e-4, rtol=1e-4)
    assert '2 processes (gloo)' in output(two) and 'total batch 8 = 4 x 2' in output(two)
    assert 'torch sees no GPU' in output(two) or torch.cuda.is_available()
    if sync == 'hook':
        assert 'a single process' in output(one) and '1 batch normalisations are synchronised' in output(two)
    # rank 0 alone writes
    assert len(list(two.glob('*/vis_data/scalars.json'))) == 1


def test_one_rank_raising_ends_the_other(tmp_path):
    port = free_port()
    began = time.monotonic()
    pids = [start(tmp_path, ['+model.fail_rank=1'], rank, 2, port) for rank in range(2)]
    assert all(finish(pid) != 0 for pid in pids)
    assert time.monotonic() - began < 60
    assert 'fails on purpose' in output(tmp_path, 1)


def test_a_group_of_one_process(tmp_path, straight):
    assert run(tmp_path, world=1) == 0, output(tmp_path)
    assert_equal_training(weights(tmp_path), weights(straight))


@pytest.mark.parametrize('kind', ['OccAmpOptimWrapper', 'AmpOptimWrapper'])
def test_mixed_precision_on_the_cpu(tmp_path, straight, kind):
    assert run(tmp_path, [f'optim_wrapper.type={kind}']) == 0, output(tmp_path)
    ours, theirs = losses(tmp_path), losses(straight)
    assert ours != theirs
    assert ours[18] == pytest.approx(theirs[18], rel=0.1)
    for path in tmp_path.glob('epoch_3.pth'):
        path.unlink()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert run(tmp_path, [f'optim_wrapper.type={kind}', 'resume=auto']) == 0, output(tmp_path)


# ----------------------------------------------------------------------------------------------------------- loading
def test_load_from_takes_what_fits_and_says_so(tmp_path, straight):
    overrides = [f'load_from={straight / "epoch_3.pth"}', 'optim_wrapper.optimizer.lr=0', 'model.width=12']
    assert run(tmp_path, overrides) == 0, output(tmp_path)
    assert 'shape of first.weight: (8, 4) in the file, (12, 4) in the model' in output(tmp_path)
    assert torch.equal(weights(tmp_path)['state_dict']['head.bias'], weights(straight)['state_dict']['head.bias'])


def test_load_from_as_a_dict_is_reported_in_the_log_and_as_json(tmp_path, straight):
    load_from = dict(path=str(straight / 'epoch_3.pth'), take=['first', 'norm'], min_loaded=0.9)
    overrides = ['optim_wrapper.optimizer.lr=0']
    assert run(tmp_path, overrides, load_from=load_from) == 0, output(tmp_path)
    assert torch.equal(weights(tmp_path)['state_dict']['first.weight'], weights(straight)['state_dict']['first.weight'])
    report = json.loads((tmp_path / 'load_report.json').read_text())
    assert sorted(report['kept']) == ['ballast', 'head.bias', 'head.weight'] and report['share_of_parameters'] == 1
    assert len(report['files'][0]['sha256']) == 64 and 'epoch_3.pth: 6 of 9 tensors' in output(tmp_path)
    wrong = dict(load_from, key_map=['first -> front'])
    assert run(tmp_path / 'wrong', overrides, load_from=wrong) == 1
    assert 'only 33.3% of the wanted 48 parameters' in output(tmp_path / 'wrong')


@pytest.mark.parametrize('epoch', [0, 2])
def test_a_part_is_loaded_in_the_middle_of_a_recipe(tmp_path, straight, epoch):
    path = straight / 'epoch_3.pth'
    hooks = [dict(type='PartialLoadHook', path=str(path), prefix='first', to='first', epoch=epoch, report='r.json'),
             dict(type='EMAHook')]  # fmt: skip
    overrides = [*QUIET, 'optim_wrapper.optimizer.lr=0', 'default_hooks.checkpoint.max_keep_ckpts=-1']
    assert run(tmp_path, overrides, custom_hooks=hooks) == 0, output(tmp_path)
    theirs = weights(straight)['state_dict']['first.weight']
    for name in ('epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'):
        ours = weights(tmp_path, name)['ema_state_dict']['module.first.weight']  # mmengine keeps the raw ones there
        assert torch.equal(ours, theirs) == (int(name[6]) > epoch), name
    assert output(tmp_path).count('tensors of the model loaded') == 1
    assert json.loads((tmp_path / 'r.json').read_text())['loaded'] == ['first.weight']
    # a resumed training does not do it again, one that resumes before the epoch does
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    (tmp_path / 'epoch_3.pth').unlink()
    assert run(tmp_path, [*overrides, 'resume=auto'], custom_hooks=hooks) == 0
    assert output(tmp_path).count('tensors of the model loaded') == (2 if epoch == 2 else 1)


def test_a_part_is_loaded_where_there_was_nothing_to_resume(tmp_path, straight):
    hooks = [dict(type='PartialLoadHook', path=str(straight / 'epoch_3.pth'), prefix='first', to='first')]
    overrides = ['resume=auto', 'optim_wrapper.optimizer.lr=0', 'train_cfg.max_epochs=1']
    assert run(tmp_path, overrides, custom_hooks=hooks) == 0, output(tmp_path)
    theirs = weights(straight)['state_dict']['first.weight']
    assert torch.equal(weights(tmp_path, 'epoch_1.pth')['state_dict']['first.weight'], theirs)


def test_a_partial_load_that_gives_nothing_stops_the_training(tmp_path, straight):
    hooks = [dict(type='PartialLoadHook', path=str(straight / 'epoch_3.pth'), prefix='second', to='first')]
    assert run(tmp_path, custom_hooks=hooks) == 1
    assert "nothing in it is under prefix 'second'" in output(tmp_path)


def test_two_processes_load_the_same(tmp_path, straight):
    load_from = dict(path=str(straight / 'epoch_3.pth'), leave=['head'])
    fields = dict(load_from=load_from, custom_hooks=[])
    overrides = [*QUIET, 'optim_wrapper.optimizer.lr=0', 'data.samples_per_gpu=4']
    assert run(tmp_path, overrides, world=2, **fields) == 0, output(tmp_path)
    assert torch.equal(weights(tmp_path)['state_dict']['first.weight'], weights(straight)['state_dict']['first.weight'])
    assert 'tensors of the model loaded' in output(tmp_path) and 'of the model loaded' not in output(tmp_path, 1)


def test_resume_from_resumes(tmp_path, straight):
    assert run(tmp_path, [f'+resume_from={straight / "epoch_2.pth"}']) == 0, output(tmp_path)
    assert 'Resumed after 2 epochs' in output(tmp_path)
    assert_equal_training(weights(tmp_path), weights(straight))


@pytest.mark.parametrize(
    'overrides, reason',
    [
        ([], 'has already reached epoch 3 of 3'),
        (['model.type=OtherToyModel', 'train_cfg.max_epochs=4'], 'is of another model type (ToyModel'),
        (['model.width=8', '+model.ballast=3', 'train_cfg.max_epochs=4'], 'does not have the same tensors'),
    ],
)
def test_resume_from_takes_the_weights_alone(tmp_path, straight, overrides, reason):
    overrides = [*overrides, 'optim_wrapper.optimizer.lr=0', f'resume_from={straight / "epoch_3.pth"}']
    assert run(tmp_path, overrides) == 0, output(tmp_path)
    text = output(tmp_path)
    assert text.count(reason) == 1 and 'Epoch(train) [1][2/6]' in text and 'Resumed after' not in text
    final = sorted(tmp_path.glob('epoch_*.pth'))[-1]
    theirs = weights(straight)['state_dict']
    assert torch.equal(read_checkpoint(final)['state_dict']['first.weight'], theirs['first.weight'])


def test_resuming_another_model_is_one_clear_error(tmp_path, straight):
    assert run(tmp_path, ['model.width=12', f'resume={straight / "epoch_2.pth"}']) == 1
    assert 'cannot be resumed with this model' in output(tmp_path)


def test_weights_alone_cannot_be_resumed(tmp_path, straight):
    bare = tmp_path / 'bare.pth'
    write_checkpoint(weights(straight)['state_dict'], bare)
    assert run(tmp_path / 'a', [f'resume={bare}']) == 1
    assert 'use --load-from' in output(tmp_path / 'a')
    assert run(tmp_path / 'b', [f'load_from={bare}']) == 0, output(tmp_path / 'b')
    assert '9 of 9 tensors of the model loaded' in output(tmp_path / 'b')


def test_auto_resume_without_a_checkpoint_starts_afresh(tmp_path, straight):
    assert run(tmp_path, ['resume=auto']) == 0
    assert 'Nothing to resume' in output(tmp_path)
    assert_equal_training(weights(tmp_path), weights(straight))


# -------------------------------------------------------------------------------------------------------------- log
def test_the_log_and_metrics_csv(straight):
    line = next(line for line in output(straight).splitlines() if 'Epoch(train) [1][2/6]' in line)
    for part in ('lr: ', 'eta: ', 'time: ', 'data_time: ', 'host_memory: ', 'loss_fit: '):
        assert part in line
    assert 'training on cpu, 1 process' in output(straight) or torch.cuda.is_available()
    columns, rows = read_table(straight / 'metrics.csv')
    assert columns[:8] == ['phase', 'epoch', 'iter', 'time', 'data_time', 'host_memory_mb', 'gpu_memory_mb', 'lr']
    assert [row['phase'] for row in rows] == (['train'] * 3 + ['val']) * 3
    logged = losses(straight)
    assert all(float(row['host_memory_mb']) > 50 for row in rows)
    assert float(rows[-1]['error']) < float(rows[3]['error'])
    assert set(logged) == set(range(2, 19, 2))


def test_the_console_shows_the_training_and_the_log_file_the_config_too(straight):
    shown = output(straight)
    for noise in ('WARNING', 'Warning', 'deprecated', 'System environment', 'Config:', 'Initialization information'):
        assert noise not in shown, noise
    iterations = sum('Epoch(' in line for line in shown.splitlines())
    assert len(shown.splitlines()) - iterations < 20
    (log,) = straight.glob('*/*.log')
    written = log.read_text()
    assert str(log) in shown
    assert 'System environment' in written and "type='ToyModel'" in written and 'train_dataloader=dict(' in written
    assert 'Initialization information' not in written


def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path):
    assert run(tmp_path, ['default_hooks.checkpoint.max_keep_ckpts=1', '+default_hooks.checkpoint.save_best=error',
                          '+default_hooks.checkpoint.rule=less']) == 0, output(tmp_path)  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == [
        'best_error_epoch_3.pth',
        'epoch_3.pth',
        'latest.pth',
    ]
    assert (tmp_path / 'latest.pth').resolve() == (tmp_path / 'epoch_3.pth').resolve()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


_VARIABLE_ROWS = """
import torch
from occforge.engine.memory import bound_onednn_caches, host_memory
if {bound}:
    bound_onednn_caches(16)
torch.set_num_threads(1)
layers = [torch.nn.Linear(16, 32) for _ in range(8)]
for step in range(120):
    with torch.autocast('cpu', torch.bfloat16):
        for layer in layers:
            layer(torch.zeros(1000 + step, 16, requires_grad=True)).float().sum().backward()
    if step == 19:
        before = host_memory()
print(host_memory() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='memory as the kernel reports it on Linux')
def test_bfloat16_layers_with_ever_new_numbers_of_rows_do_not_fill_the_memory():
    environment = {key: value for key, value in os.environ.items() if not key.endswith('CACHE_CAPACITY')}
    grown = [
        float(subprocess.run(
            [sys.executable, '-c', _VARIABLE_ROWS.format(bound=bound)], env=environment, capture_output=True, text=True,
            check=True,
        ).stdout)
        for bound in (False, True)
    ]  # fmt: skip
    if grown[0] < 50:
        pytest.skip(f'this processor keeps {grown[0]:.0f} MiB without the bound')
    assert grown[1] < 0.4 * grown[0], grown
