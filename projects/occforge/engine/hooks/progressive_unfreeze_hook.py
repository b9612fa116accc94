"""Training first the last modules, then more and more."""

from collections.abc import Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...errors import ConfigError

_STAGES = (
    dict(epoch=0, train=['heads']),
    dict(epoch=2, train=['decoder']),
    dict(epoch=4, train=['fuser']),
    dict(epoch=6, train='all', lr_factor=0.1),
)
# In optimizer groups, so that it is saved with them: what the stages have multiplied the rate by.
_FACTOR = 'stage_factor'


@HOOKS.register_module()
class ProgressiveUnfreezeHook(Hook):
    """Unfreeze the model in stages by epoch.

    From its epoch on (counted from 0) a stage trains its modules beside those of the stages before; what no stage has
    named yet is frozen, including the statistics of its batch normalisations. The stage follows from the epoch alone,
    so a resumed training is in the right one.

    Args:
        stages: dict(epoch=, train=names or 'all', lr_factor=1): names as in ``occforge.engine.names``. The learning
            rates are multiplied by ``lr_factor`` once, when the stage begins; schedules go on from there (mmengine's,
            which compute a rate from the one before). Default: heads, from epoch 2 also the decoder, from 4 also the
            fuser, from 6 everything at a tenth of the rate.

    Raises:
        ConfigError: stages out of order, a name that names nothing, a training that does not count epochs.
    """

    priority = 'VERY_HIGH'

    def __init__(self, stages: Sequence[Mapping] = _STAGES):
        self.stages = [dict(stage) for stage in stages]
        for index, stage in enumerate(self.stages):
            if not {'epoch', 'train'} <= set(stage) <= {'epoch', 'train', 'lr_factor'}:
                raise ConfigError(
                    f'ProgressiveUnfreezeHook.stages.{index}: dict(epoch=, train=, lr_factor=) is expected'
                )
        epochs = [stage['epoch'] for stage in self.stages]
        if not epochs or epochs[0] != 0 or sorted(set(epochs)) != epochs:
            raise ConfigError(f'ProgressiveUnfreezeHook.stages: epochs have to rise from 0, found {epochs}')
        self._stage: int | None = None

    def before_train(self, runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ConfigError('ProgressiveUnfreezeHook needs a training that counts epochs')
        for index, stage in enumerate(self.stages):  # all of them now, not in the middle of the night
            if stage['train'] != 'all':
                runner.trainability.resolve(stage['train'], f'ProgressiveUnfreezeHook.stages.{index}.train')

    def before_train_epoch(self, runner) -> None:
        number = max(index for index, stage in enumerate(self.stages) if stage['epoch'] <= runner.epoch)
        if number == self._stage:
            return
        self._stage = number
        begun = self.stages[: number + 1]
        everything = any(stage['train'] == 'all' for stage in begun)
        names = [name for stage in begun if stage['train'] != 'all' for name in _as_list(stage['train'])]
        runner.set_trainable(None if everything else names)
        factor = 1.0
        for stage in begun:
            factor *= stage.get('lr_factor', 1.0)
        scale_learning_rates(runner.optim_wrapper, factor)
        what = 'everything' if everything else ', '.join(names)
        rates = '' if factor == 1 else f', learning rates x {factor:g}'
        runner.logger.info(f'ProgressiveUnfreezeHook: from epoch {runner.epoch + 1} on {what} trains{rates}')
        for line in runner.trainability.table():
            runner.logger.info(f'  {line}')


def scale_learning_rates(optim_wrapper, factor: float) -> None:
    """Make ``factor`` what the rates are multiplied by in all, whatever they have been multiplied by before."""
    groups = list(optim_wrapper.optimizer.param_groups)
    groups += [each for each in [getattr(optim_wrapper, 'base_param_settings', None)] if each]
    for group in groups:
        before = group.get(_FACTOR, 1.0)
        if before != factor:
            group['lr'] *= factor / before
        group[_FACTOR] = factor


def _as_list(value) -> list:
    return [value] if isinstance(value, str) else list(value)
