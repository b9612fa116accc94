"""Volume rendering of dense grids: depth, semantics, transmittance and distortion of rays in one pass."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._backend import choose, compiled, once_differentiable
from ._checks import check_device, check_tensor, three_floats
from .compositing import (
    accumulate_reference,
    alpha_to_weights_reference,
    density_to_alpha_reference,
)
from .ray_samples import clip_rays_reference, ray_samples_reference, seed_tensor

__all__ = [
    'RayRendering',
    'interpolate_grids',
    'render_rays',
    'render_rays_reference',
    'render_samples',
    'render_samples_reference',
]

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LAYOUTS = ('bnwhdc', 'bcdhw')


class RayRendering(NamedTuple):
    """What R rays see. Of the dtype of the grids; float32 for float16 and bfloat16."""

    depth: torch.Tensor  # (R,): sum of the weights times t; not divided by the opacity
    semantics: torch.Tensor  # (R, C): sum of the weights times the interpolated semantics
    transmittance: torch.Tensor  # (R,): share of the light left at the end; the opacity is 1 - transmittance
    distortion: torch.Tensor  # (R,): sum_ij w_i w_j |t_i - t_j| + 1/3 sum_i w_i^2 (interval in t)


def render_rays(
    density: torch.Tensor,
    semantics: torch.Tensor,
    origins: torch.Tensor,
    directions: torch.Tensor,
    lower: Sequence[float],
    voxel_size: Sequence[float],
    *,
    step: float | None = None,
    samples: int | None = None,
    near: float = 0.0,
    far: float = math.inf,
    position: float = 0.5,
    seed: int | torch.Tensor | None = None,
    unit: float = 1.0,
    shift: float = 0.0,
    stop: float = 1e-4,
    min_weight: float = 0.0,
    grid_index: torch.Tensor | None = None,
    layout: str = 'bnwhdc',
) -> RayRendering:
    """Render rays through dense grids of raw density and semantics.

    Each ray is cut to the part inside the grid and between ``near`` and ``far``; one sample lies in each interval of it
    (as ``clip_rays`` and ``sample_rays`` do). The raw density is interpolated trilinearly between the cells' centres,
    falling to 0 half a cell beyond the outermost ones, and becomes the opacity
    1 - exp(-length / unit softplus(density + shift)) (as ``density_to_alpha`` does), the opacities become weights (as
    ``alpha_to_weights`` does). Nothing of size samples x classes is in memory, nor anything of size samples: the
    backward pass marches along the rays again.

    Args:
        density: raw density, (B, X, Y, Z) in layout 'bnwhdc', (B, Z, Y, X) in 'bcdhw'.
        semantics: (B, X, Y, Z, C) in layout 'bnwhdc', (B, C, Z, Y, X) in 'bcdhw'; logits or any other features.
            Fastest where memory is channels-last, as in 'bnwhdc' or torch.channels_last_3d; else it is copied.
        origins: (R, 3) metres, in the frame of the grid.
        directions: (R, 3) of any length; t is measured in it. With unit directions the depth is a distance, with
            camera rays K^-1 (u, v, 1) turned into the frame of the grid it is the depth along the camera's axis.
        lower: metres, lower corner of the grid (x, y, z).
        voxel_size: metres, size of a cell (x, y, z).
        step: metres, length of an interval. Half a cell is usual.
        samples: or the number of intervals of each ray, whatever their length.
        near: smallest t.
        far: largest t.
        position: where in its interval a sample lies, 0 (begin) to 1 (end).
        seed: stratified samples instead, as in ``sample_rays``.
        unit: metres, the unit of length that the density is per.
        shift: added to the raw density.
        stop: a ray ends after the first sample behind which less than this share of the light is left. 0: never.
        min_weight: semantics are left out of samples that weigh no more than this.
        grid_index: (R,) int64, which of the B grids each ray goes through; may be left out where B is 1.
        layout: 'bnwhdc' or 'bcdhw'.

    Returns:
        RayRendering: depth (R,), semantics (R, C), transmittance (R,), distortion (R,); 0, 0, 1 and 0 for rays that
        miss the grid.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or numbers; more than 2^24 samples on a ray; on the CPU also a
            grid_index out of range (on a GPU such rays see nothing, since raising would make the host wait).

    Differentiable (once) in density and semantics; not in origins and directions. CPU (threaded; deterministic, the
    same bits for any number of threads) and CUDA (the backward pass adds by atomics, whose order varies; raises under
    ``torch.use_deterministic_algorithms``). Never makes the host wait.
    Source: N. Max, "Optical Models for Direct Volume Rendering", IEEE TVCG 1995; B. Mildenhall et al., "NeRF:
    Representing Scenes as Neural Radiance Fields for View Synthesis", ECCV 2020.
    """
    density, semantics, dtype = _grids(density, semantics, layout)
    check_tensor('origins', origins, '(R, 3)', 2, 3, _FLOATING)
    check_tensor('directions', directions, '(R, 3)', 2, 3, _FLOATING)
    if origins.shape != directions.shape:
        raise ValueError(f'origins {tuple(origins.shape)} and directions {tuple(directions.shape)} must be as many')
    check_device(density=density, semantics=semantics, origins=origins, directions=directions, grid_index=grid_index)
    _check_grid_index(grid_index, density, origins.shape[0])
    if (step is None) == (samples is None):
        raise ValueError('either step or samples must be given')
    if not 0 < (step or samples or 0) < math.inf:
        raise ValueError(f'step or samples must be above 0, found {samples if step is None else step}')
    if not (-math.inf < near <= far):
        raise ValueError(f'near must be finite and not above far, found {near} and {far}')
    if not 0 < unit < math.inf:
        raise ValueError(f'unit must be finite and above 0, found {unit}')
    if not 0 <= position <= 1:
        raise ValueError(f'position must be in 0..1, found {position}')
    lower, voxel_size = three_floats('lower', lower), three_floats('voxel_size', voxel_size, positive=True)
    run = choose('volume_render', density.device, render_rays_reference)
    return RayRendering(
        *run(
            density,
            semantics,
            origins.detach().to(dtype),
            directions.detach().to(dtype),
            grid_index,
            seed_tensor(seed, density.device),
            lower,
            voxel_size,
            float(near),
            float(far),
            float(step or 0),
            int(samples or 0),
            float(position),
            float(unit),
            float(shift),
            float(stop),
            float(min_weight),
        )
    )


def render_samples(
    density: torch.Tensor,
    semantics: torch.Tensor,
    points: torch.Tensor,
    t: torch.Tensor,
    offset: torch.Tensor,
    *,
    interval: float | torch.Tensor = 1.0,
    width: float | torch.Tensor = 0.0,
    shift: float = 0.0,
    stop: float = 1e-4,
    min_weight: float = 0.0,
    grid_index: torch.Tensor | None = None,
    layout: str = 'bnwhdc',
) -> RayRendering:
    """``render_rays`` at samples that the caller has placed: curved rays, contracted space, any spacing.

    Args:
        density, semantics, shift, stop, min_weight, grid_index, layout: as in ``render_rays``.
        points: (M, 3) places x, y, z of the samples in cells: 0 is the centre of the first cell, size - 1 that of the
            last. Beyond them by a cell or more, and where NaN, density and semantics are 0.
        t: (M,) the number that depth sums up, ascending along each ray.
        offset: (R + 1,) int64, the samples of ray r are offset[r]:offset[r + 1], front to back.
        interval: lengths of the samples' intervals in the unit that the density is per: one number or (M,).
        width: their lengths in units of t, for the distortion: one number or (M,).

    Returns, raises, and else: as ``render_rays``; not differentiable in points, t, interval and width. On the CPU
    offsets that do not ascend from 0 to M raise too (on a GPU they are cut to the samples there are).
    """
    density, semantics, dtype = _grids(density, semantics, layout)
    check_tensor('points', points, '(M, 3)', 2, 3, _FLOATING)
    check_tensor('t', t, '(M,)', 1, dtypes=_FLOATING)
    check_tensor('offset', offset, '(R + 1,)', 1, dtypes=(torch.int64,))
    if t.shape[0] != points.shape[0]:
        raise ValueError(f'points and t must be as many, found {points.shape[0]} and {t.shape[0]}')
    if offset.shape[0] < 1:
        raise ValueError('offset must be (R + 1,), found no entry')
    check_device(density=density, semantics=semantics, points=points, t=t, offset=offset, grid_index=grid_index)
    _check_grid_index(grid_index, density, offset.shape[0] - 1)
    numbers = []
    for name, value in (('interval', interval), ('width', width)):
        value = torch.as_tensor(value, dtype=dtype, device=t.device).detach().flatten()
        if value.shape[0] not in (1, t.shape[0]):
            raise ValueError(f'{name} must be one number or (M,), found {tuple(value.shape)}')
        numbers.append(value)
    run = choose('volume_render_samples', density.device, render_samples_reference)
    points, t = points.detach().to(dtype), t.detach().to(dtype)
    return RayRendering(
        *run(density, semantics, points, t, *numbers, offset, grid_index, float(shift), float(stop), float(min_weight))
    )


def _grids(density, semantics, layout):
    """Both as (B, X, Y, Z[, C]) in the dtype that is computed in."""
    if layout not in _LAYOUTS:
        raise ValueError(f'layout must be one of {_LAYOUTS}, found {layout!r}')
    shapes = {'bnwhdc': ('(B, X, Y, Z)', '(B, X, Y, Z, C)'), 'bcdhw': ('(B, Z, Y, X)', '(B, C, Z, Y, X)')}[layout]
    check_tensor('density', density, shapes[0], 4, dtypes=_FLOATING)
    check_tensor('semantics', semantics, shapes[1], 5, dtypes=_FLOATING)
    dtype = torch.promote_types(torch.promote_types(density.dtype, semantics.dtype), torch.float32)
    if layout == 'bcdhw':
        density, semantics = density.permute(0, 3, 2, 1), semantics.permute(0, 4, 3, 2, 1)
    if semantics.shape[:4] != density.shape:
        raise ValueError(
            f'density {shapes[0]} and semantics {shapes[1]} must agree in B, X, Y and Z, found (B, X, Y, Z) '
            f'{tuple(density.shape)} and {tuple(semantics.shape[:4])}'
        )
    return density.to(dtype), semantics.to(dtype), dtype


def _check_grid_index(grid_index, density, rays):
    if grid_index is None:
        if density.shape[0] != 1:
            raise ValueError(f'grid_index must be given where there are {density.shape[0]} grids')
        return
    check_tensor('grid_index', grid_index, '(R,)', 1, dtypes=(torch.int64,))
    if grid_index.shape[0] != rays:
        raise ValueError(f'grid_index must be ({rays},), found {tuple(grid_index.shape)}')


def interpolate_grids(grids, points, index):
    """Plain torch: values (M, C) of grids (B, X, Y, Z, C) at points (M, 3) in cells, of grid ``index`` (M,) each;
    trilinear, 0 outside."""
    size = torch.tensor(grids.shape[1:4], device=points.device)
    points = torch.where(points.isfinite(), points, -10.0)
    first = points.floor()
    out = 0
    for corner in ((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)):
        cell = first + torch.tensor(corner, device=points.device)
        weight = (1 - (points - cell).abs()).prod(1)
        inside = ((cell >= 0) & (cell < size)).all(1)
        x, y, z = torch.where(inside[:, None], cell, 0).long().unbind(1)
        out = out + torch.where(inside, weight, 0)[:, None] * grids[index, x, y, z]
    return out


def render_samples_reference(
    density, semantics, points, t, interval, width, offset, grid_index, shift, stop, min_weight
):
    """Plain-torch form of ``render_samples``, differentiable, with samples x classes numbers in memory."""
    if int(offset[0]) != 0 or int(offset[-1]) != len(t) or bool((offset.diff() < 0).any()):
        raise ValueError(f'offset must ascend from 0 to the number of samples, {len(t)}')
    rays = len(offset) - 1
    ray = torch.repeat_interleave(torch.arange(rays, device=t.device), offset.diff())
    grid_index = offset.new_zeros(rays) if grid_index is None else grid_index
    if bool(((grid_index < 0) | (grid_index >= len(density))).any()):
        raise ValueError(f'grid_index must be in 0..{len(density) - 1}')
    index = grid_index[ray]
    values = interpolate_grids(density[..., None], points, index)[:, 0]
    alpha = density_to_alpha_reference(values, interval, shift)
    weights, transmittance = alpha_to_weights_reference(alpha, offset, stop)
    kept = torch.where(weights > min_weight, weights, 0)
    rendered = accumulate_reference(kept, interpolate_grids(semantics, points, index), offset)
    depth = accumulate_reference(weights, t[:, None], offset)[:, 0]
    # the distortion by sums in front of each sample, as t ascends along a ray; dense so that rays do not mix
    place = torch.arange(len(t), device=t.device) - offset[ray]
    longest = int(offset.diff().max()) if rays else 0
    dense = weights.new_zeros(rays, longest).index_put((ray, place), weights)
    along = t.new_zeros(rays, longest).index_put((ray, place), t)
    wide = t.new_zeros(rays, longest).index_put((ray, place), width.expand_as(t))
    mass, moment = dense.cumsum(1) - dense, (dense * along).cumsum(1) - dense * along
    distortion = (2 * dense * (along * mass - moment) + dense.square() * wide / 3).sum(1)
    return depth, rendered, transmittance, distortion


def render_rays_reference(
    density,
    semantics,
    origins,
    directions,
    grid_index,
    seed,
    lower,
    voxel_size,
    near,
    far,
    step,
    count,
    position,
    unit,
    shift,
    stop,
    min_weight,
):
    """Plain-torch form of ``render_rays``, differentiable, with samples x classes numbers in memory."""
    size = density.shape[1:4]
    upper = [low + edge * cells for low, edge, cells in zip(lower, voxel_size, size)]
    start, end = clip_rays_reference(origins, directions, lower, upper, near, far)
    length = directions.norm(dim=1)
    hit = end > start
    if step > 0:
        spacing = torch.where(hit, step / length, 1)
        counts = torch.where(hit, ((end - start) / spacing).ceil(), 0).long()
    else:
        spacing = torch.where(hit, (end - start) / count, 1)
        counts = torch.where(hit, count, 0)
    t, ray, offset = ray_samples_reference(start, spacing, counts, position, seed)
    low, edge = (origins.new_tensor(value) for value in (lower, voxel_size))
    points = ((origins - low) / edge - 0.5)[ray] + t[:, None] * (directions / edge)[ray]
    interval, width = (spacing * length / unit)[ray], spacing[ray]
    return render_samples_reference(
        density, semantics, points, t, interval, width, offset, grid_index, shift, stop, min_weight
    )


def _fake_outputs(semantics, rays):
    return (
        semantics.new_empty(rays),
        semantics.new_empty(rays, semantics.shape[4]),
        semantics.new_empty(rays),
        semantics.new_empty(rays),
    )


def _fake_render(density, semantics, origins, directions, *rest):
    return _fake_outputs(semantics, directions.shape[0])


def _fake_samples(density, semantics, points, t, interval, width, offset, *rest):
    return _fake_outputs(semantics, offset.shape[0] - 1)


def _fake_backward(*arguments):
    density, semantics = arguments[8:10]
    return density.new_empty(density.shape), semantics.new_empty(semantics.shape)


def _setup(ctx, inputs, output):
    ctx.inputs = [None if isinstance(value, torch.Tensor) else value for value in inputs]
    ctx.tensors = [place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    ctx.save_for_backward(*output, *(inputs[place] for place in ctx.tensors))


def _formula(operator):
    def backward(ctx, *grads):
        inputs = list(ctx.inputs)
        for place, value in zip(ctx.tensors, ctx.saved_tensors[4:]):
            inputs[place] = value
        grads = operator(*grads, *ctx.saved_tensors[:4], *inputs)
        return (*grads, *(None for _ in inputs[2:]))

    return backward


for _name, _fake in (('volume_render', _fake_render), ('volume_render_samples', _fake_samples)):
    if not compiled(_name, f'{_name}_backward'):
        continue
    torch.library.register_fake(f'occforge::{_name}')(_fake)
    torch.library.register_fake(f'occforge::{_name}_backward')(_fake_backward)
    _operator = getattr(torch.ops.occforge, f'{_name}_backward')
    torch.library.register_autograd(f'occforge::{_name}', _formula(_operator), setup_context=_setup)
    once_differentiable(f'{_name}_backward')
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast(f'occforge::{_name}', _device, torch.float32)
