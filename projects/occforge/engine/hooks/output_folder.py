"""Gives metrics that write files the run's folder."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class OutputFolderHook(Hook):
    """Sets ``work_dir`` of every metric that has this attribute and no value in it."""

    def before_val(self, runner) -> None:
        self._set(runner, runner.val_loop)

    def before_test(self, runner) -> None:
        self._set(runner, runner.test_loop)

    @staticmethod
    def _set(runner, loop) -> None:
        for metric in loop.evaluator.metrics:
            if getattr(metric, 'work_dir', '') is None:
                metric.work_dir = runner.work_dir
