"""Where metrics write: the run's folder."""

import os

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...evaluation.results import with_prefix, write_results
from ..partial_load import paths_of


@HOOKS.register_module()
class OutputFolderHook(Hook):
    """Writes ``results.json`` of an evaluation into the work dir: the ``document``s of all metrics that have one.

    Other metrics that have an attribute ``work_dir`` and no value in it get the run's.
    """

    priority = 'LOW'

    def __init__(self, filename: str = 'results.json'):
        self.filename = filename

    def before_val(self, runner) -> None:
        self._set(runner, runner.val_loop)

    def before_test(self, runner) -> None:
        self._set(runner, runner.test_loop)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._write(runner, runner.val_loop)

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._write(runner, runner.test_loop)

    @staticmethod
    def _set(runner, loop) -> None:
        for metric in loop.evaluator.metrics:
            if getattr(metric, 'work_dir', '') is None:
                metric.work_dir = runner.work_dir

    def _write(self, runner, loop) -> None:
        documents = documents_of(loop)
        if documents and is_main_process():
            path = os.path.join(runner.work_dir, self.filename)
            write_results(path, documents, **origin_of(runner))
            runner.logger.info(f'results written to {path}')


def documents_of(loop) -> list:
    """The documents of a loop's metrics after an evaluation."""
    metrics = loop.evaluator.metrics
    return [with_prefix(metric.document, metric.prefix) for metric in metrics if getattr(metric, 'document', None)]


def origin_of(runner) -> dict:
    """What results came from: the config file, and the checkpoint where one was given."""
    return dict(config=runner.cfg.filename, checkpoint=', '.join(paths_of(runner._load_from)) or None)
