"""Parts shared by the systems, and the data preprocessor."""

from . import backbones, losses, necks, view_transforms
from .data_preprocessor import OccDataPreprocessor

__all__ = ['OccDataPreprocessor', 'backbones', 'losses', 'necks', 'view_transforms']
