from . import backbones
from .data_preprocessor import OccDataPreprocessor

__all__ = ['OccDataPreprocessor', 'backbones']
