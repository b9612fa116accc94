"""View transformers: image features into the ego frame's grid."""

from .backward_projection import BackwardProjection
from .bev_stereo import LSSViewTransformerBEVStereo, StereoPair, inject_depth
from .camera_depth_net import CM_ContextNet, CM_DepthNet, NaiveDepthNet
from .cross_modal_lss import CrossModalLSS
from .forward_projection import LSSViewTransformerFunction3D
from .lss import LSSViewTransformer, camera_vector
from .painting import paint_positions

__all__ = [
    'BackwardProjection',
    'CM_ContextNet',
    'CM_DepthNet',
    'CrossModalLSS',
    'LSSViewTransformer',
    'LSSViewTransformerBEVStereo',
    'LSSViewTransformerFunction3D',
    'NaiveDepthNet',
    'StereoPair',
    'camera_vector',
    'inject_depth',
    'paint_positions',
]
