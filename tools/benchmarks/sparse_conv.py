#!/usr/bin/env python
"""Times the sparse convolution operators; needs torch and occforge.ops alone (spconv is a peer where it is installed).

Prints, per operator, the best time, the arithmetic rate and the ratio to each peer in the same run. Peers: the
plain-torch reference, the dense masked convolution of the voxels' bounding grid, spconv held to one thread (its CPU
convolution is wrong with more).

    python tools/benchmarks/sparse_conv.py [--voxels 50000] [--channels 32] [--threads 2] [--out FILE]
"""

import argparse
import json
import sys
import time
from pathlib import Path


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--voxels', type=int, default=50000)
    parser.add_argument('--channels', type=int, default=32)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument('--out', type=Path, help='also write the numbers to this JSON file')
    return parser.parse_args()


SUBM = ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
DOWN = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))


def clouds(torch, count):
    """Lexicographic voxels (V, 4) and grid of a wavy surface, as LiDAR sees, and of a half-filled block."""
    generator = torch.Generator().manual_seed(0)
    side = int((count * 1.8) ** 0.5)
    shape = (side, side, 32)
    cell = torch.randperm(side * side, generator=generator)[:count].sort()[0]
    i, j = cell // side, cell % side
    k = (16 + 8 * torch.sin(i / 20) + 6 * torch.cos(j / 15) + torch.rand(len(cell), generator=generator)).long()
    yield 'surface', torch.stack([torch.zeros_like(i), i, j, k], 1).int(), shape
    side = max(1, int((count / 16) ** 0.5))
    shape = (side, side, 32)
    cell = torch.randperm(side * side * 32, generator=generator)[:count].sort()[0]
    columns = torch.zeros_like(cell), cell // (side * 32), cell // 32 % side, cell % 32
    yield 'block', torch.stack(columns, 1).int(), shape


def main():
    args = parse()
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'projects'))
    from occforge.ops import sparse_conv as ops

    torch.set_num_threads(args.threads)

    def best(function, repeats=args.repeats):
        function()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    report = []

    def row(cloud, name, seconds, flops=0, **peers):
        rate = f'{flops / seconds / 1e9:8.1f} GFLOP/s' if flops else ' ' * 16
        ratios = '  '.join(f'{peer} {value / seconds:.1f}x' for peer, value in peers.items())
        print(f'{cloud:8} {name:18} {seconds * 1e3:9.2f} ms {rate}  {ratios}')
        report.append(dict(cloud=cloud, name=name, seconds=seconds, flops=flops, peers=peers))

    print(f'torch {torch.__version__}, {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}')

    def measure(cloud, coords, shape):
        channels = args.channels
        x, w = torch.randn(len(coords), channels), torch.randn(channels, 27, channels)
        index = ops.neighbour_map(coords, coords, shape, *SUBM)
        index_t = index.flip(0)
        pairs = int((index >= 0).sum())
        flops = 2 * pairs * channels * channels
        print(f'-- {cloud}: {len(coords)} voxels, {pairs} pairs, {channels} channels')
        few = max(1, args.repeats // 10)
        row(
            cloud,
            'map subm',
            best(lambda: ops.neighbour_map(coords, coords, shape, *SUBM)),
            reference=best(lambda: ops.neighbour_map_reference(coords, coords, shape, *SUBM), few),
        )
        out_shape = ops.output_shape(shape, *DOWN)

        def strided():
            sites = ops.sparse_sites(coords, out_shape, *DOWN)
            return ops.neighbour_map(coords, sites, shape, *DOWN)

        row(cloud, 'sites + map /2', best(strided))
        peers = dict(reference=best(lambda: ops.sparse_conv_reference(x, w, index), few))
        volume = torch.zeros(1, channels, *shape)
        kernel = w.view(channels, 3, 3, 3, channels).permute(0, 4, 1, 2, 3).contiguous()
        peers['dense'] = best(lambda: torch.nn.functional.conv3d(volume, kernel, padding=1), few)
        try:
            import spconv.pytorch as spconv
        except ImportError:
            print('spconv is not installed: no ratio to it')
        else:
            torch.set_num_threads(1)
            layer = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key='k')
            sparse = spconv.SparseConvTensor(x, coords, shape, 1)
            with torch.no_grad():
                layer(sparse)
                peers['spconv(1 thread)'] = best(lambda: layer(sparse))
            torch.set_num_threads(args.threads)
        row(cloud, 'forward', best(lambda: ops.sparse_conv(x, w, index)), flops, **peers)
        row(cloud, 'weight gradient', best(lambda: torch.ops.occforge.sparse_conv_weight(x, x, index)), flops)
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()

        def both(function):
            a.grad = b.grad = None
            function().sum().backward()

        row(
            cloud,
            'forward + backward',
            best(lambda: both(lambda: ops.sparse_conv(a, b, index, index_t))),
            3 * flops,
            reference=best(lambda: both(lambda: ops.sparse_conv_reference(a, b, index)), few),
        )

    for case in clouds(torch, args.voxels):
        measure(*case)
    if args.out:
        record = dict(device='cpu', threads=args.threads, torch=torch.__version__, rows=report)
        args.out.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
    main()
