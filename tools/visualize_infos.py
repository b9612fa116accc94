#!/usr/bin/env python
"""Draws what an info file says over its images: LiDAR points by depth, boxes, and the occupancy labels below.

The quickest check of calibration, time stamps and annotations of a data set: points and boxes must sit on the things
they belong to.
"""

import argparse
import sys

import _cli
from browse_dataset import box_names


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('info', help='info file (*_infos_*.pkl, mmdet3d-v2 or BEVDet style)')
    parser.add_argument('--data-root', help='folder that its paths are relative to (default: that of the info file)')
    parser.add_argument('--out-dir', required=True, help='folder of the pictures')
    parser.add_argument('-n', '--number', type=int, default=5, help='samples, evenly spread (default: 5; 0: all)')
    parser.add_argument('--tokens', nargs='+', help='these samples instead')
    parser.add_argument('--no-points', action='store_true')
    parser.add_argument('--no-boxes', action='store_true')
    parser.add_argument('--all-boxes', action='store_true', help='also boxes that no LiDAR point hits')
    parser.add_argument('--no-occupancy', action='store_true')
    parser.add_argument('--width', type=int, default=1920, help='of the pictures, pixels (default: 1920)')
    args = parser.parse_args(argv)
    if args.number < 0 or args.width < 300:
        parser.error('--number must be 0 or more, --width 300 or more')
    return args


def draw(info, names, args):
    """The picture of one resolved info item."""
    import numpy as np
    from occforge.datasets.occ3d import read_labels
    from occforge.errors import DataError
    from occforge.visualization import draw_sensor_sample, read_image

    images = {name: read_image(camera['img_path']) for name, camera in info['images'].items() if camera.get('img_path')}
    points = boxes = labels = None
    if not args.no_points and info.get('lidar_path'):
        width = int(info['lidar_points'].get('num_pts_feats', 5))
        raw = np.fromfile(info['lidar_path'], np.float32)
        if raw.size % width:
            raise DataError(f'{info["lidar_path"]}: {raw.size} numbers, expected a multiple of {width} per point')
        points = raw.reshape(-1, width)
    if not args.no_boxes:
        instances = [i for i in info.get('instances') or [] if args.all_boxes or i.get('bbox_3d_isvalid', True)]
        boxes = np.array([item['bbox_3d'][:7] for item in instances], np.float64).reshape(-1, 7)
        labels = [item['bbox_label_3d'] for item in instances]
    occupancy = None
    if not args.no_occupancy and info.get('occ_path'):
        from pathlib import Path

        if Path(info['occ_path']).exists():
            occupancy = read_labels(info['occ_path'], grid_size=None, masks=(), ignore_label=255).semantics
    title = '   '.join(str(part) for part in (info.get('scene_name'), info['token']) if part)
    return draw_sensor_sample(
        images, info['images'], points, boxes, labels, names, occupancy=occupancy, title=title, width=args.width
    )


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import DataError, cli_errors

    with cli_errors():
        import os
        from pathlib import Path

        import numpy as np
        from occforge.datasets import NuScenesOccDataset
        from occforge.visualization import write_png

        path = os.path.abspath(args.info)
        root = args.data_root or os.path.dirname(path)
        dataset = NuScenesOccDataset(
            path, root, test_mode=True, modality=dict(use_camera=False, use_lidar=False), serialize_data=False
        )
        names = box_names(dataset)
        if args.tokens:
            index = {dataset.get_data_info(i)['token']: i for i in range(len(dataset))}
            unknown = [token for token in args.tokens if token not in index]
            if unknown:
                raise DataError(f'{args.info}: holds no sample {unknown[0]}')
            chosen = [index[token] for token in args.tokens]
        else:
            number = min(args.number or len(dataset), len(dataset))
            chosen = np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist()
        for i in chosen:
            info = dataset.get_data_info(i)
            if not info.get('images'):
                raise DataError(f'{args.info}: sample {info["token"]} has no images')
            target = Path(args.out_dir) / f'{"_".join(filter(None, (info.get("scene_name"), info["token"])))}.png'
            write_png(target, draw(info, names, args))
            print(target)


if __name__ == '__main__':
    sys.exit(main())
