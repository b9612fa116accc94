#!/usr/bin/env python3
"""Draws what a config's pipeline really feeds the model: augmented images with the sample's points and boxes in them.

Points and annotated boxes are taken through the BEV augmentation and back, moved into each camera and projected with
the augmented intrinsics, so a mistake in any matrix shows at once. Below: the labels as the model gets them (flipped
where the sample is), under a mask if asked for. --show depth and segs draw the 2D labels of the training instead.
"""

import argparse
import sys

import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--out-dir', required=True, help='folder of the pictures')
    parser.add_argument('-n', '--number', type=int, default=5, help='samples, evenly spread (default: 5)')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='(default: train)')
    parser.add_argument('--epoch', type=int, default=0, help='whose augmentation to show (default: 0)')
    parser.add_argument('--frame', type=int, default=0, help='camera frame: 0 the key frame, 1 the one before, ...')
    parser.add_argument(
        '--show',
        nargs='+',
        choices=('points', 'boxes', 'depth', 'segs'),
        default=['points', 'boxes'],
        help='what is drawn over the images: the points fed, annotated boxes, depth labels, class labels '
        '(default: points boxes)',
    )
    parser.add_argument('--mask', choices=('camera', 'lidar'), help='labels outside of this mask are drawn pale')
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


def box_names(dataset):
    """Names of ``bbox_label_3d`` in order, of the info file's categories; None where it has none."""
    # several raw categories may share -1, 'none of the detection classes'
    categories = (dataset.metainfo.get('categories') or {}).items()
    numbered = {number: name for name, number in categories if number >= 0}
    return [numbered.get(i, str(i)) for i in range(max(numbered) + 1)] if numbered else None


def boxes_as_fed(info, bda):
    """The valid boxes of an info file's item in the frame of the model's points.

    Args:
        info: with ``instances`` and ``lidar_points.lidar2ego``.
        bda: (3, 3) BEV augmentation: rotation, flips and one scale.

    Returns:
        boxes (M, 7) x, y, z of the middle, dx, dy, dz, yaw; labels (M,).
    """
    import numpy as np

    chosen = [item for item in info.get('instances') or () if item.get('bbox_3d_isvalid', True)]
    boxes = np.array([item['bbox_3d'][:7] for item in chosen], np.float64).reshape(-1, 7)
    lidar2ego = np.asarray((info.get('lidar_points') or {}).get('lidar2ego', np.eye(4)), np.float64)
    turn = np.asarray(bda, np.float64) @ lidar2ego[:3, :3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], -1) @ turn.T
    boxes[:, :3] = boxes[:, :3] @ turn.T + np.asarray(bda, np.float64) @ lidar2ego[:3, 3]
    boxes[:, 3:6] *= abs(np.linalg.det(turn)) ** (1 / 3)
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    return boxes, [item['bbox_label_3d'] for item in chosen]


def with_labels(image, depth, segs):
    """An image with the depth or class labels of its (perhaps coarser) label map; 17: no class."""
    import cv2
    import numpy as np
    from occforge.datasets import occ3d
    from occforge.visualization import draw_depth

    size = image.shape[1], image.shape[0]
    if depth is not None:
        image = draw_depth(cv2.resize(depth.numpy(), size, interpolation=cv2.INTER_NEAREST), image)
    if segs is not None:
        segs = cv2.resize(segs.numpy().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        image = np.where((segs < occ3d.FREE)[..., None], occ3d.PALETTE[:, :3][segs.clip(0, occ3d.FREE)], image)
    return np.ascontiguousarray(image.astype(np.uint8))


def draw(item, info, args, note, names=None):
    """The picture of one item of the dataset.

    Args:
        item: as the pipeline packs it.
        info: the info file's item.
        args: the tool's arguments.
        note: goes into the title.
        names: of the box labels.
    """
    from occforge.errors import ConfigError
    from occforge.visualization import draw_occupancy_sample, draw_sensor_sample

    inputs, sample, frame = item['inputs'], item['data_samples'], args.frame
    meta = sample.metainfo
    truth = sample.get('gt_occ')
    truth = None if truth is None or 'semantics' not in truth else truth
    occupancy = None if truth is None else truth.semantics.numpy()
    mask = None if truth is None or args.mask is None else truth.get(f'mask_{args.mask}').numpy()
    flips = [axis for axis in ('dx', 'dy') if meta.get(f'flip_{axis}')]
    parts = [
        str(meta.get('scene_name', '')),
        str(meta.get('token', '')),
        note,
        f'flipped {" ".join(flips)}' if flips else '',
        f'{args.mask} mask' if args.mask else '',
    ]
    title = '   '.join(part for part in parts if part)
    if 'imgs' not in inputs:
        if occupancy is None:
            raise ConfigError('the pipeline feeds neither images nor labels: nothing to draw')
        return draw_occupancy_sample(occupancy, mask=mask, title=title)
    if frame >= inputs['imgs'].shape[0]:
        raise ConfigError(f'--frame {frame}: the pipeline feeds {inputs["imgs"].shape[0]} camera frames')
    fed = dict(depth=inputs.get('sparse_depth'), segs=inputs.get('segs'))
    for name in ('depth', 'segs'):
        if name in args.show and (fed[name] is None or frame):
            raise ConfigError(f'--show {name}: the pipeline feeds no such labels for this frame')
    cameras = [name if meta['cam_names'].count(name) == 1 else f'{i}' for i, name in enumerate(meta['cam_names'])]
    images = {
        name: with_labels(image, *(fed[key][i] if key in args.show else None for key in ('depth', 'segs')))
        for i, (name, image) in enumerate(zip(cameras, inputs['imgs'][frame].numpy()))
    }
    points = inputs['points'].numpy() if 'points' in inputs and 'points' in args.show else None
    boxes = labels = None
    if 'boxes' in args.show:
        boxes, labels = boxes_as_fed(info, inputs['bda'].numpy())
    return draw_sensor_sample(
        images,
        dict(zip(cameras, cameras_of(inputs, meta, frame))),
        points,
        boxes,
        labels,
        names,
        occupancy=occupancy,
        mask=mask,
        title=title,
    )


def map_of(dataset):
    """Metres (x0, y0, x1, y1) and class names of the map masks of a data set's pipeline; None and () without."""
    while not hasattr(dataset, 'pipeline'):
        dataset = dataset.dataset
    for step in dataset.pipeline.transforms:
        if hasattr(step, 'xbound') and hasattr(step, 'classes'):
            return (step.xbound[0], step.ybound[0], step.xbound[1], step.ybound[1]), step.classes
    return None, ()


def draw_boxes_and_map(item, args, title, names=None, area=None, map_names=()):
    """The picture of an item with boxes or map masks (BEVFusion): images, and all of it from above.

    Args:
        item: as ``PackBEVInputs`` packs it.
        args: the tool's arguments.
        title: headline.
        names: of the box labels.
        area: metres (x0, y0, x1, y1) of the map masks, else of the picture from above.
        map_names: of the masks; without them they are not drawn.
    """
    import numpy as np
    from occforge.visualization import draw_map, draw_points_top, draw_sensor_sample

    inputs, sample = item['inputs'], item['data_samples']
    meta = sample.metainfo
    points = inputs['points'].numpy() if 'points' in inputs else None
    instances = sample.get('gt_instances_3d') if 'boxes' in args.show else None
    boxes = labels = None
    if instances is not None and 'bboxes_3d' in instances:
        boxes = np.concatenate([instances.bboxes_3d.gravity_center, instances.bboxes_3d.tensor[:, 3:7]], 1)
        labels = instances.labels_3d.tolist()
    turn = np.asarray(meta.get('lidar_aug_matrix', np.eye(4)), np.float64)
    images, cameras = {}, {}
    for i, image in enumerate(inputs.get('img', ())):
        name = f'camera {i}'
        images[name] = np.ascontiguousarray(image.numpy().transpose(1, 2, 0).clip(0, 255).astype(np.uint8))
        augmentation = np.eye(3)
        matrix = np.asarray(meta['img_aug_matrix'][i], np.float64)
        augmentation[:2, :2], augmentation[:2, 2] = matrix[:2, :2], matrix[:2, 3]
        cameras[name] = dict(
            lidar2cam=np.linalg.inv(turn @ np.asarray(meta['cam2lidar'][i], np.float64)),
            cam2img=augmentation @ np.asarray(meta['cam2img'][i], np.float64)[:3, :3],
        )
    x0, y0, x1, y1 = area or (-54.0, -54.0, 54.0, 54.0)
    masks = sample.get('gt_masks_bev')
    top = draw_points_top(
        points if 'points' in args.show else None,
        boxes,
        labels,
        names,
        point_cloud_range=(x0, y0, 0.0, x1, y1, 0.0),
        picture=None if masks is None or not map_names else draw_map(masks.masks.numpy().astype(bool), map_names),
    )
    if not images:
        return top
    shown = points if 'points' in args.show else None
    picture = draw_sensor_sample(images, cameras, shown, boxes, labels, names, title=title)
    width = max(picture.shape[1], top.shape[1])
    parts = []
    for part in (picture, top):  # in the middle, one below the other
        margin = width - part.shape[1]
        parts.append(np.pad(part, ((0, 0), (margin // 2, margin - margin // 2), (0, 0)), constant_values=255))
    return np.concatenate(parts)


def draw_room(item):
    """The picture of an item with instances of points (ESAM): the colours, the instances, the superpoints."""
    import numpy as np
    from occforge.visualization import draw_point_cloud, instance_colours

    points = item['inputs']['points'].numpy().reshape(-1, 6)
    seg = item['data_samples'].gt_pts_seg
    colours = points[:, 3:] - points[:, 3:].min(0)
    kinds = [np.round(255 * colours / colours.max(0).clip(1e-6))]
    for name in ('pts_instance_mask', 'sp_pts_mask'):
        if name in seg:
            owner = seg[name].numpy().reshape(-1)
            kinds.append(instance_colours(owner == np.unique(owner)[:, None]))
    return np.concatenate([draw_point_cloud(points[:, :3], kind) for kind in kinds], 1)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        from pathlib import Path

        import numpy as np
        from mmdet3d.registry import DATASETS
        from mmengine.registry import init_default_scope
        from occforge.engine import load_config
        from occforge.errors import ConfigError
        from occforge.visualization import write_png

        cfg = load_config(args.config, args.cfg_options)
        loader = cfg.get(f'{args.split}_dataloader')
        if loader is None:
            raise ConfigError(f'{args.config}: {args.split}_dataloader is missing')
        init_default_scope('mmdet3d')  # where mmengine's own data sets look for the pipeline's steps
        dataset = DATASETS.build(loader.dataset)
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(args.epoch)
        names = box_names(dataset)
        for i in np.linspace(0, len(dataset) - 1, min(args.number, len(dataset))).round().astype(int).tolist():
            item, info = dataset[i], dataset.get_data_info(i)
            meta = item['data_samples'].metainfo
            name = '_'.join(filter(None, (str(meta.get('scene_name', '')), str(meta.get('token', i)))))
            target = Path(args.out_dir) / f'{name}_epoch{args.epoch}.png'
            if 'sp_pts_mask' in item['data_samples'].get('gt_pts_seg', ()):
                picture = draw_room(item)
            elif 'imgs' not in item['inputs'] and 'gt_occ' not in item['data_samples']:
                classes = dataset.metainfo.get('classes')
                picture = draw_boxes_and_map(item, args, f'{name}   epoch {args.epoch}', classes, *map_of(dataset))
            else:
                picture = draw(item, info, args, f'epoch {args.epoch}', names)
            write_png(target, picture)
            print(target)


if __name__ == '__main__':
    sys.exit(main())
