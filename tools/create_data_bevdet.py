#!/usr/bin/env python3
"""Write bevdetv2-nuscenes_infos_{train,val}.pkl, the info files of the BEVDet family, from nuScenes tables."""

import argparse
import sys

import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root-path', default='data/nuscenes', help='data root (default: %(default)s)')
    parser.add_argument(
        '--version', default='v1.0-trainval', help='v1.0-trainval, v1.0-mini or v1.0-test (default: %(default)s)'
    )
    parser.add_argument('--out-dir', help='folder of the info files (default: the data root)')
    parser.add_argument('--prefix', default='bevdetv2-nuscenes', help='first part of the names (default: %(default)s)')
    parser.add_argument(
        '--max-sweeps', type=int, default=0, help='LiDAR sweeps before a key frame, at most (default: none)'
    )
    parser.add_argument('--workers', type=int, help='processes (default: one a core, 4 at most)')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        from occforge.datasets.preparation import nuscenes_converter, progress

        metainfo, data_lists, left_out = nuscenes_converter.make_infos(
            args.root_path, args.version, args.workers or progress.default_workers(), max_sweeps=args.max_sweeps
        )
        paths = nuscenes_converter.write_infos(
            args.out_dir or args.root_path, metainfo, data_lists, args.prefix, classic_root=args.root_path
        )
        for path, items in zip(paths, data_lists.values()):
            print(f'{path}: {len(items)} key frames')
        for reason, number in left_out.items():
            print(f'left out: {number} scenes ({reason})')


if __name__ == '__main__':
    sys.exit(main())
