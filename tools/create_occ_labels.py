#!/usr/bin/env python3
"""Make Occ3D-style occupancy labels (semantics, LiDAR mask, camera mask) for any rig.

From LiDAR sweeps and boxes, and from lidarseg where there is any: the sweeps of a scene are accumulated, the static
world in the world frame and every annotated object in the frame of its box, and put into the ego frame of each key
frame. The LiDAR mask holds the cells that beams crossed or ended in, the camera mask those of them that camera rays
reach first.

Without lidarseg nothing tells road from building. Points inside a box get its class; all other points get the class
"other_flat" where they lie on the ground (within 0.25 m of the lowest points around) and "others" above it. No class is
made up beyond that: choose your own with --background-class and --ground-class (none: no difference is made). A network
trained on such labels knows these two classes in place of road, sidewalk, terrain, buildings and vegetation.

Scenes run in parallel; label files that are there already are kept, so that a killed run goes on where it stopped.
"""

import argparse
import sys

import _cli
from _cli import positive


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_argument_group('input: nuScenes tables (default) or info files')
    source.add_argument('--root-path', help='data root (default: data/nuscenes, or the folder of --info)')
    source.add_argument('--version', default='v1.0-trainval', help='tables (default: %(default)s)')
    source.add_argument('--info', nargs='+', metavar='FILE', help='info files (mmdet3d v2 or BEVDet) instead of tables')
    source.add_argument('--max-sweeps', type=int, default=10, help='sweeps before a key frame (default: 10)')
    source.add_argument('--scenes', nargs='+', metavar='NAME', help='only these scenes')
    source.add_argument('--no-lidarseg', action='store_true', help='make no use of lidarseg although it is there')
    out = parser.add_argument_group('output')
    out.add_argument('--out-dir', help='folder of <scene>/<token>/labels.npz (default: gts in the data root)')
    out.add_argument('--overwrite', action='store_true', help='make files again that are there')
    out.add_argument(
        '--compare-with',
        metavar='DIR',
        help='folder of true labels: print geometric IoU and mIoU of the made labels under each of its masks',
    )
    grid = parser.add_argument_group('labels')
    grid.add_argument(
        '--range',
        nargs=6,
        type=float,
        metavar=('X0', 'Y0', 'Z0', 'X1', 'Y1', 'Z1'),
        help='metres in the ego frame (default: -40 -40 -1 40 40 5.4)',
    )
    grid.add_argument('--voxel-size', nargs=3, type=float, metavar=('X', 'Y', 'Z'), help='metres (default: 0.4 each)')
    grid.add_argument('--background-class', default='others', help='(default: %(default)s)')
    grid.add_argument('--ground-class', default='other_flat', help='a class, or none (default: %(default)s)')
    grid.add_argument(
        '--ego-box',
        nargs=4,
        type=float,
        metavar=('X0', 'Y0', 'X1', 'Y1'),
        help='the own vehicle in the ego frame, whose points are dropped (default: -1.2 -1.1 3.5 1.1)',
    )
    grid.add_argument(
        '--mask-frames',
        choices=('scene', 'key'),
        default='scene',
        help="beams of the LiDAR mask: those of the scene's key frames, or the key frame's own (default: %(default)s)",
    )
    grid.add_argument('--min-points', type=positive, default=1, help='points that fill a voxel (default: %(default)s)')
    grid.add_argument(
        '--fill-ground', type=int, metavar='N', help='close gaps in the ground within N voxels (default: 5)'
    )
    grid.add_argument('--camera-step', type=positive, help='pixels between two camera rays (default: 4)')
    parser.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')
    return parser.parse_args(argv)


def class_number(name):
    from occforge.datasets.occ3d import CLASS_NAMES
    from occforge.errors import DataError

    if name not in CLASS_NAMES[:-1]:
        raise DataError(f'class {name!r} is unknown; expected one of {", ".join(CLASS_NAMES[:-1])}')
    return CLASS_NAMES.index(name)


def settings_of(args):
    from occforge.datasets.preparation.occ_labels import LabelSettings

    given = dict(
        point_cloud_range=args.range and tuple(args.range),
        voxel_size=args.voxel_size and tuple(args.voxel_size),
        ego_box=args.ego_box and tuple(args.ego_box),
        fill_ground=args.fill_ground,
        camera_step=args.camera_step,
    )
    return LabelSettings(
        background_class=class_number(args.background_class),
        ground_class=None if args.ground_class == 'none' else class_number(args.ground_class),
        use_lidarseg=not args.no_lidarseg,
        min_points=args.min_points,
        mask_frames=args.mask_frames,
        **{name: value for name, value in given.items() if value is not None},
    )


def read_items(args, workers):
    """(data root, items)"""
    import os

    from occforge.datasets.info_files import load_infos
    from occforge.datasets.preparation import nuscenes_converter
    from occforge.errors import DataError

    if args.info:
        root = args.root_path or os.path.dirname(args.info[0]) or '.'
        items = [item for path in args.info for item in load_infos(path)[1]]
        tokens = set()  # train and val files of sample data may list the same frames
        items = [item for item in items if not (item['token'] in tokens or tokens.add(item['token']))]
    else:
        root = args.root_path or 'data/nuscenes'
        data_lists = nuscenes_converter.make_infos(root, args.version, workers, max_sweeps=args.max_sweeps)[1]
        items = [item for split in data_lists.values() for item in split]
    if args.scenes:
        unknown = set(args.scenes) - {item.get('scene_name') for item in items}
        if unknown:
            raise DataError(f'{root}: has no scene {", ".join(sorted(unknown))}')
        items = [item for item in items if item.get('scene_name') in args.scenes]
    return root, items


def print_comparison(items, out_dir, truth_dir):
    import numpy as np
    from occforge.datasets.occ3d import CLASS_NAMES
    from occforge.datasets.preparation import occ_labels

    print(f'labels against {truth_dir}, {len(items)} key frames, percent')
    rows = {}
    for mask in ('mask_lidar', 'mask_camera', 'none'):
        rows[mask] = occ_labels.scores(occ_labels.compare_labels(items, out_dir, truth_dir, mask))
    print(f'{"":22}' + ''.join(f'{mask:>13}' for mask in rows))
    print(f'{"geometric IoU":22}' + ''.join(f'{row[0]:13.2f}' for row in rows.values()))
    print(f'{"mIoU":22}' + ''.join(f'{row[1]:13.2f}' for row in rows.values()))
    for number, name in enumerate(CLASS_NAMES[:-1]):
        values = [row[2][number] for row in rows.values()]
        print(f'{name:22}' + ''.join(f'{"-":>13}' if np.isnan(value) else f'{value:13.2f}' for value in values))


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        import os

        from occforge.datasets.preparation import occ_labels, progress

        workers = args.workers or progress.default_workers()
        settings = settings_of(args)
        root, items = read_items(args, workers)
        out_dir = args.out_dir or os.path.join(root, 'gts')
        written = occ_labels.make_labels(items, root, out_dir, settings, workers, args.overwrite)
        print(f'{out_dir}: {written} label files written, {len(items) - written} were there')
        if args.compare_with:
            print_comparison(items, out_dir, args.compare_with)


if __name__ == '__main__':
    sys.exit(main())
