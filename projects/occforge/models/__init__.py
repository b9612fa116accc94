"""Parts shared by the systems, and the data preprocessor."""

from . import averaging, backbones, heads, losses, necks, view_transforms
from .conv3d import Conv3d
from .data_preprocessor import OccDataPreprocessor

__all__ = ['Conv3d', 'OccDataPreprocessor', 'averaging', 'backbones', 'heads', 'losses', 'necks', 'view_transforms']
