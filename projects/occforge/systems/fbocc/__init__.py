"""FB-OCC: forward-backward projection with temporal fusion."""

from .fb_occ import FBOCC
from .history import HistoryMemory
from .hooks import HistoryHook
from .occ_head import OccHead
from .pretrain import DepthSemanticPretrainer
from .stream import OccupancyStream

__all__ = ['FBOCC', 'DepthSemanticPretrainer', 'HistoryHook', 'HistoryMemory', 'OccHead', 'OccupancyStream']
