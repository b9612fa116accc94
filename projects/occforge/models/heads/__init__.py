"""Heads."""

from .nerf_head import NerfHead, Rays, contracted_samples

__all__ = ['NerfHead', 'Rays', 'contracted_samples']
