"""Batches of RGB-D frames."""

from mmdet3d.registry import MODELS
from mmengine.model import BaseDataPreprocessor


@MODELS.register_module()
class Det3DDataPreprocessor_(BaseDataPreprocessor):
    """Moves a batch to the device. Every input stays a list over the samples: points differ in number, features may be
    missing. Nothing is voxelised or normalised."""

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        inputs = {name: list(values) for name, values in data['inputs'].items()}
        return dict(inputs=inputs, data_samples=data.get('data_samples'))
