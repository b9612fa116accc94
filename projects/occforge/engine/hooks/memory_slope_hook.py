"""Memory that grows while training is seen before the machine runs out of it."""

from collections import deque

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..memory import gpu_allocated, host_memory, resident_memory


def slope(steps, values) -> tuple[float, float]:
    """Least-squares slope of ``values`` per step, and its standard error."""
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    centred = steps - steps.mean()
    spread = (centred**2).sum()
    rise = (centred * (values - values.mean())).sum() / spread
    residual = values - values.mean() - rise * centred
    return float(rise), float(np.sqrt((residual**2).sum() / max(len(values) - 2, 1) / spread))


@HOOKS.register_module()
class MemorySlopeHook(Hook):
    """Log how fast the memory of a training grows, and warn where it does not level off.

    Three figures are followed over the last ``window`` measurements: ``host`` (this process and its workers, pages they
    share counted once, PSS), ``process`` (this process alone, RSS) and ``gpu`` (tensors after the iteration). Their
    slopes, in MiB per 1000 iterations, are scalars of the log (``host_memory_slope``, ...). A warning says which one
    grows by more than ``warn_above`` with a slope of at least four standard errors; after it, the next one comes when
    the figure has grown by half again.

    Args:
        interval: iterations between two measurements.
        window: measurements that a slope is taken over.
        warm_up: iterations that are not looked at; caches fill in them.
        warn_above: MiB per 1000 iterations.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 50, window: int = 40, warm_up: int = 100, warn_above: float = 50.0):
        self.interval, self.window, self.warm_up, self.warn_above = interval, window, warm_up, warn_above
        self._history: dict[str, deque] = {}
        self._warned: dict[str, float] = {}

    def measure(self) -> dict[str, float]:
        """MiB by name."""
        return dict(host=host_memory(), process=resident_memory(), gpu=gpu_allocated())

    def before_train(self, runner) -> None:
        self.restart(runner)

    def restart(self, runner) -> None:
        """Forget what was measured and warm up again: what a phase of the training needs more is no leak."""
        self._start = runner.iter
        self._history.clear()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        step = runner.iter + 1
        if step - self._start <= self.warm_up or step % self.interval or not is_main_process():
            return
        for name, value in self.measure().items():
            history = self._history.setdefault(name, deque(maxlen=self.window))
            history.append((step, value))
            if len(history) < max(8, self.window // 4):
                continue
            rise, error = (1000 * each for each in slope(*zip(*history)))
            runner.message_hub.update_scalar(f'train/{name}_memory_slope', rise)
            if rise > self.warn_above and rise > 4 * error and value > 1.5 * self._warned.get(name, 0.0):
                self._warned[name] = value
                runner.logger.warning(
                    f'memory grows: {name} {history[0][1]:.0f} -> {value:.0f} MiB between iterations {history[0][0]} '
                    f'and {step}, {rise:.0f} +- {error:.0f} MiB per 1000 iterations. Usual causes: results kept with '
                    'their graph (detach them), lists that grow, caches keyed by shapes that never come again'
                )
