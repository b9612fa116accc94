"""Mixed precision on whatever device there is."""

import contextlib

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from ..errors import ConfigError

_DTYPES = dict(float16=torch.float16, bfloat16=torch.bfloat16, fp16=torch.float16, bf16=torch.bfloat16)


@OPTIM_WRAPPERS.register_module()
class OccAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward pass runs under autocast; mmengine's own exists for GPUs alone.

    Args:
        dtype: 'float16' or 'bfloat16'; None: float16 on a GPU, bfloat16 on the CPU.
        loss_scale: 'dynamic', a number, or arguments of ``torch.amp.GradScaler``; used with float16 on a GPU only.
        **kwargs: of ``OptimWrapper``.
    """

    def __init__(self, dtype: str | None = None, loss_scale='dynamic', **kwargs):
        super().__init__(**kwargs)
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
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.dtype):
            yield

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
