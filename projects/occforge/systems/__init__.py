"""The systems, one folder each."""

from . import fusionocc

__all__ = ['fusionocc']
