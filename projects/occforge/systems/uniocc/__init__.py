"""UniOcc: occupancy from rendered depth and semantics, with or without 3D labels."""

from .hooks import MeanTeacherHook
from .render_occ import RenderOcc, RenderOcc2D
from .stereo_occ import BEVStereo4DOCC, StereoVolumeDetector
from .teacher_student import UniOccTeacherStudent

__all__ = [
    'BEVStereo4DOCC',
    'MeanTeacherHook',
    'RenderOcc',
    'RenderOcc2D',
    'StereoVolumeDetector',
    'UniOccTeacherStudent',
]
