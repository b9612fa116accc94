"""Voxelisation: the points of a cell become one row.

Dynamic (``voxelize``): every point inside the grid is kept. Hard (``hard_voxelize``): the first so many points of a
voxel and the first so many voxels of a sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._backend import choose, compiled
from ._checks import check_device, check_tensor, three_floats, three_sizes

__all__ = [
    'Voxels',
    'hard_voxelize',
    'voxel_assign_reference',
    'voxel_limit_reference',
    'voxel_reduce_reference',
    'voxelize',
]

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_REDUCE = {'sum': 0, 'mean': 1, 'max': 2}


class Voxels(NamedTuple):
    """The occupied cells of a point cloud. From ``voxelize`` in lexicographic order of (b, x, y, z), from
    ``hard_voxelize`` sample after sample in order of arrival."""

    features: (
        torch.Tensor
    )  # (V, F): reduced columns of the points, x, y, z included; or all of them, (V, max_points, F)
    coords: torch.Tensor  # (V, 4) int32: sample and cell, (b, x, y, z)
    inverse: torch.Tensor  # (P,) int64: row of each point's voxel, -1 for points that were dropped
    counts: torch.Tensor  # (V,) int64: points in each voxel


def voxelize(
    points: torch.Tensor,
    batch_index: torch.Tensor | None,
    lower: Sequence[float],
    voxel_size: Sequence[float],
    size: Sequence[int],
    reduce: str = 'mean',
) -> Voxels:
    """Group points by the cell they lie in and reduce each group to one row.

    The cell along each axis is floor((p - lower) / voxel_size), computed in the dtype of ``points``. Points outside
    [0, size) and points with NaN or infinity among x, y, z are dropped; all others are kept, however many share a cell.

    Args:
        points: (P, F) with x, y, z in metres in the first three columns, F >= 3. float32 or float64 (float16 and
            bfloat16: cells computed in float32).
        batch_index: (P,) int64 sample of each point, 0 or above; None: all of sample 0.
        lower: metres, lower corner of the grid (x, y, z).
        voxel_size: metres, size of a cell (x, y, z).
        size: number of cells (X, Y, Z).
        reduce: 'mean', 'sum' or 'max' over the points of a cell, column by column.

    Returns:
        Voxels: features (V, F) of the dtype of ``points``, coords (V, 4) int32 (b, x, y, z) in lexicographic order,
        inverse (P,) int64, counts (V,) int64. V is 0 if no point is inside.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; a negative batch_index; an unknown ``reduce``.

    Differentiable in ``points`` through the reduction (not through the choice of the cell): a mean shares its gradient
    among the points, a max gives it to the first point that has the maximum, dropped points get 0. Sums are float32 for
    float16 and bfloat16. Deterministic, forward and backward. CPU (threaded) and CUDA; on a GPU the host waits once,
    for the number of voxels.
    """
    _check_reduce(reduce, _REDUCE)
    assigned = _assign(points, batch_index, lower, voxel_size, size)
    return Voxels(_reduce(points, assigned, reduce), assigned[0], assigned[1], assigned[3].diff())


def hard_voxelize(
    points: torch.Tensor,
    batch_index: torch.Tensor | None,
    lower: Sequence[float],
    voxel_size: Sequence[float],
    size: Sequence[int],
    max_points: int | None = None,
    max_voxels: int | None = None,
    reduce: str = 'mean',
) -> Voxels:
    """Group points by the cell they lie in, with limits on both numbers.

    Cells are those of ``voxelize``. The voxels of a sample are numbered in the order of their first points; those from
    number ``max_voxels`` on are dropped with their points. Of the points of a voxel the first ``max_points`` are kept,
    in the order of ``points`` (also those that come after the voxels have run out). This is the choice of mmcv's
    deterministic hard voxelisation, so models trained with it see the same voxels in the same order.

    Args:
        points, batch_index, lower, voxel_size, size: as in ``voxelize``.
        max_points: points kept in a voxel; None: all.
        max_voxels: voxels kept in a sample; None: all.
        reduce: 'mean', 'sum' or 'max' over the points kept in a cell, or 'none': the points themselves, in
            ``max_points`` slots of which the empty ones hold 0.

    Returns:
        Voxels: features (V, F), for 'none' (V, max_points, F); coords (V, 4) int32 (b, x, y, z), sample after sample;
        inverse (P,) int64, -1 for points that were dropped for either reason; counts (V,) int64 points kept.

    Raises:
        TypeError, ValueError: as ``voxelize``; a limit below 1; 'none' without ``max_points``.

    Differentiable in ``points`` as ``voxelize``; dropped points get 0. Deterministic. CPU and CUDA (where the choice is
    made by torch's own sorting); on a GPU the host waits for the number of voxels.
    """
    _check_reduce(reduce, (*_REDUCE, 'none'))
    for name, value in (('max_points', max_points), ('max_voxels', max_voxels)):
        if value is not None and (int(value) != value or value < 1):
            raise ValueError(f'{name} must be a whole number above 0 or None, found {value}')
    if reduce == 'none' and max_points is None:
        raise ValueError("max_points must be given for reduce='none', it is the number of slots")
    assigned = _assign(points, batch_index, lower, voxel_size, size)
    limits = [2**62 if value is None else int(value) for value in (max_points, max_voxels)]
    limit = choose('voxel_limit', points.device, voxel_limit_reference)
    assigned = coords, inverse, point, offset = limit(*assigned, *limits)
    if reduce == 'none':
        voxel = inverse[point[: int(offset[-1])]]
        slot = voxel * max_points + torch.arange(len(voxel), device=points.device) - offset[voxel]
        features = points.new_zeros(len(coords) * max_points, points.shape[1])
        features = features.index_copy(0, slot, points[point[: len(voxel)]]).unflatten(0, (len(coords), max_points))
    else:
        features = _reduce(points, assigned, reduce)
    return Voxels(features, coords, inverse, offset.diff())


def _check_reduce(reduce, known):
    if reduce not in known:
        raise ValueError(f'reduce must be one of {", ".join(sorted(known))}, found {reduce!r}')


def _assign(points, batch_index, lower, voxel_size, size):
    """Checks the arguments; coords, inverse, point and offset of ``voxel_assign``."""
    check_tensor('points', points, '(P, F) with F >= 3', 2, dtypes=_FLOATING)
    if points.shape[1] < 3:
        raise ValueError(f'points must have shape (P, F) with F >= 3, found {tuple(points.shape)}')
    if batch_index is not None:
        check_tensor('batch_index', batch_index, '(P,)', 1, dtypes=(torch.int64,))
        if batch_index.shape[0] != points.shape[0]:
            raise ValueError(f'batch_index must have {points.shape[0]} entries, found {batch_index.shape[0]}')
        check_device(points=points, batch_index=batch_index)
    grid = (
        three_floats('lower', lower),
        three_floats('voxel_size', voxel_size, positive=True),
        three_sizes('size', size),
    )
    positions = points.detach()
    if points.dtype in (torch.float16, torch.bfloat16):
        positions = positions[:, :3].float()
    run = choose('voxel_assign', points.device, voxel_assign_reference)
    return run(positions, batch_index, *grid)


def _reduce(points, assigned, reduce):
    run = choose('voxel_reduce', points.device, voxel_reduce_reference)
    return run(points, *assigned[1:], _REDUCE[reduce])[0]


def voxel_assign_reference(points, batch_index, lower, voxel_size, size):
    """Plain-torch form of the operator ``voxel_assign``.

    Returns coords (V, 4) int32, inverse (P,) int64, point (P,) int64: the points sorted by voxel, dropped ones last,
    and offset (V + 1,) int64: the points of voxel v are point[offset[v]:offset[v + 1]].
    """
    device = points.device
    lower = torch.tensor(lower, dtype=points.dtype, device=device)
    at = (points[:, :3] - lower) / torch.tensor(voxel_size, dtype=points.dtype, device=device)
    kept = ((at >= 0) & (at < torch.tensor(size, device=device))).all(1)
    if batch_index is None:
        batch_index = torch.zeros(points.shape[0], dtype=torch.int64, device=device)
    elif bool((batch_index < 0).any()):
        raise ValueError(f'batch_index must not be negative, found {int(batch_index.min())}')
    x, y, z = at[kept].to(torch.int64).unbind(1)
    cell = ((batch_index[kept] * size[0] + x) * size[1] + y) * size[2] + z
    cells, voxel, counts = torch.unique(cell, return_inverse=True, return_counts=True)
    coords = torch.stack(
        [cells // (size[0] * size[1] * size[2]), cells // (size[1] * size[2]) % size[0], cells // size[2] % size[1]]
        + [cells % size[2]],
        dim=1,
    ).to(torch.int32)
    inverse = torch.full((points.shape[0],), -1, dtype=torch.int64, device=device)
    inverse[kept] = voxel
    point = torch.where(kept, inverse, cells.shape[0]).sort(stable=True).indices
    return coords, inverse, point, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def voxel_limit_reference(coords, inverse, point, offset, max_points, max_voxels):
    """Plain-torch form of the operator ``voxel_limit``, which also serves on CUDA.

    Takes and returns what ``voxel_assign`` returns: the voxels sample after sample in the order of their first points.
    """
    voxels, points = coords.shape[0], inverse.shape[0]
    number = torch.arange(max(voxels, points), device=coords.device)
    sample = coords[:, 0].long()  # ascending
    order = (sample * (points + 1) + point[offset[:-1]]).argsort()
    rank = number[:voxels] - torch.searchsorted(sample, sample)
    order = order[rank < max_voxels]
    counts = offset.diff()[order].clamp(max=max_points)
    renumbered = torch.full((voxels + 1,), -1, dtype=torch.int64, device=coords.device)  # -1 stays -1
    renumbered[order] = number[: len(order)]
    place = torch.empty_like(inverse)  # of each point among those of its voxel
    place[point] = number[:points]
    place = place - offset[inverse]
    inverse = torch.where((inverse >= 0) & (place < max_points), renumbered[inverse], -1)
    point = torch.where(inverse < 0, len(order), inverse).sort(stable=True).indices
    return coords[order], inverse, point, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def voxel_reduce_reference(features, inverse, point, offset, reduce):
    """Plain-torch form of the operator ``voxel_reduce``; differentiable.

    Returns the rows (V, F) and, for max, (V, F) the first point that has the maximum ((0, F) otherwise).
    """
    voxels, columns = offset.shape[0] - 1, features.shape[1]
    point = point[: int(offset[-1])]
    voxel = inverse[point]
    if reduce == _REDUCE['max']:
        rows = features.detach()[point]
        highest = rows.new_full((voxels, columns), -float('inf'))
        highest = highest.scatter_reduce(0, voxel[:, None].expand_as(rows), rows, 'amax')
        hit = (rows == highest[voxel]) | (rows.isnan() & highest[voxel].isnan())
        candidate = torch.where(hit, point[:, None], features.shape[0])
        best = torch.full((voxels, columns), features.shape[0], dtype=torch.int64, device=features.device)
        best = best.scatter_reduce(0, voxel[:, None].expand_as(rows), candidate, 'amin')
        return features.gather(0, best), best
    accumulate = features.dtype if features.dtype == torch.float64 else torch.float32
    rows = features[point].to(accumulate)
    out = rows.new_zeros(voxels, columns).index_add(0, voxel, rows)
    if reduce == _REDUCE['mean']:
        out = out / offset.diff()[:, None]
    return out.to(features.dtype), point.new_empty(0, columns)


if compiled('voxel_assign'):

    @torch.library.register_fake('occforge::voxel_assign')
    def _(points, batch_index, lower, voxel_size, size):
        voxels = torch.library.get_ctx().new_dynamic_size()
        index = points.new_empty(points.shape[0], dtype=torch.int64)
        coords = points.new_empty((voxels, 4), dtype=torch.int32)
        return coords, index, torch.empty_like(index), index.new_empty(voxels + 1)


if compiled('voxel_limit'):

    @torch.library.register_fake('occforge::voxel_limit')
    def _(coords, inverse, point, offset, max_points, max_voxels):
        voxels = torch.library.get_ctx().new_dynamic_size()
        return (
            coords.new_empty(voxels, 4),
            inverse.new_empty(inverse.shape),
            point.new_empty(point.shape),
            offset.new_empty(voxels + 1),
        )

    torch.library.register_kernel('occforge::voxel_limit', 'cuda', voxel_limit_reference)


if compiled('voxel_reduce', 'voxel_reduce_backward'):

    @torch.library.register_fake('occforge::voxel_reduce')
    def _(features, inverse, point, offset, reduce):
        voxels, columns = offset.shape[0] - 1, features.shape[1]
        return (
            features.new_empty(voxels, columns),
            point.new_empty(voxels if reduce == _REDUCE['max'] else 0, columns),
        )

    @torch.library.register_fake('occforge::voxel_reduce_backward')
    def _(grad, inverse, point, offset, argmax, reduce):
        return grad.new_empty(inverse.shape[0], grad.shape[1])

    def _setup_forward(ctx, inputs, output):
        _, inverse, point, offset, ctx.reduce = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inverse, point, offset, output[1])

    def _forward_formula(ctx, grad, _):
        grad = torch.ops.occforge.voxel_reduce_backward(grad, *ctx.saved_tensors, ctx.reduce)
        return grad, None, None, None, None

    def _setup_backward(ctx, inputs, output):
        _, inverse, point, offset, argmax, ctx.reduce = inputs
        ctx.save_for_backward(inverse, point, offset, argmax)

    def _backward_formula(ctx, grad):
        # The reduction is linear once the maxima are chosen, so this is the reduction again.
        inverse, point, offset, argmax = ctx.saved_tensors
        if ctx.reduce == _REDUCE['max']:
            grad = grad.gather(0, argmax)
        else:
            grad, _ = torch.ops.occforge.voxel_reduce(grad, inverse, point, offset, ctx.reduce)
        return grad, None, None, None, None, None

    torch.library.register_autograd('occforge::voxel_reduce', _forward_formula, setup_context=_setup_forward)
    torch.library.register_autograd('occforge::voxel_reduce_backward', _backward_formula, setup_context=_setup_backward)
