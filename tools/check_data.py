#!/usr/bin/env python3
"""Find what is wrong with a data set before training: missing, empty or truncated files, wrong shapes, NaN or
non-rigid poses, bad intrinsics, unknown labels, duplicate tokens, broken order. Lists all; exit status 1 if there is
anything, 2 if there is nothing to check."""

import argparse
import sys

import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', help='data root, e.g. data/nuscenes')
    parser.add_argument('--infos', nargs='+', metavar='FILE', help='default: all *_infos_*.pkl of the root')
    parser.add_argument('--workers', type=int, help='processes (default: one a core, 4 at most)')
    parser.add_argument(
        '--grid-size',
        nargs='+',
        metavar='N',
        default=['200', '200', '16'],
        help='X Y Z of the occupancy labels, or any (default: 200 200 16)',
    )
    args = parser.parse_args(argv)
    if args.grid_size == ['any']:
        args.grid_size = None
    elif len(args.grid_size) == 3 and all(value.isdigit() for value in args.grid_size):
        args.grid_size = tuple(int(value) for value in args.grid_size)
    else:
        parser.error(f'argument --grid-size: {" ".join(args.grid_size)!r} is neither X Y Z nor any')
    return args


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        from collections import Counter

        from occforge.datasets.preparation import check, progress

        workers = args.workers or progress.default_workers()
        problems, looked_at = check.check_dataset(args.root, args.infos, workers, args.grid_size)
        for problem in sorted(problems, key=lambda problem: (check.KINDS.index(problem.kind), problem)):
            print(f'{problem.kind}: {problem.where}: {problem.what}')
        if problems:
            print()
        print('looked at: ' + ', '.join(f'{count} {name}' for name, count in looked_at.items() if count))
        counts = Counter(problem.kind for problem in problems)
        for kind in check.KINDS:
            print(f'{kind:18}{counts[kind]:8}')
        print(f'{"problems":18}{len(problems):8}')
        return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
