"""When the model starts to remember, and what it remembers across a restart."""

import os
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...engine.checkpoint import read_checkpoint, write_checkpoint
from ...engine.dist import rank_and_world
from ...errors import ConfigError, DataError

_SUFFIX = '.history_rank'


@HOOKS.register_module(name=['HistoryHook', 'SequentialControlHook'])
class HistoryHook(Hook):
    """Switches FB-OCC's memory on after a number of epochs, frees it, and keeps it across a restart.

    Every process writes what it remembers of its sequences beside each checkpoint (``<checkpoint>.history_rankR``), and
    reads it back when that checkpoint is resumed by as many processes; so a training that is killed in the middle of
    its sequences goes on with the same losses. Without the file the memory starts empty, as in the published code.

    Args:
        start_epoch: epochs trained without memory (2 in the published schedule).
        temporal_start_iter: the same in iterations, the published field; the iteration after this one remembers.
        save: write the files. At the published size a process's holds 1.6 GB.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self, start_epoch: float = 0, temporal_start_iter: int | None = None, save: bool = True):
        self.start_epoch = start_epoch
        self.temporal_start_iter = temporal_start_iter
        self.save = save

    @staticmethod
    def _model(runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, 'reset_history'):
            raise ConfigError(f'HistoryHook is for models that remember, the model is {type(model).__name__}')
        return model

    def before_train(self, runner) -> None:
        model = self._model(runner)
        if not model.history_cat_num:
            return
        sampler = runner.train_dataloader.batch_sampler
        if not hasattr(sampler, 'sequences'):
            raise ConfigError(
                f'temporal fusion needs the frames of a sequence in order, but train_dataloader has the batch sampler '
                f"{type(sampler).__name__}: set batch_sampler=dict(type='SequenceBatchSampler')"
            )
        if self.temporal_start_iter is None:
            self._start = round(self.start_epoch * len(runner.train_dataloader)) - 1
        else:
            self._start = self.temporal_start_iter
        runner.logger.info(
            f'{model.history_cat_num} frames are remembered from iteration {max(self._start, -1) + 2} on; '
            f'{len(sampler.sequences)} sequences'
        )

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        model = self._model(runner)
        if model.history_cat_num:
            model.do_history = runner.iter > self._start

    def before_val(self, runner) -> None:
        self._forget_evaluation(runner)

    def after_val(self, runner) -> None:
        self._forget_evaluation(runner)

    before_test, after_test = before_val, after_val

    def _forget_evaluation(self, runner) -> None:
        model = self._model(runner)
        for name in list(model.memories):
            if name != 'train':
                model.reset_history(name)

    # ------------------------------------------------------------------------------------------------ checkpoints
    def before_write_checkpoint(self, runner, path: str) -> None:
        """Called in every process before the checkpoint ``path`` is written."""
        model = self._model(runner)
        if not self.save or not model.history_cat_num:
            return
        rank, world = rank_and_world()
        folder = Path(path).parent
        for old in folder.glob(f'*{_SUFFIX}{rank}'):
            if not (folder / old.name.removesuffix(f'{_SUFFIX}{rank}')).exists():
                old.unlink()
        content = dict(iter=runner.iter, world_size=world, states=model.memory('train').state_dict())
        write_checkpoint(content, f'{path}{_SUFFIX}{rank}')

    def after_resume(self, runner, filename: str) -> None:
        """Called in every process when training has been set to continue after ``filename``."""
        model = self._model(runner)
        if not model.history_cat_num:
            return
        rank, world = rank_and_world()
        path = f'{filename}{_SUFFIX}{rank}'
        reason = None
        if not os.path.isfile(path):
            reason = f'{path} does not exist'
        else:
            try:
                content = read_checkpoint(path)
            except DataError as error:
                reason = str(error)
            else:
                if content['world_size'] != world:
                    reason = f'{path} is of {content["world_size"]} processes, there are {world}'
        if reason:
            runner.logger.warning(f'what was remembered of the sequences is lost, the memory starts empty: {reason}')
            return
        memory = model.memory('train')
        memory.load_state_dict(content['states'])
        runner.logger.info(f'{len(memory)} sequences go on with what was remembered')
