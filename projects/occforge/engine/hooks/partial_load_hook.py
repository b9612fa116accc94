"""Loading weights in the middle of a recipe."""

import os
import re

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...errors import ConfigError
from ..partial_load import parse_load_from


@HOOKS.register_module()
class PartialLoadHook(Hook):
    """Fill a part of the model from another checkpoint when training, or one of its epochs, begins.

    For recipes in stages::

        custom_hooks = [dict(type='PartialLoadHook', path='work_dirs/mv/epoch_128.pth', prefix='backbone',
                             to='bi_encoder.backbone3d')]

    It comes after ``load_from``, is not repeated by a resumed training, and starts the optimizer's statistics and the
    averaged weights of what it filled anew. The report goes into the log and the work dir.

    Args:
        epoch: before which epoch, counted from 0.
        report: file name of the report; default: ``load_report_<to, or the file's name>.json``.
        **load_from: the fields of a ``load_from`` dict: path, prefix, to, key_map, take, leave, min_loaded, ...
            (``occforge.engine.partial_load``).

    Raises:
        ConfigError: a field is wrong, or the file gives nothing.
    """

    priority = 'VERY_HIGH'  # before the averaged model is made

    def __init__(self, epoch: int = 0, report: str | None = None, **load_from):
        self.spec = parse_load_from(load_from, 'PartialLoadHook')
        self.epoch = epoch
        first = self.spec.sources[0]
        name = re.sub(r'\W+', '_', first.to or os.path.splitext(os.path.basename(first.path))[0])
        self.report = report or f'load_report_{name}.json'

    def before_train(self, runner) -> None:
        if self.epoch > 0 and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ConfigError(f'PartialLoadHook: epoch={self.epoch} needs a training that counts epochs')
        if self.epoch == 0 and runner.iter == 0 and not runner._resume:
            self._load(runner)

    def before_train_epoch(self, runner) -> None:
        inside = getattr(runner.train_loop, '_batches_done', 0) > 0  # resumed in the middle of it
        if self.epoch > 0 and runner.epoch == self.epoch and not inside:
            self._load(runner)

    def _load(self, runner) -> None:
        report = runner.load_partially(self.spec, self.report)
        names = set(report.filled)
        bare = runner._bare_model()
        for name, parameter in bare.named_parameters():
            if name in names:
                runner.optim_wrapper.optimizer.state.pop(parameter, None)
        runner.call_hook('after_partial_load', names=names)
