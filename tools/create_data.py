#!/usr/bin/env python3
"""Prepare a data set: nuScenes tables -> info files, the synthetic city, a folder of sample files; ScanNet's exports,
SceneNN, 3RScan -> frames and scenes with superpoints, synthetic rooms."""

import argparse
import sys

import _cli
from _cli import positive

EVALUATED = ('scenenn_mv', '3rscan_mv')
SCANNET = ('scannet_sv', 'scannet_mv', 'scannet200_sv', 'scannet200_mv')


def image_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition('x')
    if not (width.isdigit() and height.isdigit() and int(width) > 0 and int(height) > 0):
        raise argparse.ArgumentTypeError(f'{text!r} is not WIDTHxHEIGHT, for instance 800x450')
    return int(width), int(height)


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of 0 or more')
    return int(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name, help, description):
        sub = commands.add_parser(name, help=help, description=description)
        sub.add_argument('--out-dir', help='folder of the info files (default: the data root)')
        sub.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')
        sub.add_argument('--prefix', help='info files are named <prefix>_infos_<split>.pkl')
        return sub

    nuscenes = command(
        'nuscenes',
        'info files from nuScenes tables',
        'Write <prefix>_infos_{train,val}.pkl (v1.0-test: _test) in mmdet3d-v2 layout, with sweeps, ego poses, '
        'occupancy and lidarseg paths where those files are. Scenes whose sensor files are not there are left out '
        "and counted. Splits: nuScenes' own, or <version>/splits.json where it exists.",
    )
    nuscenes.add_argument('--root-path', default='data/nuscenes', help='data root (default: %(default)s)')
    nuscenes.add_argument(
        '--version', default='v1.0-trainval', help='v1.0-trainval, v1.0-mini or v1.0-test (default: %(default)s)'
    )
    nuscenes.add_argument(
        '--max-sweeps', type=count, default=10, help='LiDAR sweeps before a key frame, at most (default: %(default)s)'
    )
    nuscenes.add_argument(
        '--camera-sweeps', type=count, default=0, help='camera frames between key frames, at most (default: none)'
    )

    city = command(
        'synthetic_city',
        'generate the synthetic city (nuScenes tables, files and labels) and its info files',
        'A procedural city seen by the nuScenes rig, written as a nuScenes data set with Occ3D labels. The same seed '
        'gives the same bytes, whatever the number of workers; a killed run goes on where it stopped.',
    )
    city.add_argument('--root-path', default='data/synthetic_city', help='data root (default: %(default)s)')
    city.add_argument('--version', default='v1.0-trainval', help='v1.0-trainval or v1.0-mini (default: %(default)s)')
    city.add_argument('--scenes', type=positive, default=10, help='number of scenes (default: %(default)s)')
    city.add_argument('--keyframes', type=positive, default=20, help='key frames a scene, 2 Hz (default: %(default)s)')
    city.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    city.add_argument(
        '--image-size', type=image_size, default=(800, 450), metavar='WxH', help='up to 1600x900 (default: 800x450)'
    )
    city.add_argument('--rig', metavar='FILE', help='sensors of another vehicle (default: the nuScenes rig)')
    city.add_argument(
        '--split', metavar='TRAIN:VAL', help='number of scenes in either split (default: one fifth is held out)'
    )
    city.add_argument(
        '--camera-sweeps', type=count, default=0, help='camera frames between key frames, unlabelled (default: none)'
    )
    city.add_argument(
        '--label-refine',
        type=int,
        choices=(1, 2, 4),
        default=1,
        help='also write labels with voxels this many times finer, labels_4x.npz (default: none)',
    )
    city.add_argument(
        '--max-sweeps', type=count, default=10, help='LiDAR sweeps listed for a key frame, at most (default: 10)'
    )

    keyframe = command(
        'keyframe',
        'a small data set from sample files: an info pickle with its images and point clouds in one folder',
        'Link (or copy) the files of --source into the standard folders under --out-dir, derive what the info file '
        'leaves out (camera ego poses, scene token), make occupancy labels from the LiDAR points and boxes, and write '
        '<prefix>_infos_{train,val}.pkl, both with all frames: for trying models on a handful of frames. '
        'Without lidarseg, points outside boxes become class "other_flat" on the ground and "others" above it '
        '(see tools/create_occ_labels.py --help).',
    )
    keyframe.add_argument('--source', required=True, help='folder with one *.pkl (mmdet3d v2 or BEVDet) and its files')
    keyframe.add_argument('--info', help='the info file, where the folder holds several')
    keyframe.add_argument('--copy', action='store_true', help='copy the sensor files instead of linking to them')
    keyframe.add_argument('--no-labels', action='store_true', help='make no occupancy labels')
    scannet_commands(commands)
    args = parser.parse_args(argv)
    if args.command == 'keyframe' and not args.out_dir:
        parser.error('keyframe needs --out-dir')
    return args


def scannet_commands(commands):
    for name in SCANNET:
        kind, _, stage = name.partition('_')
        what = 'single frames' if stage == 'sv' else 'scenes of frames'
        sub = commands.add_parser(
            name,
            help=f'ESAM: {what} of ScanNet exports, {"20" if kind == "scannet" else "200"} classes',
            description='Points, labels and superpoints of the exported frames (2D/<scene>/{color,depth,pose}) with '
            'the labels of the meshes (scans/<scene>), and <tag>_oneformer3d_infos_{train,val}.pkl. Superpoints come '
            'from masks/<scene>/<n>.png or .npz, else from depth, normals and colours. With --pack-clip and info files '
            'that exist, only their copies with the paths of the CLIP features are written.',
        )
        sub.add_argument('--root-path', default=f'data/{name.replace("_", "-")}', help='exports (default: %(default)s)')
        sub.add_argument('--out-dir', help='folder of what is written (default: the root path)')
        sub.add_argument('--extra-tag', default=name, help='info files are named after it (default: %(default)s)')
        sub.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')
        sub.add_argument('--mask-root', help='folder of the masks (default: <root>/masks, where it exists)')
        sub.add_argument('--rec-dir', help='folder of the labelled reconstructions (default for mv: beside out-dir)')
        sub.add_argument('--step', type=positive, help='every so many raw frames (default: 200, scenes: 40)')
        sub.add_argument('--num-sample', type=positive, default=20000, help='points of a frame (default: %(default)s)')
        sub.add_argument(
            '--camera', default='scannet', choices=('scannet', 'scenenn'), help='where a scene has no intrinsic.txt'
        )
        sub.add_argument('--splits', nargs='+', default=['train', 'val'], help='meta_data/scannetv2_<split>.txt')
        sub.add_argument('--seed', type=int, default=0, help='of the sampling (default: %(default)s)')
        sub.add_argument('--pack-clip', action='store_true', help='also write copies with paths of CLIP features')
        sub.add_argument('--clip-suffix', default='_clip', help='of these copies (default: %(default)s)')
    for name in EVALUATED:
        kind = name.removesuffix('_mv')
        sub = commands.add_parser(
            name,
            help=f'ESAM: scenes of {dict(scenenn="SceneNN", **{"3rscan": "3RScan"})[kind]} for evaluation',
            description='Points, NYU40 labels and superpoints of the frames, the labelled meshes, and '
            '<tag>_oneformer3d_infos_val.pkl, from the layout in which the data set comes (module '
            'occforge.datasets.preparation.indoor_sources).',
        )
        sub.add_argument('--root-path', required=True, help='folder of the data set')
        sub.add_argument(
            '--out-dir', default=f'data/{kind}-mv', help='folder of what is written (default: %(default)s)'
        )
        sub.add_argument('--extra-tag', default=name, help='the info file is named after it (default: %(default)s)')
        sub.add_argument('--rec-dir', help='folder of the labelled reconstructions (default: beside out-dir)')
        sub.add_argument('--mask-root', help='folder of the masks (default: <root>/masks, where it exists)')
        sub.add_argument('--scenes', metavar='FILE', help='names of the scenes, one a line (default: all)')
        sub.add_argument('--step', type=positive, default=40, help='every so many raw frames (default: %(default)s)')
        sub.add_argument('--num-sample', type=positive, default=20000, help='points of a frame (default: %(default)s)')
        sub.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')
        sub.add_argument('--seed', type=int, default=0, help='of the sampling (default: %(default)s)')
    rooms = commands.add_parser(
        'synthetic_rooms',
        help="generate rooms in the form of ScanNet's exports",
        description='Rooms with furniture, seen by a hand-held RGB-D camera: frames with noise, poses, meshes with '
        'labels of 20 and 200 classes, masks. tools/create_data.py scannet_sv and so on read them. The same seed gives '
        'the same rooms; a killed run goes on where it stopped.',
    )
    rooms.add_argument('--root-path', default='data/synthetic_rooms', help='(default: %(default)s)')
    rooms.add_argument('--rooms', type=positive, default=10, help='number of rooms (default: %(default)s)')
    rooms.add_argument(
        '--frames', type=positive, default=20, help='of each, 40 raw frames apart (default: %(default)s)'
    )
    rooms.add_argument('--held-out', type=positive, help='rooms of the val split (default: a fifth)')
    rooms.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    rooms.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')


def scannet(args):
    from pathlib import Path

    from occforge.datasets.preparation import progress
    from occforge.datasets.preparation import scannet as preparation

    kind, _, stage = args.command.partition('_')
    out = Path(args.out_dir or args.root_path)
    infos = [out / f'{args.extra_tag}_oneformer3d_infos_{split}.pkl' for split in args.splits]
    if not (args.pack_clip and all(path.is_file() for path in infos)):
        summary = preparation.prepare(
            kind,
            stage,
            args.root_path,
            args.out_dir,
            args.extra_tag,
            args.rec_dir,
            args.mask_root,
            args.workers or progress.default_workers(),
            args.num_sample,
            args.camera,
            args.splits,
            args.seed,
            args.step,
        )
        print_export(summary, 'frames' if stage == 'sv' else 'scenes')
    if args.pack_clip:
        packed = preparation.pack_clip(out, args.extra_tag, args.clip_suffix, args.splits)
        for path, (count, present) in packed.items():
            print(f'{path}: {count} paths of CLIP features, {present} of the files exist')


def evaluated(args):
    from occforge.datasets.preparation import indoor_sources, progress

    summary = indoor_sources.prepare(
        args.command.removesuffix('_mv'),
        args.root_path,
        args.out_dir,
        args.extra_tag,
        args.rec_dir,
        args.mask_root,
        args.scenes,
        args.workers or progress.default_workers(),
        args.num_sample,
        args.step,
        args.seed,
    )
    print_export(summary, 'scenes')


def print_export(summary, what):
    for path, count in summary['files'].items():
        print(f'{path}: {count} {what}')
    print(f'{summary["lost"]} frames without a pose left out, {summary["unmasked"]} segmented without masks')


def synthetic_rooms(args):
    from occforge.datasets import synthetic_rooms as rooms
    from occforge.datasets.preparation import progress

    workers = args.workers or progress.default_workers()
    rooms.generate(args.root_path, args.rooms, args.frames, args.held_out, args.seed, workers=workers)
    print(f'{args.root_path}: {args.rooms} rooms of {args.frames} frames')


def print_summary(paths, data_lists, left_out=None):
    for path, items in zip(paths, data_lists.values()):
        scenes = len({item['scene_token'] for item in items})
        labelled = sum('occ_path' in item for item in items)
        print(f'{path}: {len(items)} key frames of {scenes} scenes, {labelled} with occupancy labels')
    for reason, number in (left_out or {}).items():
        print(f'left out: {number} scenes ({reason})')


def nuscenes(args):
    from occforge.datasets.preparation import nuscenes_converter, progress

    metainfo, data_lists, left_out = nuscenes_converter.make_infos(
        args.root_path,
        args.version,
        workers=args.workers or progress.default_workers(),
        max_sweeps=args.max_sweeps,
        camera_sweeps=args.camera_sweeps,
    )
    paths = nuscenes_converter.write_infos(
        args.out_dir or args.root_path, metainfo, data_lists, prefix=args.prefix or 'nuscenes'
    )
    print_summary(paths, data_lists, left_out)


def synthetic_city(args):
    from occforge.datasets import synthetic_city as city
    from occforge.datasets.preparation import progress

    args.workers = args.workers or progress.default_workers()
    city.generate(
        args.root_path,
        version=args.version,
        scenes=args.scenes,
        keyframes=args.keyframes,
        seed=args.seed,
        workers=args.workers,
        image_size=args.image_size,
        rig=args.rig,
        split=args.split,
        camera_sweeps=args.camera_sweeps,
        label_refine=args.label_refine,
    )
    nuscenes(args)


def keyframe(args):
    from occforge.datasets.preparation import progress, sample_files

    paths, data_lists = sample_files.make_dataset(
        args.source,
        args.out_dir,
        info=args.info,
        copy=args.copy,
        labels=not args.no_labels,
        workers=args.workers or progress.default_workers(),
        prefix=args.prefix or 'nuscenes',
    )
    print_summary(paths, data_lists)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    _cli.limit_numpy_threads()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        dict(
            nuscenes=nuscenes,
            synthetic_city=synthetic_city,
            keyframe=keyframe,
            synthetic_rooms=synthetic_rooms,
            **dict.fromkeys(SCANNET, scannet),
            **dict.fromkeys(EVALUATED, evaluated),
        )[args.command](args)


if __name__ == '__main__':
    sys.exit(main())
