"""Backbones: encoders of images, volumes and point clouds."""

from .resnet3d import CustomResNet3D
from .sparse_encoder import CustomSparseEncoder
from .swin import SwinTransformer
from .voxel_resnet3d import VoxelResNet3D

__all__ = ['CustomResNet3D', 'CustomSparseEncoder', 'SwinTransformer', 'VoxelResNet3D']
