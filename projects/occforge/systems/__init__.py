"""The systems, one folder each."""

from . import esam, fbocc, fusionocc

__all__ = ['esam', 'fbocc', 'fusionocc']
