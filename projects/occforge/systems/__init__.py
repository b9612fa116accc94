"""The systems, one folder each."""

from . import bevfusion, esam, fbocc, fusionocc, uniocc

__all__ = ['bevfusion', 'esam', 'fbocc', 'fusionocc', 'uniocc']
