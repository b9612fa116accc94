"""A loss or gradient that is not finite is noticed before it reaches the weights, and traced to its origin."""

import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from torch import distributed as torch_dist

from ...errors import ConfigError
from ..checkpoint import write_checkpoint
from ..dist import communication_device, rank_and_world
from ..rng import rng_state, set_rng_state

_ID_KEYS = ('sample_idx', 'token', 'scan_id', 'lidar_path', 'img_path')


class NonFiniteError(RuntimeError):
    """Training met a loss or gradient that is not finite; the message says where it came from."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Check the loss before it is propagated back, and the gradients before the optimizer's step.

    Where one is not finite, on any process, the batch is run once more with the random numbers it had, and the log
    names the losses, the first module that answered finite input with something else, the iteration and the samples.
    The batch goes into ``bad_batches/iter_<n>_rank<r>.pth`` of the work dir, as plain tensors. The weights have not
    seen it. Gradients under a loss scaler are left to the scaler, which expects some to overflow.

    Args:
        action: 'stop' ends the training; 'skip' goes on with the next batch. To undo what such a batch has done to the
            statistics of batch normalisations, skipping copies the model's buffers in every iteration.
        max_skips: with 'skip', so many in a row end the training all the same.
        check_gradients: False saves the norm of all gradients in every iteration.
        dump: whether to write the batch.

    Raises:
        NonFiniteError: as said.
    """

    priority = 'VERY_HIGH'

    def __init__(self, action: str = 'stop', max_skips: int = 10, check_gradients: bool = True, dump: bool = True):
        if action not in ('stop', 'skip'):
            raise ConfigError(f"FiniteLossHook.action: 'stop' or 'skip' is expected, found {action!r}")
        self.action, self.max_skips, self.check_gradients, self.dump = action, max_skips, check_gradients, dump
        self.skipped = 0
        self._in_a_row = 0
        self._bad = False

    def before_train(self, runner) -> None:
        self._runner = runner
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise ConfigError('FiniteLossHook guards one optimizer; switch it off: default_hooks.finite_loss=None')
        self._update, self._step = wrapper.update_params, wrapper.step
        # with the attributes of the one in its place: schedulers mark it and warn where the mark is gone
        guarded_step = functools.update_wrapper(functools.partial(self._guarded_step), self._step)
        wrapper.update_params, wrapper.step = self._guarded_update, guarded_step

    def after_train(self, runner) -> None:
        runner.optim_wrapper.update_params, runner.optim_wrapper.step = self._update, self._step
        if self.skipped:
            runner.logger.warning(f'FiniteLossHook: {self.skipped} batches were skipped')

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._batch, self._bad = data_batch, False
        self._rng = rng_state()
        if self.action == 'skip':
            self._buffers = {name: value.clone() for name, value in runner._bare_model().named_buffers()}

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._batch = None
        if not self._bad:
            self._in_a_row = 0

    # -------------------------------------------------------------------------------------------------------- checks
    def _guarded_update(self, loss: torch.Tensor, *args, **kwargs) -> None:
        if _on_all(torch.isfinite(loss.detach()).all()):
            self._update(loss, *args, **kwargs)
        else:
            self._found('the loss')

    def _guarded_step(self, *args, **kwargs) -> None:
        wrapper = self._runner.optim_wrapper
        scaler = getattr(wrapper, 'loss_scaler', None)
        scaled = scaler is not None and (not hasattr(scaler, 'is_enabled') or scaler.is_enabled())
        if self.check_gradients and not scaled:
            trained = [each for group in wrapper.optimizer.param_groups for each in group['params']]
            gradients = [each.grad for each in trained if each.grad is not None]
            # the same on all processes, which have averaged them
            if gradients and not all(
                bool(torch.isfinite(torch.stack(norms)).all()) for norms in _norms_by_device(gradients)
            ):
                self._found('a gradient')
                return
        self._step(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------------ the case
    def _found(self, what: str) -> None:
        runner = self._runner
        self._bad = True
        self.skipped += 1
        self._in_a_row += 1
        bare = runner._bare_model()
        if self.action == 'skip':
            self._restore(bare)
        gradients = [] if what == 'the loss' else [
            name for name, each in bare.named_parameters() if each.grad is not None and not each.grad.isfinite().all()
        ]  # fmt: skip
        losses, module = self._trace(bare)
        if self.action == 'skip':
            self._restore(bare)
        runner.optim_wrapper.zero_grad()
        text = self._describe(what, losses, module, gradients)
        stop = self.action == 'stop' or self._in_a_row >= self.max_skips
        if stop:
            raise NonFiniteError(text)
        runner.logger.warning(f'{text}. The batch is skipped ({self.skipped} so far)')

    def _describe(self, what: str, losses: dict, module: str | None, gradients: list[str]) -> str:
        runner, rank = self._runner, rank_and_world()[0]
        bad = {name: value for name, value in losses.items() if not np.isfinite(value)}
        parts = [f'iteration {runner.iter + 1} (epoch {runner.epoch + 1}): {what} is not finite']
        if bad:
            parts.append(', '.join(f'{name} is {value}' for name, value in bad.items()))
        if gradients:
            parts.append(f'first bad gradient of {len(gradients)}: {gradients[0]}')
        inputs = _first_bad(self._batch)
        if inputs is not None:
            parts.append(f'the batch itself is not finite: {inputs}')
        elif module is not None:
            parts.append(f'first bad module: {module}')
        elif what == 'the loss' and not bad:
            alone = rank_and_world()[1] == 1
            parts.append('run again, this process finds it finite' if alone else 'on another process')
        samples = sample_ids(self._batch)
        if samples:
            parts.append(f'samples: {", ".join(samples)}')
        if self.dump and (bad or inputs or gradients or rank_and_world()[1] == 1):
            path = os.path.join(runner.work_dir, 'bad_batches', f'iter_{runner.iter + 1}_rank{rank}.pth')
            write_checkpoint(dict(batch=plain(self._batch), rng=self._rng, iteration=runner.iter + 1), path)
            parts.append(f'batch in {path}')
        return '; '.join(parts)

    def _restore(self, model) -> None:
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in self._buffers:
                    value.copy_(self._buffers[name])

    def _trace(self, model) -> tuple[dict, str | None]:
        """Losses of the batch run again, and the first module whose output is not finite although its input is."""
        found: list[str] = []
        names = {module: name for name, module in model.named_modules()}

        def look(module, args, kwargs, output):
            if not found and _first_bad(output) is not None and _first_bad((args, kwargs)) is None:
                found.append(f'{names[module] or "the model itself"} ({type(module).__name__})')

        handles = [module.register_forward_hook(look, with_kwargs=True) for module in names if module is not model]
        now = rng_state()
        set_rng_state(self._rng)
        try:
            with torch.no_grad(), self._runner.optim_wrapper.optim_context(model):
                data = model.data_preprocessor(self._batch, True)
                losses = model._run_forward(data, mode='loss')
            _, values = model.parse_losses(losses)
        finally:
            for handle in handles:
                handle.remove()
            set_rng_state(now)
        return {name: float(value) for name, value in values.items()}, found[0] if found else None


def _norms_by_device(gradients: list[torch.Tensor]):
    by_device: dict = {}
    for gradient in gradients:
        by_device.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return [torch._foreach_norm(group) for group in by_device.values()]


def _on_all(flag: torch.Tensor) -> bool:
    """Whether ``flag`` is true on every process; every process must call it."""
    if rank_and_world()[1] == 1:
        return bool(flag)
    value = flag.to(communication_device(), torch.float32)
    torch_dist.all_reduce(value, op=torch_dist.ReduceOp.MIN)
    return bool(value)


def _first_bad(value, path: str = '') -> str | None:
    """Path of the first tensor in nested data that holds a number that is not finite; None where there is none."""
    if isinstance(value, torch.Tensor):
        bad = value.is_floating_point() and value.numel() > 0 and not bool(torch.isfinite(value.detach()).all())
        return (path or 'tensor') if bad else None
    if isinstance(value, BaseDataElement):
        items = list(value.items())
    elif isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        items = list(enumerate(value))
    else:
        features = getattr(value, 'features', None)  # a sparse tensor
        return _first_bad(features, f'{path}.features') if isinstance(features, torch.Tensor) else None
    for key, item in items:
        bad = _first_bad(item, f'{path}.{key}' if path else str(key))
        if bad is not None:
            return bad
    return None


def sample_ids(batch) -> list[str]:
    """What the data samples of a batch call themselves."""
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    ids = []
    for sample in samples if isinstance(samples, (list, tuple)) else []:
        info = getattr(sample, 'metainfo', None) or {}
        name = next((info[key] for key in _ID_KEYS if info.get(key) is not None), None)
        if name is not None:
            ids.append(str(name))
    return ids


def plain(value):
    """Nested data as tensors, numbers, text and containers of them, which any checkpoint reader can load."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, BaseDataElement):
        return dict(metainfo=plain(value.metainfo), **{name: plain(item) for name, item in value.items()})
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
