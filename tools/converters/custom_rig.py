#!/usr/bin/env python3
"""Info files for a vehicle of one's own: any number of cameras, any LiDAR. Made to be copied and changed.

tools/converters/custom_rig.py data/my_car --val scene_3 scene_7

reads this layout; where yours is another one, only read_rig and read_frames below need to change:

    data/my_car/rig.json                   {"cameras": {"FRONT": {"cam2img": 3x3, "cam2ego": 4x4}, ...},
                                            "lidar": {"lidar2ego": 4x4, "num_pts_feats": 5}}
    data/my_car/<scene>/frames.json        [{"timestamp": seconds, "ego2global": 4x4,
                                             "images": {"FRONT": "path", ...}, "lidar": "path",
                                             "boxes": [{"box": [x, y, z, l, w, h, yaw], "name": "car"}, ...]}, ...]

Poses map the first frame's coordinates to the second's, metres. Ego: x forward, y left, z up, on the ground. Boxes: x,
y, z of the middle, LiDAR frame. Point files: float32, num_pts_feats numbers a point, of which the first three are x, y,
z. Paths are relative to the data root. Key frames half a second apart are what the configs here are made for.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


def read_rig(root: Path) -> dict:
    """{"cameras": {name: {"cam2img", "cam2ego"}}, "lidar": {"lidar2ego", "num_pts_feats"}}, as in rig.json."""
    return read_json(root / 'rig.json')


def read_frames(root: Path, rig: dict):
    """One dict a key frame, of all scenes; see occforge.datasets.preparation.custom_rig.complete_frame."""
    from occforge.datasets.preparation.custom_rig import instances_of
    from occforge.errors import DataError

    files = sorted(root.glob('*/frames.json'))
    if not files:
        raise DataError(f'{root}: no <scene>/frames.json in it')
    for file in files:
        scene = file.parent.name
        for number, frame in enumerate(read_json(file)):
            where = f'{file}: frame {number}'
            unknown = set(frame.get('images', ())) - set(rig['cameras'])
            if unknown:
                raise DataError(f'{where}: camera {sorted(unknown)[0]} is not in rig.json')
            for path in (*frame.get('images', {}).values(), *([frame['lidar']] if 'lidar' in frame else [])):
                if not (root / path).is_file():
                    raise DataError(f'{where}: {path}: no such file')
            boxes = frame.get('boxes', [])
            yield dict(
                token=f'{scene}_{number:06d}',
                scene_token=scene,
                timestamp=frame['timestamp'],
                ego2global=frame['ego2global'],
                images={name: dict(rig['cameras'][name], img_path=path) for name, path in frame['images'].items()},
                lidar_points=dict(rig['lidar'], lidar_path=frame['lidar']),
                instances=instances_of([item['box'] for item in boxes], [item['name'] for item in boxes]),
                occ_path=f'gts/{scene}/{scene}_{number:06d}/labels.npz',  # made by tools/create_occ_labels.py
            )


def read_json(path: Path):
    from occforge.errors import DataError

    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f'{path}: not a JSON file: {error}') from None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', help='data root')
    parser.add_argument('--val', nargs='+', default=[], metavar='SCENE', help='scenes of the validation split')
    parser.add_argument('--prefix', default='nuscenes', help='<prefix>_infos_{train,val}.pkl (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import DataError, cli_errors

    with cli_errors():
        from occforge.datasets.preparation.custom_rig import write_custom_infos

        root = Path(args.root)
        try:
            frames = list(read_frames(root, read_rig(root)))
        except (KeyError, TypeError) as error:
            raise DataError(f'{root}: a frame or rig.json lacks {error}') from error
        scenes = {frame['scene_token'] for frame in frames}
        for scene in args.val:
            if scene not in scenes:
                raise DataError(f'--val {scene}: the scenes are {", ".join(sorted(scenes))}')
        for split in ('train', 'val'):
            own = [frame for frame in frames if (frame['scene_token'] in args.val) == (split == 'val')]
            path = root / f'{args.prefix}_infos_{split}.pkl'
            print(f'{path}: {write_custom_infos(path, own)} key frames')


if __name__ == '__main__':
    sys.exit(main())
