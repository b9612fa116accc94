"""Synchronised batch normalisation from a given epoch on."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ..dist import rank_and_world
from ..sync_batch_norm import convert_sync_batchnorm, count_batch_norms


@HOOKS.register_module()
class SyncbnControlHook(Hook):
    """Make every batch normalisation synchronised from epoch ``syncbn_start_epoch`` (counted from 0) on.

    With a single process there is nothing to synchronise: one log line says so and the layers stay as they are, so
    the same config trains on one GPU. Works on CPU (gloo) as on GPUs. The optimizer is not disturbed.
    """

    def __init__(self, syncbn_start_epoch: int = 0):
        self.syncbn_start_epoch = syncbn_start_epoch
        self._done = False

    def before_train_epoch(self, runner) -> None:
        if self._done or runner.epoch < self.syncbn_start_epoch:
            return
        self._done = True
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if rank_and_world()[1] == 1:
            runner.logger.info('SyncbnControlHook: a single process, batch normalisation stays unsynchronised')
            return
        convert_sync_batchnorm(model)
        runner.logger.info(
            f'SyncbnControlHook: {count_batch_norms(model)} batch normalisations are synchronised over '
            f'{rank_and_world()[1]} processes from epoch {runner.epoch + 1} on'
        )
