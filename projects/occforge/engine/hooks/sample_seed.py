"""Carries the run's seed and the epoch to the datasets, whose augmentation is seeded by sample."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop


def inner_datasets(dataset):
    """The datasets inside mmengine's wrappers (concatenated, repeated, balanced), depth first."""
    inside = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    return [leaf for part in inside for leaf in inner_datasets(part)] if inside else [dataset]


@HOOKS.register_module()
class SampleSeedHook(Hook):
    """Calls ``set_seed(runner.seed)`` and ``set_epoch(epoch)`` of every dataset that has them.

    Then what a sample's transforms draw depends on (seed, epoch, index) alone: not on the worker, the process or the
    number of them, and a resumed run draws what the uninterrupted one would have drawn. Loops that count iterations
    take the epoch from the sampler's ``set_epoch``; use a sampler that ends (mmengine's DefaultSampler) with them.

    After each epoch it also reports samples that tolerant datasets have skipped.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        self._seed(runner, runner.train_dataloader)
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._follow_sampler(runner.train_dataloader)

    def before_train_epoch(self, runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._set_epoch(runner.train_dataloader, runner.epoch)

    def before_val(self, runner) -> None:
        self._seed(runner, runner.val_dataloader)

    def before_test(self, runner) -> None:
        self._seed(runner, runner.test_dataloader)

    def after_train_epoch(self, runner) -> None:
        self._report(runner.train_dataloader, 'training')

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._report(runner.val_dataloader, 'validation')

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._report(runner.test_dataloader, 'testing')

    @staticmethod
    def _seed(runner, dataloader) -> None:
        for dataset in inner_datasets(dataloader.dataset):
            if hasattr(dataset, 'set_seed') and runner.seed is not None:
                dataset.set_seed(runner.seed)

    @staticmethod
    def _set_epoch(dataloader, epoch: int) -> None:
        for dataset in inner_datasets(dataloader.dataset):
            if hasattr(dataset, 'set_epoch'):
                dataset.set_epoch(epoch)

    def _follow_sampler(self, dataloader) -> None:
        sampler_set_epoch = getattr(dataloader.sampler, 'set_epoch', None)
        if sampler_set_epoch is None:
            return

        def set_epoch(epoch):
            # called before the workers are asked for the new epoch's first sample
            sampler_set_epoch(epoch)
            self._set_epoch(dataloader, epoch)

        dataloader.sampler.set_epoch = set_epoch

    @staticmethod
    def _report(dataloader, phase: str) -> None:
        for dataset in inner_datasets(dataloader.dataset):
            skipped = getattr(dataset, 'skipped', None)
            if skipped:
                print_log(
                    f'{phase}: {len(skipped)} of {len(dataset)} samples of {dataset.ann_file} were bad and have been '
                    'skipped (first indices: ' + ', '.join(map(str, skipped[:10])) + ')',
                    logger='current',
                    level=30,
                )
