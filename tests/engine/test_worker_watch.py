"""A data worker that is killed: the error comes soon and names the sample."""

import os
import signal
import time

import pytest
import torch
from occforge.engine.worker_watch import dead_workers_named, watch_workers
from occforge.errors import DataError
from torch.utils.data import DataLoader
from toy import ToyDataset
from training import output, run


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
@pytest.mark.parametrize('persistent', [False, True])
def test_a_training_whose_worker_is_killed(tmp_path, loader, persistent):
    began = time.monotonic()
    overrides = [f'{loader}.num_workers=2', f'{loader}.persistent_workers={persistent}', f'+{loader}.dataset.deadly=7']
    assert run(tmp_path, overrides) != 0
    assert time.monotonic() - began < 30
    said = output(tmp_path)
    assert 'DataError: a data worker (process ' in said and 'memory ran out' in said
    assert ') died at sample 7 of ToyDataset: DataLoader worker' in said


class _Described(ToyDataset):
    def get_data_info(self, index):
        return dict(token=f't{index}')


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_the_last_sample_of_a_worker_that_is_killed_from_outside(context):
    loader = DataLoader(_Described(), batch_size=2, num_workers=2, multiprocessing_context=context, prefetch_factor=1)
    watch_workers(loader)
    with pytest.raises(DataError, match=r'died at sample \d+ \(t\d+\) of _Described'):
        with dead_workers_named(lambda: [loader]):
            for _ in loader:
                process = int(loader.worker_notes[0, 0])  # that of the first batch: it has started
                assert process > 1
                os.kill(process, signal.SIGKILL)
                time.sleep(0.2)


def test_samples_are_what_they_were():
    dataset = ToyDataset()
    loader = DataLoader(dataset, batch_size=4, num_workers=2, worker_init_fn=lambda worker: torch.manual_seed(worker))
    watch_workers(loader)
    found = torch.cat([batch['inputs'] for batch in loader])
    assert torch.equal(found, dataset.x) and type(dataset) is ToyDataset
    assert sorted(loader.worker_notes[:, 1].tolist()) == [19, 23]
    alone = DataLoader(dataset)
    watch_workers(alone)
    assert not hasattr(alone, 'worker_notes') and alone.worker_init_fn is None


def test_other_errors_pass():
    for words in ('something else', 'DataLoader worker (pid 1) is killed by signal: Killed.'):
        error = RuntimeError(words)
        with pytest.raises(RuntimeError, match=words[:12]) as caught, dead_workers_named(list):
            raise error
        assert caught.value is error
