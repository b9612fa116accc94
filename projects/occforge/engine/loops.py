"""Training loops that continue exactly where a checkpoint was written, also in the middle of an epoch."""

import itertools
from collections.abc import Callable, Iterator

from mmengine.dataset import InfiniteSampler
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import BatchSampler, DataLoader, Sampler

from .dist import reduce_mean_values


class _SkippingSampler(Sampler):
    """The indices of ``sampler`` after its first ``count``; nothing is loaded for those."""

    def __init__(self, sampler, count: int):
        self.sampler = sampler
        self.count = count

    def __iter__(self):
        return itertools.islice(iter(self.sampler), self.count, None)

    def __len__(self):
        return max(0, len(self.sampler) - self.count)


def batches_after(dataloader: DataLoader, skip: int, started: Callable[[], None] = lambda: None) -> Iterator:
    """One pass over ``dataloader`` without its first ``skip`` batches.

    The skipped samples are not loaded where torch's ``BatchSampler`` forms the batches, or one that has
    ``skip_batches`` (with any other they are loaded and dropped). ``started`` is called when the dataloader has drawn
    its workers' seed and before a batch is fetched.
    """
    batch_sampler = dataloader.batch_sampler
    if skip and hasattr(batch_sampler, 'skip_batches'):
        batch_sampler.skip_batches(skip)
        skip = 0
    if skip == 0 or type(batch_sampler) is not BatchSampler:
        iterator = itertools.islice(iter(dataloader), skip, None)
        started()
        yield from iterator
        return
    sampler = batch_sampler.sampler
    batch_sampler.sampler = _SkippingSampler(sampler, skip * batch_sampler.batch_size)
    try:
        iterator = iter(dataloader)
        started()
        first = list(itertools.islice(iterator, 1))  # only now the batch sampler takes hold of its sampler
    finally:
        batch_sampler.sampler = sampler
    yield from first
    yield from iterator


def _set_epoch(dataloader: DataLoader, epoch: int) -> None:
    for sampler in (dataloader.sampler, getattr(dataloader.batch_sampler, 'sampler', None)):
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return


class _Step:
    """One training step: the losses that hooks see are the means over all processes."""

    def run_iter(self, idx, data_batch) -> None:
        runner = self.runner
        runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        outputs = reduce_mean_values(outputs)
        self._batches_done = idx + 1  # before the hooks: one of them may save
        runner.call_hook('after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _validate(self) -> None:
        # drawing no number from the training's generators: the weights do not depend on how often one validates,
        # and a training that is resumed at the end of an epoch need not validate first
        with self.runner.preserved_rng():
            self.runner.val_loop.run()


@LOOPS.register_module()
class OccEpochTrainLoop(_Step, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` (same arguments) that resumes at the batch after the last trained one."""

    _batches_done = 0

    def position(self, saved_epoch: int) -> dict:
        """Where training stands for a checkpoint whose ``meta`` says ``saved_epoch`` finished epochs."""
        batches = 0 if saved_epoch > self._epoch else self._batches_done
        return dict(batches_done=batches, batches_per_epoch=len(self.dataloader))

    def resume_at(self, epoch: int, iteration: int, position: dict | None) -> str | None:
        """Continue after a checkpoint; returns a remark where the epoch has another length now."""
        length = len(self.dataloader)
        self._epoch, self._iter = epoch, iteration
        if position is None:  # of another program: only ends of epochs are known
            return None
        self._batches_done = position['batches_done']
        if position['batches_per_epoch'] == length:
            return None
        self._batches_done = round(position['batches_done'] / max(position['batches_per_epoch'], 1) * length)
        self._iter = epoch * length + self._batches_done
        return (
            f'the checkpoint was written with {position["batches_per_epoch"]} iterations an epoch, there are {length} '
            f'now: counting goes on at epoch {epoch + 1}, iteration {self._iter}; schedules by iteration shift'
        )

    def run(self):
        self.runner.call_hook('before_train')
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
            if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
                self._validate()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        runner = self.runner
        runner.begin_epoch_rng()
        runner.call_hook('before_train_epoch')
        runner.model.train()
        runner.trainability.hold()
        batches = batches_after(self.dataloader, self._batches_done, runner.enter_epoch_rng)
        for idx, data_batch in enumerate(batches, self._batches_done):
            self.run_iter(idx, data_batch)
        runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._batches_done = 0


@LOOPS.register_module()
class OccIterTrainLoop(_Step, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` (same arguments) that resumes without loading what was trained already."""

    def __init__(
        self, runner, dataloader, max_iters: int, val_begin: int = 1, val_interval: int = 1000, dynamic_intervals=None
    ):
        # not the parent's: it starts the workers here, before a resumed training knows where it stands
        BaseLoop.__init__(self, runner, dataloader)
        if int(max_iters) != max_iters:
            raise ValueError(f'max_iters: a whole number is expected, found {max_iters}')
        self._max_iters = int(max_iters)
        self._max_epochs = 1
        self._epoch = 0
        self._iter = 0
        self._batches_done = 0
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        self.runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)

    def position(self, saved_epoch: int) -> dict:
        return dict(batches_done=self._batches_done, batches_per_epoch=len(self.dataloader))

    def resume_at(self, epoch: int, iteration: int, position: dict | None) -> str | None:
        self._epoch, self._iter = epoch, iteration
        return None

    def _batches(self) -> Iterator:
        passes, skip = divmod(self._iter, len(self.dataloader))
        if isinstance(self.dataloader.sampler, InfiniteSampler):
            passes, skip = 0, self._iter
        for number in itertools.count(passes):
            _set_epoch(self.dataloader, number)
            yield from batches_after(self.dataloader, skip, self.runner.enter_epoch_rng)
            skip = 0

    def run(self):
        runner = self.runner
        runner.call_hook('before_train')
        runner.begin_epoch_rng()
        runner.call_hook('before_train_epoch')
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            runner.trainability.hold()
            self.run_iter(self._iter, next(batches))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if runner.val_loop is not None and self._iter >= self.val_begin and due:
                self._validate()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model
