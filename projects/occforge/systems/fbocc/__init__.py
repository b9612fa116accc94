"""FB-OCC: forward-backward projection with temporal fusion."""

from .fb_occ import FBOCC
from .occ_head import OccHead

__all__ = ['FBOCC', 'OccHead']
