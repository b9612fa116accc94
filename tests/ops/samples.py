"""Arguments for every operator: ``SAMPLES[name](seed, scale)``. Seed 0 is empty, 1 a single element, others random.

``scale`` makes the work large enough to be shared among threads. Tensors with gradients are leaves.
"""

import math

import torch
from occforge.ops.scene_cast import Scene, primitive_rows

ops = torch.ops.occforge
GRID = ([-2.0, -2.0, -1.0], [0.5, 0.5, 0.5])  # lower corner and cell


SAMPLES = {}


def sample(function):
    SAMPLES[function.__name__] = function
    return function


class Draw:
    """Random tensors of one seed, and the number of things for it."""

    def __init__(self, seed, scale=1):
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        self.count = seed if seed < 2 else (3 + seed) * scale

    def normal(self, *shape, dtype=torch.float32, grad=False):
        return torch.randn(*shape, generator=self.generator, dtype=dtype).requires_grad_(grad)

    def uniform(self, *shape, dtype=torch.float32, grad=False):
        return torch.rand(*shape, generator=self.generator, dtype=dtype).requires_grad_(grad)

    def integers(self, low, high, *shape, dtype=torch.int64):
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)

    def labels(self, *shape):
        return torch.where(self.uniform(*shape) < 0.1, self.integers(0, 17, *shape), 17).to(torch.uint8)


def upstream(draw, out, grad=True):
    """Gradients for the outputs of an operator, of the memory layout of these."""
    return [torch.empty_like(value).copy_(draw.normal(*value.shape)).requires_grad_(grad) for value in out]


def detached(arguments):
    return [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments]


# ---- voxel ---------------------------------------------------------------------------------------------------------


@sample
def frustum_indices(seed, scale=1):
    draw = Draw(seed, scale)
    shape = (draw.count and 2, 2, 3, 2, max(1, draw.count))
    return draw.normal(*shape, 3) * 2, *GRID, [7, 6, 4]


@sample
def upsample_rows(seed, scale=1):
    draw = Draw(seed, scale)
    size, factor = [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 1, 3)][seed % 3], 1 + seed % 3
    volume = draw.normal(*size, [5, 16, 1, 35][seed % 4], grad=True)
    return volume, draw.integers(0, math.prod(size) * factor**3, draw.count), factor


@sample
def upsample_rows_backward(seed, scale=1):
    volume, rows, factor = upsample_rows(seed, scale)
    return Draw(seed).normal(len(rows), volume.shape[4], grad=True), rows, *volume.shape[:4], factor


@sample
def frustum_pool(seed, scale=1, channels=None):
    draw, (points, *grid) = Draw(seed, scale), frustum_indices(seed, scale)
    batch, cameras, bins, height, width = points.shape[:5]
    channels = [5, 16, 1, 35][seed % 4] if channels is None else channels
    feat = draw.normal(batch, cameras, channels, height, width, grad=True)
    return (
        draw.uniform(batch, cameras, bins, height, width, grad=True),
        feat,
        *ops.frustum_indices(points, *grid),
        grid[2],
    )


@sample
def frustum_pool_backward(seed, scale=1):
    arguments = frustum_pool(seed, scale)
    return *upstream(Draw(seed), [ops.frustum_pool(*arguments).detach()]), *arguments


def cloud(seed, scale=1, columns=5):
    draw = Draw(seed, scale)
    return draw.normal(draw.count * 5 if seed > 1 else draw.count, columns) * 1.5


@sample
def voxel_assign(seed, scale=1):
    points = cloud(seed, scale)
    return points, Draw(seed).integers(0, 3, len(points)) if seed % 3 else None, *GRID, [8, 8, 4]


@sample
def voxel_limit(seed, scale=1):
    return *ops.voxel_assign(*voxel_assign(seed, scale)), 1 + seed % 4, 1 + 5 * scale


@sample
def voxel_reduce(seed, scale=1):
    points, *rest = voxel_assign(seed, scale)
    return points.requires_grad_(), *ops.voxel_assign(points.detach(), *rest)[1:], seed % 3


@sample
def voxel_reduce_backward(seed, scale=1):
    arguments = voxel_reduce(seed, scale)
    out, argmax = ops.voxel_reduce(*detached(arguments))
    return *upstream(Draw(seed), [out]), *arguments[1:4], argmax, arguments[4]


def rays(seed, scale=1):
    draw = Draw(seed, scale)
    return draw.normal(draw.count, 3, dtype=torch.float64) * 2, draw.normal(draw.count, 3, dtype=torch.float64)


@sample
def cast_rays(seed, scale=1):
    draw = Draw(seed)
    origins, directions = rays(seed, scale)
    return (
        draw.labels(2, 8, 7, 5),
        origins,
        directions,
        draw.integers(0, 2, len(origins)),
        *GRID,
        17,
        [math.inf, 3.0][seed % 2],
    )


@sample
def observed_cells(seed, scale=1):
    return Draw(seed).labels(8, 7, 5), *rays(seed, scale), *GRID, 17, bool(seed % 2)


@sample
def ray_counts(seed, scale=1):
    draw = Draw(seed)
    grids = draw.labels(2, 8, 7, 5)
    ring = draw.integers(0, 4, 8, 7, dtype=torch.uint8)
    return grids[0], grids[1], ring, *rays(seed, 1)[:1], rays(seed, scale)[1], *GRID, 17, 17, 3, [0.5, 2.0]


@sample
def confusion_matrix(seed, scale=1):
    draw = Draw(seed, scale)
    shape = (draw.count, 4, 5)
    types = [torch.uint8, torch.int64]
    pred, target = (draw.integers(0, 18, *shape, dtype=types[(seed // step) % 2]) for step in (1, 2))
    return pred, target, 18, draw.uniform(*shape) < 0.5 if seed % 3 else None


@sample
def deform_attn(seed, scale=1):
    draw, shapes = Draw(seed, scale), [[2, 3], [3, 2, 1, 4]][seed % 2]
    heads, levels, points = 1 + seed % 3, len(shapes) // 2, 2
    value = draw.normal(2, 6 if levels == 1 else 10, heads, 1 + seed % 5, grad=True)
    places = draw.uniform(draw.count, heads, levels, points, 2) * 1.4 - 0.2
    weights = draw.normal(draw.count, heads, levels, points, grad=True)
    return value, places.requires_grad_(), weights, draw.integers(0, 2, draw.count), shapes


@sample
def deform_attn_backward(seed, scale=1):
    arguments = detached(deform_attn(seed, scale))
    return *upstream(Draw(seed), [ops.deform_attn(*arguments)], grad=False), *arguments


SUBMANIFOLD = [3, 3, 3], [1, 1, 1], [1, 1, 1], [1, 1, 1]
STRIDED = [3, 2, 3], [2, 2, 2], [1, 0, 1], [1, 1, 1]


def voxels(seed, scale=1):
    """(V, 4) int32 coordinates in a grid of 9 x 8 x (5 scale)."""
    draw = Draw(seed)
    active = (draw.uniform(2, 9, 8, 5 * scale) < 0.3).nonzero().int()
    return active[torch.randperm(len(active), generator=draw.generator)][: seed if seed < 2 else None]


@sample
def sparse_sites(seed, scale=1):
    return voxels(seed, scale), [5, 4, 3 * scale], *STRIDED, False


@sample
def sparse_map(seed, scale=1):
    coords = voxels(seed, scale)
    if seed % 2:
        return coords, coords, [9, 8, 5 * scale], *SUBMANIFOLD, False
    return coords, ops.sparse_sites(*sparse_sites(seed, scale)), [9, 8, 5 * scale], *STRIDED, False


@sample
def sparse_transpose_map(seed, scale=1):
    arguments = sparse_map(seed, scale)
    return ops.sparse_map(*arguments), len(arguments[0])


def sparse_maps(seed, scale=1):
    index, count = sparse_transpose_map(seed, scale)
    return count, index, ops.sparse_transpose_map(index, count) if seed % 3 else None


@sample
def sparse_sum_pool(seed, scale=1):
    count, index, index_t = sparse_maps(seed, scale)
    return Draw(seed).normal(count, 1 + seed * 3, grad=True), index, index_t


@sample
def sparse_conv(seed, scale=1):
    features, index, index_t = sparse_sum_pool(seed, scale)
    return features, Draw(seed).normal(2 + seed, len(index), features.shape[1], grad=True), index, index_t


@sample
def sparse_conv_weight(seed, scale=1):
    features, weight, index, index_t = sparse_conv(seed, scale)
    return features, Draw(seed).normal(index.shape[1], weight.shape[0], grad=True), index, index_t


@sample
def sparse_max_pool_backward(seed, scale=1):
    count, index, _ = sparse_maps(seed, scale)
    features = Draw(seed).normal(count, 1 + seed)
    out, winner = ops.sparse_max_pool(features, index)
    return *upstream(Draw(seed), [out]), winner, ops.sparse_transpose_map(index, count)


# ---- render --------------------------------------------------------------------------------------------------------


@sample
def scene_bvh(seed, scale=1):
    draw = Draw(seed, scale)
    centre = draw.uniform(draw.count, 3, dtype=torch.float64) * 6 - 3
    half = draw.uniform(draw.count, 3, dtype=torch.float64) + 0.1
    return (primitive_rows(draw.integers(0, 3, draw.count), centre, torch.eye(3).expand(draw.count, 3, 3), half),)


@sample
def scene_cast(seed, scale=1):
    scene = Scene(*scene_bvh(seed), Draw(seed).uniform(9, 21), (-5.0, -5.0), 0.5)
    tables = scene.primitives, *scene.tree, scene.heights, scene.maxima
    return *tables, *scene.lower, scene.cell, scene.top, *rays(seed, scale), 1e-6, 1e9, bool(seed % 2)


@sample
def clip_rays(seed, scale=1):
    dtype = [torch.float32, torch.float64][seed % 2]
    return *(value.to(dtype) for value in rays(seed, scale)), [-2.0, -1.0, 0.0], [2.0, 1.0, 3.0], 0.0, 9.0


@sample
def ray_samples(seed, scale=1):
    draw = Draw(seed, scale)
    counts = draw.integers(0, 7, draw.count)
    return (
        draw.uniform(draw.count),
        draw.uniform(draw.count) + 0.1,
        counts,
        0.5,
        torch.tensor([seed]) if seed % 2 else None,
    )


def packed(seed, scale=1):
    """Offsets of rays with 0 to 6 samples, and the number of samples."""
    draw = Draw(seed, scale)
    counts = draw.integers(0, 7, draw.count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), int(counts.sum())


@sample
def density_alpha(seed, scale=1):
    draw = Draw(seed, scale)
    interval = draw.uniform(draw.count if seed % 2 else 1) + 0.1
    return draw.normal(draw.count, grad=True), interval, -1.0


@sample
def density_alpha_backward(seed, scale=1):
    arguments = detached(density_alpha(seed, scale))
    return torch.ones_like(arguments[0]), *arguments


@sample
def alpha_weights(seed, scale=1):
    offset, samples = packed(seed, scale)
    return Draw(seed).uniform(samples, grad=True), offset, [0.0, 0.1][seed % 2]


@sample
def alpha_weights_backward(seed, scale=1):
    arguments = detached(alpha_weights(seed, scale))
    return *upstream(Draw(seed), ops.alpha_weights(*arguments), grad=False), *arguments


@sample
def ray_sum(seed, scale=1):
    offset, samples = packed(seed, scale)
    draw = Draw(seed)
    return draw.uniform(samples, grad=True), draw.normal(samples, seed % 20, grad=True), offset


@sample
def ray_sum_backward(seed, scale=1):
    arguments = detached(ray_sum(seed, scale))
    return *upstream(Draw(seed), [ops.ray_sum(*arguments)], grad=False), *arguments


@sample
def ray_distortion(seed, scale=1):
    offset, samples = packed(seed, scale)
    draw = Draw(seed)
    return (
        draw.uniform(samples, grad=True),
        torch.linspace(0, 1, samples),
        draw.uniform(samples if seed % 2 else 1),
        offset,
    )


@sample
def ray_distortion_backward(seed, scale=1):
    arguments = detached(ray_distortion(seed, scale))
    return *upstream(Draw(seed), [ops.ray_distortion(*arguments)], grad=False), *arguments


def grids(seed):
    draw = Draw(seed)
    return draw.normal(2, 5, 4, 3, grad=True), draw.normal(2, 5, 4, 3, seed % 21, grad=True)


@sample
def volume_render(seed, scale=1):
    origins, directions = (value.float() for value in rays(seed, scale))
    step, count = [(0.3, 0), (0.0, 9)][seed % 2]
    numbers = (*GRID, 0.0, 9.0, step, count, 0.5, 1.0, -1.0, 1e-3, 0.0)
    index = Draw(seed).integers(0, 2, len(origins))
    return *grids(seed), origins, directions, index, torch.tensor(seed) if seed % 3 else None, *numbers


@sample
def volume_render_samples(seed, scale=1):
    offset, samples = packed(seed, scale)
    draw = Draw(seed)
    points = draw.uniform(samples, 3) * 6 - 0.5
    t, interval, width = torch.linspace(0, 1, samples), draw.uniform(samples if seed % 2 else 1), draw.uniform(1)
    index = draw.integers(0, 2, len(offset) - 1)
    return *grids(seed), points, t, interval, width, offset, index, -1.0, 1e-3, 0.0


def backward_of_rendering(name):
    def arguments(seed, scale=1):
        inputs = detached(SAMPLES[name](seed, scale))
        out = getattr(ops, name)(*inputs)
        return *upstream(Draw(seed), out, grad=False), *out, *inputs

    return arguments


SAMPLES['sparse_max_pool'] = sparse_sum_pool
for _name in ('volume_render', 'volume_render_samples'):
    SAMPLES[f'{_name}_backward'] = backward_of_rendering(_name)
