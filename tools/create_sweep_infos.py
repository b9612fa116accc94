#!/usr/bin/env python3
"""Add the moments between key frames to an info file, as samples without labels.

    tools/create_data.py nuscenes --root-path data/nuscenes --camera-sweeps 6
    cd data/nuscenes; tools/create_sweep_infos.py nuscenes_infos_train.pkl --out nuscenes_infos_train_sweeps.pkl

Each sample has the images of all cameras at a moment before a key frame, the LiDAR sweep nearest in time, and with_gt
False: no 3D labels are read, rays have depth alone, and UniOccTeacherStudent learns them from its teacher
(configs/uniocc/uniocc_teacher_student.py, train_dataloader.dataset.ann_file). Samples of one place are sequences of
their own, so that the frame before is half a second away as with key frames.
"""

import argparse
import sys

import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('infos', help='info file with image_sweeps')
    parser.add_argument('--out', required=True, help='info file to write')
    parser.add_argument(
        '--places', type=int, nargs='+', default=[2], help='camera sweeps before the key frame, 0 the last (default: 2)'
    )
    parser.add_argument('--max-gap', type=float, default=0.06, help='s, of cameras and LiDAR (default: %(default)s)')
    args = parser.parse_args(argv)
    if min(args.places) < 0 or len(set(args.places)) != len(args.places) or args.max_gap <= 0:
        parser.error('--places are different numbers of 0 or more, --max-gap is above 0')
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        from occforge.datasets.preparation.sweep_infos import add_sweeps

        keys, added = add_sweeps(args.infos, args.out, args.places, args.max_gap)
        print(f'{args.out}: {keys} key frames and {added} samples between them')
    return 0


if __name__ == '__main__':
    sys.exit(main())
