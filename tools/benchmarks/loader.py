#!/usr/bin/env python3
"""How many samples a second a config's data loader gives, and which stage of the pipeline limits it.

tools/benchmarks/loader.py configs/fusion_occ/fusion_occ_synthetic.py --workers 0 2
tools/benchmarks/loader.py CONFIG --split test --samples 50
tools/benchmarks/loader.py CONFIG --random                  samples of noise at nuScenes' size: needs no data set

Stages are the pipeline's transforms, timed in one process. Then the real loader runs with each number of workers.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli
from _cli import positive
from model import load_samples, random_samples


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='(default: train)')
    parser.add_argument('--samples', type=positive, default=20, help='to load in each row (default: 20)')
    parser.add_argument('--workers', type=int, nargs='+', help="processes (default: 0 and the config's number)")
    parser.add_argument('--data-root', help="in place of the config's")
    parser.add_argument('--random', action='store_true', help='samples of noise: needs no data set')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--out', type=Path, help='write the numbers to this JSON file as well')
    args = parser.parse_args(argv)
    if args.workers and min(args.workers) < 0:
        parser.error('--workers must be 0 or more')
    return args


def stage_table(seconds):
    """Rows (stage, milliseconds a sample, share), the slowest first."""
    whole = sum(seconds.values())
    return [(name, 1e3 * own, own / whole if whole else 0.0) for name, own in
            sorted(seconds.items(), key=lambda item: -item[1])]  # fmt: skip


def throughput(dataset, batch, workers, samples):
    """Samples a second of a data loader after its first batch, which waits for the workers to start."""
    from mmengine.dataset import pseudo_collate
    from torch.utils.data import DataLoader

    order = [number % len(dataset) for number in range(samples + batch)]
    loader = DataLoader(dataset, batch, sampler=order, num_workers=workers, collate_fn=pseudo_collate, drop_last=True)
    start, loaded = None, 0
    for items in loader:
        if start is None:
            start = time.perf_counter()
        else:
            loaded += len(items['data_samples'])
    return loaded / (time.perf_counter() - start) if loaded else float('nan')


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors
    from occforge.fileio import atomic_write

    with cli_errors():
        import contextlib
        import json

        from mmdet3d.registry import DATASETS
        from occforge.engine import load_config
        from occforge.errors import ConfigError

        overrides = [*args.cfg_options, *([f'data_root={args.data_root}'] if args.data_root else [])]
        cfg = load_config(args.config, overrides)
        loader = cfg.get(f'{args.split}_dataloader')
        if loader is None:
            raise ConfigError(f'{args.config}: {args.split}_dataloader is missing')
        with random_samples(cfg, 4) if args.random else contextlib.nullcontext():
            _, seconds = load_samples(DATASETS.build(loader.dataset), args.samples)
            rows = stage_table(seconds)
            print(f'{"stage":<28}{"ms a sample":>12}{"share":>8}')
            for name, own, share in rows:
                print(f'{name:<28}{own:>12.1f}{share:>8.0%}')
            whole = sum(seconds.values())
            print(f'{"all":<28}{1e3 * whole:>12.1f}   {rows[0][0]} limits: {rows[0][2]:.0%} of the time')
            batch = loader.get('batch_size', 1)
            dataset = DATASETS.build(loader.dataset)
            speed = {}
            for workers in dict.fromkeys(args.workers or [0, loader.get('num_workers', 0)]):
                speed[workers] = throughput(dataset, batch, workers, args.samples)
                print(f'{workers} workers, batches of {batch}: {speed[workers]:.2f} samples/s')
        if args.out:
            stages = {name: own for name, own, _ in rows}
            document = dict(config=args.config, split=args.split, milliseconds=stages, samples_per_second=speed)
            with atomic_write(args.out, 'w') as file:
                file.write(json.dumps(document, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(main())
