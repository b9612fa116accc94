"""The hook behind ``tools/test.py --show-dir``."""

from pathlib import Path

from mmdet3d.registry import HOOKS
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from occforge.errors import DataError
from occforge.visualization import Camera, write_png

from .inputs import index_of
from .results import Occupancy, results_of, scene_of, setting_of


@HOOKS.register_module(name=['PredictionVisHook', 'OccupancyVisHook'])
class PredictionVisHook(Hook):
    """Writes a picture of each tested sample, as :class:`~occforge.apis.Result` draws it, the truth beside it where the
    pipeline loads labels: occupancy, boxes, maps, instances, and what a package of one's own registers.

    Args:
        out_dir: folder of the pictures, made when needed. File name: ``<scene>_<token>.png``, with several tasks
            ``<scene>_<token>_<task>.png``.
        max_samples: stop after that many (over all processes); None draws all.
        mask: 'camera', 'lidar' or None: which voxels count in pictures of occupancy.
        every: draw each n-th sample.
        camera: fields of :class:`~occforge.visualization.Camera` to change, of pictures of occupancy.
        during_val: draw at validation during training, too (a folder per epoch).

    Raises:
        ValueError: an argument is out of range.
        DataError: a sample does not say which of the data set's it is, or the model predicts nothing that can be drawn.
    """

    priority = 'LOW'

    def __init__(self, out_dir, max_samples=None, mask=None, every=1, camera=None, during_val=False):
        if mask not in (None, 'camera', 'lidar'):
            raise ValueError(f"PredictionVisHook.mask: expected 'camera', 'lidar' or None, found {mask!r}")
        if every < 1:
            raise ValueError(f'PredictionVisHook.every: expected 1 or more, found {every}')
        self.out_dir = Path(out_dir)
        self.max_samples = max_samples
        self.mask = mask
        self.every = every
        self.camera = Camera(**(camera or {}))
        self.during_val = during_val
        self.seen = self.drawn = 0

    def before_test_epoch(self, runner) -> None:
        self.seen = self.drawn = 0

    before_val_epoch = before_test_epoch

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._draw_all(runner, runner.test_dataloader.dataset, data_batch, outputs, self.out_dir)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.during_val:
            folder = self.out_dir / f'epoch_{runner.epoch}'
            self._draw_all(runner, runner.val_dataloader.dataset, data_batch, outputs, folder)

    def after_test_epoch(self, runner, metrics=None) -> None:
        print_log(f'pictures of {self.drawn} samples written to {self.out_dir}', logger='current')

    def _draw_all(self, runner, dataset, data_batch, outputs, folder) -> None:
        limit = None if self.max_samples is None else -(-self.max_samples // get_world_size())
        for place, sample in enumerate(outputs or ()):
            if (limit is None or self.drawn < limit) and self.seen % self.every == 0:
                inputs = {name: values[place] for name, values in data_batch['inputs'].items()}
                self._draw(runner, dataset, inputs, sample, folder)
                self.drawn += 1
            self.seen += 1

    def _draw(self, runner, dataset, inputs, sample, folder) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        scene = scene_of(dataset, number_of(dataset, sample), inputs, sample)
        results = results_of(sample, setting_of(runner.cfg, model, dataset.metainfo), scene)
        for task, result in results.items():
            options = dict(mask=self.mask, camera=self.camera) if isinstance(result, Occupancy) else {}
            parts = [scene.info.get('scene_name'), scene.name, task if len(results) > 1 else None]
            write_png(folder / f'{"_".join(str(part) for part in parts if part)}.png', result.picture(scene, **options))


def number_of(dataset, sample) -> int:
    """Which of a data set's samples a data sample is, by its token or number.

    Raises:
        DataError: it holds neither, or none that the data set has.
    """
    number, token = (sample.metainfo.get(key) for key in ('sample_idx', 'token'))
    # looking for a token reads every item of the data set; mostly the number is that of its place
    placed = number is not None and 0 <= int(number) < len(dataset)
    if placed and (token is None or str(dataset.get_data_info(int(number)).get('token')) == str(token)):
        return int(number)
    if token is not None:
        return index_of(dataset, str(token))
    raise DataError(f"a data sample has neither 'token' nor 'sample_idx': {sorted(sample.metainfo)}")
