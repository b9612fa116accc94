#!/usr/bin/env python3
"""Curves of trainings as a PNG, from the metrics.csv of their work dirs.

tools/analysis/analyze_logs.py work_dirs/a work_dirs/b                       loss and the main metric of both
tools/analysis/analyze_logs.py work_dirs/a --keys loss_occ 'mIoU/*' lr       these columns; * stands for anything
tools/analysis/analyze_logs.py work_dirs/a --list                            which columns there are
"""

import argparse
import fnmatch
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli

# drawn by default, of these what is there
MAIN = ('loss', 'mIoU/no_mask', 'RayIoU', 'NDS', 'mAP', 'map/mean/iou@max', 'all_ap', 'all_ap_50%', 'time', 'data_time')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    columns = ', '.join(MAIN).replace('%', '%%')  # argparse formats its texts
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='with a metrics.csv, or such a file')
    parser.add_argument('--keys', nargs='+', metavar='COLUMN', help=f'default: of {columns} what is there')
    parser.add_argument('--labels', nargs='+', help='names of the trainings (default: of their folders)')
    parser.add_argument('--by', choices=('iter', 'epoch'), default='iter', help='horizontal axis (default: iter)')
    parser.add_argument('--smooth', type=int, default=1, metavar='N', help='mean over N rows of training (default: 1)')
    parser.add_argument('--out', default='curves.png', help='(default: %(default)s)')
    parser.add_argument('--list', action='store_true', help='print the columns that hold something, and stop')
    args = parser.parse_args(argv)
    if args.smooth < 1:
        parser.error('--smooth must be 1 or more')
    if args.labels and len(args.labels) != len(args.work_dirs):
        parser.error(f'--labels: {len(args.labels)} names for {len(args.work_dirs)} trainings')
    return args


def read_table(path):
    """{column: [(phase, iter, epoch, value), ...]} of a metrics.csv, finite numbers alone.

    Raises:
        DataError: missing or not such a table.
    """
    import csv
    import math

    from occforge.errors import DataError

    path = Path(path)
    path = path / 'metrics.csv' if path.is_dir() else path
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    columns: dict = {}
    with open(path, newline='', encoding='utf-8', errors='replace') as file:
        reader = csv.DictReader(file)
        if not {'phase', 'iter', 'epoch'} <= set(reader.fieldnames or ()):
            raise DataError(f'{path}: no table of a training, expected the columns phase, epoch and iter')
        for number, row in enumerate(reader, start=2):
            try:
                place = row['phase'], int(row['iter'] or 0), float(row['epoch'] or 0)
                values = {k: float(v) for k, v in row.items() if v and k not in ('phase', 'iter', 'epoch')}
            except (ValueError, TypeError) as error:
                raise DataError(f'{path}: line {number}: {error}') from None
            for name, value in values.items():
                if math.isfinite(value):
                    columns.setdefault(name, []).append((*place, value))
    if not columns:
        raise DataError(f'{path}: holds no numbers')
    return columns


def smoothed(values, window: int):
    """Mean of each value and those up to ``window - 1`` before it."""
    import numpy as np

    sums = np.cumsum([0.0, *values])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (sums[end] - sums[start]) / (end - start)


def chosen_columns(tables, keys):
    """Columns to draw, in the order of the keys.

    Raises:
        DataError: a key fits no column.
    """
    from occforge.errors import DataError

    known = list(dict.fromkeys(name for table in tables for name in table))
    if keys is None:
        return [name for name in MAIN if name in known] or known[:6]
    columns = []
    for key in keys:
        found = [name for name in known if fnmatch.fnmatchcase(name, key)]
        if not found:
            raise DataError(f'--keys {key}: no such column; --list prints them')
        columns += [name for name in found if name not in columns]
    return columns


def draw(tables, labels, columns, args):
    """The figure: one plot a column, one line a training and phase."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    across = min(3, len(columns))
    down = -(-len(columns) // across)
    figure, axes = plt.subplots(down, across, figsize=(5.2 * across, 3.4 * down), squeeze=False, layout='constrained')
    for axis, name in zip(axes.flat, columns):
        for number, (table, label) in enumerate(zip(tables, labels)):
            rows = table.get(name, [])
            for phase in dict.fromkeys(row[0] for row in rows):
                own = [row for row in rows if row[0] == phase]
                values = [row[3] for row in own]
                few = len(own) < 20
                text = label if phase == 'train' else f'{label}, {phase}'
                axis.plot(
                    [row[1 if args.by == 'iter' else 2] for row in own],
                    smoothed(values, args.smooth) if phase == 'train' else values,
                    color=f'C{number}', linestyle='-' if phase == 'train' else '--', marker='o' if few else None,
                    markersize=3, linewidth=1.2, label=text,
                )  # fmt: skip
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(args.by)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(columns) :]:
        axis.axis('off')
    return figure


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors
    from occforge.fileio import atomic_write

    with cli_errors():
        tables = [read_table(path) for path in args.work_dirs]
        if args.list:
            for name in dict.fromkeys(name for table in tables for name in table):
                last = next(table[name][-1] for table in tables if name in table)
                print(f'{name}  (last {last[3]:g}, {last[0]})')
            return
        labels = args.labels or [Path(path).resolve().name for path in args.work_dirs]
        figure = draw(tables, labels, chosen_columns(tables, args.keys), args)
        with atomic_write(args.out, 'wb') as file:
            figure.savefig(file, format='png', dpi=110)
        print(args.out)


if __name__ == '__main__':
    sys.exit(main())
