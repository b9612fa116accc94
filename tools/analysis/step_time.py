#!/usr/bin/env python3
"""Mean step time and samples a second of a training, from the metrics.csv of its work dir.

tools/analysis/step_time.py work_dirs/fbocc --samples 32 --warmup 100
"""

import argparse
import csv
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


def step_times(path: Path, warmup: int) -> tuple[float, int]:
    """Mean seconds of the iterations after the first ``warmup``, and how many they are.

    ``path`` is a ``metrics.csv``; the time of a row is the mean since the row before, so the warm-up ends with the
    first row at or after it.
    """
    from occforge.errors import DataError

    try:
        with open(path, newline='') as file:
            rows = [row for row in csv.DictReader(file) if row['phase'] == 'train' and row['time']]
    except (OSError, KeyError) as error:
        raise DataError(f'{path}: no table of a training ({error})') from error
    last, seconds, steps = 0, 0.0, 0
    for row in rows:
        iteration = int(row['iter'])
        if last >= warmup:
            seconds += float(row['time']) * (iteration - last)
            steps += iteration - last
        last = iteration
    if not steps:
        raise DataError(f'{path}: {last} iterations, none of them after the first {warmup}')
    return seconds / steps, steps


def last_miou(path: Path) -> str | None:
    """The last validation's mIoU in the table, percent, or None."""
    with open(path, newline='') as file:
        values = [row.get('mIoU') for row in csv.DictReader(file) if row['phase'] == 'val']
    return next((value for value in reversed(values) if value), None)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', help='of the training')
    parser.add_argument('--samples', type=int, required=True, help='samples of a step, over all devices')
    parser.add_argument('--warmup', type=int, default=100, help='first iterations to leave out (default: %(default)s)')
    parser.add_argument('--title', default='training', help='name of the network for the log')
    parser.add_argument('--case', default='', help='name of the case for the log')
    parser.add_argument('--seconds', type=float, help='how long everything took, for the log')
    parser.add_argument('--out', help='log file to write')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors
    from occforge.fileio import atomic_write

    with cli_errors():
        table = Path(args.work_dir) / 'metrics.csv'
        seconds, steps = step_times(table, args.warmup)
        lines = [
            f'Network: {args.title}',
            f'CaseName: {args.case}',
            f'SamplesPerStep: {args.samples}',
            f'StepsMeasured: {steps}',
            f'TrainingTime(ms/step): {1000 * seconds:.1f}',
            f'FPS: {args.samples / seconds:.2f}',
        ]
        if args.seconds is not None:
            lines.append(f'E2ETrainingTime(s): {args.seconds:.0f}')
        miou = last_miou(table)
        if miou is not None:
            lines.append(f'mIoU_overall: {float(miou):.2f}')
        print('\n'.join(lines))
        if args.out:
            with atomic_write(os.path.abspath(args.out), 'w', encoding='utf-8') as file:
                file.write('\n'.join(lines) + '\n')


if __name__ == '__main__':
    sys.exit(main())
