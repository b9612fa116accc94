#!/usr/bin/env python3
"""Write LiDAR points as 2D labels of the camera images, for UniOcc's and RenderOcc's rays.

    tools/create_ray_labels.py data/nuscenes/nuscenes_infos_train.pkl data/nuscenes/nuscenes_infos_val.pkl

Each image of a key frame gets <out-dir>/depth_gt/<image file name>.bin and <out-dir>/seg_gt_lidarseg/<image file
name>.bin: float32 rows u, v (pixels) and depth (m), or class 0..16 of Occ3D; the same points in the same order.
GenerateRays(depth='files', semantics='files', depth_dir='depth_gt', semantic_dir='seg_gt_lidarseg') reads them; by
default it makes the same while training, and no files are needed.

Labels of a network (SAM with a vision-language model, a depth network) or of your own come as maps instead:
GenerateRays(semantics='maps', semantic_dir=..., class_map=...), depth='maps' likewise. A map is
<folder>/<camera>/<image name>.png, .npz or .npy, of the image's size or a whole fraction of it: integers that
class_map (a dict or a JSON file {raw value: class}) translates, or depths in metres (16-bit PNG: metres x 256).
--check-maps reads a folder of class maps, counts what is there, and says which images have none.
Files that are there already are kept, so that a killed run goes on where it stopped.
"""

import argparse
import os
import sys

import _cli
from _cli import positive


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('infos', nargs='+', help='info files (mmdet3d v2 or BEVDet)')
    parser.add_argument('--root-path', help='data root (default: the folder of the first info file)')
    parser.add_argument('--out-dir', help='(default: the data root)')
    parser.add_argument('--depth-only', action='store_true', help='no classes (without lidarseg)')
    parser.add_argument('--load-dim', type=positive, default=5, help='values a LiDAR point (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='make files again that are there')
    parser.add_argument('--workers', type=positive, help='processes (default: one a core, 4 at most)')
    parser.add_argument('--check-maps', metavar='DIR', help='write nothing, check class maps in this folder')
    parser.add_argument('--class-map', metavar='FILE', help='of --check-maps: JSON {raw value: class}')
    return parser.parse_args(argv)


def check_maps(args, root) -> int:
    """Count the classes of all maps; 1 where images have none."""
    import numpy as np
    from occforge.datasets.info_files import load_infos
    from occforge.datasets.label_maps import NO_CLASS, class_table, find_map, read_classes
    from occforge.datasets.nuscenes_occupancy import NuScenesOccDataset
    from occforge.datasets.occ3d import CLASS_NAMES
    from occforge.datasets.transforms.images import read_image
    from occforge.errors import DataError

    table = None if args.class_map is None else class_table(args.class_map)
    counts, maps, missing = np.zeros(256, dtype=np.int64), 0, []
    for path in args.infos:
        load_infos(path)  # the clearer message where the file cannot be read
        dataset = NuScenesOccDataset(os.path.abspath(path), root)
        for index in range(len(dataset)):
            for name, image in dataset.get_data_info(index)['images'].items():
                try:
                    found = find_map(args.check_maps, name, image['img_path'])
                except DataError:
                    missing.append(image['img_path'])
                    continue
                size = read_image(image['img_path']).size[::-1]
                counts += np.bincount(read_classes(found, size, table).ravel(), minlength=256)
                maps += 1
    print(f'{args.check_maps}: {maps} class maps, {len(missing)} images without one')
    for label in np.flatnonzero(counts):
        name = 'no class' if label == NO_CLASS else CLASS_NAMES[label]
        print(f'{name:>22}  {counts[label] / counts.sum():8.3%}')
    if missing:
        print(f'without a map: {", ".join(missing[:3])}{" ..." if len(missing) > 3 else ""}')
    return int(bool(missing))


def main(argv=None) -> int:
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors  # imports the stack: only once the arguments are right

    with cli_errors():
        from occforge.datasets.preparation import progress, ray_labels

        root = args.root_path or os.path.dirname(args.infos[0]) or '.'
        if args.check_maps:
            return check_maps(args, root)
        out_dir = args.out_dir or root
        workers = args.workers or progress.default_workers()
        written, kept = ray_labels.make_ray_labels(
            args.infos, root, out_dir, workers, args.overwrite, not args.depth_only, args.load_dim
        )
        print(f'{out_dir}: 2D labels of {written} images written, those of {kept} were there')
    return 0


if __name__ == '__main__':
    sys.exit(main())
