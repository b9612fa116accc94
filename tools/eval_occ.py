#!/usr/bin/env python3
"""Score occupancy predictions on disk, anybody's, without a model.

tools/eval_occ.py PREDICTIONS data/nuscenes/gts --infos data/nuscenes/nuscenes_infos_val.pkl

PREDICTIONS: <token>.npz with (X, Y, Z) labels 0..17, as tools/test.py --out FOLDER writes them and as the Occ3D
challenge takes them. GTS: Occ3D's <scene>/<token>/labels.npz. mIoU and geometric IoU without a mask and under both
masks, by class and distance; with --infos also RayIoU, whose rays start at the LiDAR's positions in the scene.

Against labels finer than the predictions by a whole factor, where a prediction holds for all fine voxels inside:

tools/eval_occ.py PREDICTIONS data/synthetic_city_fine/gts --label-file labels_4x.npz
"""

import argparse

import _cli


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('predictions', metavar='PREDICTIONS', help='folder of <token>.npz')
    parser.add_argument('labels', metavar='GTS', help='folder of <scene>/<token>/labels.npz')
    parser.add_argument(
        '--infos',
        metavar='FILE',
        help='info file: its samples are scored, and all must be there (default: the samples that have a prediction)',
    )
    parser.add_argument(
        '--label-file',
        default='labels.npz',
        metavar='NAME',
        help='label files of another name, in any form and as fine as occforge.datasets.fine_labels says',
    )
    parser.add_argument(
        '--eval-mask',
        choices=('none', 'camera', 'lidar'),
        default='camera',
        help='whose mIoU is called plain mIoU (default: camera, as published numbers)',
    )
    parser.add_argument('--no-rays', action='store_true', help='leave RayIoU out')
    parser.add_argument('--out-dir', metavar='DIR', help='write results.json and a row of metrics.csv here')
    parser.add_argument('--workers', type=int, default=2, metavar='N', help='threads that read files (default 2)')
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f'--workers: expected 1 or more, found {args.workers}')
    return args


def main(arguments=None) -> None:
    args = parse_args(arguments)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        import os

        from occforge.evaluation import OccupancyMetric, RayIoU
        from occforge.evaluation.prediction_files import choose_samples, evaluate_samples, find_files, load_samples
        from occforge.evaluation.results import percent, write_results

        predictions = find_files(args.predictions, 'predictions')
        labels = find_files(args.labels, 'labels', args.label_file)
        tokens, origins = choose_samples(predictions, labels, args.infos)
        metrics = [OccupancyMetric(eval_mask=args.eval_mask)]
        if origins and not args.no_rays:
            metrics.append(RayIoU())
        samples = load_samples(tokens, predictions, labels, origins, args.workers)
        results = evaluate_samples(samples, metrics, len(tokens))
        if args.out_dir:
            from occforge.engine.hooks.metrics_csv_hook import MetricsTable

            os.makedirs(args.out_dir, exist_ok=True)
            documents = [metric.document for metric in metrics]
            origin = {name: getattr(args, name) for name in ('predictions', 'labels', 'label_file', 'infos')}
            write_results(os.path.join(args.out_dir, 'results.json'), documents, **origin)
            MetricsTable(os.path.join(args.out_dir, 'metrics.csv')).add(dict(phase='test', **results))
        names = {'no mask': 'no_mask', 'camera mask': 'camera_mask', 'LiDAR mask': 'lidar_mask'}
        parts = [f'mIoU {percent(results[f"mIoU/{mask}"])} ({name})' for name, mask in names.items()]
        parts.append(f'geometric IoU {percent(results["geo_IoU/no_mask"])} (no mask)')
        parts.append(f'RayIoU {percent(results["RayIoU"])}' if 'RayIoU' in results else 'RayIoU: needs --infos')
        print(f'{len(tokens)} samples: ' + ', '.join(parts))


if __name__ == '__main__':
    main()
