#!/usr/bin/env python3
"""Checks a rig's calibration: do the edges that the LiDAR sees lie on edges in the images?

tools/analysis/check_calibration.py data/custom/nuscenes_infos_train.pkl --out-dir calibration

The points of each sample are projected into each camera as every transform of this project does it. Between two
neighbours of very different depth a thing ends, and the image should have an edge. The edges found there are compared
with those that are found when all points are moved by so many pixels: a good calibration is best where it is. Printed:
a table; with --out-dir also calibration.json and a picture per camera with points, outlines and that comparison. Exit
status 1 if a camera is off.

The check sees errors of some pixels and more, up and down less well, since beams are far apart. A wrong clock looks
like a wrong calibration while the vehicle turns or others move.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli

REACH = 0.03  # how far points are moved, share of the image's width
ENOUGH = 300  # outlines that a camera must have for a verdict: with fewer a single thing's can be all of them
CONTRAST = 0.04  # by which the best shift must stand out of the mean


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('info', help='info file (*_infos_*.pkl)')
    parser.add_argument('--data-root', help='folder that its paths are relative to (default: that of the info file)')
    parser.add_argument('--out-dir', help='folder of pictures and calibration.json (default: nothing is written)')
    parser.add_argument('-n', '--number', type=int, default=20, help='samples, evenly spread (default: 20; 0: all)')
    parser.add_argument(
        '--tolerance', type=float, default=0.005, help='shift that is still right, share of the width (default: 0.005)'
    )
    args = parser.parse_args(argv)
    if args.number < 0 or not 0 < args.tolerance < REACH:
        parser.error(f'--number must be 0 or more, --tolerance between 0 and {REACH}')
    return args


def project(points, camera, size):
    """Points of the LiDAR frame in an image.

    Args:
        points: (P, >= 3).
        camera: with ``lidar2cam`` (4, 4) and ``cam2img`` (3, 3).
        size: (width, height).

    Returns:
        pixels (Q, 2), depth (Q,) metres: of those inside the image and at least 1 m away.
    """
    import numpy as np

    matrix = np.asarray(camera['lidar2cam'], np.float64)
    seen = points[:, :3].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    seen = seen[np.isfinite(seen).all(1) & (seen[:, 2] > 1)]
    pixels = seen @ np.asarray(camera['cam2img'], np.float64)[:3, :3].T
    pixels = pixels[:, :2] / pixels[:, 2:]
    inside = (pixels >= 0).all(1) & (pixels < size).all(1)
    return pixels[inside], seen[inside, 2]


def outlines(pixels, depth, width):
    """Pairs of neighbours in the image between which a thing ends: the first clearly nearer than the second.

    Args:
        pixels: (Q, 2); depth: (Q,) metres.
        width: of the image.

    Returns:
        two arrays (M, 2, 2) of pixels, the near point and the far one: neighbours beside each other, and above.
    """
    import numpy as np
    from scipy.spatial import cKDTree

    pairs = []
    # a beam's points lie close together and beams far apart; ground is farther the higher in the image it is, so that
    # above only a large step counts
    for axis, stretch, reach, ratio in ((0, (1, 6), 0.015, 1.15), (1, (6, 1), 0.04, 1.6)):
        if len(pixels) < 10:
            pairs.append(np.zeros((0, 2, 2)))
            continue
        stretched = pixels * stretch
        distance, neighbour = cKDTree(stretched).query(stretched, k=10, distance_upper_bound=reach * width)
        neighbour = np.where(np.isfinite(distance), neighbour, np.arange(len(pixels))[:, None])
        offset = pixels[neighbour] - pixels[:, None]
        found = np.abs(offset[..., axis]) > 2 * np.abs(offset[..., 1 - axis])
        for sign in (-1, 1) if axis == 0 else (-1,):
            own = found & (sign * offset[..., axis] > 0)
            first = own.argmax(1)  # the nearest on that side
            other = neighbour[np.arange(len(pixels)), first]
            chosen = own.any(1) & (depth[other] > np.maximum(ratio * depth, depth + 1.0))
            pairs.append(np.stack([pixels[chosen], pixels[other[chosen]]], 1))
    return np.concatenate(pairs[:-1]), pairs[-1]


def edges(image):
    """Two (H, W) arrays: strength of the upright and of the level edges of an (H, W, 3) image, 0..1."""
    import cv2
    import numpy as np

    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64), (0, 0), 1.0)
    strengths = [np.abs(cv2.Sobel(grey, -1, *order)) for order in ((1, 0), (0, 1))]
    return [np.clip(strength / max(float(np.quantile(strength, 0.97)), 1e-9), 0, 1) for strength in strengths]


def shifted_sums(strength, pairs, axis, shifts):
    """(S,) sum over the pairs of the strongest edge between their two points, moved along an axis by each shift."""
    import numpy as np

    height, width = strength.shape
    share = np.linspace(0, 1, 7)[:, None]
    line = pairs[:, None, 0] * (1 - share) + pairs[:, None, 1] * share  # (M, 7, 2)
    sums = np.zeros(len(shifts))
    for number, shift in enumerate(shifts):
        places = np.floor(line).astype(int)
        places[..., axis] += shift
        inside = (places >= 0).all(-1) & (places < (width, height)).all(-1)
        places = np.where(inside[..., None], places, 0)
        sums[number] = (strength[places[..., 1], places[..., 0]] * inside).max(1).sum() if len(line) else 0
    return sums


def peak(scores, shifts):
    """(best shift, contrast) of a curve: the middle of its top, and by how much of its mean it stands out."""
    import numpy as np

    smooth = np.convolve(np.pad(scores, 1, mode='edge'), [0.25, 0.5, 0.25], mode='valid')
    best = int(smooth.argmax())
    level = smooth.mean()
    contrast = float((smooth[best] - level) / level) if level > 0 else 0.0
    bar = smooth[best] - 0.3 * (smooth[best] - level)
    low = high = best
    while low > 0 and smooth[low - 1] >= bar:
        low -= 1
    while high < len(smooth) - 1 and smooth[high + 1] >= bar:
        high += 1
    weight = smooth[low : high + 1] - bar + 1e-12
    return float((shifts[low : high + 1] * weight).sum() / weight.sum()), contrast


def verdict(sums, counts, shifts, tolerance, gap=0.0):
    """dict of one camera: ``shift`` (dx, dy) pixels that fits best, ``contrast`` of both, ``ok``.

    None stands for what cannot be told: fewer than ENOUGH outlines, or no shift stands out. ``ok`` is False where
    something can be told and is not right.

    Args:
        sums: two arrays (S,), along x and along y; counts: outlines of both.
        shifts: (S,) pixels.
        tolerance: shift along x that is right; along y three times as much and half a ``gap``.
        gap: pixels between two beams: where in between a thing ends is not known.
    """
    shift, contrast, ok = [], [], None
    for own, count, limit in zip(sums, counts, (tolerance, 3 * tolerance + gap / 2)):
        best, strength = peak(own, shifts)
        if count < ENOUGH or strength < CONTRAST:
            best = None
        shift.append(None if best is None else round(best, 1))
        contrast.append(round(strength, 3))
        if best is not None:
            ok = ok is not False and abs(best) <= limit
    return dict(shift=shift, contrast=contrast, outlines=[int(count) for count in counts], ok=ok)


def shifts_of(width):
    """(S,) whole pixels over +-REACH of the width."""
    import numpy as np

    reach = max(8, round(REACH * width))
    step = max(1, reach // 24)
    return np.arange(-(reach // step), reach // step + 1) * step


def camera_picture(image, pixels, depth, pairs, sums, shifts, result, name):
    """Points by depth, outlines in white, and both curves of edges by shift."""
    import cv2
    import numpy as np
    from occforge.visualization.canvas import Pen
    from occforge.visualization.sensors import depth_colours

    picture = np.array(image)
    radius = max(1, picture.shape[1] // 800)
    for (x, y), colour in zip(pixels.astype(int).tolist(), depth_colours(depth).tolist()):
        cv2.circle(picture, (x, y), radius, colour, -1, cv2.LINE_AA)
    for first, last in np.concatenate(pairs).round().astype(int).tolist():
        cv2.line(picture, first, last, (255, 255, 255), 1, cv2.LINE_AA)
    size = picture.shape[0] // 5
    with Pen(picture) as pen:
        pen.tag(8, 8, f'{name}: {describe(result)}')
        for number, (own, axis) in enumerate(zip(sums, 'xy')):
            left, top = picture.shape[1] - size - 8, 8 + number * (size + 12)
            pen.box(left, top, size, size, (255, 255, 255, 225))
            height = (own - own.min()) / max(float(np.ptp(own)), 1e-9)
            across = left + (shifts - shifts[0]) / (shifts[-1] - shifts[0]) * (size - 1)
            pen.draw.line([(left + size / 2, top), (left + size / 2, top + size)], (150, 154, 160), 1)
            pen.draw.line(list(zip(across, top + size - 6 - height * (size - 12))), (200, 40, 50), 2)
            pen.text(left + 5, top + 3, f'{axis}: {shifts[0]} to {shifts[-1]} px', 11)
    return picture


def describe(result):
    if max(result['outlines']) < ENOUGH:
        return f'{max(result["outlines"])} outlines, {ENOUGH} are needed for a verdict: take more samples'
    if result['ok'] is None:
        return 'nothing stands out, no verdict'
    parts = ', '.join(f'{axis} {"?" if v is None else f"{v:+.1f}"}' for axis, v in zip('xy', result['shift']))
    return f'{"fits" if result["ok"] else "OFF"}, best shift {parts} px'


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import DataError, cli_errors

    with cli_errors():
        import json
        import os

        import numpy as np
        from occforge.apis import Scene
        from occforge.datasets import NuScenesOccDataset
        from occforge.fileio import atomic_write
        from occforge.visualization import write_png

        path = os.path.abspath(args.info)
        root = args.data_root or os.path.dirname(path)
        dataset = NuScenesOccDataset(
            path, root, test_mode=True, modality=dict(use_camera=False, use_lidar=False), serialize_data=False
        )
        count = min(args.number or len(dataset), len(dataset))
        cameras: dict = {}
        for index in np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist():
            info = dataset.get_data_info(index)
            scene = Scene(info['token'], info)
            if scene.points is None or not scene.cameras:
                raise DataError(f'{args.info}: sample {info["token"]} lacks points, or cameras with their matrices')
            for name, camera in scene.cameras.items():
                image = scene.images[name]
                size = image.shape[1], image.shape[0]
                pixels, depth = project(scene.points, camera, size)
                pairs = outlines(pixels, depth, size[0])
                shifts = shifts_of(size[0])
                own = cameras.setdefault(
                    name,
                    dict(size=size, sums=np.zeros((2, len(shifts))), counts=np.zeros(2), gaps=[], points=0, most=-1),
                )
                if own['size'] != size:
                    raise DataError(f'{camera["img_path"]}: size {size}, the images of {name} so far {own["size"]}')
                for axis, strength in enumerate(edges(image)):
                    own['sums'][axis] += shifted_sums(strength, pairs[axis], axis, shifts)
                    own['counts'][axis] += len(pairs[axis])
                own['gaps'].append(np.abs(pairs[1][:, 0, 1] - pairs[1][:, 1, 1]))
                own['points'] += len(pixels)
                if len(pairs[0]) > own['most']:
                    own.update(most=len(pairs[0]), shown=(image, pixels, depth, pairs))
        results = {}
        for name, own in cameras.items():
            shifts = shifts_of(own['size'][0])
            gaps = np.concatenate(own['gaps'])
            gap = float(np.median(gaps)) if len(gaps) else 0.0
            found = verdict(own['sums'], own['counts'], shifts, args.tolerance * own['size'][0], gap)
            results[name] = dict(points=own['points'] / count, **found)
            print(f'{name:<18}{own["points"] / count:8.0f} points a sample  {describe(found)}')
            if args.out_dir:
                picture = camera_picture(*own['shown'], own['sums'], shifts, found, name)
                write_png(Path(args.out_dir, f'{name}.png'), picture)
        if args.out_dir:
            with atomic_write(Path(args.out_dir, 'calibration.json'), 'w') as file:
                file.write(json.dumps(dict(info=args.info, samples=count, cameras=results), indent=1) + '\n')
        return 1 if any(result['ok'] is False for result in results.values()) else 0


if __name__ == '__main__':
    sys.exit(main())
