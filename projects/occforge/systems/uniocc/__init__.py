"""UniOcc: occupancy from rendered depth and semantics, with or without 3D labels."""

from .render_occ import RenderOcc, RenderOcc2D
from .stereo_occ import BEVStereo4DOCC, StereoVolumeDetector

__all__ = ['BEVStereo4DOCC', 'RenderOcc', 'RenderOcc2D', 'StereoVolumeDetector']
