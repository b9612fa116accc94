"""Compositing of samples along rays: density -> alpha -> weights -> sums and regularisers of each ray.

Samples are packed as in ``RaySamples``: those of ray r are offset[r]:offset[r + 1], front to back. ``volume_render``
does all of this in one pass where the density and the semantics come from dense grids.
"""

import math

import torch

from ._backend import choose, compiled, once_differentiable
from ._checks import check_device, check_tensor

__all__ = [
    'accumulate',
    'accumulate_reference',
    'alpha_to_weights',
    'alpha_to_weights_reference',
    'binary_entropy',
    'density_to_alpha',
    'density_to_alpha_reference',
    'distortion',
    'distortion_reference',
    'ray_offsets',
    'shift_for_alpha',
]

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def ray_offsets(ray: torch.Tensor, num_rays: int) -> torch.Tensor:
    """Offsets (R + 1,) int64 of samples whose ray numbers (M,), ascending, are given."""
    check_tensor('ray', ray, '(M,)', 1, dtypes=(torch.int64, torch.int32))
    bounds = torch.arange(num_rays + 1, device=ray.device, dtype=ray.dtype)
    return torch.searchsorted(ray, bounds)


def density_to_alpha(density: torch.Tensor, shift: float = 0.0, interval: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Share of the light that each sample's interval takes: 1 - exp(-interval softplus(density + shift)).

    Args:
        density: (...) raw density, any number.
        shift: added to the density. ``shift_for_alpha(a)`` makes an interval of 1 with density 0 take the share a.
        interval: length of the samples' intervals in the unit of length that the density is per: one number or (...).

    Returns:
        Tensor: (...) in [0, 1], of the dtype of density; float32 for float16 and bfloat16.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.

    Differentiable (once) in density. Exact also for tiny densities (alpha of 1e-7) and without overflow for large
    ones. Deterministic. CPU (threaded) and CUDA.
    Source: C. Sun et al., "Direct Voxel Grid Optimization", CVPR 2022 (post-activation with a shifted softplus).
    """
    check_tensor('density', density, '(...)', dtypes=_FLOATING)
    if isinstance(interval, torch.Tensor):
        check_device(density=density, interval=interval)
        if interval.numel() != 1 and interval.shape != density.shape:
            raise ValueError(
                f'interval must be one number or of the shape of density, found {tuple(interval.shape)} and '
                f'{tuple(density.shape)}'
            )
    flat = _computed(density.flatten())
    interval = torch.as_tensor(interval, dtype=flat.dtype, device=flat.device).detach().flatten()
    run = choose('density_alpha', density.device, density_to_alpha_reference)
    return run(flat, interval, float(shift)).view(density.shape)


def shift_for_alpha(alpha: float) -> float:
    """The shift with which density 0 over an interval of 1 takes the share ``alpha``: ln(1 / (1 - alpha) - 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f'alpha must be in (0, 1), found {alpha}')
    return math.log(alpha) - math.log1p(-alpha)


def alpha_to_weights(alpha: torch.Tensor, offset: torch.Tensor, stop: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the samples along their rays: w_i = alpha_i prod_{j < i} (1 - alpha_j).

    Args:
        alpha: (M,) in [0, 1].
        offset: (R + 1,) int64, ascending from 0 to M.
        stop: a ray ends after the first sample behind which less than this share of the light is left; samples behind
            it weigh 0 and get no gradient. 0: never.

    Returns:
        (weights (M,), transmittance (R,)): what each sample contributes, and what is left behind the last one used. The
        weights of a ray and its transmittance sum to 1. A ray without samples has transmittance 1. float32 for
        float16 and bfloat16.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU also offsets that do not ascend from 0 to M (on
            a GPU they are cut to the samples there are, since raising would make the host wait).

    Differentiable (once) in alpha, without a division by 1 - alpha: finite also where alpha is 1. Deterministic. CPU
    (threaded) and CUDA.
    """
    check_tensor('alpha', alpha, '(M,)', 1, dtypes=_FLOATING)
    _check_offset(offset, alpha)
    run = choose('alpha_weights', alpha.device, alpha_to_weights_reference)
    return tuple(run(_computed(alpha), offset, float(stop)))


def accumulate(weights: torch.Tensor, values: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Weighted sum of each ray's samples: depth (values = t), semantics, colours.

    Args:
        weights: (M,).
        values: (M, C) or (M,).
        offset: (R + 1,) int64, ascending from 0 to M.

    Returns:
        Tensor: (R, C) or (R,); 0 for rays without samples. float32 for float16 and bfloat16.

    Raises:
        TypeError, ValueError: as ``alpha_to_weights``.

    Differentiable (once) in weights and values. Deterministic. CPU (threaded) and CUDA.
    """
    check_tensor('weights', weights, '(M,)', 1, dtypes=_FLOATING)
    check_tensor('values', values, '(M, C) or (M,)', (1, 2), dtypes=_FLOATING)
    if values.shape[0] != weights.shape[0]:
        raise ValueError(f'values must have {weights.shape[0]} rows, one a sample, found {values.shape[0]}')
    _check_offset(offset, weights)
    check_device(weights=weights, values=values)
    dtype = torch.promote_types(_computed(weights).dtype, _computed(values).dtype)
    rows = values.to(dtype) if values.ndim == 2 else values.to(dtype)[:, None]
    run = choose('ray_sum', weights.device, accumulate_reference)
    sums = run(weights.to(dtype), rows, offset)
    return sums if values.ndim == 2 else sums[:, 0]


def distortion(
    weights: torch.Tensor, t: torch.Tensor, offset: torch.Tensor, width: float | torch.Tensor = 0.0
) -> torch.Tensor:
    """Distortion of each ray: small where its weights lie close together.

    sum_ij w_i w_j |t_i - t_j| + 1/3 sum_i w_i^2 width_i, in time linear in the samples.

    Args:
        weights: (M,).
        t: (M,) middles of the samples' intervals, ascending along each ray.
        offset: (R + 1,) int64, ascending from 0 to M.
        width: lengths of the intervals, one number or (M,).

    Returns:
        Tensor: (R,) in units of t; 0 for rays without samples. float32 for float16 and bfloat16.

    Raises:
        TypeError, ValueError: as ``alpha_to_weights``.

    Differentiable (once) in weights. Deterministic. CPU (threaded) and CUDA.
    Source: J. Barron et al., "Mip-NeRF 360: Unbounded Anti-Aliased Neural Radiance Fields", CVPR 2022, eq. 15.
    """
    check_tensor('weights', weights, '(M,)', 1, dtypes=_FLOATING)
    check_tensor('t', t, '(M,)', 1, dtypes=_FLOATING)
    if t.shape != weights.shape:
        raise ValueError(f't must be of the shape of weights, found {tuple(t.shape)} and {tuple(weights.shape)}')
    _check_offset(offset, weights)
    check_device(weights=weights, t=t)
    dtype = torch.promote_types(_computed(weights).dtype, _computed(t).dtype)
    width = torch.as_tensor(width, dtype=dtype, device=weights.device).detach().flatten()
    if width.shape[0] not in (1, weights.shape[0]):
        raise ValueError(f'width must be one number or (M,), found {tuple(width.shape)}')
    run = choose('ray_distortion', weights.device, distortion_reference)
    return run(weights.to(dtype), t.detach().to(dtype), width, offset)


def binary_entropy(transmittance: torch.Tensor, limit: float = 1e-6) -> torch.Tensor:
    """-(p ln p + (1 - p) ln(1 - p)), elementwise, with p cut to [limit, 1 - limit]: 0 for rays that are stopped or
    pass, so as a loss it wants rays to do either."""
    p = transmittance.clamp(limit, 1 - limit)
    return -(p * p.log() + (1 - p) * torch.log1p(-p))


def _computed(tensor):
    """The tensor in the dtype that is computed in."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _check_offset(offset, samples):
    check_tensor('offset', offset, '(R + 1,)', 1, dtypes=(torch.int64,))
    if offset.shape[0] < 1:
        raise ValueError('offset must be (R + 1,), found no entry')
    check_device(samples=samples, offset=offset)


def _rows_of(offset, samples):
    """(M,) the ray of each sample."""
    if int(offset[0]) != 0 or int(offset[-1]) != samples or bool((offset.diff() < 0).any()):
        raise ValueError(f'offset must ascend from 0 to the number of samples, {samples}')
    return torch.repeat_interleave(torch.arange(len(offset) - 1, device=offset.device), offset.diff())


def density_to_alpha_reference(density, interval, shift):
    """Plain-torch form of ``density_to_alpha``, differentiable (flat tensors)."""
    softplus = torch.logaddexp(density + shift, density.new_zeros(()))
    return -torch.expm1(-interval * softplus)


def alpha_to_weights_reference(alpha, offset, stop):
    """Plain-torch form of ``alpha_to_weights``, differentiable, with rays x longest ray numbers in memory."""
    ray = _rows_of(offset, len(alpha))
    place = torch.arange(len(alpha), device=alpha.device) - offset[ray]
    longest = int(offset.diff().max()) if len(offset) > 1 else 0
    dense = alpha.new_zeros(len(offset) - 1, longest).index_put((ray, place), alpha)
    left = torch.cat([dense.new_ones(len(dense), 1), (1 - dense).cumprod(1)], 1)
    ended = (left[:, 1:] < stop).to(torch.int64).cumsum(1)
    used = torch.cat([ended.new_zeros(len(dense), min(1, longest)), ended[:, :-1]], 1) == 0
    weights = torch.where(used, left[:, :-1] * dense, 0)
    last = left.gather(1, used.sum(1, keepdim=True))[:, 0]
    return weights[ray, place], last


def accumulate_reference(weights, values, offset):
    """Plain-torch form of ``accumulate``, differentiable."""
    ray = _rows_of(offset, len(weights))
    return values.new_zeros(len(offset) - 1, values.shape[1]).index_add(0, ray, weights[:, None] * values)


def distortion_reference(weights, t, width, offset):
    """Plain-torch form of ``distortion``, differentiable, pair by pair."""
    ray = _rows_of(offset, len(weights))
    pairs = (t[:, None] - t).abs() * (ray[:, None] == ray)
    terms = weights * (pairs @ weights) + weights.square() * width / 3
    return terms.new_zeros(len(offset) - 1).index_add(0, ray, terms)


def _fake_density(density, interval, shift):
    return density.new_empty(density.shape)


def _setup_density(ctx, inputs, output):
    density, interval, ctx.shift = inputs
    ctx.save_for_backward(density, interval)


def _density_formula(ctx, grad):
    return torch.ops.occforge.density_alpha_backward(grad, *ctx.saved_tensors, ctx.shift), None, None


def _fake_weights(alpha, offset, stop):
    return alpha.new_empty(alpha.shape), alpha.new_empty(offset.shape[0] - 1)


def _fake_weights_backward(grad_weights, grad_transmittance, alpha, offset, stop):
    return alpha.new_empty(alpha.shape)


def _setup_weights(ctx, inputs, output):
    alpha, offset, ctx.stop = inputs
    ctx.save_for_backward(alpha, offset)


def _weights_formula(ctx, *grads):
    return torch.ops.occforge.alpha_weights_backward(*grads, *ctx.saved_tensors, ctx.stop), None, None


def _fake_sum(weights, values, offset):
    return values.new_empty(offset.shape[0] - 1, values.shape[1])


def _fake_sum_backward(grad, weights, values, offset):
    return weights.new_empty(weights.shape), values.new_empty(values.shape)


def _setup_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _sum_formula(ctx, grad):
    return (*torch.ops.occforge.ray_sum_backward(grad, *ctx.saved_tensors), None)


def _fake_distortion(weights, t, width, offset):
    return weights.new_empty(offset.shape[0] - 1)


def _distortion_formula(ctx, grad):
    return torch.ops.occforge.ray_distortion_backward(grad, *ctx.saved_tensors), None, None, None


def _fake_like_first(grad, tensor, *rest):
    return tensor.new_empty(tensor.shape)


for _name, _fake, _fake_backward, _formula, _setup in (
    ('density_alpha', _fake_density, _fake_like_first, _density_formula, _setup_density),
    ('alpha_weights', _fake_weights, _fake_weights_backward, _weights_formula, _setup_weights),
    ('ray_sum', _fake_sum, _fake_sum_backward, _sum_formula, _setup_inputs),
    ('ray_distortion', _fake_distortion, _fake_like_first, _distortion_formula, _setup_inputs),
):
    if not compiled(_name, f'{_name}_backward'):
        continue
    torch.library.register_fake(f'occforge::{_name}')(_fake)
    torch.library.register_fake(f'occforge::{_name}_backward')(_fake_backward)
    torch.library.register_autograd(f'occforge::{_name}', _formula, setup_context=_setup)
    once_differentiable(f'{_name}_backward')
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast(f'occforge::{_name}', _device, torch.float32)
