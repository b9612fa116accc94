"""Transforms. Random ones draw only from ``results['rng']``, the generator of the sample."""

from .bev_aug import BEVAug
from .depth import PointToMultiViewDepth
from .formatting import PackOccInputs
from .image_segs import LoadImageSegs
from .images import PrepareImageInputs
from .loading import FuseAdjacentPoints, LoadFineOccGT, LoadLidarPoints, LoadLidarSegLabels, LoadOccGTFromFile
from .points import EgoPointsRangeFilter, PointsLidarToEgo, ThinPoints
from .rays import GenerateRays

__all__ = [
    'BEVAug',
    'EgoPointsRangeFilter',
    'FuseAdjacentPoints',
    'GenerateRays',
    'LoadFineOccGT',
    'LoadImageSegs',
    'LoadLidarPoints',
    'LoadLidarSegLabels',
    'LoadOccGTFromFile',
    'PackOccInputs',
    'PointToMultiViewDepth',
    'PointsLidarToEgo',
    'PrepareImageInputs',
    'ThinPoints',
]
