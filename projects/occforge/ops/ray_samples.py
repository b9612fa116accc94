"""Ray set-up: the part of a ray inside a box, and samples along it in packed form."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._backend import choose, compiled
from ._checks import check_device, check_tensor, three_floats

__all__ = [
    'RaySamples',
    'clip_rays',
    'clip_rays_reference',
    'ray_samples_reference',
    'sample_rays',
]

_REAL = (torch.float32, torch.float64)
_MOST_SAMPLES = 1 << 40  # of one ray


class RaySamples(NamedTuple):
    """Samples along R rays one after the other, front to back; M in all."""

    t: torch.Tensor  # (M,): where on its ray, as near and far are measured
    ray: torch.Tensor  # (M,) int64: of which ray
    offset: torch.Tensor  # (R + 1,) int64: the samples of ray r are offset[r]:offset[r + 1]


def clip_rays(
    origins: torch.Tensor,
    directions: torch.Tensor,
    lower: Sequence[float],
    upper: Sequence[float],
    near: float = 0.0,
    far: float = math.inf,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of each ray inside an axis-aligned box.

    A ray is origin + t direction; t has the unit of the direction's length. With unit directions t is the distance in
    metres; with camera rays K^-1 (u, v, 1), turned into the ego frame, t is the depth along the camera's axis.

    Args:
        origins: (R, 3) metres, float32 or float64.
        directions: (R, 3) of any length.
        lower: metres, lower corner of the box (x, y, z).
        upper: metres, upper corner.
        near: smallest t wanted.
        far: largest t wanted.

    Returns:
        (near, far): each (R,), between the given ones. Nothing of the ray is inside where near >= far, as with rays
        that miss, have no direction or have a number that is not finite.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; lower not below upper; near above far.

    Not differentiable. Deterministic. CPU (threaded) and CUDA; never makes the host wait.
    """
    check_tensor('origins', origins, '(R, 3)', 2, 3, _REAL)
    check_tensor('directions', directions, '(R, 3)', 2, 3, _REAL)
    check_device(origins=origins, directions=directions)
    if origins.shape != directions.shape:
        raise ValueError(f'origins {tuple(origins.shape)} and directions {tuple(directions.shape)} must be as many')
    lower, upper = three_floats('lower', lower), three_floats('upper', upper)
    if not all(low < high for low, high in zip(lower, upper)):
        raise ValueError(f'lower must be below upper, found {lower} and {upper}')
    if not (-math.inf < near <= far):
        raise ValueError(f'near must be finite and not above far, found {near} and {far}')
    dtype = torch.promote_types(origins.dtype, directions.dtype)
    origins, directions = origins.detach().to(dtype), directions.detach().to(dtype)
    run = choose('clip_rays', origins.device, clip_rays_reference)
    return tuple(run(origins, directions, lower, upper, float(near), float(far)))


def sample_rays(
    near: torch.Tensor,
    far: torch.Tensor,
    step: float | torch.Tensor | None = None,
    counts: torch.Tensor | int | None = None,
    position: float = 0.5,
    seed: int | torch.Tensor | None = None,
    min_count: int = 0,
) -> RaySamples:
    """Cut each ray's [near, far] into intervals and place one sample in each.

    Either intervals of equal length ``step``, as many as it takes to reach ``far`` (the last one may go past it), or
    ``counts`` intervals, whatever their length.

    Args:
        near: (R,) float32 or float64, t at which the first interval begins.
        far: (R,) t at which the last one ends. Rays with far <= near get no sample.
        step: length of an interval in units of t, one number or (R,). For a metric step divide by the directions'
            lengths.
        counts: number of intervals of each ray, (R,) int64, or one number for all.
        position: where in its interval a sample lies, 0 (begin) to 1 (end).
        seed: stratified samples: each uniform in its interval. The place depends on the seed, the ray's number and the
            sample's number alone, on every device. An int64 tensor of one element spares a new compilation for each
            seed under torch.compile.
        min_count: give at least so many samples to every ray, also to those that miss (with ``step`` alone).

    Returns:
        RaySamples: t (M,) of the dtype of near, ray (M,) int64, offset (R + 1,) int64.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; neither or both of step and counts; a step not above 0;
            more than 2^40 samples on a ray.

    Not differentiable. Deterministic. CPU (threaded) and CUDA (where the host waits for M).
    """
    check_tensor('near', near, '(R,)', 1, dtypes=_REAL)
    check_tensor('far', far, '(R,)', 1, dtypes=_REAL)
    if near.shape != far.shape:
        raise ValueError(f'near {tuple(near.shape)} and far {tuple(far.shape)} must be as many')
    check_device(near=near, far=far)
    if (step is None) == (counts is None):
        raise ValueError('either step or counts must be given')
    if not 0 <= position <= 1:
        raise ValueError(f'position must be in 0..1, found {position}')
    near, far = near.detach(), far.detach().to(near.dtype)
    length = far - near
    if step is not None:
        if isinstance(step, torch.Tensor):
            if step.shape not in (near.shape, torch.Size([])):
                raise ValueError(f'step must be one number or (R,), found {tuple(step.shape)}')
            step = step.detach().to(near).expand_as(near)
        else:
            if not 0 < step < math.inf:
                raise ValueError(f'step must be finite and above 0, found {step}')
            step = torch.full_like(near, step)
        wanted = torch.where(length > 0, (length / step).ceil(), 0).clamp(min_count, 2 * _MOST_SAMPLES)
        wanted = wanted.to(torch.int64)
    else:
        if not isinstance(counts, torch.Tensor):
            counts = torch.full(near.shape, counts, dtype=torch.int64, device=near.device)
        check_tensor('counts', counts, '(R,)', 1, dtypes=(torch.int64,))
        if counts.shape != near.shape:
            raise ValueError(f'counts must be (R,) = {tuple(near.shape)}, found {tuple(counts.shape)}')
        check_device(near=near, counts=counts)
        wanted = torch.where(length > 0, counts, 0)
        step = length / wanted.clamp_min(1)
    seed = seed_tensor(seed, near.device)
    run = choose('ray_samples', near.device, ray_samples_reference)
    return RaySamples(*run(near, step, wanted, float(position), seed))


def seed_tensor(seed, device):
    """The seed as an int64 tensor of one element on the device; None stays None."""
    if seed is None:
        return None
    if not isinstance(seed, torch.Tensor):
        return torch.tensor(int(seed), dtype=torch.int64, device=device)
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f'seed must be an int64 tensor of one element, found {seed.dtype} {tuple(seed.shape)}')
    return seed.to(device)


def clip_rays_reference(origins, directions, lower, upper, near, far):
    """Plain-torch form of ``clip_rays`` (arguments checked by the caller)."""
    low, high = (torch.tensor(value, dtype=origins.dtype, device=origins.device) for value in (lower, upper))
    still = directions == 0
    along = torch.where(still, 1, directions)
    a, b = (low - origins) / along, (high - origins) / along
    entry = torch.where(still, torch.where(origins > high, math.inf, -math.inf), torch.minimum(a, b)).amax(1)
    exit = torch.where(still, torch.where(origins < low, -math.inf, math.inf), torch.maximum(a, b)).amin(1)
    length = directions.square().sum(1)
    valid = origins.isfinite().all(1) & (length > 0) & (length < math.inf)
    entry, exit = entry.clamp_max(far).clamp_min(near), exit.clamp_max(far).clamp_min(near)
    return torch.where(valid, entry, near), torch.where(valid, exit, near)


def _mix_bits(x):
    """The finaliser of csrc/render/ray_samples_kernel.h on 32-bit numbers held in int64."""
    mask = 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & mask
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & mask
    return x ^ (x >> 16)


def random_offsets(seed, ray, sample):
    """Numbers in [0, 1) for (M,) ray and sample numbers: what the kernels compute."""
    mask = 0xFFFFFFFF
    key = _mix_bits(((seed & mask) + 0x9E3779B9) & mask)
    key = _mix_bits(key ^ ((seed >> 32) & mask))
    key = _mix_bits(key ^ (ray & mask))
    key = _mix_bits(key ^ (ray >> 32))
    return (_mix_bits((key + sample * 0x9E3779B9) & mask) >> 8).double() / (1 << 24)


def ray_samples_reference(near, step, counts, position, seed):
    """Plain-torch form of the operator behind ``sample_rays``."""
    if bool((counts > _MOST_SAMPLES).any()) or bool((counts < 0).any()):
        raise ValueError('counts must be in 0..2^40')
    offset = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ray = torch.repeat_interleave(torch.arange(len(counts), device=near.device), counts)
    sample = torch.arange(len(ray), device=near.device) - offset[ray]
    inside = position if seed is None else random_offsets(seed.flatten(), ray, sample).to(near.dtype)
    return near[ray] + (sample.to(near.dtype) + inside) * step[ray], ray, offset


if compiled('clip_rays'):

    @torch.library.register_fake('occforge::clip_rays')
    def _(origins, directions, lower, upper, near, far):
        return tuple(directions.new_empty(directions.shape[0]) for _ in range(2))


if compiled('ray_samples'):

    @torch.library.register_fake('occforge::ray_samples')
    def _(near, step, counts, position, seed):
        samples = torch.library.get_ctx().new_dynamic_size()
        return near.new_empty(samples), counts.new_empty(samples), counts.new_empty(counts.shape[0] + 1)
