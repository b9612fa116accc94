"""When the model starts to remember."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...errors import ConfigError


@HOOKS.register_module(name=['HistoryHook', 'SequentialControlHook'])
class HistoryHook(Hook):
    """Switches FB-OCC's memory on after a number of epochs and frees that of an evaluation.

    What is remembered in training is kept beside each checkpoint by the runner (``occforge.engine.temporal``).

    Args:
        start_epoch: epochs trained without memory (2 in the published schedule).
        temporal_start_iter: the same in iterations, the published field; the iteration after this one remembers.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, start_epoch: float = 0, temporal_start_iter: int | None = None):
        self.start_epoch = start_epoch
        self.temporal_start_iter = temporal_start_iter

    @staticmethod
    def _models(runner) -> list:
        """The models that remember: the runner's own, or the members of an ensemble."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        models = [module for module in model.modules() if hasattr(module, 'reset_history')]
        if not models:
            raise ConfigError(f'HistoryHook is for models that remember, the model is {type(model).__name__}')
        return models

    def before_train(self, runner) -> None:
        model = self._models(runner)[0]
        if not model.history_cat_num:
            return
        sampler = runner.train_dataloader.batch_sampler
        if not hasattr(sampler, 'sequences'):
            raise ConfigError(
                f'temporal fusion needs the frames of a sequence in order, but train_dataloader has the batch sampler '
                f"{type(sampler).__name__}: set batch_sampler=dict(type='SequenceBatchSampler')"
            )
        under_way = getattr(sampler, 'batch_size', 1) * getattr(sampler, 'interleave', 1)
        memory = model.memory('train')
        memory.joins, memory.max_sequences = under_way, max(memory.max_sequences, under_way)
        if self.temporal_start_iter is None:
            self._start = round(self.start_epoch * len(runner.train_dataloader)) - 1
        else:
            self._start = self.temporal_start_iter
        runner.logger.info(
            f'{model.history_cat_num} frames are remembered from iteration {max(self._start, -1) + 2} on; '
            f'{len(sampler.sequences)} sequences'
        )

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        model = self._models(runner)[0]
        if model.history_cat_num:
            model.do_history = runner.iter > self._start

    def before_val(self, runner) -> None:
        self._forget_evaluation(runner)

    def after_val(self, runner) -> None:
        self._forget_evaluation(runner)

    before_test, after_test = before_val, after_val

    def _forget_evaluation(self, runner) -> None:
        for model in self._models(runner):
            for name in list(model.memories):
                if name != 'train':
                    model.reset_history(name)
