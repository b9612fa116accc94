"""The systems, one folder each."""

from . import fbocc, fusionocc

__all__ = ['fbocc', 'fusionocc']
