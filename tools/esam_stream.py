#!/usr/bin/env python3
"""ESAM frame by frame over a folder of RGB-D frames: the growing map of instances as a page, a video or a picture.

    tools/esam_stream.py CONFIG CKPT data/scannet200-mv/2D/scene0568_00 --out map.html
    tools/esam_stream.py CONFIG CKPT FOLDER --every 40 --masks data/masks/scene0568_00 --out map.mp4

The folder holds color/<n>.jpg, depth/<n>.png (millimetres), pose/<n>.txt (camera to world) and intrinsic.txt; frames
come in the order of their numbers. Masks: <n>.png or <n>.npz of a segmentation (tools/create_data.py scannet_mv says
which); without them regions of depth, normals and colours. --out .html: a page with a slider over time, .mp4: a video,
.png: the last picture, .npz: masks, labels, scores, semantic and points of the scene. CKPT '-': random weights.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import _cli
from _cli import positive


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='an online config, for instance configs/ESAM-E_CA/ESAM-E_online_stream.py')
    parser.add_argument('checkpoint')
    parser.add_argument('folder', type=Path, help='color, depth, pose, intrinsic.txt')
    parser.add_argument('--out', nargs='+', required=True, metavar='FILE', help='.html, .mp4, .png, .npz')
    parser.add_argument('--masks', type=Path, help="folder of the frames' masks")
    parser.add_argument('--every', type=positive, default=1, help='frames whose number this divides (default: all)')
    parser.add_argument('--frames', type=positive, help='at most so many')
    parser.add_argument('--num-sample', type=positive, help="points of a frame (default: the config's, else 20000)")
    parser.add_argument('--cell', type=float, default=0.03, help='metres, of the map drawn (default: %(default)s)')
    parser.add_argument('--fps', type=positive, default=8, help='of the video (default: %(default)s)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    for path in args.out:
        if not path.endswith(('.html', '.mp4', '.png', '.npz')):
            parser.error(f'--out: {path} ends neither in .html nor in .mp4, .png or .npz')
    if args.cell <= 0:
        parser.error('--cell must be above 0')
    return args


def frame_numbers(folder: Path, every: int = 1, most: int | None = None) -> list[int]:
    """Numbers of the frames in ``folder/color``.

    Raises:
        DataError: there are none.
    """
    from occforge.errors import DataError

    numbers = sorted(int(path.stem) for path in (folder / 'color').glob('*.jpg') if path.stem.isdigit())
    numbers = [number for number in numbers if number % every == 0][:most]
    if not numbers:
        raise DataError(f'{folder}/color: no frame <n>.jpg whose number {every} divides')
    return numbers


def write(path: str, grown, scene, args) -> None:
    from fly_through import write_video
    from occforge.fileio import atomic_write
    from occforge.visualization import write_png

    if path.endswith('.html'):
        grown.write_html(path, title=f'{args.folder.name}: {len(scene.ids)} instances')
    elif path.endswith('.mp4'):
        write_video(path, list(grown.pictures()), args.fps)
    elif path.endswith('.png'):
        *_, last = grown.pictures()
        write_png(path, last)
    else:
        import numpy as np

        names = ('points', 'masks', 'ids', 'labels', 'scores', 'semantic')
        with atomic_write(path) as file:
            np.savez_compressed(file, **{name: getattr(scene, name) for name in names})


def main(argv=None) -> int:
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        from occforge.apis import Inferencer
        from occforge.datasets.preparation.scannet import intrinsics_of, read_frame, read_masks
        from occforge.datasets.transforms.scannet import INTRINSICS
        from occforge.errors import ConfigError
        from occforge.visualization import GrowingMap

        numbers = frame_numbers(args.folder, args.every, args.frames)
        checkpoint = None if args.checkpoint == '-' else args.checkpoint
        model = Inferencer(args.config, checkpoint, args.device, args.cfg_options).model
        if not hasattr(model, 'open_frame_stream'):
            raise ConfigError(
                f'{args.config}: {type(model).__name__} takes no frames one by one, an online model is expected'
            )
        stream = model.open_frame_stream(**({} if args.num_sample is None else dict(num_sample=args.num_sample)))
        camera, grown = intrinsics_of(args.folder, INTRINSICS['scannet']), GrowingMap(args.cell)
        seconds, lost = [], 0
        for number in numbers:
            read = read_frame(args.folder, str(number))
            if read is None:
                lost += 1
                continue
            rgb, depth, pose = read
            masks = read_masks(args.masks, str(number))
            start = time.perf_counter()
            frame = stream.step(rgb, depth, pose, intrinsic=camera, masks=masks)
            seconds.append(time.perf_counter() - start)
            grown.add(frame.points, frame.instance_ids, pose)
        scene = stream.result()
        for path in args.out:
            write(path, grown, scene, args)
        median = f', median {statistics.median(seconds) * 1e3:.0f} ms a frame' if seconds else ''
        print(f'{len(seconds)} frames ({lost} without a pose left out), {len(scene.ids)} instances{median}: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
