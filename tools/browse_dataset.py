#!/usr/bin/env python3
"""Draws what a config's pipeline really feeds the model: augmented images with the sample's points projected into them.

Points are undone from the BEV augmentation, moved into each camera and projected with the augmented intrinsics, so a
mistake in any matrix shows at once. Below: the labels as the model gets them (flipped where the sample is).
"""

import argparse
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--out-dir', required=True, help='folder of the pictures')
    parser.add_argument('-n', '--number', type=int, default=5, help='samples, evenly spread (default: 5)')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='(default: train)')
    parser.add_argument('--epoch', type=int, default=0, help='whose augmentation to show (default: 0)')
    parser.add_argument('--frame', type=int, default=0, help='camera frame: 0 the key frame, 1 the one before, ...')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override config fields')
    args = parser.parse_args(argv)
    if args.number < 1 or args.epoch < 0 or args.frame < 0:
        parser.error('--number must be 1 or more, --epoch and --frame 0 or more')
    return args


def cameras_of(inputs, meta, frame):
    """Per camera the map from the model's points to the camera and to the pixels of the augmented image.

    Returns (list of dicts with ``lidar2cam`` (4, 4) and ``cam2img`` (3, 3)), in the order of ``inputs['imgs']``.
    """
    import numpy as np

    bda = np.eye(4)
    bda[:3, :3] = inputs['bda'].numpy()
    key_pose = np.asarray(meta['ego2global'], np.float64)
    cameras = []
    for n in range(inputs['imgs'].shape[1]):
        camera_pose = inputs['ego2global'][frame, n].numpy().astype(np.float64)
        sensor2ego = inputs['sensor2ego'][frame, n].numpy().astype(np.float64)
        augmentation = np.eye(3)
        augmentation[:2, :2] = inputs['post_rots'][frame, n, :2, :2].numpy()
        augmentation[:2, 2] = inputs['post_trans'][frame, n, :2].numpy()
        ego2cam = np.linalg.inv(camera_pose @ sensor2ego) @ key_pose
        cameras.append(
            dict(
                lidar2cam=ego2cam @ np.linalg.inv(bda),
                cam2img=augmentation @ inputs['intrins'][frame, n].numpy().astype(np.float64)[:3, :3],
            )
        )
    return cameras


def draw(item, frame, note):
    """The picture of one item of the dataset."""
    from occforge.errors import ConfigError
    from occforge.visualization import draw_occupancy_sample, draw_sensor_sample

    inputs, sample = item['inputs'], item['data_samples']
    meta = sample.metainfo
    truth = sample.get('gt_occ')
    occupancy = None if truth is None else truth.semantics.numpy()
    flips = [axis for axis in ('dx', 'dy') if meta.get(f'flip_{axis}')]
    parts = [
        str(meta.get('scene_name', '')),
        str(meta.get('token', '')),
        note,
        f'flipped {" ".join(flips)}' if flips else '',
    ]
    title = '   '.join(part for part in parts if part)
    if 'imgs' not in inputs:
        if occupancy is None:
            raise ConfigError('the pipeline feeds neither images nor labels: nothing to draw')
        return draw_occupancy_sample(occupancy, title=title)
    if frame >= inputs['imgs'].shape[0]:
        raise ConfigError(f'--frame {frame}: the pipeline feeds {inputs["imgs"].shape[0]} camera frames')
    names = [name if meta['cam_names'].count(name) == 1 else f'{i}' for i, name in enumerate(meta['cam_names'])]
    images = dict(zip(names, inputs['imgs'][frame].numpy()))
    cameras = dict(zip(names, cameras_of(inputs, meta, frame)))
    points = inputs['points'].numpy() if 'points' in inputs else None
    return draw_sensor_sample(images, cameras, points, occupancy=occupancy, title=title)


def main(argv=None):
    args = parse_args(argv)
    from occforge.errors import cli_errors

    with cli_errors():
        from pathlib import Path

        import numpy as np
        from mmdet3d.registry import DATASETS
        from occforge.engine import load_config
        from occforge.errors import ConfigError
        from occforge.visualization import write_png

        cfg = load_config(args.config, args.cfg_options)
        loader = cfg.get(f'{args.split}_dataloader')
        if loader is None:
            raise ConfigError(f'{args.config}: {args.split}_dataloader is missing')
        dataset = DATASETS.build(loader.dataset)
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(args.epoch)
        for i in np.linspace(0, len(dataset) - 1, min(args.number, len(dataset))).round().astype(int).tolist():
            item = dataset[i]
            meta = item['data_samples'].metainfo
            name = '_'.join(filter(None, (str(meta.get('scene_name', '')), str(meta.get('token', i)))))
            target = Path(args.out_dir) / f'{name}_epoch{args.epoch}.png'
            write_png(target, draw(item, args.frame, f'epoch {args.epoch}'))
            print(target)


if __name__ == '__main__':
    sys.exit(main())
