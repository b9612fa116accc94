#!/usr/bin/env python3
"""Draw predictions on disk beside the truth: no model is run.

tools/visualize_results.py PREDICTIONS data/nuscenes/nuscenes_infos_val.pkl --out-dir pictures
tools/visualize_results.py PREDICTIONS INFOS --out-dir pictures --html --mask camera --worst 10

PREDICTIONS: <token>.npz as tools/test.py --out FOLDER writes them and as the Occ3D challenge takes them, anybody's.
Pictures show images, truth and prediction from the same camera, and where they differ; --html adds a page that can be
turned and sliced in a browser.
"""

import argparse
import sys

import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('predictions', metavar='PREDICTIONS', help='folder of <token>.npz')
    parser.add_argument('infos', metavar='INFOS', help='info file of the samples')
    parser.add_argument('--data-root', help='folder that its paths are relative to (default: that of the info file)')
    parser.add_argument('--out-dir', required=True, help='folder of the pictures')
    parser.add_argument('-n', '--number', type=int, default=5, help='samples, evenly spread (default: 5; 0: all)')
    parser.add_argument('--tokens', nargs='+', help='these samples instead')
    parser.add_argument('--worst', type=int, metavar='N', help='the N samples of lowest mIoU instead, worst first')
    parser.add_argument('--mask', choices=('camera', 'lidar'), help='only voxels of this mask count')
    parser.add_argument('--html', action='store_true', help='write an interactive page for each sample as well')
    parser.add_argument(
        '--eye', type=float, nargs=3, metavar=('X', 'Y', 'Z'), help='where the camera stands, ego metres'
    )
    parser.add_argument('--target', type=float, nargs=3, metavar=('X', 'Y', 'Z'), help='what it looks at, ego metres')
    args = parser.parse_args(argv)
    if args.number < 0 or (args.worst is not None and args.worst < 1):
        parser.error('--number must be 0 or more, --worst 1 or more')
    return args


def read_truth(info):
    """The labels of an info file's item: dict with semantics, mask_camera, mask_lidar; None without a file."""
    import os

    from occforge.datasets.occ3d import read_labels

    if not info.get('occ_path') or not os.path.exists(info['occ_path']):
        return None
    return read_labels(info['occ_path'], grid_size=None, ignore_label=255)._asdict()


def score(prediction, truth, mask):
    """mIoU of one sample over the classes but free, 0..1; nan without labels."""
    import numpy as np
    from occforge.datasets.occ3d import FREE, NUM_CLASSES
    from occforge.visualization.sample import sample_iou

    if truth is None:
        return float('nan')
    iou, _ = sample_iou(prediction, truth['semantics'], NUM_CLASSES, None if mask is None else truth[f'mask_{mask}'])
    iou = np.delete(iou, FREE)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan')


def choose(args, infos, files):
    """The items to draw, in order."""
    import numpy as np
    from occforge.errors import DataError
    from occforge.evaluation.prediction_files import read_prediction

    by_token = {info['token']: info for info in infos}
    if args.tokens:
        for token in args.tokens:
            if token not in by_token:
                raise DataError(f'{args.infos}: holds no sample {token}')
            if token not in files:
                raise DataError(f'{args.predictions}: holds no prediction for {token}')
        return [by_token[token] for token in args.tokens]
    known = [info for info in infos if info['token'] in files]
    if not known:
        raise DataError(f'{args.predictions}: none of its {len(files)} predictions is of a sample of {args.infos}')
    if args.worst is None:
        count = min(args.number or len(known), len(known))
        return [known[i] for i in np.linspace(0, len(known) - 1, count).round().astype(int)]
    scores = [score(read_prediction(files[info['token']]), read_truth(info), args.mask) for info in known]
    if not np.isfinite(scores).any():
        raise DataError(f'{args.infos}: --worst needs labels, none of its samples has any')
    order = np.argsort(scores, kind='stable')[: args.worst]  # nan last
    for place in order:
        print(f'{known[place]["token"]}: mIoU {100 * scores[place]:.1f}')
    return [known[place] for place in order]


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import DataError, cli_errors

    with cli_errors():
        import os
        from dataclasses import replace
        from pathlib import Path

        from occforge.apis import Occupancy, Scene
        from occforge.datasets import NuScenesOccDataset
        from occforge.evaluation.prediction_files import find_files, read_prediction
        from occforge.visualization import Camera, write_png

        files = find_files(args.predictions, 'predictions')
        path = os.path.abspath(args.infos)
        dataset = NuScenesOccDataset(
            path,
            args.data_root or os.path.dirname(path),
            test_mode=True,
            modality=dict(use_camera=False, use_lidar=False),
            serialize_data=False,
        )
        camera = Camera()
        if args.eye:
            camera = replace(camera, eye=tuple(args.eye))
        if args.target:
            camera = replace(camera, target=tuple(args.target))
        for info in choose(args, [dataset.get_data_info(i) for i in range(len(dataset))], files):
            truth, token = read_truth(info), info['token']
            result = Occupancy(read_prediction(files[token]))
            if truth is not None and truth['semantics'].shape != result.semantics.shape:
                found, wanted = result.semantics.shape, truth['semantics'].shape
                raise DataError(f'{files[token]}: shape {found}, expected {wanted} as in {info["occ_path"]}')
            scene = Scene(token, info, truth=truth)
            target = Path(args.out_dir) / f'{"_".join(filter(None, (info.get("scene_name"), token)))}.png'
            mask = args.mask if truth is not None else None
            write_png(target, result.picture(scene, mask=mask, camera=camera))
            print(target)
            if args.html:
                print(result.save(target.with_suffix('.html'), scene))


if __name__ == '__main__':
    sys.exit(main())
