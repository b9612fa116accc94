"""The systems, one folder each."""

from . import esam, fbocc, fusionocc, uniocc

__all__ = ['esam', 'fbocc', 'fusionocc', 'uniocc']
