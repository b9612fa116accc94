"""Backbones: encoders of images, volumes and point clouds."""

from .convnext import ConvNeXt
from .resnet2d import CustomResNet
from .resnet3d import BasicBlock3D, CustomResNet3D
from .sparse_encoder import CustomSparseEncoder
from .stereo import stereo_feature
from .swin import SwinTransformer
from .voxel_resnet3d import VoxelResNet3D

__all__ = [
    'BasicBlock3D',
    'ConvNeXt',
    'CustomResNet',
    'CustomResNet3D',
    'CustomSparseEncoder',
    'SwinTransformer',
    'VoxelResNet3D',
    'stereo_feature',
]
