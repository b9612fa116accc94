"""Argument checks of the public functions. Each message names the argument, what was found and what is expected."""

from collections.abc import Sequence

import torch


def check_tensor(name: str, value, shape: str = '', ndim=None, last=None, dtypes=None) -> None:
    """Raise TypeError unless ``value`` is a tensor of one of ``dtypes``, ValueError unless it has the stated form.

    Args:
        name: argument name for the message.
        value: what the caller passed.
        shape: the documented shape, e.g. ``'(R, 3)'``, for the message.
        ndim: number of dimensions, or a tuple of allowed numbers.
        last: required size of the last dimension.
        dtypes: allowed dtypes.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f'{name} must be a tensor, found {type(value).__name__}')
    if dtypes is not None and value.dtype not in dtypes:
        allowed = ', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)
        raise TypeError(f'{name} must be of dtype {allowed}, found {str(value.dtype).removeprefix("torch.")}')
    if ndim is not None and value.ndim not in (ndim if isinstance(ndim, tuple) else (ndim,)):
        raise ValueError(f'{name} must have shape {shape}, found {tuple(value.shape)}')
    if last is not None and (value.ndim == 0 or value.shape[-1] != last):
        raise ValueError(f'{name} must have shape {shape}, found {tuple(value.shape)}')


def check_device(**tensors) -> None:
    """Raise ValueError unless all tensors (None is skipped) are on one device."""
    devices = {name: value.device for name, value in tensors.items() if value is not None}
    if len(set(devices.values())) > 1:
        found = ', '.join(f'{name} on {device}' for name, device in devices.items())
        raise ValueError(f'all tensors must be on one device, found {found}')


def three_floats(name: str, value: Sequence[float], positive: bool = False) -> list[float]:
    """Three finite numbers (x, y, z) as a list of float; all above 0 if ``positive``."""
    numbers = value.tolist() if hasattr(value, 'tolist') else list(value)
    if len(numbers) != 3:
        raise ValueError(f'{name} must have 3 numbers (x, y, z), found {len(numbers)}')
    numbers = [float(number) for number in numbers]
    if not all(-float('inf') < number < float('inf') and (number > 0 or not positive) for number in numbers):
        raise ValueError(f'{name} must be finite{" and above 0" if positive else ""}, found {numbers}')
    return numbers


def three_sizes(name: str, value: Sequence[int]) -> list[int]:
    """Three whole numbers above 0 (cells along x, y, z) as a list of int."""
    numbers = value.tolist() if hasattr(value, 'tolist') else list(value)
    if len(numbers) != 3:
        raise ValueError(f'{name} must have 3 numbers (x, y, z), found {len(numbers)}')
    if not all(float(number) == int(number) and int(number) > 0 for number in numbers):
        raise ValueError(f'{name} must be whole numbers above 0, found {numbers}')
    return [int(number) for number in numbers]
