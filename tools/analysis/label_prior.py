#!/usr/bin/env python
"""The score of a model that looks at nothing: each voxel position's most frequent training label.

Any trained model has to beat it clearly. Scored by the same OccupancyMetric, under all three masks.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('train_info', help='info file that the labels are counted over')
    parser.add_argument('val_info', help='info file that is scored')
    parser.add_argument('--data-root', help='folder that occ_path is relative to (default: that of the info file)')
    parser.add_argument('--out', help='results file (JSON)')
    parser.add_argument('--save-prior', help='write the predicted grid as npz (semantics)')
    return parser.parse_args(argv)


def label_files(info_path, data_root):
    """Label files of an info file's samples, as (token, path)."""
    import os

    from occforge.datasets.info_files import load_infos
    from occforge.errors import DataError

    _, items = load_infos(info_path)
    root = data_root or os.path.dirname(os.path.abspath(info_path))
    files = []
    for item in items:
        path = item.get('occ_path') or f'gts/{item.get("scene_name")}/{item["token"]}/labels.npz'
        files.append((item['token'], os.path.join(root, path)))
    if not files:
        raise DataError(f'{info_path}: holds no samples')
    return files


def most_frequent(files, num_classes):
    """(X, Y, Z) uint8: at each position the class that the label files hold most often (the lower number on a tie)."""
    import numpy as np
    from occforge.datasets.occ3d import read_labels
    from occforge.errors import DataError

    counts, shape = None, None
    for _, path in files:
        labels = read_labels(path, grid_size=None, masks=(), ignore_label=255).semantics
        if counts is None:
            shape = labels.shape
            counts = np.zeros((labels.size, num_classes), np.int32)
            rows = np.arange(labels.size)
        if labels.shape != shape:
            raise DataError(f'{path}: grid {labels.shape}, the files before have {shape}')
        flat = labels.reshape(-1)
        known = flat < num_classes
        counts[rows[known], flat[known]] += 1
    return counts.argmax(1).astype(np.uint8).reshape(shape)


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        import numpy as np
        import torch
        from occforge.datasets.occ3d import NUM_CLASSES, read_labels
        from occforge.evaluation import OccupancyMetric
        from occforge.fileio import atomic_write

        prior = most_frequent(label_files(args.train_info, args.data_root), NUM_CLASSES)
        if args.save_prior:
            with atomic_write(args.save_prior, 'wb') as file:
                np.savez_compressed(file, semantics=prior)
        metric = OccupancyMetric(out_file=args.out)
        prediction = dict(semantics=torch.from_numpy(prior))
        files = label_files(args.val_info, args.data_root)
        for token, path in files:
            labels = read_labels(path, grid_size=prior.shape, ignore_label=255)
            truth = dict(
                semantics=torch.from_numpy(labels.semantics),
                mask_camera=torch.from_numpy(labels.mask_camera).bool(),
                mask_lidar=torch.from_numpy(labels.mask_lidar).bool(),
            )
            metric.process(None, [dict(token=token, pred_occ=prediction, gt_occ=truth)])
        results = metric.evaluate(len(files))
        print(
            f'mIoU of the most frequent training label per position, {len(files)} samples: '
            f'{results["mIoU/no_mask"]:.2f} no mask, {results["mIoU/camera_mask"]:.2f} camera mask, '
            f'{results["mIoU/lidar_mask"]:.2f} LiDAR mask'
        )


if __name__ == '__main__':
    sys.exit(main())
