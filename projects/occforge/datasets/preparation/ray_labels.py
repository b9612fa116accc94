"""Writes LiDAR points as 2D labels of the camera images. See ``occforge.datasets.rays.read_point_labels``."""

import os

import numpy as np

from occforge.fileio import atomic_write

from ..nuscenes_occupancy import NuScenesOccDataset
from ..transforms.common import camera
from ..transforms.image_segs import project
from ..transforms.images import read_image
from ..transforms.loading import LoadLidarPoints, LoadLidarSegLabels
from .progress import parallel_map

DEPTHS, CLASSES = 'depth_gt', 'seg_gt_lidarseg'


def make_ray_labels(
    info_files, data_root, out_dir, workers: int, overwrite=False, semantics=True, load_dim=5
) -> tuple[int, int]:
    """Two files for each camera image of each key frame, of the same points in the same order.

    ``<out_dir>/depth_gt/<image file name>.bin`` and ``<out_dir>/seg_gt_lidarseg/<image file name>.bin``: float32 rows
    u, v (pixels of the image, fractional) and depth in metres, or class 0..16.

    Files that are there already are kept, so that a killed run goes on where it stopped.

    Args:
        info_files: info files (mmdet3d v2 or BEVDet).
        data_root: folder of the data set.
        out_dir: folder to write into.
        workers: processes.
        overwrite: write files again that are there.
        semantics: classes, too; needs lidarseg labels.
        load_dim: values a LiDAR point.

    Returns:
        Images written, and images that had their files.

    Raises:
        DataError: a file of a key frame is missing or damaged.
    """
    written = kept = 0
    for path in info_files:
        dataset = NuScenesOccDataset(os.path.abspath(path), data_root)
        state = (dataset, os.fspath(out_dir), overwrite, semantics, load_dim)
        for _, counts in parallel_map(_write_frame, state, range(len(dataset)), workers, '2D labels'):
            written, kept = written + counts[0], kept + counts[1]
    return written, kept


def _write_frame(state, index):
    dataset, out_dir, overwrite, semantics, load_dim = state
    info = dataset.get_data_info(index)
    folders = (DEPTHS, CLASSES) if semantics else (DEPTHS,)
    names = [name for name in dataset.camera_names if name in info['images']]
    files = {
        name: [
            os.path.join(out_dir, folder, f'{os.path.basename(camera(info, name)["img_path"])}.bin')
            for folder in folders
        ]
        for name in names
    }
    wanted = [name for name in names if overwrite or not all(map(os.path.exists, files[name]))]
    if not wanted:
        return 0, len(names)
    info = LoadLidarPoints(load_dim)(info)
    if semantics:
        info = LoadLidarSegLabels()(info)
    for name in wanted:
        width, height = read_image(camera(info, name)['img_path']).size
        uvd = project(info, name, info['key_points'])
        inside = (uvd[:, 2] > 0) & (uvd[:, :2] >= 0).all(1) & (uvd[:, 0] < width) & (uvd[:, 1] < height)
        uvd = uvd[inside]
        columns = [uvd[:, 2], info['key_point_labels'][inside]] if semantics else [uvd[:, 2]]
        for file, column in zip(files[name], columns):
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with atomic_write(file, durable=False) as stream:
                stream.write(np.column_stack([uvd[:, :2], column]).astype('<f4').tobytes())
    return len(wanted), len(names) - len(wanted)
