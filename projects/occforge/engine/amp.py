"""Mixed precision on whatever device there is."""

import contextlib
import functools
from collections.abc import Callable

import torch
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.utils import apply_to

from ..errors import ConfigError
from .names import aliases_of, matches_any, resolve

_DTYPES = dict(float16=torch.float16, bfloat16=torch.bfloat16, fp16=torch.float16, bf16=torch.bfloat16)


def float32_island(function: Callable) -> Callable:
    """A function or method that computes in float32 under autocast: its floating tensors are cast, autocast is off.

    For rendering, geometry, logarithms and sums of many terms, which half precision ruins. Without autocast nothing
    is changed.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        device_type = _autocast_device()
        if device_type is None:
            return function(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return function(*_as_float32(args), **_as_float32(kwargs))

    return wrapped


def make_float32_island(module: torch.nn.Module) -> None:
    """Let ``module`` compute in float32 whenever it is called under autocast, as :func:`float32_island` does."""
    entered: list = []

    def enter(_module, args, kwargs):
        device_type = _autocast_device()
        entered.append(None if device_type is None else torch.autocast(device_type, enabled=False))
        if device_type is None:
            return None
        entered[-1].__enter__()
        return _as_float32(args), _as_float32(kwargs)

    def leave(_module, _args, _output):
        context = entered.pop()
        if context is not None:
            context.__exit__(None, None, None)

    module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    module.register_forward_hook(leave, always_call=True)


def _autocast_device() -> str | None:
    """Device type for which autocast is on, or None."""
    return next((kind for kind in ('cuda', 'cpu') if torch.is_autocast_enabled(kind)), None)


def _as_float32(values):
    def narrow(value):
        return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)

    return apply_to(values, narrow, lambda value: value.float())


@OPTIM_WRAPPERS.register_module()
class OccAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward pass runs under autocast; mmengine's own exists for GPUs alone.

    Args:
        dtype: 'float16' or 'bfloat16'; None: float16 on a GPU, bfloat16 on the CPU.
        loss_scale: 'dynamic', a number, or arguments of ``torch.amp.GradScaler``; used with float16 on a GPU only.
        float32_modules: names of modules (``occforge.engine.names``) that compute in float32 all the same.
        **kwargs: of ``OptimWrapper``.

    Raises:
        ConfigError: an unknown dtype, or a name in ``float32_modules`` that names no module.
    """

    def __init__(self, dtype: str | None = None, loss_scale='dynamic', float32_modules=(), **kwargs):
        super().__init__(**kwargs)
        self.float32_modules = list(float32_modules)
        self.device_type = torch.device(get_device()).type
        if dtype is None:
            dtype = 'float16' if self.device_type == 'cuda' else 'bfloat16'
        if dtype not in _DTYPES:
            raise ConfigError(f'optim_wrapper.dtype: {dtype!r} is not one of {", ".join(_DTYPES)}')
        self.dtype = _DTYPES[dtype]
        scaler = dict(loss_scale) if isinstance(loss_scale, dict) else {}
        self._fixed_scale = float(loss_scale) if isinstance(loss_scale, (int, float)) else None
        if self._fixed_scale is not None:
            scaler['init_scale'] = self._fixed_scale
        enabled = self.device_type == 'cuda' and self.dtype is torch.float16
        self.loss_scaler = torch.amp.GradScaler(self.device_type, enabled=enabled, **scaler)

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module):
        if self.float32_modules:
            self._make_islands(model.module if is_model_wrapper(model) else model)
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.dtype):
            yield

    def _make_islands(self, model: torch.nn.Module) -> None:
        modules = {name: module for name, module in model.named_modules() if name}
        where = 'optim_wrapper.float32_modules'
        patterns = resolve(self.float32_modules, modules, where, aliases_of(model))
        for name, module in modules.items():
            inside = name.rpartition('.')[0]
            if matches_any(patterns, name) and not (inside and matches_any(patterns, inside)):
                make_float32_island(module)
        self.float32_modules = []  # made once

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._fixed_scale)

    def state_dict(self) -> dict:
        return {**super().state_dict(), 'loss_scaler': self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        state_dict = dict(state_dict)
        scaler = state_dict.pop('loss_scaler', None)
        if scaler and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)
