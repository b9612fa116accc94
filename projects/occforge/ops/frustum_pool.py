"""Frustum pooling: depth probabilities x image features -> voxel grid, without the product of the two in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._backend import choose, compiled
from ._checks import check_device, check_tensor, three_floats, three_sizes

__all__ = [
    'FrustumIndexCache',
    'FrustumIndices',
    'frustum_indices',
    'frustum_indices_reference',
    'frustum_pool',
    'frustum_pool_reference',
]

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class FrustumIndices(NamedTuple):
    """Which frustum point falls into which cell; made by ``frustum_indices``. All int64.

    With M = B N D h w frustum points and V = B Z Y X cells, cell ``b Z Y X + z Y X + y X + x``:
    """

    voxel: torch.Tensor  # (B, N, D, h, w): cell of each point, -1 outside the grid
    point: torch.Tensor  # (M,): point numbers sorted by cell, ascending inside a cell; those outside come last
    offset: torch.Tensor  # (V + 1,): the points of cell v are point[offset[v]:offset[v + 1]]


def frustum_indices(
    points: torch.Tensor, lower: Sequence[float], interval: Sequence[float], size: Sequence[int]
) -> FrustumIndices:
    """Sort frustum points into the cells of a voxel grid.

    The cell along each axis is trunc((p - lower) / interval), computed in the dtype of ``points`` and truncated toward
    zero as in the field's implementations: a point up to one cell below the lower bound falls into cell 0. Points
    elsewhere outside, NaN and infinity are left out.

    Depends on the calibration and the augmentation alone, so for fixed ones the result can be kept and used again:
    ``FrustumIndexCache`` does.

    Args:
        points: (B, N, D, h, w, 3) x, y, z in metres (ego frame) for B samples, N cameras, D depth bins, an h x w
            feature map. float32 or float64 (float16 and bfloat16 are computed in float32).
        lower: metres, lower corner of the grid (x, y, z).
        interval: metres, size of a cell (x, y, z).
        size: number of cells (X, Y, Z).

    Returns:
        FrustumIndices: int64 tensors voxel (B, N, D, h, w), point (B N D h w,), offset (B Z Y X + 1,).

    Raises:
        TypeError, ValueError: wrong dtype or shape; numbers that are not finite or not above 0.

    Not differentiable. Deterministic. CPU (threaded) and CUDA; never makes the host wait.
    """
    check_tensor('points', points, '(B, N, D, h, w, 3)', 6, 3, _FLOATING)
    points = points.detach()
    if points.dtype in (torch.float16, torch.bfloat16):
        points = points.float()
    lower, interval, size = (
        three_floats('lower', lower),
        three_floats('interval', interval, positive=True),
        three_sizes('size', size),
    )
    run = choose('frustum_indices', points.device, frustum_indices_reference)
    return FrustumIndices(*run(points, lower, interval, size))


class FrustumIndexCache:
    """``frustum_indices`` that keeps its last result: made anew when other points come than the last time.

    For a rig that stays as it is, without augmentation. Comparing reads the points once, far less than sorting them; on
    a GPU the host waits for the outcome. Where torch.compile traces it nothing is kept. A copy starts empty.
    """

    def __init__(self):
        self._made_for = self._points = self._indices = None

    def __reduce__(self):
        return FrustumIndexCache, ()

    def __call__(
        self, points: torch.Tensor, lower: Sequence[float], interval: Sequence[float], size: Sequence[int]
    ) -> FrustumIndices:
        """Arguments and result as ``frustum_indices``."""
        if torch.compiler.is_compiling():
            return frustum_indices(points, lower, interval, size)
        made_for = points.dtype, points.device, points.shape, *(tuple(map(float, x)) for x in (lower, interval, size))
        if made_for != self._made_for or not torch.equal(points, self._points):
            self._indices = frustum_indices(points, lower, interval, size)
            self._made_for, self._points = made_for, points.detach().clone()
        return self._indices


def frustum_pool(depth: torch.Tensor, feat: torch.Tensor, indices: FrustumIndices, size: Sequence[int]) -> torch.Tensor:
    """Sum depth-weighted image features in the cells of a voxel grid.

    ``out[b, :, z, y, x]`` is the sum of ``depth[b, n, d, v, u] * feat[b, n, :, v, u]`` over all frustum points
    (n, d, v, u) that ``indices`` puts into cell (z, y, x). Cells without a point are 0.

    Args:
        depth: (B, N, D, h, w) weights, usually softmax over D.
        feat: (B, N, C, h, w) features. Fastest where its memory is channels-last, (B, N, h, w, C).
        indices: from ``frustum_indices`` for the same B, N, D, h, w and size.
        size: number of cells (X, Y, Z).

    Returns:
        Tensor: (B, C, Z, Y, X), in memory (B, Z, Y, X, C) (torch.channels_last_3d). dtype: the wider of depth and feat;
        float32 under autocast. Sums are float32 for float16 and bfloat16, else in the tensors' own dtype.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; indices made for another shape or (on the CPU) corrupt. On
            a GPU corrupt entries are skipped, since raising would make the host wait.

    Differentiable (twice too) in depth and feat. Deterministic, forward and backward. CPU (threaded) and CUDA.
    Source: J. Philion, S. Fidler, "Lift, Splat, Shoot: Encoding Images from Arbitrary Camera Rigs by Implicitly
    Unprojecting to 3D", ECCV 2020.
    """
    check_tensor('depth', depth, '(B, N, D, h, w)', 5, dtypes=_FLOATING)
    check_tensor('feat', feat, '(B, N, C, h, w)', 5, dtypes=_FLOATING)
    if (*depth.shape[:2], *depth.shape[3:]) != (*feat.shape[:2], *feat.shape[3:]):
        raise ValueError(
            'depth (B, N, D, h, w) and feat (B, N, C, h, w) must agree in B, N, h and w, found '
            f'{tuple(depth.shape)} and {tuple(feat.shape)}'
        )
    size = three_sizes('size', size)
    if not isinstance(indices, tuple) or len(indices) != 3:
        raise TypeError(f'indices must be the FrustumIndices of frustum_indices, found {type(indices).__name__}')
    voxel, point, offset = indices
    check_tensor('indices.voxel', voxel, '(B, N, D, h, w)', 5, dtypes=(torch.int64,))
    check_tensor('indices.point', point, '(B N D h w,)', 1, dtypes=(torch.int64,))
    check_tensor('indices.offset', offset, '(B Z Y X + 1,)', 1, dtypes=(torch.int64,))
    if voxel.shape != depth.shape or point.shape[0] != depth.numel():
        raise ValueError(
            f'indices were made for frustum points (B, N, D, h, w) = {tuple(voxel.shape)} ({point.shape[0]} entries), '
            f'depth has {tuple(depth.shape)}'
        )
    cells = depth.shape[0] * size[0] * size[1] * size[2]
    if offset.shape[0] != cells + 1:
        raise ValueError(f'indices.offset must have B Z Y X + 1 = {cells + 1} entries, found {offset.shape[0]}')
    check_device(depth=depth, feat=feat, voxel=voxel, point=point, offset=offset)
    dtype = torch.promote_types(depth.dtype, feat.dtype)
    depth, feat = depth.to(dtype), feat.to(dtype)
    run = choose('frustum_pool', depth.device, frustum_pool_reference)
    return run(depth, feat, voxel, point, offset, size)


def frustum_indices_reference(points, lower, interval, size):
    """Plain-torch form of ``frustum_indices`` (arguments checked by the caller)."""
    lower = torch.tensor(lower, dtype=points.dtype, device=points.device)
    interval = torch.tensor(interval, dtype=points.dtype, device=points.device)
    at = (points - lower) / interval
    inside = ((at > -1) & (at < torch.tensor(size, device=points.device))).all(-1)
    x, y, z = torch.where(inside[..., None], at, 0).to(torch.int64).unbind(-1)
    cells = size[0] * size[1] * size[2]
    batch = torch.arange(points.shape[0], device=points.device).view(-1, 1, 1, 1, 1)
    cell = batch * cells + (z * size[1] + y) * size[0] + x
    total = points.shape[0] * cells
    order = torch.where(inside, cell, total).flatten()
    order, point = order.sort(stable=True)
    offset = torch.searchsorted(order, torch.arange(total + 1, device=points.device))
    return torch.where(inside, cell, -1), point, offset


def frustum_pool_reference(depth, feat, voxel, point, offset, size):
    """Plain-torch form of ``frustum_pool``, differentiable, with the points x channels product in memory."""
    batch, _, bins, height, width = depth.shape
    cells, kept = batch * size[0] * size[1] * size[2], int(offset[-1])
    point = point[:kept]
    if not bool((voxel.flatten()[point] >= 0).all()) or int((voxel >= 0).sum()) != kept:
        raise ValueError('indices are corrupt: they must come from frustum_indices and be passed on unchanged')
    pixels = height * width
    pixel = point // (bins * pixels) * pixels + point % pixels
    accumulate = depth.dtype if depth.dtype == torch.float64 else torch.float32
    rows = feat.permute(0, 1, 3, 4, 2).flatten(0, 3).to(accumulate)
    weighted = depth.flatten()[point].to(accumulate)[:, None] * rows[pixel]
    out = weighted.new_zeros(cells, feat.shape[2]).index_add(0, voxel.flatten()[point], weighted)
    out = out.to(depth.dtype).view(batch, size[2], size[1], size[0], feat.shape[2])
    return out.permute(0, 4, 1, 2, 3)


if compiled('frustum_indices'):

    @torch.library.register_fake('occforge::frustum_indices')
    def _(points, lower, interval, size):
        voxel = points.new_empty(points.shape[:5], dtype=torch.int64)
        cells = points.shape[0] * size[0] * size[1] * size[2]
        return voxel, voxel.new_empty(voxel.numel()), voxel.new_empty(cells + 1)


if compiled('frustum_pool', 'frustum_pool_backward'):

    @torch.library.register_fake('occforge::frustum_pool')
    def _(depth, feat, voxel, point, offset, size):
        return feat.new_empty(depth.shape[0], size[2], size[1], size[0], feat.shape[2]).permute(0, 4, 1, 2, 3)

    @torch.library.register_fake('occforge::frustum_pool_backward')
    def _(grad, depth, feat, voxel, point, offset, size):
        batch, cameras, channels, height, width = feat.shape
        grad_feat = feat.new_empty(batch, cameras, height, width, channels).permute(0, 1, 4, 2, 3)
        return depth.new_empty(depth.shape), grad_feat

    def _setup_forward(ctx, inputs, output):
        depth, feat, voxel, point, offset, ctx.size = inputs
        ctx.save_for_backward(depth, feat, voxel, point, offset)

    def _forward_formula(ctx, grad):
        grads = torch.ops.occforge.frustum_pool_backward(grad, *ctx.saved_tensors, ctx.size)
        return (*grads, None, None, None, None)

    def _setup_backward(ctx, inputs, output):
        grad, depth, feat, voxel, point, offset, ctx.size = inputs
        ctx.save_for_backward(grad, depth, feat, voxel, point, offset)

    def _backward_formula(ctx, grad_depth, grad_feat):
        # out is bilinear in depth and feat, so its gradients are linear in each: the same two operators again.
        grad, depth, feat, voxel, point, offset = ctx.saved_tensors
        pool, back, rest = torch.ops.occforge.frustum_pool, torch.ops.occforge.frustum_pool_backward, ctx.size
        grad_grad = pool(grad_depth, feat, voxel, point, offset, rest)
        grad_grad = grad_grad + pool(depth, grad_feat, voxel, point, offset, rest)
        return (grad_grad, *back(grad, grad_depth, grad_feat, voxel, point, offset, rest), None, None, None, None)

    torch.library.register_autograd('occforge::frustum_pool', _forward_formula, setup_context=_setup_forward)
    torch.library.register_autograd('occforge::frustum_pool_backward', _backward_formula, setup_context=_setup_backward)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('occforge::frustum_pool', _device, torch.float32)
