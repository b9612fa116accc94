"""The hook behind ``tools/test.py --show-dir``."""

from pathlib import Path

import numpy as np
from mmdet3d.registry import HOOKS
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log

from .canvas import read_image, write_png
from .occupancy import Camera
from .sample import draw_occupancy_sample

_MASKS = {None: None, 'none': None, 'camera': 'mask_camera', 'lidar': 'mask_lidar'}


@HOOKS.register_module()
class OccupancyVisHook(Hook):
    """Writes one picture per tested sample: images, prediction and truth.

    Reads ``pred_occ.semantics`` of the outputs, and where they are there ``gt_occ.semantics``, its masks and the
    metainfo ``img_path`` (list, key frame), ``cam_names``, ``scene_name``, ``token``.

    Args:
        out_dir: folder of the pictures, made when needed. File name: ``<scene>_<token>.png``.
        max_samples: stop after that many (over all processes); None draws all.
        mask: 'camera', 'lidar' or None: which voxels count in the picture.
        every: draw each n-th sample.
        camera: fields of :class:`~occforge.visualization.Camera` to change.
        during_val: draw at validation during training, too (a folder per epoch).
        class_names, palette, point_cloud_range: as :func:`draw_occupancy_sample` takes them; default the data
            set's names and colours, else Occ3D's.
    """

    priority = 'LOW'

    def __init__(self, out_dir, max_samples=None, mask=None, every=1, camera=None, during_val=False, **options):
        if mask not in _MASKS:
            raise ValueError(f"OccupancyVisHook.mask: expected 'camera', 'lidar' or None, found {mask!r}")
        if every < 1:
            raise ValueError(f'OccupancyVisHook.every: expected 1 or more, found {every}')
        self.out_dir = Path(out_dir)
        self.max_samples = max_samples
        self.mask = mask
        self.every = every
        self.camera = Camera(**(camera or {}))
        self.during_val = during_val
        self.options = options
        self.seen = self.drawn = 0

    def before_test_epoch(self, runner) -> None:
        self.seen = self.drawn = 0
        self._follow(runner.test_dataloader.dataset)

    def before_val_epoch(self, runner) -> None:
        self.seen = self.drawn = 0
        self._follow(runner.val_dataloader.dataset)

    def _follow(self, dataset) -> None:
        """Take names and colours from a data set of occupancy, unless an option gives them."""
        meta = getattr(dataset, 'metainfo', None) or {}
        names, palette = meta.get('classes') or (), meta.get('palette') or ()
        if not {'class_names', 'palette'} & set(self.options) and 'free' in names and len(names) == len(palette):
            self.options = {**self.options, 'class_names': names, 'palette': palette}

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._draw_all(outputs, self.out_dir)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.during_val:
            self._draw_all(outputs, self.out_dir / f'epoch_{runner.epoch}')

    def after_test_epoch(self, runner, metrics=None) -> None:
        print_log(f'{self.drawn} pictures written to {self.out_dir}', logger='current')

    def _draw_all(self, outputs, folder) -> None:
        limit = None if self.max_samples is None else -(-self.max_samples // get_world_size())
        for sample in outputs or ():
            if (limit is None or self.drawn < limit) and self.seen % self.every == 0:
                self._draw(sample, folder)
                self.drawn += 1
            self.seen += 1

    def _draw(self, sample, folder) -> None:
        pred = _array(sample.pred_occ.semantics)
        truth = sample.get('gt_occ')
        target = None if truth is None else _array(truth.semantics)
        field = _MASKS[self.mask]
        mask = None if field is None or truth is None else _array(truth.get(field))
        meta = sample.metainfo
        token = str(meta.get('token', meta.get('sample_idx', f'{get_rank()}_{self.seen}')))
        scene = str(meta.get('scene_name', ''))
        picture = draw_occupancy_sample(
            pred, target, load_images(meta), mask, title='   '.join(part for part in (scene, token) if part),
            mask_name=self.mask or '', camera=self.camera, **self.options,
        )  # fmt: skip
        write_png(folder / f'{"_".join(part for part in (scene, token) if part)}.png', picture)


def load_images(meta: dict) -> dict | None:
    """The key frame's images named by a sample's metainfo, camera name -> RGB; None where it names none."""
    paths = meta.get('img_path')
    if not paths:
        return None
    if isinstance(paths, str):
        paths = [paths]
    names = meta.get('cam_names') or [Path(path).parent.name for path in paths]
    return {name: read_image(path) for name, path in zip(names, paths) if path} or None


def _array(value) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, 'detach') else np.asarray(value)
