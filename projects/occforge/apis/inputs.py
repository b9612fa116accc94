"""Samples from what a user has: tokens, folders, arrays."""

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from mmdet3d.registry import DATASETS

from occforge.datasets.info_files import save_infos
from occforge.datasets.preparation.custom_rig import complete_frame
from occforge.errors import ConfigError, DataError

METAINFO = dict(dataset='nuscenes', info_version='1.1', version='arrays', categories={})


def build_dataset(config: Mapping, with_labels: bool, **changes):
    """The data set of a config for inference.

    Args:
        config: of the data set.
        with_labels: False: transforms that only load labels (class attribute ``only_labels``) are left out, so that
            data without labels can be read.
        **changes: fields to replace.
    """
    config = dict(copy.deepcopy(dict(config)), test_mode=True, **changes)
    inner = config
    while 'dataset' in inner:  # wrappers (repeat, class balance): what they wrap
        inner = inner['dataset']
        inner.update(test_mode=True, **changes)
    dataset = DATASETS.build(inner)
    if not with_labels:
        steps = dataset.pipeline.transforms
        dataset.pipeline.transforms = [step for step in steps if not getattr(step, 'only_labels', False)]
    dataset.full_init()
    return dataset


def find_info_file(folder, wanted: str | None) -> Path:
    """The info file of a data folder: the config's, or the only ``*_infos_*.pkl``.

    Raises:
        DataError: no such folder, or not exactly one file fits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder')
    if wanted and (folder / Path(wanted).name).is_file():
        return folder / Path(wanted).name
    found = sorted(folder.glob('*infos*.pkl'))
    if len(found) != 1:
        listed = ', '.join(path.name for path in found) or 'none'
        raise DataError(
            f"{folder}: expected the config's info file {Path(wanted or '-').name} or one *_infos_*.pkl, found {listed}"
        )
    return found[0]


def index_of(dataset, name) -> int:
    """Number of a sample: a number, or its token.

    Raises:
        DataError: the data set does not have it.
    """
    if isinstance(name, (int, np.integer)):
        if not -len(dataset) <= name < len(dataset):
            raise DataError(f'sample {name}: the data set has {len(dataset)}')
        return int(name) % len(dataset)
    if not hasattr(dataset, '_numbers_by_token'):
        keys = ('token', 'sample_idx', 'lidar_idx')
        items = ((number, dataset.get_data_info(number)) for number in range(len(dataset)))
        dataset._numbers_by_token = {str(item[key]): number for number, item in items for key in keys if key in item}
    number = dataset._numbers_by_token.get(str(name))
    if number is None:
        raise DataError(f'{dataset.ann_file}: holds no sample {name!r}')
    return number


class ArrayFolder:
    """Arrays as a data set on disk, so that they take the way of all other samples.

    A frame is an item of an info file (``occforge.datasets.info_files``) with arrays in place of paths::

        dict(images={'CAM_FRONT': dict(img=(H, W, 3) uint8 RGB, cam2img=(3, 3), cam2ego=(4, 4))},
             lidar_points=dict(points=(P, 5) float32, lidar2ego=(4, 4)),
             ego2global=(4, 4), timestamp=0.0, token='frame 0', scene_token='drive')

    What may be left out: ``images`` or ``lidar_points`` where the model has no use for them; ``ego2global`` (identity),
    ``timestamp`` (counted), ``token`` (counted), a camera's ``ego2global`` (that of the frame) and ``lidar2cam``
    (computed). Frames of one ``scene_token`` are one drive, later ones see the earlier; without it each stands alone.
    Images are kept without loss.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix='occforge_')
        self.root = self._folder.name
        self.frames: list[dict] = []
        self.added = 0

    def close(self) -> None:
        self._folder.cleanup()

    def forget(self, keep: int = 0) -> None:
        """Drop all but the last ``keep`` frames, with their files."""
        dropped, self.frames = self.frames[: len(self.frames) - keep], self.frames[len(self.frames) - keep :]
        for frame in dropped:
            for item in (*frame['images'].values(), frame['lidar_points']):
                for key in ('img_path', 'lidar_path'):
                    if str(item.get(key, '')).startswith(self.root):
                        Path(item[key]).unlink(missing_ok=True)

    def add(self, frame: Mapping) -> str:
        """Take a frame; returns its token.

        Raises:
            DataError: a field is missing or has another shape.
        """
        if not isinstance(frame, Mapping) or not (frame.get('images') or frame.get('lidar_points')):
            raise DataError("a frame of arrays is a dict with 'images' or 'lidar_points'; see ArrayFolder")
        number = self.added
        self.added += 1
        token = str(frame.get('token', f'frame{number:06d}'))
        where = f'frame {token!r}'
        lidar = dict(frame.get('lidar_points') or {})
        if 'points' in lidar:
            points = np.ascontiguousarray(lidar.pop('points'), np.float32)
            if points.ndim != 2 or points.shape[1] < 3:
                raise DataError(f'{where}: lidar_points.points: shape {points.shape}, expected (P, 3 or more)')
            path = os.path.join(self.root, f'{number:06d}.bin')
            points.tofile(path)
            lidar.update(lidar_path=path, num_pts_feats=points.shape[1])
        images = {
            name: self._camera(dict(camera), f'{where}: images.{name}', f'{number:06d}_{name}')
            for name, camera in (frame.get('images') or {}).items()
        }
        item = complete_frame({**frame, 'token': token, 'images': images, 'lidar_points': lidar}, number)
        self.frames.append(item)
        for place, other in enumerate(self.frames):
            other['sample_idx'] = place
        return token

    def _camera(self, camera, where, file_name) -> dict:
        if 'img' in camera:
            image = np.asarray(camera.pop('img'))
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise DataError(f'{where}.img: {image.dtype} {image.shape}, expected uint8 (H, W, 3)')
            path = os.path.join(self.root, f'{file_name}.png')
            if not cv2.imwrite(path, np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 1]):
                raise DataError(f'{where}.img: could not be written to {path}')
            camera.update(img_path=path, height=image.shape[0], width=image.shape[1])
        if not camera.get('img_path'):
            raise DataError(f'{where}: neither img nor img_path')
        return dict(camera, img_path=os.path.abspath(camera['img_path']))

    def dataset(self, config: Mapping):
        """The config's data set over the frames."""
        path = os.path.join(self.root, 'arrays_infos.pkl')
        save_infos(path, METAINFO, self.frames)
        return build_dataset(config, False, ann_file=path, data_root=self.root)


def as_list(inputs) -> list:
    """One input or several, as a list."""
    single = isinstance(inputs, (str, os.PathLike, Mapping, int, np.integer))
    if not single and not isinstance(inputs, Sequence):
        raise ConfigError(
            f'inputs are a {type(inputs).__name__}; expected a token, number, folder, frame or list of these'
        )
    return [inputs] if single else list(inputs)
