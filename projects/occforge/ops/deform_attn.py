"""Deformable attention: every query reads feature maps at a few real-valued places and adds what it finds, weighted.

``deform_attn`` is the sampling step alone; the linear layers that make places, weights and values belong to the model.
``depth_deform_attn`` is the form for lifted queries: places around the projections of 3D anchors of a query, each
weighted by how probable the depth of its anchor is there.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ._backend import choose, compiled
from ._checks import check_device, check_tensor

__all__ = ['deform_attn', 'deform_attn_reference', 'depth_deform_attn', 'sample_depth']

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def deform_attn(
    value: torch.Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: torch.Tensor,
    weights: torch.Tensor,
    sample: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-scale deformable attention sampling.

    ``out[r, h]`` is the sum over levels l and points p of ``weights[r, h, l, p]`` times the bilinear interpolation of
    map l of head h of image ``sample[r]`` at ``locations[r, h, l, p]``. (0, 0) is the outer corner of the first site of
    a map and (1, 1) that of the last; sites outside the map count as 0 (``grid_sample`` with zeros padding and
    ``align_corners=False``). Places that are NaN or infinite read 0.

    Args:
        value: (N, S, H, C) the sites of all levels of N images one after the other, each level row by row, for H heads
            of C channels. float32, float64, float16 or bfloat16.
        shapes: (h, w) of each of the L levels, L <= 8; the products sum to S.
        locations: (R, H, L, P, 2) places (u, v), u along the width; or (N, Q, H, L, P, 2) without ``sample``.
        weights: (R, H, L, P) or (N, Q, H, L, P).
        sample: (R,) int64 image of each query, in any order. Without it queries are given for each image in turn.

    Returns:
        Tensor: (R, H C), or (N, Q, H C) without ``sample``. dtype: the widest of value, locations and weights; float32
        under autocast. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU a ``sample`` outside 0..N - 1. On a GPU such
            queries get 0, since raising would make the host wait.
        RuntimeError: differentiated twice.

    Differentiable (once) in value, locations and weights. CPU (threaded): deterministic. CUDA: the gradient of value is
    summed in an order that varies, so its last bits do; ``torch.use_deterministic_algorithms`` refuses it.
    Source: X. Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021.
    """
    check_tensor('value', value, '(N, S, H, C)', 4, dtypes=_FLOATING)
    dims = 6 if sample is None else 5
    form = '(N, Q, H, L, P, 2)' if sample is None else '(R, H, L, P, 2)'
    check_tensor('locations', locations, form, dims, 2, _FLOATING)
    check_tensor('weights', weights, form.replace(', 2)', ')'), dims - 1, dtypes=_FLOATING)
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f'weights must have shape {tuple(locations.shape[:-1])}, found {tuple(weights.shape)}')
    if sample is None:
        if locations.shape[0] != value.shape[0]:
            raise ValueError(f'locations must be given for {len(value)} images, found {len(locations)}')
        sample = torch.arange(len(value), device=value.device).repeat_interleave(locations.shape[1])
        shape = locations.shape[:2]
        locations, weights = locations.flatten(0, 1), weights.flatten(0, 1)
    else:
        shape = locations.shape[:1]
        check_tensor('sample', sample, '(R,)', 1, dtypes=(torch.int64,))
        if sample.shape[0] != locations.shape[0]:
            raise ValueError(f'sample must have {len(locations)} entries, found {len(sample)}')
    check_device(value=value, locations=locations, weights=weights, sample=sample)
    if locations.shape[1] != value.shape[2]:
        raise ValueError(f'locations must be given for {value.shape[2]} heads, found {locations.shape[1]}')
    shapes = [(int(height), int(width)) for height, width in shapes]
    if len(shapes) != locations.shape[2] or len(shapes) > 8:
        raise ValueError(f'shapes must have {locations.shape[2]} (at most 8) pairs (h, w), found {shapes}')
    if any(height < 1 or width < 1 for height, width in shapes):
        raise ValueError(f'shapes must be above 0, found {shapes}')
    if sum(height * width for height, width in shapes) != value.shape[1]:
        raise ValueError(f'shapes {shapes} do not sum to the {value.shape[1]} sites of value')
    dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), weights.dtype)
    value, locations, weights = value.to(dtype), locations.to(dtype), weights.to(dtype)
    run = choose('deform_attn', value.device, deform_attn_reference)
    out = run(value, locations, weights, sample, [side for pair in shapes for side in pair])
    return out.view(*shape, out.shape[-1])


def sample_depth(
    depth: torch.Tensor, points: torch.Tensor, bins: torch.Tensor, sample: torch.Tensor | None = None
) -> torch.Tensor:
    """Probability of one depth bin at real-valued places of a depth distribution.

    The bilinear interpolation (zeros outside) of map ``depth[n, bins[..., a]]`` at ``points[..., a, :]``: what
    interpolating all D bins and taking one would give, without reading the others.

    Args:
        depth: (N, D, h, w) distribution over D bins of each of N images.
        points: (R, A, 2) places (u, v) in [0, 1] of A anchors, as in ``deform_attn``; or (N, Q, A, 2).
        bins: (R, A) or (N, Q, A) int64 bin of each anchor; anchors with a bin outside 0..D - 1 get 0.
        sample: (R,) int64 image of each row; None for the form (N, Q, ...).

    Returns:
        Tensor: (R, A) or (N, Q, A), of the wider dtype of depth and points.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU a ``sample`` outside 0..N - 1.

    Differentiable (once) in depth and points. Devices and determinism as ``deform_attn``, whose operator this is.
    """
    check_tensor('depth', depth, '(N, D, h, w)', 4, dtypes=_FLOATING)
    form = '(N, Q, A, 2)' if sample is None else '(R, A, 2)'
    check_tensor('points', points, form, 4 if sample is None else 3, 2, _FLOATING)
    check_tensor('bins', bins, form.replace(', 2)', ')'), points.ndim - 1, dtypes=(torch.int64,))
    if bins.shape != points.shape[:-1]:
        raise ValueError(f'bins must have shape {tuple(points.shape[:-1])}, found {tuple(bins.shape)}')
    if sample is None:
        if points.shape[0] != depth.shape[0]:
            raise ValueError(f'points must be given for {len(depth)} images, found {len(points)}')
        sample = torch.arange(len(depth), device=depth.device)[:, None].expand(points.shape[:2])
    else:
        check_tensor('sample', sample, '(R,)', 1, dtypes=(torch.int64,))
        if sample.shape[0] != points.shape[0]:
            raise ValueError(f'sample must have {len(points)} entries, found {len(sample)}')
    check_device(depth=depth, points=points, bins=bins, sample=sample)
    images, size, height, width = depth.shape
    known = (bins >= 0) & (bins < size)
    # one head of one channel that reads the map of its bin
    found = deform_attn(
        depth.reshape(images * size, height * width, 1, 1),
        [(height, width)],
        points.reshape(-1, 1, 1, 1, 2),
        known.reshape(-1, 1, 1, 1).to(depth.dtype),
        (sample[..., None] * size + torch.where(known, bins, 0)).flatten(),
    )
    return found.view(bins.shape)


def depth_deform_attn(
    value: torch.Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: torch.Tensor,
    weights: torch.Tensor,
    depth: torch.Tensor,
    anchors: torch.Tensor,
    bins: torch.Tensor,
    sample: torch.Tensor | None = None,
) -> torch.Tensor:
    """Depth-aware deformable attention: ``deform_attn`` whose points count as much as their anchor's depth is probable.

    Point p of every head and level belongs to anchor ``p % A`` (the anchor runs fastest). Its weight is multiplied by
    ``sample_depth(depth, anchors, bins, sample)`` of that anchor; the products are not normalised again.

    Args:
        value, shapes, locations, weights, sample: as in ``deform_attn``; P is a multiple of A.
        depth: (N, D, h, w) distribution over D bins of each image; h and w need not be those of a level.
        anchors: (R, A, 2) or (N, Q, A, 2) projections (u, v) in [0, 1] of the anchors of each query.
        bins: (R, A) or (N, Q, A) int64 bin that each anchor's depth falls into.

    Returns:
        Tensor: (R, H C) or (N, Q, H C).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.

    Source: Z. Li et al., "FB-BEV: BEV Representation from Forward-Backward View Transformations", ICCV 2023.
    """
    probable = sample_depth(depth, anchors, bins, sample)
    check_tensor('weights', weights, '(..., H, L, P)', probable.ndim + 2, dtypes=_FLOATING)
    if weights.shape[: probable.ndim - 1] != probable.shape[:-1]:
        raise ValueError(f'anchors are given for {tuple(probable.shape[:-1])} queries, weights {tuple(weights.shape)}')
    count = probable.shape[-1]
    if count == 0 or weights.shape[-1] % count:
        raise ValueError(f'weights must have a multiple of {count} points (one anchor each), found {weights.shape[-1]}')
    weights = weights.unflatten(-1, (-1, count)) * probable[..., None, None, None, :]
    return deform_attn(value, shapes, locations, weights.flatten(-2), sample)


def deform_attn_reference(value, locations, weights, sample, shapes):
    """Plain-torch form of the operator behind ``deform_attn`` (``shapes`` is flat: h, w, h, w, ...): one
    ``grid_sample`` for each image and level."""
    shapes = list(zip(shapes[::2], shapes[1::2]))
    images, _, heads, channels = value.shape
    queries, points = len(locations), locations.shape[3]
    if queries and not (int(sample.min()) >= 0 and int(sample.max()) < images):
        raise ValueError(f'sample must be in 0..{images - 1}, found {int(sample.min())} to {int(sample.max())}')
    dtype = value.dtype
    if dtype in (torch.float16, torch.bfloat16):
        value, locations, weights = value.float(), locations.float(), weights.float()
    finite = locations.isfinite().all(-1, keepdim=True)
    places = torch.where(finite, 2 * locations - 1, -9.0)
    maps = value.split([height * width for height, width in shapes], 1)
    out = value.new_zeros(queries, heads, channels)
    for image in sample.unique().tolist():
        rows = (sample == image).nonzero().flatten()
        total = value.new_zeros(len(rows), heads, channels)
        for level, (height, width) in enumerate(shapes):
            features = maps[level][image].permute(1, 2, 0).view(heads, channels, height, width)
            grid = places[rows, :, level].transpose(0, 1)  # (H, r, P, 2)
            found = F.grid_sample(features, grid, 'bilinear', 'zeros', align_corners=False)  # (H, C, r, P)
            total = total + torch.einsum('hcrp,rhp->rhc', found, weights[rows, :, level])
        out = out.index_copy(0, rows, total)
    # keeps the graph where there is nothing to read
    out = out + 0 * (value.sum() + weights.sum() + locations.sum()) if queries * points * images == 0 else out
    return out.flatten(1).to(dtype)


def deform_attn_gather(value, locations, weights, sample, shapes):
    """The operator behind ``deform_attn`` by indexing and arithmetic alone, for exported graphs: four corners gathered
    for every place. Finite places; shapes may be symbolic where torch.export traces it. float32 or float64."""
    _, sites, heads, channels = value.shape
    rows = value.permute(0, 2, 1, 3).reshape(-1, channels)  # (N H S, C)
    first = (sample[:, None] * heads + torch.arange(heads, device=value.device)) * sites  # (R, H)
    out = value.new_zeros(channels)
    for level, (height, width) in enumerate(zip(shapes[::2], shapes[1::2])):
        u = locations[:, :, level, :, 0] * width - 0.5  # (R, H, P)
        v = locations[:, :, level, :, 1] * height - 0.5
        left, top = u.floor(), v.floor()
        for x, across in ((left, 1 - (u - left)), (left + 1, u - left)):
            for y, down in ((top, 1 - (v - top)), (top + 1, v - top)):
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                site = torch.where(inside, y * width + x, 0.0).long()
                share = torch.where(inside, across * down, 0.0) * weights[:, :, level]
                out = out + (rows[first[..., None] + site] * share[..., None]).sum(2)  # (R, H, C)
        first = first + height * width
    return out.flatten(1)


if compiled('deform_attn', 'deform_attn_backward'):

    @torch.library.register_fake('occforge::deform_attn')
    def _(value, locations, weights, sample, shapes):
        return value.new_empty(locations.shape[0], value.shape[2] * value.shape[3])

    @torch.library.register_fake('occforge::deform_attn_backward')
    def _(grad, value, locations, weights, sample, shapes):
        return tuple(torch.empty_like(tensor).contiguous() for tensor in (value, locations, weights))

    def _setup_forward(ctx, inputs, output):
        *tensors, ctx.shapes = inputs
        ctx.save_for_backward(*tensors)

    def _forward_formula(ctx, grad):
        grads = torch.ops.occforge.deform_attn_backward(grad, *ctx.saved_tensors, ctx.shapes)
        return (*grads, None, None)

    def _backward_formula(ctx, *grads):
        raise RuntimeError('deform_attn can be differentiated once only')

    torch.library.register_autograd('occforge::deform_attn', _forward_formula, setup_context=_setup_forward)
    torch.library.register_autograd('occforge::deform_attn_backward', _backward_formula)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('occforge::deform_attn', _device, torch.float32)
