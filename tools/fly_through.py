#!/usr/bin/env python3
"""Fly through occupancy: a strip of pictures (.png) or a video (.mp4) of what a moving camera sees of a label grid.

    tools/fly_through.py data/nuscenes/gts/scene-0061/<token>/labels.npz --out flight.png
    tools/fly_through.py predictions/*.npz --out flight.mp4          one frame after the other while the camera moves

The files are Occ3D labels or what tools/test.py --out FOLDER writes (an array 'semantics' or a single one, (X, Y, Z)).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import _cli
from _cli import positive


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='+', help='label grids, in the order of time')
    parser.add_argument('--out', required=True, help='.png: a strip, .mp4: a video')
    parser.add_argument('--frames', type=positive, help='pictures of the flight (default: 6 in a strip, 60 in a video)')
    parser.add_argument('--size', default='480x270', metavar='WxH', help='of a picture (default: %(default)s)')
    parser.add_argument('--depth', action='store_true', help='depths below the classes')
    parser.add_argument('--fps', type=positive, default=12, help='of the video (default: %(default)s)')
    args = parser.parse_args(argv)
    if not args.out.endswith(('.png', '.mp4')):
        parser.error(f'--out: {args.out} ends neither in .png nor in .mp4')
    try:
        args.size = tuple(int(side) for side in args.size.split('x'))
        assert len(args.size) == 2 and min(args.size) >= 16
    except (ValueError, AssertionError):
        parser.error(f'--size: {args.size!r} is not WxH of 16 pixels or more')
    args.frames = args.frames or (6 if args.out.endswith('.png') else 60)
    return args


def read_grid(path):
    """(X, Y, Z) uint8 of a label or prediction file."""
    import numpy as np
    from occforge.errors import DataError

    try:
        stored = np.load(path, allow_pickle=False)
        names = stored.files
        grid = stored['semantics' if 'semantics' in names else names[0]]
    except Exception as error:  # damaged bytes raise many kinds
        raise DataError(f'{path}: label grid: cannot be read: {error}') from error
    if grid.ndim != 3 or grid.dtype.kind not in 'ui':
        raise DataError(f'{path}: label grid: holds {grid.dtype} {grid.shape}, expected integers (X, Y, Z)')
    return grid.astype(np.uint8)


def main(argv=None) -> int:
    args = parse_args(argv)
    _cli.use_this_checkout()
    import numpy as np
    from occforge.errors import cli_errors

    with cli_errors():
        from occforge.visualization import write_png
        from occforge.visualization.rendering import colour_view, fly_path, view_labels

        grids = [read_grid(path) for path in args.files]
        width, height = args.size
        cam2img = np.array([[0.6 * width, 0, width / 2], [0, 0.6 * width, height / 2], [0, 0, 1]])
        pictures = []
        for number, pose in enumerate(fly_path(args.frames)):
            grid = grids[number * len(grids) // args.frames]
            classes, depths = colour_view(*view_labels(grid, pose, cam2img, (height, width)))
            pictures.append(np.concatenate([classes, depths]) if args.depth else classes)
        if args.out.endswith('.png'):
            write_png(args.out, np.concatenate(pictures, axis=1))
        else:
            write_video(args.out, pictures, args.fps)
        print(f'{args.out}: {len(pictures)} pictures of {len(grids)} label grids')
    return 0


def write_video(path, pictures, fps) -> None:
    """MPEG-4; the file is there when it is whole."""
    import cv2
    from occforge.errors import ConfigError
    from occforge.fileio import atomic_write

    height, width = pictures[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, 'video.mp4')
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*'mp4v'), fps, (width, height))
        if not writer.isOpened():
            raise ConfigError('this build of OpenCV writes no video: use --out flight.png')
        for picture in pictures:
            writer.write(picture[..., ::-1])
        writer.release()
        with atomic_write(path) as file:
            file.write(temporary.read_bytes())


if __name__ == '__main__':
    sys.exit(main())
