"""Killed and resumed trainings end bit for bit as uninterrupted ones."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from occforge.engine import read_checkpoint, write_checkpoint
from occforge.engine.checkpoint import latest_checkpoint
from occforge.engine.hooks.metrics_csv_hook import read_table
from occforge.engine.temporal import load_temporal, remove_orphans, temporal_content, temporal_path
from occforge.fileio import atomic_write
from toy import ToyModel
from training import (
    assert_equal_training,
    copy_folder,
    finish,
    kill_after,
    output,
    run,
    start,
    weights,
)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp('straight')
    assert run(folder) == 0, output(folder)
    return folder


def test_two_runs_are_equal_and_validation_draws_nothing(straight, tmp_path):
    assert run(tmp_path, ['train_cfg.val_interval=2']) == 0
    assert_equal_training(weights(tmp_path), weights(straight))


@pytest.mark.parametrize('epoch', [1, 2])
def test_resume_at_the_end_of_an_epoch(straight, tmp_path, epoch):
    folder = tmp_path / 'again'
    copy_folder(straight, folder)
    for later in range(epoch + 1, 4):
        (folder / f'epoch_{later}.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / f'epoch_{epoch}.pth'))
    assert run(folder, ['resume=auto']) == 0, output(folder)
    assert_equal_training(weights(folder), weights(straight))
    columns, rows = read_table(folder / 'metrics.csv')
    assert [row['iter'] for row in rows if row['phase'] == 'train'] == [str(i) for i in range(2, 19, 2)]
    assert {'time', 'data_time', 'host_memory_mb', 'lr', 'loss_fit', 'error'} <= set(columns)


BY_ITER = [
    'default_hooks.checkpoint.by_epoch=False',
    'default_hooks.checkpoint.interval=4',
    'default_hooks.checkpoint.max_keep_ckpts=-1',
]


@pytest.mark.parametrize('workers', [0, 2])
def test_resume_in_the_middle_of_an_epoch(tmp_path, workers):
    # with workers, noise drawn from a worker's own global generators has no state to save: transforms draw from
    # the sample's seed instead
    overrides = [*BY_ITER, f'data.workers_per_gpu={workers}'] + ['train_dataloader.dataset.noise=0'] * bool(workers)
    assert run(tmp_path / 'straight', overrides) == 0, output(tmp_path / 'straight')
    folder = tmp_path / 'again'
    copy_folder(tmp_path / 'straight', folder)
    for name in ('iter_12.pth', 'iter_16.pth', 'iter_18.pth'):
        (folder / name).unlink(missing_ok=True)
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_8.pth'))
    assert run(folder, [*overrides, 'resume=auto']) == 0, output(folder)
    assert_equal_training(weights(folder, 'iter_18.pth'), weights(tmp_path / 'straight', 'iter_18.pth'))


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_resume_of_a_training_that_counts_iterations_with_ema(tmp_path, sampler):
    overrides = [*BY_ITER, f'train_dataloader.sampler.type={sampler}']
    extra = dict(
        train_cfg=dict(by_epoch=False, max_iters=18, val_interval=5),
        log_processor=dict(type='OccLogProcessor', by_epoch=False),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=18)],
        custom_hooks=[dict(type='EMAHook')],
    )
    assert run(tmp_path / 'straight', overrides, **extra) == 0, output(tmp_path / 'straight')
    folder = tmp_path / 'again'
    copy_folder(tmp_path / 'straight', folder)
    (folder / 'iter_18.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_8.pth'))
    assert run(folder, [*overrides, 'resume=auto'], **extra) == 0, output(folder)
    final = weights(folder, 'iter_18.pth')
    assert 'ema_state_dict' in final
    assert_equal_training(final, weights(tmp_path / 'straight', 'iter_18.pth'))


def test_two_processes_resume_equal(tmp_path):
    assert run(tmp_path / 'straight', ['sync_bn=True'], world=2) == 0, output(tmp_path / 'straight')
    folder = tmp_path / 'again'
    copy_folder(tmp_path / 'straight', folder)
    (folder / 'epoch_3.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    assert run(folder, ['sync_bn=True', 'resume=auto'], world=2) == 0, output(folder)
    assert_equal_training(weights(folder), weights(tmp_path / 'straight'))


def kill_and_resume(folder, kills, seed, overrides=()):
    """Start, kill at a random moment, resume, ... until ``kills`` have hit; then run to the end."""
    generator = random.Random(seed)
    hits = 0
    while hits < kills:
        hits += kill_after(start(folder, [*overrides, 'resume=auto']), generator.uniform(0.3, 1.6))
        if (folder / 'epoch_3.pth').exists():
            for path in folder.glob('epoch_*.pth'):
                path.unlink()
    assert finish(start(folder, [*overrides, 'resume=auto'])) == 0, output(folder)


@MODELS.register_module()
class RememberingToyModel(ToyModel):
    """Answers from its input and from what it has seen before, which is in no buffer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = torch.zeros(4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs
        data_samples = torch.stack(data_samples) if isinstance(data_samples, (list, tuple)) else data_samples
        self.seen = 0.9 * self.seen + 0.1 * inputs.mean(0)
        return super().forward(inputs + self.seen, data_samples, mode)

    def temporal_state(self):
        return dict(seen=self.seen)

    def load_temporal_state(self, state):
        self.seen = state['seen']


@pytest.mark.parametrize('world', [None, 2])
def test_what_a_model_remembers_is_resumed(tmp_path, world):
    overrides = ['model.type=RememberingToyModel', 'sync_bn=True', 'train_cfg.val_interval=9']
    assert run(tmp_path / 'straight', overrides, world=world) == 0, output(tmp_path / 'straight')
    saved = [read_checkpoint(path)['states']['']['seen'] for path in sorted(tmp_path.glob('*/epoch_2.pth.temporal*'))]
    assert len(saved) == (world or 1) and all(seen.abs().sum() > 0 for seen in saved)
    assert world is None or not saved[0].equal(saved[1])  # each process has its own
    resume = f'resume={tmp_path / "straight" / "epoch_2.pth"}'
    assert run(tmp_path / 'again', [*overrides, resume], world=world) == 0, output(tmp_path / 'again')
    assert_equal_training(weights(tmp_path / 'again'), weights(tmp_path / 'straight'))


def test_memory_that_does_not_belong_to_the_checkpoint_is_not_taken(tmp_path):
    model, checkpoint = RememberingToyModel(), str(tmp_path / 'iter_2.pth')
    assert load_temporal(model, checkpoint, 2) == f'{checkpoint}.temporal_rank0 does not exist'
    content = temporal_content(model, 2)
    content['states']['']['seen'] = torch.ones(4)
    write_checkpoint(content, temporal_path(checkpoint))
    assert load_temporal(model, checkpoint, 2) is None and model.seen.equal(torch.ones(4))
    model.seen = torch.zeros(4)
    assert 'is of iteration 2, the checkpoint of 3' in load_temporal(model, checkpoint, 3)
    write_checkpoint({**content, 'world_size': 2}, temporal_path(checkpoint))
    assert 'is of 2 processes, there are 1' in load_temporal(model, checkpoint, 2)
    write_checkpoint({**content, 'states': dict(other={})}, temporal_path(checkpoint))
    assert 'other modules' in load_temporal(model, checkpoint, 2)
    Path(temporal_path(checkpoint)).write_bytes(b'half')
    assert 'damaged' in load_temporal(model, checkpoint, 2)
    assert model.seen.equal(torch.zeros(4))
    assert temporal_content(ToyModel(), 2) is None and load_temporal(ToyModel(), checkpoint, 2) is None
    # files of checkpoints that are gone go too
    (tmp_path / 'iter_4.pth').touch()
    Path(temporal_path(str(tmp_path / 'iter_4.pth'))).touch()
    remove_orphans(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'iter_4.pth', 'iter_4.pth.temporal_rank0'}


BALLAST = '+model.ballast=2000000'  # 8 MB a file, so that many kills hit the saving


def test_kills_at_random_moments(tmp_path):
    overrides = [BALLAST, '+model.delay=0.03']
    assert run(tmp_path / 'straight', overrides) == 0, output(tmp_path / 'straight')
    kill_and_resume(tmp_path / 'killed', 12, 0, overrides)
    assert_equal_training(weights(tmp_path / 'killed'), weights(tmp_path / 'straight'))
    assert not list(Path(tmp_path / 'killed').glob('.*.tmp'))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(5))
def test_fifty_kills_at_random_moments(tmp_path, seed):
    overrides = [BALLAST, '+model.delay=0.03']
    assert run(tmp_path / 'straight', overrides) == 0, output(tmp_path / 'straight')
    kill_and_resume(tmp_path / 'killed', 10, seed, overrides)
    assert_equal_training(weights(tmp_path / 'killed'), weights(tmp_path / 'straight'))


def _save_for_ever(folder):
    torch.manual_seed(0)
    for number in itertools.count(1):
        path = folder / f'iter_{number}.pth'
        write_checkpoint(dict(state_dict=dict(x=torch.full((1_000_000,), float(number))), meta=dict(iter=number)), path)
        with atomic_write(folder / 'last_checkpoint', 'w') as file:
            file.write(str(path))
        (folder / f'iter_{number - 1}.pth').unlink(missing_ok=True)


@pytest.mark.parametrize('count', [12, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_while_saving_leave_a_loadable_newest_checkpoint(tmp_path, count):
    generator = random.Random(count)
    for kill in range(count):
        folder = tmp_path / str(kill)
        folder.mkdir()
        write_checkpoint(dict(state_dict=dict(x=torch.zeros(1))), folder / 'iter_0.pth')
        (folder / 'last_checkpoint').write_text(str(folder / 'iter_0.pth'))
        pid = os.fork()
        if pid == 0:
            _save_for_ever(folder)
        time.sleep(generator.uniform(0.01, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        read_checkpoint((folder / 'last_checkpoint').read_text())
        complaints = []
        assert latest_checkpoint(folder, complaints.append) and not complaints


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(straight, tmp_path):
    folder = tmp_path / 'again'
    copy_folder(straight, folder)
    (folder / 'epoch_3.pth').write_bytes((folder / 'epoch_3.pth').read_bytes()[:5000])
    assert run(folder, ['resume=auto']) == 0, output(folder)
    assert 'epoch_3.pth: damaged' in output(folder) and 'newest checkpoint' in output(folder)
    assert 'epoch_2.pth' in output(folder)
    assert_equal_training(weights(folder), weights(straight))


def test_another_number_of_processes_goes_on_with_a_warning(straight, tmp_path):
    folder = tmp_path / 'again'
    copy_folder(straight, folder)
    (folder / 'epoch_3.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    assert run(folder, ['resume=auto'], world=2) == 0, output(folder)
    assert '6 iterations an epoch, there are 3' in output(folder) and 'written by 1 processes' in output(folder)
    assert weights(folder)['meta']['iter'] == 9


def test_hooks_of_every_process_may_keep_files_beside_a_checkpoint(tmp_path):
    hooks = dict(custom_hooks=[dict(type='ToyRankStateHook')])
    assert run(tmp_path, world=2, **hooks) == 0, output(tmp_path)
    names = {path.name for path in tmp_path.glob('epoch_3.pth*')}
    assert names == {'epoch_3.pth', 'epoch_3.pth.rank0', 'epoch_3.pth.rank1'}
    overrides = [f'resume={tmp_path / "epoch_2.pth"}']
    (tmp_path / 'epoch_3.pth').unlink()
    assert run(tmp_path, overrides, world=2, **hooks) == 0, output(tmp_path)
    for rank in range(2):
        assert 'rank state of iteration' in output(tmp_path, rank)
