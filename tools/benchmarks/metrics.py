#!/usr/bin/env python
"""Times the occupancy metrics against a plain form of each, in one run on the same samples.

Rays: occforge's counter of RayIoU against a march of all rays side by side, one voxel a step, in torch and in numpy
(float64, as the protocol asks). mIoU: the confusion matrices of all three masks in one pass against numpy's bincount
once a mask; reading the files is apart. The counts of each peer are compared first. Samples are made up: a street with
vehicles, walls and trees, and a prediction that is wrong in places; their files are written and read to time that, too.

    python tools/benchmarks/metrics.py [--samples 4] [--origins 8] [--threads 2] [--repeat 5] [--out metrics.json]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--samples', type=int, default=4, help='different scenes (default 4)')
    parser.add_argument('--origins', type=int, default=8, help='ray origins a sample (default 8)')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default 2)')
    parser.add_argument('--repeat', type=int, default=5, help='timed runs a row; the fastest counts (default 5)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda, for the rows of occforge and torch')
    parser.add_argument('--out', type=Path, help='write the numbers to this JSON file as well')
    return parser.parse_args()


args = parse_arguments()
import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'projects'))
from occforge.datasets.occ3d import POINT_CLOUD_RANGE, read_labels  # noqa: E402
from occforge.evaluation.occupancy_metric import masked_confusions  # noqa: E402
from occforge.evaluation.ranges import RANGE_EDGES, column_rings  # noqa: E402
from occforge.evaluation.rays import THRESHOLDS, ray_directions  # noqa: E402
from occforge.ops import has_extension, ray_counts  # noqa: E402

SHAPE, LOWER, VOXEL, FREE = (200, 200, 16), (-40.0, -40.0, -1.0), 0.4, 17


def street(rng) -> np.ndarray:
    """(200, 200, 16) labels: ground everywhere, buildings along a road, trees, vehicles; about 5 % are occupied."""
    grid = np.full(SHAPE, FREE, dtype=np.uint8)
    grid[:, :, 2] = 14
    grid[:, 85:115, 2], grid[:, 78:85, 2], grid[:, 115:122, 2] = 11, 13, 13
    for side in (rng.integers(50, 75), rng.integers(125, 150)):
        start = 0
        while start < 200:
            length = int(rng.integers(20, 50))
            grid[start : start + length, side : side + 3, 2 : int(rng.integers(9, 16))] = 15
            start += length + int(rng.integers(2, 12))
    for _ in range(40):
        x, y = rng.integers(5, 195, 2)
        if not 80 < y < 120:
            grid[x, y, 2:6] = 16
            crown = grid[x - 3 : x + 4, y - 3 : y + 4, 6:12]
            crown[rng.random(crown.shape) < 0.5] = 16
    for _ in range(30):
        x, y = rng.integers(5, 190), rng.integers(84, 114)
        grid[x : x + 11, y : y + 5, 3:7] = rng.choice([4, 10, 3])
    return grid


def make_sample(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    target = street(rng)
    wrong = rng.random(SHAPE) < 0.02
    pred = np.where(wrong & (target != FREE), FREE, np.roll(target, int(rng.integers(0, 2)), 0)).astype(np.uint8)
    masks = {name: (rng.random(SHAPE) < share).astype(np.uint8) for name, share in (('camera', 0.4), ('lidar', 0.5))}
    origins = np.stack(
        [np.linspace(-36, 36, args.origins), rng.uniform(-1, 1, args.origins), np.full(args.origins, 1.84)]
    )
    return dict(pred=pred, target=target, origins=origins.T, **masks)


# ------------------------------------------------------------------------------------------------------------- peers
def march(grids, origin, directions, lib):
    """(labels, depths) of the rays of one origin in each grid, all rays side by side; lib: numpy or torch."""
    is_torch = lib is torch
    where = lib.where
    position = (origin - (torch.tensor(LOWER, dtype=torch.float64) if is_torch else np.array(LOWER))) / VOXEL
    direction = directions / VOXEL
    step = lib.sign(direction)
    flat = [grid.reshape(-1) for grid in grids]
    results = []
    for labels in flat:
        cell = lib.floor(position) + 0 * direction
        inverse = 1.0 / where(step == 0, 1e-300 + 0 * step, direction)
        label = lib.full((len(direction),), FREE, dtype=lib.int64)
        depth = 0 * direction[:, 0]
        active = lib.arange(len(direction))
        while len(active):
            c, s = cell[active], step[active]
            t = where(s == 0, float('inf') + 0 * s, (c + (s > 0) - position) * inverse[active])
            x_first = t[:, 0] < t[:, 1]
            nearer = where(x_first, t[:, 0], t[:, 1])
            along_z = ~(nearer < t[:, 2])
            leave = where(along_z, t[:, 2], nearer)
            index = (c[:, 0] * SHAPE[1] + c[:, 1]) * SHAPE[2] + c[:, 2]
            here = labels[index.long() if is_torch else index.astype(np.int64)]
            hit = here != FREE
            label[active[hit]] = here[hit].long() if is_torch else here[hit]
            depth[active[hit]] = leave[hit]
            axis = where(along_z, 2 + 0 * along_z, where(x_first, 0 * along_z, 1 + 0 * along_z))
            rows = lib.arange(len(active))
            c[rows, axis] = c[rows, axis] + s[rows, axis]
            cell[active] = c
            inside = (c >= 0).all(1) & (c[:, 0] < SHAPE[0]) & (c[:, 1] < SHAPE[1]) & (c[:, 2] < SHAPE[2])
            active = active[~hit & inside]
        results.append((label, depth))
    return results


def plain_ray_counts(sample, directions, lib):
    """(2 + K, 17) counts of one sample."""
    counts = np.zeros((2 + len(THRESHOLDS), 17), dtype=np.int64)
    as_lib = torch.as_tensor if lib is torch else np.asarray
    for origin in sample['origins']:
        grids = [as_lib(sample[name]) for name in ('target', 'pred')]
        (true, depth), (pred, other) = march(grids, as_lib(origin), as_lib(directions), lib)
        true, depth, pred, other = (np.asarray(value) for value in (true, depth, pred, other))
        met = true != FREE
        counts[0] += np.bincount(true[met], minlength=17)[:17]
        counts[1] += np.bincount(pred[met], minlength=18)[:17]
        for k, threshold in enumerate(THRESHOLDS):
            hit = met & (true == pred) & (np.abs(depth - other) < threshold)
            counts[2 + k] += np.bincount(true[hit], minlength=17)[:17]
    return counts


def plain_confusions(sample):
    """(3, 18, 18): bincount once a mask."""
    matrices = []
    for mask in (None, sample['camera'], sample['lidar']):
        pred, target = sample['pred'], sample['target']
        if mask is not None:
            pred, target = pred[mask.astype(bool)], target[mask.astype(bool)]
        pred, target = pred.reshape(-1).astype(np.int64), target.reshape(-1).astype(np.int64)
        known = (target >= 0) & (target < 18)
        matrices.append(np.bincount(target[known] * 18 + pred[known], minlength=18 * 18).reshape(18, 18))
    return np.stack(matrices)


# -------------------------------------------------------------------------------------------------------------- rows
def fastest(run, repeat=None) -> float:
    """Seconds of the fastest run, after one to warm up."""
    run()
    times = []
    for _ in range(repeat or args.repeat):
        start = time.perf_counter()
        run()
        if args.device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    torch.set_num_threads(args.threads)
    samples = [make_sample(seed) for seed in range(args.samples)]
    directions = ray_directions().astype(np.float64)
    along = torch.from_numpy(directions).to(args.device)
    ring = column_rings(SHAPE, POINT_CLOUD_RANGE, RANGE_EDGES).to(args.device)  # ours also counts by distance
    tensors = [{name: torch.from_numpy(value).to(args.device) for name, value in sample.items()} for sample in samples]

    def ours_rays(sample):
        counts = ray_counts(
            sample['pred'], sample['target'], sample['origins'], along, LOWER, [VOXEL] * 3, 17, THRESHOLDS
        )
        return counts[0].cpu().numpy()

    def ours_confusions(sample):
        grids = (sample[name] for name in ('pred', 'target', 'camera', 'lidar'))
        return masked_confusions(*grids, 18, ring, len(RANGE_EDGES)).sum(0).cpu().numpy()

    for sample, tensor in zip(samples, tensors):
        expected = plain_ray_counts(sample, directions, np)
        if not np.array_equal(ours_rays(tensor), expected):
            sys.exit('the ray counts differ from those of the numpy form')
        if not np.array_equal(ours_confusions(tensor), plain_confusions(sample)):
            sys.exit('the confusion matrices differ from those of the numpy form')
    rows = []

    def row(name, run, samples_a_run, against=None):
        seconds = fastest(run, None if samples_a_run == len(samples) else 1) / samples_a_run
        rows.append(dict(name=name, samples_per_second=1 / seconds, seconds=seconds))
        if against is not None:
            rows[-1].update(against=against['name'], ratio=against['seconds'] / seconds)
        return rows[-1]

    peers = [
        row(f'RayIoU, plain {lib.__name__}', lambda lib=lib: plain_ray_counts(samples[0], directions, lib), 1)
        for lib in (np, torch)
    ]
    peer = min(peers, key=lambda r: r['seconds'])
    row('RayIoU, occforge', lambda: [ours_rays(t) for t in tensors], len(samples), peer)
    peer = row('mIoU x 3 masks, plain numpy', lambda: [plain_confusions(s) for s in samples], len(samples))
    row('mIoU x 3 masks, occforge', lambda: [ours_confusions(t) for t in tensors], len(samples), peer)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f'{index}.npz') for index in range(len(samples))]
        for path, sample in zip(paths, samples):
            arrays = dict(semantics=sample['target'], mask_lidar=sample['lidar'], mask_camera=sample['camera'])
            np.savez_compressed(path, **arrays)
        row('reading a label file', lambda: [read_labels(path) for path in paths], len(samples))

    print(f'{_cli.processor_name()}, torch {torch.__version__}, {args.threads} threads, {args.device}, ', end='')
    print(f'compiled operators: {has_extension()}, {args.origins} origins x {len(along)} rays')
    for r in rows:
        ratio = f'{r["ratio"]:8.1f}x  {r["against"]}' if 'ratio' in r else ''
        print(f'{r["name"]:32}{r["samples_per_second"]:10.1f} samples/s{r["seconds"] * 1e3:10.2f} ms{ratio}')
    if args.out:
        args.out.write_text(json.dumps(dict(rows=rows, threads=args.threads, device=args.device), indent=1) + '\n')


if __name__ == '__main__':
    main()
