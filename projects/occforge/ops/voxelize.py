"""Dynamic voxelisation: every point inside the grid is kept; the points of a cell become one row."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._backend import has_extension, use_extension
from ._checks import check_device, check_tensor, three_floats, three_sizes

__all__ = ['Voxels', 'voxel_assign_reference', 'voxel_reduce_reference', 'voxelize']

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_REDUCE = {'sum': 0, 'mean': 1, 'max': 2}


class Voxels(NamedTuple):
    """The occupied cells of a point cloud, in lexicographic order of (b, x, y, z)."""

    features: torch.Tensor  # (V, F): reduced columns of the points, x, y, z included
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
    check_tensor('points', points, '(P, F) with F >= 3', 2, dtypes=_FLOATING)
    if points.shape[1] < 3:
        raise ValueError(f'points must have shape (P, F) with F >= 3, found {tuple(points.shape)}')
    if reduce not in _REDUCE:
        raise ValueError(f'reduce must be one of {", ".join(sorted(_REDUCE))}, found {reduce!r}')
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
    if use_extension(points.device):
        coords, inverse, point, offset = torch.ops.occforge.voxel_assign(positions, batch_index, *grid)
        features, _ = torch.ops.occforge.voxel_reduce(points, inverse, point, offset, _REDUCE[reduce])
    else:
        coords, inverse, point, offset = voxel_assign_reference(positions, batch_index, *grid)
        features, _ = voxel_reduce_reference(points, inverse, point, offset, _REDUCE[reduce])
    return Voxels(features, coords, inverse, offset.diff())


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


if has_extension():

    @torch.library.register_fake('occforge::voxel_assign')
    def _(points, batch_index, lower, voxel_size, size):
        voxels = torch.library.get_ctx().new_dynamic_size()
        index = points.new_empty(points.shape[0], dtype=torch.int64)
        coords = points.new_empty((voxels, 4), dtype=torch.int32)
        return coords, index, torch.empty_like(index), index.new_empty(voxels + 1)

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
