#!/usr/bin/env python3
"""Write the 2D class images of FusionOcc's segmentation loss: labelled LiDAR points painted into the cameras.

    tools/create_img_seg.py data/nuscenes/nuscenes_infos_train.pkl

Each image of a key frame gets <out-dir>/samples/<camera>/<image name>.npy, (113, 200) uint8 for 900 x 1600 pixels:
every 8th pixel, classes 0..16 of Occ3D, 17 = no label. Needs nuScenes-lidarseg. Configs read them where their
img_seg_dir names the folder; without it they paint the same images while training.
Files that are there already are kept, so that a killed run goes on where it stopped.
"""

import argparse
import os
import sys

import _cli
from _cli import positive


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('infos', nargs='+', help='info files (mmdet3d v2 or BEVDet)')
    parser.add_argument('--root-path', help='data root (default: the folder of the first info file)')
    parser.add_argument('--out-dir', help='(default: imgseg in the data root)')
    parser.add_argument('--overwrite', action='store_true', help='make files again that are there')
    parser.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        from occforge.datasets.preparation import image_segs, progress

        root = args.root_path or os.path.dirname(args.infos[0]) or '.'
        out_dir = args.out_dir or os.path.join(root, 'imgseg')
        workers = args.workers or progress.default_workers()
        written, kept = image_segs.make_image_segs(args.infos, root, out_dir, workers, args.overwrite)
        print(f'{out_dir}: {written} class images written, {kept} were there')


if __name__ == '__main__':
    sys.exit(main())
