"""Saving checkpoints so that a loadable one exists at every moment."""

import contextlib
import os
import os.path as osp
from collections import deque

from mmengine.dist import is_main_process
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ...errors import ConfigError
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
    """mmengine's ``CheckpointHook`` (same arguments but ``file_client_args``) in an order that survives a kill at any
    moment.

    The new file is written, then ``last_checkpoint`` and ``latest.pth`` are pointed at it (atomically), and only then
    old ones are removed; mmengine removes first.
    """

    def before_train(self, runner) -> None:
        # Not mmengine's: that opens a FileClient, deprecated, which nothing here uses, and says so in two warnings.
        if self.file_client_args is not None:
            raise ConfigError('default_hooks.checkpoint.file_client_args is not supported: use backend_args')
        backend = get_file_backend(self.out_dir or runner.work_dir, backend_args=self.backend_args)
        if self.out_dir is None:
            self.out_dir = runner.work_dir
        elif self.out_dir != runner.work_dir:
            self.out_dir = backend.join_path(self.out_dir, osp.basename(runner.work_dir.rstrip(osp.sep)))
        self.file_backend = _DeferredRemovals(backend)
        runner.logger.info(f'Checkpoints will be saved to {self.out_dir}')
        resumed = runner.message_hub.runtime_info
        if self.save_best is not None:
            if len(self.key_indicators) == 1:
                self.best_ckpt_path = resumed.get('best_ckpt')
            else:
                for name in self.key_indicators:
                    self.best_ckpt_path_dict[name] = resumed.get(f'best_ckpt_{name}')
        if self.max_keep_ckpts > 0:
            kept = list(resumed.get('keep_ckpt_ids', ()))
            self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts :], self.max_keep_ckpts)
            for step in kept[: -self.max_keep_ckpts]:  # the config now keeps fewer
                path = backend.join_path(self.out_dir, self.filename_tmpl.format(step))
                if is_main_process() and backend.isfile(path):
                    backend.remove(path)

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
            self._point_latest()
            self.file_backend.flush()

    def _point_latest(self) -> None:
        """``latest.pth``, as older trainers have it: a link to the newest checkpoint, never to none."""
        if not osp.isfile(self.last_ckpt):  # not on this machine's disk
            return
        folder, name = osp.split(self.last_ckpt)
        temporary = osp.join(folder, f'.latest.pth.{os.getpid()}.tmp')
        with contextlib.suppress(OSError):  # some file systems have no links; last_checkpoint says the same
            os.symlink(name, temporary)
            os.replace(temporary, osp.join(folder, 'latest.pth'))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.flush()
