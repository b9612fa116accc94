"""Saving checkpoints so that a loadable one exists at every moment."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ...fileio import atomic_write


class _DeferredRemovals:
    """A file backend whose removals wait until :meth:`flush`."""

    def __init__(self, backend):
        self._backend = backend
        self._waiting = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def remove(self, path):
        self._waiting.append((self._backend.remove, path))

    def rmtree(self, path):
        self._waiting.append((self._backend.rmtree, path))

    def flush(self):
        for remove, path in self._waiting:
            remove(path)
        self._waiting = []


@HOOKS.register_module()
class OccCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` (same arguments) in an order that survives a kill at any moment.

    The new file is written, then ``last_checkpoint`` is pointed at it (atomically), and only then old ones are
    removed; mmengine removes first.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self.file_backend = _DeferredRemovals(self.file_backend)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        if self.max_keep_ckpts > 0:
            if not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    old = self.file_backend.join_path(
                        self.out_dir, self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                    )
                    if is_main_process() and self.file_backend.isfile(old):
                        self.file_backend.remove(old)
                self.keep_ckpt_ids.append(step)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            with atomic_write(osp.join(runner.work_dir, 'last_checkpoint'), 'w', encoding='utf-8') as file:
                file.write(self.last_ckpt)
            self.file_backend.flush()

    def _save_best_checkpoint(self, runner, metrics) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.flush()
