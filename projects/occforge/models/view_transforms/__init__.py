"""View transformers: image features into the ego frame's grid."""

from .cross_modal_lss import CrossModalLSS
from .lss import LSSViewTransformer, camera_vector

__all__ = ['CrossModalLSS', 'LSSViewTransformer', 'camera_vector']
