"""``--out`` of tools/test.py: where a test's results and predictions go."""

import json
import math
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...errors import ConfigError
from ...fileio import atomic_write


@HOOKS.register_module()
class ResultFilesHook(Hook):
    """Send a test's results to ``out_file`` (JSON) and its predictions to ``dump_dir``.

    Metrics that have attributes of these names write themselves; where none writes results, the hook writes the
    metrics' numbers.

    Raises:
        ConfigError: predictions are wanted and no metric can write them.
    """

    priority = 'VERY_HIGH'  # before the metric is told anything

    def __init__(self, out_file: str | None = None, dump_dir: str | None = None):
        self.out_file = out_file
        self.dump_dir = dump_dir
        self._written_by_metric = False

    def before_test(self, runner) -> None:
        metrics = runner.test_loop.evaluator.metrics
        if self.out_file is not None:
            for metric in metrics:
                if hasattr(metric, 'out_file'):
                    metric.out_file = self.out_file
                    self._written_by_metric = True
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
        if self.out_file is None or self._written_by_metric or not is_main_process():
            return
        numbers = {
            name: float(value) if math.isfinite(float(value)) else None
            for name, value in (metrics or {}).items()
            if isinstance(value, (int, float)) or getattr(value, 'size', None) == 1
        }
        with atomic_write(Path(self.out_file), 'w', encoding='utf-8') as file:
            json.dump(dict(config=runner.cfg.filename, checkpoint=runner._load_from, metrics=numbers), file, indent=1)
            file.write('\n')
        runner.logger.info(f'results written to {self.out_file}')
