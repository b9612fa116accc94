"""Batches samples, moves them to the model's device and normalises the images there."""

from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseDataPreprocessor

from occforge.errors import ConfigError, DataError

LIST_KEYS = ('points', 'rays')  # a different length in every sample


@MODELS.register_module()
class OccDataPreprocessor(BaseDataPreprocessor):
    """Turns what PackOccInputs packed into the model's batch.

    ``inputs``: every tensor stacked over the batch, ``points`` a list; images (T, N, H, W, 3) uint8 RGB become
    (B, T, N, 3, H, W) float32, normalised. Images travel as uint8 because they are a quarter of the size, and because
    a device normalises faster than a data worker. ``data_samples`` pass through.

    Args:
        mean, std: per channel in the order R, G, B, in 0..255.
        channel_order: 'rgb'; 'bgr': channels swapped together with their mean and std; 'bgr-with-rgb-stats': channels
            in the order B, G, R, but normalised with the numbers of R, G, B in their places. All published checkpoints
            of the BEVDet family (FusionOcc's too) were trained in that last way.

    Raises:
        ConfigError: unknown ``channel_order``.
        DataError: samples of a batch differ in a shape.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        channel_order: str = 'bgr-with-rgb-stats',
        non_blocking: bool = True,
    ):
        super().__init__(non_blocking=non_blocking)
        if channel_order not in ('rgb', 'bgr', 'bgr-with-rgb-stats'):
            raise ConfigError(
                f"OccDataPreprocessor field 'channel_order' is {channel_order!r}, expected 'rgb', 'bgr' or "
                "'bgr-with-rgb-stats'"
            )
        self.channel_order = channel_order
        mean, std = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        if channel_order == 'bgr':
            mean, std = mean.flip(0), std.flip(0)
        self.register_buffer('mean', mean.view(3, 1, 1), False)
        self.register_buffer('std', std.view(3, 1, 1), False)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs = {
            key: list(value) if key in LIST_KEYS else self._stack(key, value) for key, value in data['inputs'].items()
        }
        if 'imgs' in inputs:
            inputs['imgs'] = self.normalise(inputs['imgs'])
        return dict(inputs=inputs, data_samples=data.get('data_samples'))

    def normalise(self, imgs: torch.Tensor) -> torch.Tensor:
        """Images (..., H, W, 3) uint8 RGB -> (..., 3, H, W) float32 in ``channel_order``."""
        imgs = imgs.movedim(-1, -3)
        if self.channel_order != 'rgb':
            imgs = imgs.flip(-3)
        return ((imgs.float() - self.mean) / self.std).contiguous()

    @staticmethod
    def _stack(key: str, values) -> torch.Tensor:
        if isinstance(values, torch.Tensor):  # already a batch
            return values
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise DataError(f'the samples of a batch differ in the shape of {key!r}: {sorted(shapes)}')
        return torch.stack(list(values))
