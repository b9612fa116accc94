"""Parts shared by the systems, and the data preprocessor."""

from . import averaging, backbones, heads, losses, necks, view_transforms
from .data_preprocessor import OccDataPreprocessor

__all__ = ['OccDataPreprocessor', 'averaging', 'backbones', 'heads', 'losses', 'necks', 'view_transforms']
