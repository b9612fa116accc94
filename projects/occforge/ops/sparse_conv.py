"""Sparse 3D convolution and pooling over lists of active voxels.

Voxels are rows: ``coords`` (V, 4) int32 holds (batch, x, y, z), ``features`` (V, C) what is there. A kernel of
K = kx * ky * kz taps (x slowest) is applied in two steps:

1. a *neighbour map* (K, V_out) int32 says for every tap and every output voxel which input row lies under the tap, or
   -1. It depends on the coordinates alone, so that layers on the same voxels share it;
2. ``sparse_conv`` sums ``weight[:, k] @ features[map[k, o]]`` over the taps. Its gradient to the features is the same
   operator with the transposed map.

All of it is a correlation, as in ``torch.nn.functional.conv3d``: output voxel o sees input ``o * stride - padding +
k * dilation`` under tap k. Every operator is deterministic: each output row is summed by one thread (or thread block)
in the order of the taps, whatever the number of threads.

Source: Graham, Engelcke, van der Maaten, "3D Semantic Segmentation with Submanifold Sparse Convolutional Networks",
CVPR 2018; Yan, Mao, Li, "SECOND: Sparsely Embedded Convolutional Detection", Sensors 2018.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ._backend import choose, compiled
from ._checks import check_device, check_tensor

Triple = tuple[int, int, int]

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def as_triple(value: int | Sequence[int], name: str, minimum: int = 0) -> Triple:
    """An int or three ints, as three ints; ValueError names the argument where it is anything else."""
    triple = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(triple) != 3 or not all(isinstance(v, int) and v >= minimum for v in triple):
        raise ValueError(f'{name}: expected one or three integers of at least {minimum}, found {value!r}')
    return triple


def output_shape(
    spatial_shape: Sequence[int],
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    transposed: bool = False,
    output_padding: Triple = (0, 0, 0),
) -> Triple:
    """Grid (X, Y, Z) after a convolution, as for dense convolutions. ValueError where a side would be below 1."""
    result = []
    for n, k, s, p, d, extra in zip(spatial_shape, kernel, stride, padding, dilation, output_padding):
        reach = d * (k - 1) + 1
        result.append((n - 1) * s - 2 * p + reach + extra if transposed else (n + 2 * p - reach) // s + 1)
    if min(result) < 1:
        raise ValueError(
            f'spatial_shape: a grid of {tuple(spatial_shape)} has no output voxel under kernel {kernel}, stride '
            f'{stride}, padding {padding}, dilation {dilation}'
        )
    return tuple(result)


def linear_key(coords: Tensor, spatial_shape: Sequence[int]) -> Tensor:
    """Row-major number ((b * X + x) * Y + y) * Z + z of each voxel; coords (V, 4) -> (V,) int64."""
    x, y, z = spatial_shape
    b, i, j, k = coords.long().unbind(1)
    return ((b * x + i) * y + j) * z + k


def check_coords(coords: Tensor, batch_size: int, spatial_shape: Sequence[int]) -> None:
    """Raises ValueError or TypeError unless coords is (V, 4) int32 inside the grid and names no voxel twice.

    On a GPU this waits for the device once.
    """
    check_tensor('coords', coords, '(V, 4) with rows (batch, x, y, z)', 2, 4, (torch.int32,))
    if len(coords) == 0:
        return
    sizes = (batch_size, *spatial_shape)
    low, high = coords.amin(0).tolist(), coords.amax(0).tolist()
    for name, lowest, highest, size in zip(('batch', 'x', 'y', 'z'), low, high, sizes):
        if lowest < 0 or highest >= size:
            raise ValueError(f'coords: {name} runs from {lowest} to {highest}, expected 0 to {size - 1}')
    key = linear_key(coords, spatial_shape)
    if not bool((key[1:] > key[:-1]).all()):
        key, order = key.sort()
        twice = (key[1:] == key[:-1]).nonzero().flatten()
        if len(twice):
            voxel = tuple(coords[order[twice[0]]].tolist())
            raise ValueError(f'coords: {len(twice)} rows repeat a voxel, the first is (batch, x, y, z) = {voxel}')


def _taps(kernel: Triple) -> list[Triple]:
    return list(itertools.product(*(range(k) for k in kernel)))


def _move(coords: Tensor, tap: Triple, stride: Triple, padding: Triple, dilation: Triple, divide: bool):
    """Where a tap leads: coords * stride - padding + tap * dilation, or with ``divide`` the reverse of it.

    Returns the (V, 3) int64 places and whether there is one (only with ``divide`` there may be none).
    """
    xyz = coords[:, 1:].long()
    s, p, d, k = (xyz.new_tensor(v) for v in (stride, padding, dilation, tap))
    if not divide:
        return xyz * s - p + k * d, torch.ones(len(xyz), dtype=torch.bool, device=xyz.device)
    moved = xyz + p - k * d
    return moved.div(s, rounding_mode='floor'), (moved.remainder(s) == 0).all(1)


def _inside(xyz: Tensor, shape: Sequence[int]) -> Tensor:
    return ((xyz >= 0) & (xyz < xyz.new_tensor(tuple(shape)))).all(1)


def sparse_sites_reference(coords, out_shape, kernel, stride, padding, dilation, transposed=False) -> Tensor:
    """``sparse_sites`` in plain torch."""
    found = []
    for tap in _taps(kernel):
        xyz, valid = _move(coords, tap, stride, padding, dilation, divide=not transposed)
        valid &= _inside(xyz, out_shape)
        found.append(linear_key(torch.cat([coords[:, :1].long(), xyz], 1)[valid], out_shape))
    key = torch.cat(found).unique()
    x, y, z = out_shape
    columns = (key // (x * y * z), key // (y * z) % x, key // z % y, key % z)
    return torch.stack(columns, 1).int()


def neighbour_map_reference(
    coords, out_coords, spatial_shape, kernel, stride, padding, dilation, transposed=False
) -> Tensor:
    """``neighbour_map`` in plain torch."""
    check_coords(coords, int(coords[:, 0].max()) + 1 if len(coords) else 0, spatial_shape)
    key, order = linear_key(coords, spatial_shape).sort()
    index = out_coords.new_full((kernel[0] * kernel[1] * kernel[2], len(out_coords)), -1)
    if len(coords) == 0 or len(out_coords) == 0:
        return index
    for number, tap in enumerate(_taps(kernel)):
        xyz, valid = _move(out_coords, tap, stride, padding, dilation, divide=transposed)
        valid &= _inside(xyz, spatial_shape)
        wanted = linear_key(torch.cat([out_coords[:, :1].long(), xyz], 1), spatial_shape)
        place = torch.searchsorted(key, wanted).clamp_(max=len(key) - 1)
        valid &= key[place] == wanted
        index[number] = torch.where(valid, order[place], -1).int()
    return index


def transpose_map_reference(index: Tensor, num_in: int) -> Tensor:
    """``transpose_map`` in plain torch."""
    _check_rows('index', index, num_in)
    result = index.new_full((len(index), num_in), -1)
    tap, row = (index >= 0).nonzero().unbind(1)
    result[tap, index[tap, row].long()] = row.int()
    return result


def _check_rows(name: str, index: Tensor, rows: int) -> None:
    if index.numel() and not (int(index.min()) >= -1 and int(index.max()) < rows):
        raise ValueError(f'{name}: expected -1 or a row below {rows}, found another value')


def sparse_conv_reference(features: Tensor, weight: Tensor, index: Tensor, index_t: Tensor | None = None) -> Tensor:
    """``sparse_conv`` in plain torch; differentiable. ``index_t`` is not needed, here and below."""
    _check_rows('index', index, len(features))
    wide = torch.promote_types(features.dtype, torch.float32)
    out = torch.zeros(index.shape[1], weight.shape[0], dtype=wide, device=features.device)
    with torch.autocast(features.device.type, enabled=False):  # it would make the products narrow again
        for tap, rows in enumerate(index):
            sites = (rows >= 0).nonzero().flatten()
            out = out.index_add(0, sites, features[rows[sites].long()].to(wide) @ weight[:, tap].to(wide).t())
    return out.to(features.dtype)


def sparse_sum_pool_reference(features: Tensor, index: Tensor, index_t: Tensor | None = None) -> Tensor:
    """``sparse_sum_pool`` in plain torch; differentiable."""
    _check_rows('index', index, len(features))
    wide = torch.promote_types(features.dtype, torch.float32)
    out = torch.zeros(index.shape[1], features.shape[1], dtype=wide, device=features.device)
    for rows in index:
        sites = (rows >= 0).nonzero().flatten()
        out = out.index_add(0, sites, features[rows[sites].long()].to(wide))
    return out.to(features.dtype)


def sparse_max_pool_reference(features: Tensor, index: Tensor, index_t: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``sparse_max_pool`` in plain torch; differentiable. Also the row of each maximum, (V_out, C) int32, or -1."""
    _check_rows('index', index, len(features))
    if index.shape[1] == 0 or len(features) == 0:
        shape = index.shape[1], features.shape[1]
        return features.new_zeros(shape) + features.sum() * 0, index.new_full(shape, -1)
    rows = torch.where(index >= 0, index, len(features)).long()
    padded = torch.cat([features, features.new_full((1, features.shape[1]), -torch.inf)])
    # argmax takes the first of equal values, as the operator does (lowest tap)
    winner = rows.t().gather(1, padded.detach()[rows].argmax(0))
    picked = padded[winner, torch.arange(features.shape[1], device=features.device)]
    active = (index >= 0).any(0)[:, None]
    return torch.where(active, picked, 0), torch.where(active, winner, -1).int()


def _check_map(features: Tensor, index: Tensor, index_t: Tensor | None) -> None:
    check_tensor('features', features, '(V, C)', 2, dtypes=_FLOATING)
    check_tensor('index', index, '(K, V_out)', 2, dtypes=(torch.int32,))
    if index_t is not None:
        check_tensor('index_t', index_t, '(K, V_in)', 2, dtypes=(torch.int32,))
        if index_t.shape != (index.shape[0], features.shape[0]):
            raise ValueError(
                f'index_t must have shape {(index.shape[0], features.shape[0])} (taps, input voxels), found '
                f'{tuple(index_t.shape)}'
            )
    check_device(features=features, index=index, index_t=index_t)


def _geometry(kernel, stride, padding, dilation) -> tuple[Triple, Triple, Triple, Triple]:
    return (
        as_triple(kernel, 'kernel', 1),
        as_triple(stride, 'stride', 1),
        as_triple(padding, 'padding'),
        as_triple(dilation, 'dilation', 1),
    )


def sparse_sites(
    coords: Tensor,
    out_shape: Sequence[int],
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    transposed: bool = False,
) -> Tensor:
    """Output voxels of a strided or transposed sparse convolution: all whose window holds an active input.

    Args:
        coords: (V, 4) int32 rows (batch, x, y, z), any order.
        out_shape: output grid (X, Y, Z), see ``output_shape``.
        kernel, stride, padding, dilation: three ints each.
        transposed: the geometry of a transposed convolution.

    Returns:
        (V_out, 4) int32, lexicographic. Not differentiable; deterministic. On a GPU this waits for the device.

    Raises:
        TypeError, ValueError: wrong dtype or shape; numbers out of range.
    """
    check_tensor('coords', coords, '(V, 4) with rows (batch, x, y, z)', 2, 4, (torch.int32,))
    geometry = _geometry(kernel, stride, padding, dilation)
    run = choose('sparse_sites', coords.device, sparse_sites_reference)
    return run(coords, as_triple(out_shape, 'out_shape', 1), *geometry, transposed)


def neighbour_map(
    coords: Tensor,
    out_coords: Tensor,
    spatial_shape: Sequence[int],
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    transposed: bool = False,
) -> Tensor:
    """Which input row each tap of each output voxel sees.

    Args:
        coords: (V, 4) int32 input voxels (batch, x, y, z) inside the grid, each at most once.
        out_coords: (V_out, 4) int32 output voxels.
        spatial_shape: input grid (X, Y, Z).
        kernel, stride, padding, dilation: three ints each; a submanifold layer passes out_coords = coords, stride 1
            and padding = dilation * (kernel // 2).
        transposed: the geometry of a transposed convolution.

    Returns:
        (K, V_out) int32, rows of ``coords`` or -1. Not differentiable; deterministic.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; a voxel of ``coords`` outside the grid or named twice.
    """
    check_tensor('coords', coords, '(V, 4) with rows (batch, x, y, z)', 2, 4, (torch.int32,))
    check_tensor('out_coords', out_coords, '(V_out, 4) with rows (batch, x, y, z)', 2, 4, (torch.int32,))
    check_device(coords=coords, out_coords=out_coords)
    geometry = _geometry(kernel, stride, padding, dilation)
    run = choose('sparse_map', coords.device, neighbour_map_reference)
    return run(coords, out_coords, as_triple(spatial_shape, 'spatial_shape', 1), *geometry, transposed)


def transpose_map(index: Tensor, num_in: int) -> Tensor:
    """The map of the reverse direction: (K, V_out) with rows of the input -> (K, num_in) with rows of the output."""
    check_tensor('index', index, '(K, V_out)', 2, dtypes=(torch.int32,))
    return choose('sparse_transpose_map', index.device, transpose_map_reference)(index, num_in)


def sparse_conv(features: Tensor, weight: Tensor, index: Tensor, index_t: Tensor | None = None) -> Tensor:
    """Sum over the taps of ``features[index[k]] @ weight[:, k].T``.

    Args:
        features: (V_in, C_in), float32, float64, float16 or bfloat16 (the last two are summed in float32).
        weight: (C_out, K, C_in), same dtype (under autocast any two: it computes in float32).
        index: (K, V_out) int32 from ``neighbour_map``.
        index_t: (K, V_in) int32 from ``transpose_map``, saves its making in the backward pass.

    Returns:
        (V_out, C_out). Differentiable in features and weight, any number of times. CPU and CUDA, deterministic and
        equal at every number of threads.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU also a map with a row that there is not (on a
            GPU it counts as -1, since raising would make the host wait).
    """
    _check_map(features, index, index_t)
    check_tensor('weight', weight, '(C_out, K, C_in)', 3, dtypes=_FLOATING)
    if weight.shape[1:] != (index.shape[0], features.shape[1]):
        raise ValueError(
            f'weight must have shape (C_out, {index.shape[0]}, {features.shape[1]}) (out, taps, in), found '
            f'{tuple(weight.shape)}'
        )
    if weight.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(f'weight must be of the dtype of features, {features.dtype}, found {weight.dtype}')
    check_device(features=features, weight=weight)
    run = choose('sparse_conv', features.device, sparse_conv_reference)
    return run(features, weight, index, index_t)


def sparse_sum_pool(features: Tensor, index: Tensor, index_t: Tensor | None = None) -> Tensor:
    """Sum over the taps of ``features[index[k]]``: (V_in, C) -> (V_out, C). Differentiable, deterministic.

    Arguments and errors as ``sparse_conv``.
    """
    _check_map(features, index, index_t)
    return choose('sparse_sum_pool', features.device, sparse_sum_pool_reference)(features, index, index_t)


def sparse_max_pool(features: Tensor, index: Tensor, index_t: Tensor | None = None) -> Tensor:
    """Maximum over the active taps (0 where there is none): (V_in, C) -> (V_out, C).

    Differentiable: the gradient goes to the winner, the lowest tap among equals. Deterministic. Arguments and errors as
    ``sparse_conv``.
    """
    _check_map(features, index, index_t)
    return choose('sparse_max_pool', features.device, sparse_max_pool_reference)(features, index, index_t)[0]


if compiled('sparse_sites'):

    @torch.library.register_fake('occforge::sparse_sites')
    def _(coords, out_shape, kernel, stride, padding, dilation, transposed):
        return coords.new_empty(torch.library.get_ctx().new_dynamic_size(), 4)


if compiled('sparse_map'):

    @torch.library.register_fake('occforge::sparse_map')
    def _(coords, out_coords, spatial_shape, kernel, stride, padding, dilation, transposed):
        return coords.new_empty(kernel[0] * kernel[1] * kernel[2], out_coords.shape[0])


if compiled('sparse_transpose_map'):

    @torch.library.register_fake('occforge::sparse_transpose_map')
    def _(index, num_in):
        return index.new_empty(index.shape[0], num_in)


def _reverse(index, index_t, num_in):
    return torch.ops.occforge.sparse_transpose_map(index, num_in) if index_t is None else index_t


if compiled('sparse_conv', 'sparse_conv_weight', 'sparse_transpose_map'):

    @torch.library.register_fake('occforge::sparse_conv')
    def _(features, weight, index, index_t=None):
        return features.new_empty(index.shape[1], weight.shape[0])

    @torch.library.register_fake('occforge::sparse_conv_weight')
    def _(features, grad, index, index_t=None):
        return features.new_empty(grad.shape[1], index.shape[0], features.shape[1])

    def _save_conv(ctx, inputs, output):
        first, second, index, index_t = inputs
        ctx.save_for_backward(first, second, index, index_t)

    def _conv_backward(ctx, grad):
        features, weight, index, index_t = ctx.saved_tensors
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            index_t = _reverse(index, index_t, features.shape[0])
            grad_features = torch.ops.occforge.sparse_conv(grad, weight.permute(2, 1, 0), index_t, index)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.ops.occforge.sparse_conv_weight(features, grad, index, index_t)
        return grad_features, grad_weight, None, None

    def _weight_backward(ctx, outer):
        features, grad, index, index_t = ctx.saved_tensors
        grad_features = grad_grad = None
        if ctx.needs_input_grad[0]:
            index_t = _reverse(index, index_t, features.shape[0])
            grad_features = torch.ops.occforge.sparse_conv(grad, outer.permute(2, 1, 0), index_t, index)
        if ctx.needs_input_grad[1]:
            grad_grad = torch.ops.occforge.sparse_conv(features, outer, index, index_t)
        return grad_features, grad_grad, None, None

    torch.library.register_autograd('occforge::sparse_conv', _conv_backward, setup_context=_save_conv)
    torch.library.register_autograd('occforge::sparse_conv_weight', _weight_backward, setup_context=_save_conv)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('occforge::sparse_conv', _device, torch.float32)


if compiled('sparse_sum_pool', 'sparse_transpose_map'):

    @torch.library.register_fake('occforge::sparse_sum_pool')
    def _(features, index, index_t=None):
        return features.new_empty(index.shape[1], features.shape[1])

    def _save_sum(ctx, inputs, output):
        features, index, index_t = inputs
        ctx.num_in = features.shape[0]
        ctx.save_for_backward(index, index_t)

    def _sum_backward(ctx, grad):
        index, index_t = ctx.saved_tensors
        return torch.ops.occforge.sparse_sum_pool(grad, _reverse(index, index_t, ctx.num_in), index), None, None

    torch.library.register_autograd('occforge::sparse_sum_pool', _sum_backward, setup_context=_save_sum)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('occforge::sparse_sum_pool', _device, torch.float32)


if compiled('sparse_max_pool', 'sparse_max_pool_backward', 'sparse_transpose_map'):

    @torch.library.register_fake('occforge::sparse_max_pool')
    def _(features, index, index_t=None):
        shape = index.shape[1], features.shape[1]
        return features.new_empty(shape), index.new_empty(shape)

    @torch.library.register_fake('occforge::sparse_max_pool_backward')
    def _(grad, winner, index_t):
        return grad.new_empty(index_t.shape[1], grad.shape[1])

    def _save_max(ctx, inputs, output):
        features, index, index_t = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.num_in = features.shape[0]
        ctx.save_for_backward(index, index_t, output[1])

    def _max_backward(ctx, grad, _):
        index, index_t, winner = ctx.saved_tensors
        index_t = _reverse(index, index_t, ctx.num_in)
        return torch.ops.occforge.sparse_max_pool_backward(grad, winner, index_t), None, None

    torch.library.register_autograd('occforge::sparse_max_pool', _max_backward, setup_context=_save_max)

    def _save_max_backward(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    def _max_backward_backward(ctx, outer):
        (winner,) = ctx.saved_tensors
        if outer.shape[0] == 0:
            return outer.new_zeros(winner.shape), None, None
        taken = outer.gather(0, winner.clamp(min=0).long())
        return torch.where(winner >= 0, taken, 0), None, None

    torch.library.register_autograd(
        'occforge::sparse_max_pool_backward', _max_backward_backward, setup_context=_save_max_backward
    )
