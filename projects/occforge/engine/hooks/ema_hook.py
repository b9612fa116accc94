"""Averaged weights: kept while training, evaluated, saved, resumed."""

import copy
import math

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.registry import HOOKS, MODELS

from ...errors import ConfigError


def ema_decay(update: int, decay: float, ramp: str | None, ramp_length: float) -> float:
    """Share of the average that update number ``update`` (counted from 1) keeps.

    ``ramp=None``: ``decay`` always. ``'exp'``: decay * (1 - exp(-update / ramp_length)), as the BEVDet family's
    averages. ``'inverse'``: min(decay, 1 - (r + 1) / (update + r)) with r = ramp_length, as mean teachers: 0 at first.
    ``'mean'``: 1 - 1 / update, so that all updates count alike, as in stochastic weight averaging (Izmailov et al., UAI
    2018).
    """
    if ramp is None:
        return decay
    if ramp == 'exp':
        return decay * (1 - math.exp(-update / ramp_length))
    if ramp == 'mean':
        return 1 - 1 / update
    return min(decay, 1 - (ramp_length + 1) / (update + ramp_length))


@MODELS.register_module()
class RampedAverage(BaseAveragedModel):
    """Exponential moving average of all floating-point parameters **and buffers** (statistics of batch normalisations
    included) under a rising decay. Integer buffers stay as they were when the average began.

    Args:
        model: the bare model; it is copied.
        decay: the final share of the average that an update keeps.
        ramp, ramp_length: see :func:`ema_decay`.
        init_updates: where the count of updates starts; with a large one the ramp is behind already.
        interval: updates happen every so many iterations.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        decay: float = 0.999,
        ramp: str | None = 'exp',
        ramp_length: float = 2000,
        init_updates: int = 0,
        interval: int = 1,
    ):
        if not 0 <= decay < 1:
            raise ConfigError(f'EMA: decay has to lie in [0, 1), found {decay!r}')
        if ramp not in (None, 'exp', 'inverse', 'mean'):
            raise ConfigError(f"EMA: ramp is {ramp!r}, None, 'exp', 'inverse' or 'mean' is expected")
        super().__init__(model, interval=interval, update_buffers=True)
        self.decay, self.ramp, self.ramp_length, self.init_updates = decay, ramp, ramp_length, init_updates

    @torch.no_grad()
    def start_from(self, model: torch.nn.Module, names: set[str] | None = None) -> None:
        """Make the average (of the tensors ``names``; None: all) what the model has now."""
        theirs = model.state_dict()
        for name, average in self.module.state_dict().items():
            if names is None or name in names:
                average.copy_(theirs[name])

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        self.steps += 1
        steps = int(self.steps)
        if steps % self.interval:
            return
        decay = ema_decay(self.init_updates + steps // self.interval, self.decay, self.ramp, self.ramp_length)
        theirs = model.state_dict()
        averages, values = [], []
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(theirs[name].to(average))
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, values, alpha=1 - decay)


@HOOKS.register_module(name=['OccEMAHook', 'MEGVIIEMAHook'])
class OccEMAHook(EMAHook):
    """Keep an average of the weights; validation and ``save_best`` use it.

    A checkpoint holds the average as ``state_dict``, ready for use, and the weights that are being trained in
    ``ema_state_dict`` (mmengine's convention), from which training resumes bit for bit. The average starts as a copy of
    what the model has when training begins, after everything was loaded. Testing needs no copy of the model.

    Args:
        decay, ramp, ramp_length, init_updates, interval: of :class:`RampedAverage`. BEVDet's family: ``decay=0.999,
            ramp='exp', ramp_length=2000, init_updates=10560``. Stochastic weight averaging: ``ramp='mean'`` with a
            ``begin_epoch`` late in the training.
        begin_epoch: epochs before it do not count: the average is then what is being trained.
        resume: accepted for the published configs, without effect: the average is in the checkpoint.
    """

    def __init__(
        self,
        decay: float = 0.999,
        ramp: str | None = 'exp',
        ramp_length: float = 2000,
        init_updates: int = 0,
        interval: int = 1,
        begin_epoch: int = 0,
        resume=None,
    ):
        super().__init__(
            'RampedAverage', strict_load=True, decay=decay, ramp=ramp, ramp_length=ramp_length,
            init_updates=init_updates, interval=interval, begin_epoch=begin_epoch,
        )  # fmt: skip
        self.ema_model: RampedAverage | None = None
        self._resumed = False

    def before_run(self, runner) -> None:
        if runner._testing:
            return
        self.src_model = runner._bare_model()
        self.ema_model = MODELS.build(self.ema_cfg, default_args=dict(model=self.src_model))

    def before_train(self, runner) -> None:
        if not self._resumed:
            self.ema_model.start_from(self.src_model)

    def after_partial_load(self, runner, names: set[str]) -> None:
        if runner.iter > 0:
            self.ema_model.start_from(self.src_model, names)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.epoch < self.begin_epoch:
            self.ema_model.start_from(self.src_model)
        else:
            self.ema_model.update_parameters(self.src_model)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.ema_model is None or not runner._resume:
            return
        if 'ema_state_dict' not in checkpoint:
            runner.logger.warning('OccEMAHook: the checkpoint holds no averaged weights; the average begins here')
            return
        checkpoint['ema_state_dict'] = copy.copy(checkpoint['ema_state_dict'])
        self._swap_ema_state_dict(checkpoint)
        self.ema_model.load_state_dict(checkpoint['ema_state_dict'], strict=True)
        self._resumed = True

    @torch.no_grad()
    def _swap_ema_parameters(self) -> None:
        if self.ema_model is None:
            return
        ours = self.src_model.state_dict()
        for name, average in self.ema_model.module.state_dict().items():
            kept = average.clone()
            average.copy_(ours[name])
            ours[name].copy_(kept)
