#!/usr/bin/env python
"""Times the occupancy loss with labels and mask at a multiple of the logits' grid; prints peak memory and writes JSON.

Two ways, both forward and backward: the exact loss of 200 x 200 x 16 logits from per-cell label counts, and drawn fine
voxels whose features are interpolated and classified in chunks. The default is the 1600 x 1600 x 128 grid.

    python tools/benchmarks/occupancy_loss.py [--ratio 8] [--grid 200 200 16] [--threads 2] [--out loss.json]
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ratio', type=int, default=8, help='fine voxels along each side of a cell (default 8)')
    parser.add_argument('--grid', type=int, nargs=3, default=(200, 200, 16), metavar=('X', 'Y', 'Z'))
    parser.add_argument('--channels', type=int, default=64, help='channels of the feature volume (default 64)')
    parser.add_argument('--budget', type=int, default=1 << 20, help='fine voxels drawn a step (default 2^20)')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default 2)')
    parser.add_argument('--out', type=Path, help='write the numbers to this JSON file as well')
    return parser.parse_args()


def main():
    args = parse_arguments()
    _cli.use_this_checkout()
    import torch
    from occforge.models.losses import ChunkedOccupancyLoss, draw_fine_targets, fine_features
    from torch import nn

    torch.set_num_threads(args.threads)
    grid, shape = tuple(args.grid), tuple(side * args.ratio for side in args.grid)
    generator = torch.Generator().manual_seed(0)
    semantics = torch.full((1, *shape), 17, dtype=torch.uint8)
    filled = max(1, shape[2] // 10)  # a tenth of the voxels, at the bottom, is not free
    semantics[..., :filled].random_(0, 17, generator=generator)
    mask = torch.empty((1, *shape), dtype=torch.uint8).random_(0, 3, generator=generator) == 0
    volume = torch.randn(1, args.channels, *grid[::-1], generator=generator)
    model = nn.Sequential(nn.Linear(args.channels, 2 * args.channels), nn.Softplus(), nn.Linear(2 * args.channels, 18))
    loss = ChunkedOccupancyLoss()

    def exact():
        targets = loss.targets(semantics, mask, grid)
        rows = volume.permute(0, 4, 3, 2, 1).reshape(-1, args.channels)
        return loss.forward_queries(lambda index: model(rows[index]), (targets.index,), targets, True)['loss_occ']

    def drawn():
        targets = draw_fine_targets(semantics, mask, args.budget, sample_seed=[0])
        return loss.forward_queries(
            lambda index: model(fine_features(volume, index, shape)), (targets.index,), targets, True
        )['loss_occ']

    def counts_alone():
        return loss.targets(semantics, mask, grid).labels.sum()

    print(f'labels and mask {shape}, logits {grid}, {args.threads} threads, torch {torch.__version__}')
    rows = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, run in (
        ('label counts', counts_alone),
        ('drawing alone', lambda: draw_fine_targets(semantics, mask, args.budget, sample_seed=[0]).weight.sum()),
        ('exact loss', exact),
        ('drawn voxels', drawn),
    ):
        volume.requires_grad_(run in (exact, drawn))
        start = time.perf_counter()
        value = run()
        if value.requires_grad:
            value.backward()
        value = value.detach()
        seconds = time.perf_counter() - start
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024  # the highest so far
        rows.append(dict(name=f'occupancy loss: {name}', seconds=seconds, peak_bytes=extra, value=value.item()))
        print(f'{name:14} {seconds:7.2f} s   at most {extra / 2**30:5.2f} GiB over the inputs   {value.item():.4f}')
    if args.out:
        record = dict(device='cpu', threads=args.threads, shape=shape, grid=grid, rows=rows)
        args.out.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
    main()
