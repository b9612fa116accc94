#!/usr/bin/env python
"""Times the operators of occforge.ops against what one would write without them. Needs torch and numpy alone.

Every peer runs in the same process on the same tensors, and its result is compared first. A row gives the fastest of
several runs, the ratio to the peer, the bytes that have to move at least and the arithmetic, the share of the limit
that this amounts to, and the peak of newly allocated memory. The limit is the longer of the times that the bytes take
at the bandwidth of a large copy and the arithmetic at the rate of a large matrix product, both measured at the start
('m' behind the share: memory, 'a': arithmetic).

    python tools/benchmarks/ops.py [--threads 2] [--repeat 9] [--only pool] [--out ops.json]

``tools/benchmarks/table.py`` makes a table of the JSON files.
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default 2)')
    parser.add_argument('--repeat', type=int, default=9, help='timed runs a row; the fastest counts (default 9)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--only', default='', help='run the rows whose name contains this')
    parser.add_argument('--out', type=Path, help='write the numbers to this JSON file as well')
    return parser.parse_args()


args = parse_arguments()
os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the memory profiler announces each of its runs otherwise
warnings.filterwarnings('ignore', message='Sparse CSR tensor support is in beta')

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'projects'))
from occforge.ops import (  # noqa: E402
    cast_rays,
    clip_rays,
    confusion_matrix,
    deform_attn,
    frustum_indices,
    frustum_pool,
    hard_voxelize,
    has_extension,
    observed_cells,
    render_rays,
    upsample_rows,
    voxelize,
)
from occforge.ops import sparse_conv as sparse  # noqa: E402
from occforge.ops.deform_attn import deform_attn_reference  # noqa: E402
from occforge.ops.frustum_pool import frustum_pool_reference  # noqa: E402
from occforge.ops.grid_raycast import cast_rays_reference  # noqa: E402
from occforge.ops.upsample_rows import upsample_rows_reference  # noqa: E402
from occforge.ops.voxelize import voxel_assign_reference, voxel_limit_reference, voxel_reduce_reference  # noqa: E402


@dataclass
class Part:
    """A peer too large to run whole: what is printed is ``scale`` times what a part of the work took."""

    run: Callable
    scale: int = 1
    fixed_bytes: int = 0  # of its peak, what does not grow with the work


def synchronize():
    if args.device == 'cuda':
        torch.cuda.synchronize()


def fastest(run, repeat=None) -> float:
    """Seconds of the fastest run, after one to warm up."""
    run()
    times = []
    for _ in range(repeat or args.repeat):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_bytes(run) -> int:
    """Highest sum of live tensors that the run allocated, over what was there before."""
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            highest = max(highest, live)
    return highest


def copy_bandwidth() -> float:
    """Bytes a second of a large copy, reading and writing counted."""
    source = torch.ones(2**26, device=args.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / fastest(lambda: target.copy_(source), 5)


def arithmetic_peak() -> float:
    """Float32 operations a second of a large matrix product, an addition and a multiplication counted as two."""
    side = 1536 if args.device == 'cpu' else 8192
    a = torch.ones(side, side, device=args.device)
    return 2 * side**3 / fastest(lambda: a @ a, 5)


def camera_rig(bins, height, width, farthest, cameras=6) -> torch.Tensor:
    """(1, N, D, h, w, 3) frustum points in metres of cameras that look around in a circle, 1.5 m above the ground."""
    depth, v, u = torch.meshgrid(
        torch.linspace(1, farthest, bins),
        torch.linspace(-0.3, 0.3, height),
        torch.linspace(-0.6, 0.6, width),
        indexing='ij',
    )
    points = torch.stack([depth, -u * depth, 1.5 - v * depth], -1)
    views = []
    for number in range(cameras):
        angle = 2 * math.pi * number / cameras + 0.1
        cos, sin = math.cos(angle), math.sin(angle)
        views.append(points @ torch.tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]]))
    return torch.stack(views)[None]


def pool_rows(name, bins, height, width, channels, lower, interval, size, farthest=45.0):
    """Frustum pooling at one published size against the materialised product + index_add_ and a CSR product.

    The CSR matrix (cells x pixels, the weights its entries) is built anew for each depth: once from the points in the
    order of their cells, which our indices give it, once from the points as they come.
    """
    points = camera_rig(bins, height, width, farthest).to(args.device)
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(1, 6, bins, height, width, generator=generator).softmax(2).to(args.device).requires_grad_()
    feat = torch.randn(1, 6, height, width, channels, generator=generator).to(args.device)
    feat = feat.permute(0, 1, 4, 2, 3).requires_grad_()
    indices = frustum_indices(points, lower, interval, size)
    upstream = torch.randn(1, *size[::-1], channels, generator=generator).to(args.device).permute(0, 4, 1, 2, 3)
    kept = int(indices.offset[-1])
    pixel = indices.point[:kept]
    pixel = pixel // (bins * height * width) * (height * width) + pixel % (height * width)

    def ours():
        return frustum_pool(depth, feat, indices, size)

    def materialised():
        return frustum_pool_reference(depth, feat, *indices, size)

    shape = (indices.offset.numel() - 1, 6 * height * width)  # of the CSR matrix
    cell = torch.repeat_interleave(torch.arange(shape[0], device=args.device), indices.offset.diff())
    point, order = indices.point[:kept].sort()
    unsorted = torch.stack([cell[order], pixel[order]]).long()

    def rows():
        return feat.detach().permute(0, 1, 3, 4, 2).reshape(-1, channels)

    def csr():
        weights = depth.detach().flatten()[indices.point[:kept]]
        return torch.sparse_csr_tensor(indices.offset, pixel, weights, shape, check_invariants=False) @ rows()

    def csr_with_sorting():
        weights = depth.detach().flatten()[point]
        return torch.sparse_coo_tensor(unsorted, weights, shape, check_invariants=False).to_sparse_csr() @ rows()

    def both(forward):
        return lambda: torch.autograd.grad(forward(), (depth, feat), upstream)

    def with_indices():
        found = frustum_indices(points, lower, interval, size)
        return torch.autograd.grad(frustum_pool(depth, feat, found, size), (depth, feat), upstream)

    torch.testing.assert_close(ours(), materialised(), rtol=1e-4, atol=1e-4)
    by_csr = {'CSR product, cells sorted': csr, 'CSR product': csr_with_sorting}
    for product in by_csr.values():
        volume = product().view(1, *size[::-1], channels).permute(0, 4, 1, 2, 3)
        torch.testing.assert_close(volume, ours(), rtol=1e-4, atol=1e-4)
    forward_bytes = 4 * (depth.numel() + feat.numel() + upstream.numel()) + 12 * kept
    backward_bytes = 4 * (upstream.numel() + 2 * feat.numel() + 2 * depth.numel()) + 12 * kept
    total, flops = forward_bytes + backward_bytes, 6 * kept * channels
    yield f'pool {name} forward', ours, {'index_add_': materialised, **by_csr}, forward_bytes, flops // 3
    yield f'pool {name} forward+backward', both(ours), {'index_add_': both(materialised)}, total, flops
    yield f'pool {name} indices+forward+backward', with_indices, {'index_add_': both(materialised)}, total, flops


def compiled_mmcv() -> bool:
    """Whether mmcv with its own operators is installed, not mmcv-lite with our stand-in for them."""
    try:
        import mmcv._ext
    except ImportError:
        return False
    return str(getattr(mmcv._ext, '__file__', None) or '').endswith('.so')


def voxelize_rows():
    """300 k points, mean of 5 columns, 5 cm cells."""
    count, lower, cell, size = 300_000, [-40.0, -40.0, -1.0], [0.05, 0.05, 0.1], [1600, 1600, 64]
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(count, generator=generator) ** 2 * 55
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    columns = [distance * angle.cos(), distance * angle.sin(), torch.randn(count, generator=generator) * 0.6]
    points = torch.stack([*columns, *torch.rand(2, count, generator=generator)], 1).to(args.device)
    low, step, limit = (torch.tensor(value, device=args.device) for value in (lower, cell, size))

    def ours():
        return voxelize(points, None, lower, cell, size)

    def group(keys_of):
        cells = ((points[:, :3] - low) / step).floor().long()
        kept = ((cells >= 0) & (cells < limit)).all(1)
        found, inverse, counts = keys_of(cells[kept])
        return torch.zeros(len(found), 5, device=args.device).index_add_(0, inverse, points[kept]) / counts[:, None]

    def by_rows():
        return group(lambda cells: torch.unique(cells, dim=0, return_inverse=True, return_counts=True))

    def by_packed_keys():
        def keys(cells):
            packed = (cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2]
            return torch.unique(packed, return_inverse=True, return_counts=True)

        return group(keys)

    for peer in (by_rows, by_packed_keys):
        torch.testing.assert_close(ours().features, peer(), rtol=1e-4, atol=1e-4)
    voxels = len(ours().features)
    peers = {'unique(dim=0) + index_add_': by_rows, 'unique(packed) + index_add_': by_packed_keys}
    yield 'voxelize 300 k points', ours, peers, 4 * count * 6 + voxels * 36, count * 5

    # the same points in the grid and under the limits of BEVFusion's 7.5 cm LiDAR branch
    grid, limits = ([-54.0, -54.0, -5.0], [0.075, 0.075, 0.2], [1440, 1440, 40]), (10, 120_000)

    def hard():
        return hard_voxelize(points, None, *grid, *limits)

    def hard_reference():
        assigned = voxel_limit_reference(*voxel_assign_reference(points, None, *grid), *limits)
        return voxel_reduce_reference(points, *assigned[1:], 1)[0]

    def slots():
        return hard_voxelize(points, None, *grid, *limits, reduce='none')

    peers = {'torch sorting': hard_reference}
    torch.testing.assert_close(hard().features, hard_reference(), rtol=1e-4, atol=1e-4)
    if compiled_mmcv():
        from mmcv.ops import Voxelization

        upper = [low + size * cell for low, cell, size in zip(*grid)]
        mmcv_hard = Voxelization(grid[1], [*grid[0], *upper], *limits)
        found, _, counts = mmcv_hard(points)
        torch.testing.assert_close(hard().features, found.sum(1) / counts[:, None], rtol=1e-4, atol=1e-4)
        peers['mmcv hard'] = lambda: mmcv_hard(points)
    moved = 4 * count * 6 + len(hard().features) * 36
    yield 'hard voxelize 300 k points, mean', hard, peers, moved, count * 5
    yield 'hard voxelize 300 k points, slots', slots, {}, moved + 4 * slots().features.numel(), 0


def upsample_benchmark():
    """An eighth of the voxels of two 200 x 200 x 16 grids, from a volume of half the resolution, 24 channels."""
    scale, count = 2, 160_000
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 8, 100, 100, 24, generator=generator).to(args.device).requires_grad_()
    rows = torch.randperm(2 * 16 * 200 * 200, generator=generator)[:count].sort().values.to(args.device)
    upstream = torch.randn(count, 24, generator=generator).to(args.device)

    def ours():
        return upsample_rows(volume, rows, scale)

    def whole():
        return upsample_rows_reference(volume, rows, scale)

    torch.testing.assert_close(ours(), whole(), rtol=1e-4, atol=1e-4)
    moved = 4 * (volume.numel() + count * 24) + 8 * count
    name = 'upsample 160 k of 1.28 M voxels, C 24'
    yield f'{name} forward', ours, {'interpolate, then index': whole}, moved, count * 24 * 16

    def both(run):
        return lambda: torch.autograd.grad(run(), volume, upstream)

    yield f'{name} forward+backward', both(ours), {'interpolate, then index': both(whole)}, 2 * moved, count * 24 * 32


def conv3d_rows():
    """The second stage of a small encoder on one sample."""
    if args.device != 'cpu' or find_spec('mmengine') is None:
        print('3D convolution of one sample: left out, the layer is for CPUs and needs mmengine')
        return
    from occforge.models.conv3d import Conv3d

    shapes = {
        '64 x 4 x 50 x 50': (64, 64, 3, (4, 50, 50)),
        '16 x 200 x 200 x 16, kernel 1, channels last': (16, 8, 1, (200, 200, 16)),
    }
    for shape, (channels, width, kernel, grid) in shapes.items():
        layer, plain = (kind(channels, width, kernel, padding=kernel // 2) for kind in (Conv3d, torch.nn.Conv3d))
        plain.load_state_dict(layer.state_dict())
        volume = torch.randn(1, channels, *grid).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        upstream = torch.randn_like(layer(volume))

        def forward(conv, volume=volume):
            return lambda: conv(volume)

        def both(conv, volume=volume, upstream=upstream):
            return lambda: torch.autograd.grad(conv(volume), (volume, *conv.parameters()), upstream)

        torch.testing.assert_close(layer(volume), plain(volume), rtol=1e-4, atol=1e-4)
        moved = 4 * (volume.numel() + upstream.numel() + layer.weight.numel())
        flops = 2 * kernel**3 * channels * upstream.numel()
        name = f'3D convolution of one sample, {shape}'
        yield f'{name} forward', forward(layer), {'torch.nn.Conv3d': forward(plain)}, moved, flops
        yield f'{name} forward+backward', both(layer), {'torch.nn.Conv3d': both(plain)}, 3 * moved, 3 * flops


def confusion_rows():
    """One 200 x 200 x 16 label grid, uint8, with a camera mask of 30 %."""
    generator = torch.Generator().manual_seed(0)
    shape = (200, 200, 16)
    occupied = torch.rand(shape, generator=generator) < 0.1
    target = torch.where(occupied, torch.randint(0, 17, shape, generator=generator), 17).to(torch.uint8)
    pred = torch.where(torch.rand(shape, generator=generator) < 0.9, target, target.flip(0))
    mask = torch.rand(shape, generator=generator) < 0.3
    numpy_pred, numpy_target, numpy_mask = (value.numpy() for value in (pred, target, mask))
    pred, target, mask = (value.to(args.device) for value in (pred, target, mask))

    def numpy_masked():
        chosen = numpy_target[numpy_mask].astype(int) * 18 + numpy_pred[numpy_mask]
        return np.bincount(chosen, minlength=324).reshape(18, 18)

    def numpy_all():
        return np.bincount(numpy_target.ravel().astype(int) * 18 + numpy_pred.ravel(), minlength=324).reshape(18, 18)

    for name, run, peer, moved in (
        ('masked', lambda: confusion_matrix(pred, target, 18, mask), numpy_masked, 3),
        ('all cells', lambda: confusion_matrix(pred, target, 18), numpy_all, 2),
    ):
        assert (run().cpu().numpy() == peer()).all()
        chosen = mask if name == 'masked' else torch.ones_like(mask)

        def by_torch(chosen=chosen):
            return torch.bincount(target[chosen].long() * 18 + pred[chosen], minlength=324)

        assert torch.equal(by_torch().view(18, 18), run())
        peers = {'numpy bincount': peer, 'torch bincount': by_torch}
        yield f'confusion matrix 640 k cells, {name}', run, peers, moved * target.numel(), 0


def attention_rows():
    """FB-OCC's cross attention: 6 maps of 16 x 44, 8 heads of 10 channels, 8 points, 20 k (camera, query) pairs."""
    images, height, width, heads, channels, pairs, points = 6, 16, 44, 8, 10, 20_000, 8
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(images, height * width, heads, channels, generator=generator)
    locations = torch.rand(pairs, heads, 1, points, 2, generator=generator)
    weights = torch.rand(pairs, heads, 1, points, generator=generator).softmax(-1)
    sample = torch.randint(0, images, (pairs,), generator=generator).sort().values.to(args.device)
    inputs = tuple(tensor.to(args.device).requires_grad_() for tensor in (value, locations, weights))
    upstream = torch.randn(pairs, heads * channels, generator=generator).to(args.device)

    def ours():
        return deform_attn(inputs[0], [(height, width)], *inputs[1:], sample)

    def by_grid_sample():
        return deform_attn_reference(*inputs, sample, [height, width])

    def both(forward):
        return lambda: torch.autograd.grad(forward(), inputs, upstream)

    torch.testing.assert_close(ours(), by_grid_sample(), rtol=1e-4, atol=1e-4)
    moved = 4 * (value.numel() + locations.numel() + weights.numel() + upstream.numel())
    flops = 8 * pairs * heads * points * channels
    name = 'deformable attention 20 k queries'
    yield f'{name} forward', ours, {'grid_sample': by_grid_sample}, moved, flops
    yield f'{name} forward+backward', both(ours), {'grid_sample': both(by_grid_sample)}, 3 * moved, 3 * flops


def ray_rows():
    """100 k rays from one LiDAR origin through a 200 x 200 x 16 grid of which 1 % is occupied."""
    generator = torch.Generator().manual_seed(0)
    frame = ([-40.0, -40.0, -1.0], [0.4, 0.4, 0.4])
    grid = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    grid[torch.rand(grid.shape, generator=generator) < 0.01] = 4
    grid = grid.to(args.device)
    directions = torch.randn(100_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.05])
    directions = torch.nn.functional.normalize(directions, dim=1).to(args.device)
    origin = torch.tensor([1.0, 0.0, 1.8], dtype=torch.float64, device=args.device)

    def ours():
        return cast_rays(grid, origin, directions, *frame)

    def reference():
        index = torch.zeros(len(directions), dtype=torch.int64, device=args.device)
        return cast_rays_reference(
            grid[None], origin.expand_as(directions), directions, index, *frame, 17, float('inf')
        )

    assert all(torch.equal(a, b) for a, b in zip(ours(), reference()))
    yield 'cast 100 k rays', ours, {'torch, step by step': reference}, len(directions) * 77, 0
    yield 'observed cells, 100 k rays', lambda: observed_cells(grid, origin, origin + 60 * directions, *frame), {}, 0, 0


def render_rows():
    """38,400 camera rays of 416 samples through 200 x 200 x 16 grids of density and 17 classes, 0.4 m cells.

    The peer samples the grids with ``grid_sample`` and composites with dense tensors, as one writes it in torch; on an
    eighth of the rays, since all of them do not fit into memory.
    """
    lower, edge, size, classes, samples, eighth = [-40.0, -40.0, -1.0], 0.4, (200, 200, 16), 17, 416, 8
    upper = [low + edge * cells for low, cells in zip(lower, size)]
    points = camera_rig(2, 64, 100, 2.0)[0]  # two points on each of 6 x 64 x 100 rays, 1 m apart in depth
    directions = (points[:, 1] - points[:, 0]).reshape(-1, 3).to(args.device)
    origins = points[:, 0].reshape(-1, 3).to(args.device) - directions
    generator = torch.Generator().manual_seed(0)
    transparent = torch.rand(1, *size, generator=generator) * 2 - 8
    walls = torch.rand(1, *(cells // 4 for cells in size), generator=generator) < 0.05
    surfaces = torch.where(walls.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3), 9.0, -12.0)
    surfaces[..., :3] = 9.0  # the ground
    semantics = torch.randn(1, *size, classes, generator=generator).to(args.device).requires_grad_()
    chosen = slice(None, None, eighth)

    for name, density, stop in (('transparent field', transparent, 0.0), ('surfaces', surfaces, 1e-4)):
        density = density.to(args.device).requires_grad_()

        def ours(part=slice(None), density=density, stop=stop):
            options = dict(samples=samples, unit=edge, stop=stop)
            return render_rays(density, semantics, origins[part], directions[part], lower, [edge] * 3, **options)

        def unfused(density=density, stop=stop):
            start, along = origins[chosen], directions[chosen]
            near, far = clip_rays(start, along, lower, upper)
            width = ((far - near) / samples)[:, None]
            t = near[:, None] + (torch.arange(samples, device=args.device) + 0.5) * width
            places = start[:, None] + t[..., None] * along[:, None]
            low, high = (torch.tensor(value, device=args.device) for value in (lower, upper))
            places = ((places - low) / (high - low) * 2 - 1).flip(-1)[None, None]
            values = torch.nn.functional.grid_sample(density[:, None], places, align_corners=False)[0, 0, 0]
            logits = torch.nn.functional.grid_sample(semantics.permute(0, 4, 1, 2, 3), places, align_corners=False)[
                0, :, 0
            ]
            tau = width * along.norm(dim=1, keepdim=True) / edge * torch.nn.functional.softplus(values)
            alpha = -torch.expm1(-tau)
            left = torch.cat([torch.ones_like(alpha[:, :1]), (1 - alpha).cumprod(1)], 1)
            used = left[:, :-1] >= stop
            weights = torch.where(used, left[:, :-1] * alpha, 0)
            last = left.gather(1, used.sum(1, keepdim=True))[:, 0]
            mass, moment = weights.cumsum(1) - weights, (weights * t).cumsum(1) - weights * t
            distortion = (2 * weights * (t * mass - moment) + weights.square() * width / 3).sum(1)
            return (weights * t).sum(1), torch.einsum('rs,crs->rc', weights, logits), last, distortion

        def both(forward, density=density):
            def run():
                depth, rendered, left, distortion = forward()
                loss = depth.sum() + rendered.square().sum() + left.sum() + distortion.sum()
                return torch.autograd.grad(loss, (density, semantics))

            return run

        for a, b in zip(ours(chosen), unfused()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.detach().abs().max())))
        for a, b in zip(both(lambda run=ours: run(chosen))(), both(unfused)()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
        grids = 4 * (density.numel() + semantics.numel())
        total = len(origins) * samples
        moved = 3 * grids + 4 * len(origins) * 2 * (classes + 6)
        peer = Part(both(unfused), eighth, grids)
        title = f'render {len(origins)} rays x {samples} x {classes}, {name}'
        forward_peer = Part(lambda run=unfused: run(), eighth)
        yield f'{title}, forward', ours, {'grid_sample, 1/8 scaled': forward_peer}, moved // 3, total * 17 * classes
        yield (
            f'{title}, forward+backward',
            both(ours),
            {'grid_sample, 1/8 scaled': peer},
            moved,
            total * 68 * classes,
        )


SUBMANIFOLD = ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
STRIDED = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))


def sparse_clouds(count):
    """Lexicographic voxels (V, 4) and grid of a wavy surface, as LiDAR sees, and of a half-filled block."""
    generator = torch.Generator().manual_seed(0)
    side = int((count * 1.8) ** 0.5)
    cell = torch.randperm(side * side, generator=generator)[:count].sort()[0]
    i, j = cell // side, cell % side
    k = (16 + 8 * torch.sin(i / 20) + 6 * torch.cos(j / 15) + torch.rand(len(cell), generator=generator)).long()
    yield 'surface', torch.stack([torch.zeros_like(i), i, j, k], 1).int(), (side, side, 32)
    side = max(1, int((count / 16) ** 0.5))
    cell = torch.randperm(side * side * 32, generator=generator)[:count].sort()[0]
    columns = torch.zeros_like(cell), cell // (side * 32), cell // 32 % side, cell % 32
    yield 'block', torch.stack(columns, 1).int(), (side, side, 32)


def spconv_peer(features, weight, coords, shape):
    """spconv's submanifold layer, on the CPU held to one thread (it computes wrong numbers with more); None without."""
    try:
        import spconv.pytorch as spconv
    except ImportError:
        return None
    layer = spconv.SubMConv3d(features.shape[1], weight.shape[0], 3, bias=False, indice_key='k').to(args.device)
    with torch.no_grad():
        layer.weight.copy_(weight.view(layer.weight.shape))

    def run():
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if args.device == 'cpu' else threads)
        with torch.no_grad():
            out = layer(spconv_input).features
        torch.set_num_threads(threads)
        return out

    spconv_input = spconv.SparseConvTensor(features, coords, shape, 1)
    return run


def sparse_rows(name, count, channels, clouds=('surface', 'block'), dense=True):
    """A 3 x 3 x 3 submanifold convolution, its maps, and those of one of stride 2."""
    for cloud, coords, shape in sparse_clouds(count):
        if cloud not in clouds:
            continue
        coords = coords.to(args.device)
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(count, channels, generator=generator).to(args.device)
        weight = torch.randn(channels, 27, channels, generator=generator).to(args.device) / channels**0.5
        upstream = torch.randn(count, channels, generator=generator).to(args.device)
        index = sparse.neighbour_map(coords, coords, shape, *SUBMANIFOLD)
        index_t = sparse.transpose_map(index, count)
        pairs = int((index >= 0).sum())
        title = f'sparse conv {name}, {cloud}'

        def submanifold(coords=coords, shape=shape):
            return sparse.neighbour_map(coords, coords, shape, *SUBMANIFOLD)

        def submanifold_by_torch(coords=coords, shape=shape):
            return sparse.neighbour_map_reference(coords, coords, shape, *SUBMANIFOLD)

        def strided(coords=coords, shape=shape):
            sites = sparse.sparse_sites(coords, sparse.output_shape(shape, *STRIDED), *STRIDED)
            return sparse.neighbour_map(coords, sites, shape, *STRIDED)

        assert torch.equal(submanifold(), submanifold_by_torch())
        yield f'{title}: map', submanifold, {'torch search': submanifold_by_torch}, 16 * count + 4 * index.numel(), 0
        yield f'{title}: sites and map of stride 2', strided, {}, 16 * count + 4 * strided().numel(), 0

        def ours(features=features, weight=weight, index=index, index_t=index_t):
            return sparse.sparse_conv(features, weight, index, index_t)

        def by_torch(features=features, weight=weight, index=index):
            return sparse.sparse_conv_reference(features, weight, index)

        peers = {'gather, product, index_add_': by_torch}
        if dense:
            volume = torch.zeros(channels, *shape, device=args.device)
            places = tuple(coords[:, 1:].long().T)
            volume[(slice(None), *places)] = features.T
            kernel = weight.view(channels, 3, 3, 3, channels).permute(0, 4, 1, 2, 3).contiguous()

            def by_dense(volume=volume, kernel=kernel):
                return torch.nn.functional.conv3d(volume[None], kernel, padding=1)

            at_voxels = by_dense()[0][(slice(None), *places)].T
            torch.testing.assert_close(ours(), at_voxels, rtol=1e-4, atol=1e-3)
            peers['dense conv3d'] = by_dense
        spconv = spconv_peer(features, weight, coords, shape)
        if spconv is not None:
            torch.testing.assert_close(ours(), spconv(), rtol=1e-4, atol=1e-3)
            peers['spconv, one thread' if args.device == 'cpu' else 'spconv'] = spconv
        torch.testing.assert_close(ours(), by_torch(), rtol=1e-4, atol=1e-3)
        moved = 4 * (2 * count * channels + weight.numel() + index.numel())
        flops = 2 * pairs * channels**2
        yield f'{title}: forward', ours, peers, moved, flops
        leaves = features.clone().requires_grad_(), weight.clone().requires_grad_()

        def both(forward, leaves=leaves, upstream=upstream):
            return lambda: torch.autograd.grad(forward(*leaves), leaves, upstream)

        peers = {'gather, product, index_add_': both(by_torch)}
        yield f'{title}: forward+backward', both(ours), peers, 3 * moved, 3 * flops


def all_rows():
    yield from pool_rows('FB-OCC 6x80x16x44 C80', 80, 16, 44, 80, [-40, -40, -1], [0.8, 0.8, 0.8], [100, 100, 8])
    yield from pool_rows('BEVDet-Occ 6x59x16x44 C64', 59, 16, 44, 64, [-40, -40, -1], [0.4, 0.4, 6.4], [200, 200, 1])
    yield from pool_rows('FusionOcc 6x88x32x88 C32', 88, 32, 88, 32, [-40, -40, -1], [0.4, 0.4, 0.4], [200, 200, 16])
    yield from pool_rows(
        'BEVFusion 6x118x32x88 C80', 118, 32, 88, 80, [-54, -54, -10], [0.3, 0.3, 20], [360, 360, 1], 60
    )
    yield from voxelize_rows()
    yield from upsample_benchmark()
    yield from conv3d_rows()
    yield from confusion_rows()
    yield from attention_rows()
    yield from ray_rows()
    yield from render_rows()
    yield from sparse_rows('50 k voxels, C 32', 50_000, 32)
    yield from sparse_rows('120 k voxels, C 16 (BEVFusion)', 120_000, 16, ('surface',), dense=False)
    yield from sparse_rows('60 k voxels, C 96 (Res16UNet34C)', 60_000, 96, ('surface',), dense=False)


def main():
    torch.set_num_threads(args.threads)
    if not has_extension():
        print('the compiled operators are not available: these are the times of the plain-torch references')
    bandwidth, peak_rate = copy_bandwidth(), arithmetic_peak()
    machine = f'{_cli.processor_name()}, torch {torch.__version__}'
    rates = f'copy {bandwidth / 1e9:.1f} GB/s, matrix product {peak_rate / 1e9:.0f} GFLOP/s'
    print(f'{args.device}, {args.threads} threads, {machine}; {rates}')
    head = f'{"operator":<66}{"ms":>9}{"MB":>8}{"GFLOP":>8}{"of limit":>10}{"peak MB":>9}'
    print(f'{head}  ratio to peers (peer ms, peak MB)')
    results = []
    for name, run, peers, moved, flops in all_rows():
        if args.only not in name:
            continue
        seconds, peak = fastest(run), peak_bytes(run)
        row = dict(name=name, seconds=seconds, bytes=moved, flops=flops, peak_bytes=peak, peers={})
        limits = dict(memory=moved / bandwidth, arithmetic=flops / peak_rate)
        row['limited_by'] = max(limits, key=limits.get)
        row['fraction_of_limit'] = limits[row['limited_by']] / seconds
        shown = []
        for peer, peer_run in peers.items():
            part = peer_run if isinstance(peer_run, Part) else Part(peer_run)
            peer_seconds = part.scale * fastest(part.run, max(2, args.repeat // 3))
            peer_peak = part.scale * (peak_bytes(part.run) - part.fixed_bytes) + part.fixed_bytes
            row['peers'][peer] = dict(seconds=peer_seconds, ratio=peer_seconds / seconds, peak_bytes=peer_peak)
            shown.append(f'{peer_seconds / seconds:.1f}x {peer} ({peer_seconds * 1e3:.1f}, {peer_peak / 1e6:.0f})')
        results.append(row)
        print(
            f'{name:<66}{seconds * 1e3:>9.2f}{moved / 1e6:>8.1f}{flops / 1e9:>8.2f}'
            f'{row["fraction_of_limit"]:>9.2f}{row["limited_by"][0]}{peak / 1e6:>9.1f}  {"; ".join(shown)}',
            flush=True,
        )
    if args.out:
        record = dict(device=args.device, threads=args.threads, machine=machine, copy_bytes_per_second=bandwidth)
        record.update(product_flops_per_second=peak_rate, date=time.strftime('%Y-%m-%d'), rows=results)
        args.out.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
    main()
