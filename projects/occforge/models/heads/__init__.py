"""Heads."""

from .nerf_head import NerfHead, Rays, contracted_samples
from .pixel_seg_head import PixelSegHead

__all__ = ['NerfHead', 'PixelSegHead', 'Rays', 'contracted_samples']
