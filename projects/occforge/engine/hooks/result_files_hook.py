"""``--out`` of tools/test.py: where a test's results and predictions go."""

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...errors import ConfigError
from ...evaluation.results import finite_or_none, write_results
from .output_folder import documents_of, origin_of


@HOOKS.register_module()
class ResultFilesHook(Hook):
    """Send a test's results to ``out_file`` (JSON) and its predictions to ``dump_dir``.

    The file has the form of ``results.json`` (OutputFolderHook); where no metric has a ``document``, it holds the
    metrics' numbers alone. Predictions are written by metrics with an attribute ``dump_dir``.

    Raises:
        ConfigError: predictions are wanted and no metric can write them.
    """

    priority = 'VERY_HIGH'  # before the metric is told anything

    def __init__(self, out_file: str | None = None, dump_dir: str | None = None):
        self.out_file = out_file
        self.dump_dir = dump_dir

    def before_test(self, runner) -> None:
        metrics = runner.test_loop.evaluator.metrics
        if self.dump_dir is not None:
            able = [metric for metric in metrics if hasattr(metric, 'dump_dir')]
            for metric in able:
                metric.dump_dir = self.dump_dir
            if not able:
                names = ', '.join(type(metric).__name__ for metric in metrics)
                raise ConfigError(
                    f'--out {self.dump_dir}: {names} cannot write predictions; use a name ending in .json'
                )

    def after_test_epoch(self, runner, metrics=None) -> None:
        if self.out_file is None or not is_main_process():
            return
        documents = documents_of(runner.test_loop)
        if not documents:
            documents = [dict(metrics=dict(_numbers(metrics or {})))]
        write_results(self.out_file, documents, **origin_of(runner))
        runner.logger.info(f'results written to {self.out_file}')


def _numbers(metrics: dict):
    for name, value in metrics.items():
        if isinstance(value, (int, float)) or getattr(value, 'size', None) == 1:
            yield name, finite_or_none(float(value))
