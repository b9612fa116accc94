"""Writes the class images of all key frames and cameras. See ``occforge.datasets.image_segs``."""

import os

import numpy as np

from occforge.fileio import atomic_write

from ..image_segs import paint, seg_file
from ..nuscenes_occupancy import NuScenesOccDataset
from ..transforms.common import camera
from ..transforms.image_segs import project
from ..transforms.images import read_image
from ..transforms.loading import LoadLidarPoints, LoadLidarSegLabels
from .progress import parallel_map


def make_image_segs(info_files, data_root, out_dir, workers: int, overwrite: bool = False) -> tuple[int, int]:
    """One ``<out_dir>/samples/<camera>/<image name>.npy`` for each camera image of each key frame.

    Files that are there already are kept, so that a killed run goes on where it stopped.

    Args:
        info_files: info files (mmdet3d v2 or BEVDet) whose items have ``pts_semantic_mask_path``.
        data_root: folder of the data set.
        out_dir: folder to write into.
        workers: processes.
        overwrite: write files again that are there.

    Returns:
        Files written, and files that were there.

    Raises:
        DataError: a file of a key frame is missing or damaged.
    """
    written = kept = 0
    for path in info_files:
        dataset = NuScenesOccDataset(os.path.abspath(path), data_root)
        state = (dataset, os.fspath(out_dir), overwrite)
        for _, counts in parallel_map(_write_frame, state, range(len(dataset)), workers, 'class images'):
            written, kept = written + counts[0], kept + counts[1]
    return written, kept


def _write_frame(state, index):
    dataset, out_dir, overwrite = state
    info = dataset.get_data_info(index)
    names = [name for name in dataset.camera_names if name in info['images']]
    files = {name: seg_file(out_dir, name, camera(info, name)['img_path']) for name in names}
    wanted = [name for name in names if overwrite or not os.path.exists(files[name])]
    if not wanted:
        return 0, len(names)
    info = LoadLidarSegLabels()(LoadLidarPoints()(info))
    for name in wanted:
        size = read_image(camera(info, name)['img_path']).size[::-1]
        image = paint(project(info, name, info['key_points']), info['key_point_labels'], size)
        os.makedirs(os.path.dirname(files[name]), exist_ok=True)
        with atomic_write(files[name], durable=False) as file:
            np.save(file, image, allow_pickle=False)
    return len(wanted), len(names) - len(wanted)
