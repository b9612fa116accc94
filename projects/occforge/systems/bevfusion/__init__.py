"""BEVFusion: detection and map segmentation from cameras and LiDAR."""

from .bevfusion import BEVFusion
from .center_head import BEVCenterHead
from .fusers import AddFuser, ConvFuser
from .necks import LSSFPN, GeneralizedLSSFPN, GeneralizedResNet
from .seg_head import BEVSegmentationHead
from .sparse_encoder import BEVFusionSparseEncoder, PillarScatter
from .targets import BBoxBEVL1Cost, HungarianAssigner3D, IoU3DCost, TransFusionBBoxCoder
from .transfusion_head import TransformerDecoderLayer, TransFusionHead
from .view_transforms import AwareBEVDepth, AwareDBEVDepth, DepthLSSTransform, LSSTransform

__all__ = [
    'LSSFPN',
    'AddFuser',
    'AwareBEVDepth',
    'AwareDBEVDepth',
    'BBoxBEVL1Cost',
    'BEVCenterHead',
    'BEVFusion',
    'BEVFusionSparseEncoder',
    'BEVSegmentationHead',
    'ConvFuser',
    'DepthLSSTransform',
    'GeneralizedLSSFPN',
    'GeneralizedResNet',
    'HungarianAssigner3D',
    'IoU3DCost',
    'LSSTransform',
    'PillarScatter',
    'TransFusionBBoxCoder',
    'TransFusionHead',
    'TransformerDecoderLayer',
]
