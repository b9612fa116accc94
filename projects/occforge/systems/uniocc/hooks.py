"""The mean teacher's update."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...engine.hooks.ema_hook import ema_decay
from ...errors import ConfigError


@HOOKS.register_module(name=['MeanTeacherHook', 'MeanTeacher'])
class MeanTeacherHook(Hook):
    """Averages the student into the teacher before each training iteration.

    Iteration k (from 0) keeps the share min(momentum, 1 - (warm_up + 1) / (k + 1 + warm_up)) of the teacher: 0 at first
    (the teacher is the student), ``momentum`` after long training. Depends on the iteration alone, so a resumed
    training goes on as it was. Source: Tarvainen and Valpola, "Mean Teachers Are Better Role Models", NeurIPS 2017; the
    warm-up as in RenderOcc's code.

    Args:
        momentum: final share.
        interval: iterations between two updates.
        warm_up: see above.
        decay_intervals, decay_factor: at each of these iterations (1 - share) is multiplied by the factor, once.
    """

    def __init__(
        self, momentum: float = 0.999, interval: int = 1, warm_up: int = 100, decay_intervals=None, decay_factor=0.1
    ):
        if not 0 <= momentum < 1 or interval < 1 or warm_up < 0:
            raise ConfigError(f'MeanTeacherHook: momentum={momentum}, interval={interval}, warm_up={warm_up}')
        self.momentum, self.interval, self.warm_up = momentum, interval, warm_up
        self.decay_intervals, self.decay_factor = tuple(decay_intervals or ()), decay_factor

    def momentum_at(self, iteration: int) -> float:
        """Share of the teacher that iteration ``iteration`` (from 0) keeps."""
        share = ema_decay(iteration + 1, self.momentum, 'inverse', self.warm_up)
        passed = sum(iteration >= milestone for milestone in self.decay_intervals)
        return 1 - (1 - share) * self.decay_factor**passed

    def before_train(self, runner) -> None:
        model = self._model(runner)
        if not hasattr(model, 'update_teacher'):
            raise ConfigError(f'MeanTeacherHook is for models with a teacher, the model is {type(model).__name__}')
        if runner.iter == 0:
            model.start_teacher()  # after everything was loaded

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter % self.interval == 0:
            self._model(runner).update_teacher(self.momentum_at(runner.iter))

    @staticmethod
    def _model(runner):
        return runner.model.module if is_model_wrapper(runner.model) else runner.model
