"""Phases of FusionOcc's training."""

from mmcv.transforms import Compose
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...engine.hooks import MemorySlopeHook
from ...errors import ConfigError


@HOOKS.register_module()
class ImagePretrainHook(Hook):
    """Trains the image branch alone, on 2D labels (depth and classes of the LiDAR's points), in the first epochs.

    A step of the image branch takes a fraction of a whole one, and the lift of features that know neither depth nor
    class teaches the 3D encoder little: what published models take from pretrained weights a training from scratch
    gets here. Under DistributedDataParallel set ``find_unused_parameters=True``.

    Args:
        epochs: number of epochs at the start of the training; 0: none.
        pipeline: what reads the samples of those epochs, instead of the training dataset's own pipeline; None: the
            same for all. Steps of the image branch need no earlier clouds and no labels of voxels, and are fast enough
            to have to wait for them.

    Raises:
        ConfigError: no epoch is left for the whole model, or it has no camera branch.
    """

    def __init__(self, epochs: int, pipeline: list | None = None):
        self.epochs = epochs
        self.pipeline = None if pipeline is None else Compose(pipeline)
        self._own_pipeline = None

    def before_train(self, runner) -> None:
        if self.epochs >= runner.max_epochs:
            raise ConfigError(
                f'ImagePretrainHook.epochs is {self.epochs} and train_cfg.max_epochs {runner.max_epochs}: no epoch is '
                'left for the whole model'
            )
        if self.epochs and not getattr(self._model(runner), 'use_camera', False):
            raise ConfigError(f'ImagePretrainHook: {type(self._model(runner)).__name__} has no camera branch')

    def before_train_epoch(self, runner) -> None:
        model = self._model(runner)
        if not self.epochs:
            return
        image_only = runner.epoch < self.epochs
        if image_only != model.image_only or runner.epoch == 0:
            model.image_only = image_only
            self._switch_pipeline(runner, image_only)
            for hook in runner.hooks:
                if isinstance(hook, MemorySlopeHook):
                    hook.restart(runner)
            part = f'the image branch alone, for {self.epochs} epochs' if image_only else 'the whole model'
            print_log(f'training {part}', logger='current')

    def after_train(self, runner) -> None:
        self._model(runner).image_only = False

    def _switch_pipeline(self, runner, image_only):
        if self.pipeline is None:
            return
        loader = runner.train_dataloader
        dataset = loader.dataset
        while hasattr(dataset, 'dataset'):  # RepeatDataset and its like
            dataset = dataset.dataset
        if self._own_pipeline is None:
            self._own_pipeline = dataset.pipeline
        dataset.pipeline = self.pipeline if image_only else self._own_pipeline
        loader._iterator = None  # ends persistent workers, which hold copies of the dataset

    @staticmethod
    def _model(runner):
        return runner.model.module if is_model_wrapper(runner.model) else runner.model
