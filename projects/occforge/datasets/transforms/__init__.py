"""Transforms. Random ones draw only from ``results['rng']``, the generator of the sample; those of ESAM from numpy's
global generator, as mmdet3d's own in the same pipelines do."""

from .bev_aug import BEVAug
from .depth import PointToMultiViewDepth
from .formatting import PackOccInputs
from .image_segs import LoadImageSegs
from .images import PrepareImageInputs
from .loading import FuseAdjacentPoints, LoadFineOccGT, LoadLidarPoints, LoadLidarSegLabels, LoadOccGTFromFile
from .points import EgoPointsRangeFilter, PointsLidarToEgo, ThinPoints
from .rays import GenerateRays
from .scannet import (
    AddSuperPointAnnotations,
    AddSuperPointAnnotations_Online,
    BboxCalculation,
    ElasticTransfrom,
    LabelsFromNYU40,
    LoadAdjacentDataFromFile,
    LoadAnnotations3D_,
    LoadClipFeature,
    LoadFrameImage,
    LoadPointsFromFile_,
    NormalizePointsColor_,
    Pack3DDetInputs_,
    Pack3DDetInputs_Online,
    PointSegClassMappingWithRec,
    ProjectPointsToImage,
    SwapChairAndFloor,
    SwapChairAndFloorWithRec,
)

__all__ = [
    'AddSuperPointAnnotations',
    'AddSuperPointAnnotations_Online',
    'BEVAug',
    'BboxCalculation',
    'EgoPointsRangeFilter',
    'ElasticTransfrom',
    'FuseAdjacentPoints',
    'GenerateRays',
    'LabelsFromNYU40',
    'LoadAdjacentDataFromFile',
    'LoadAnnotations3D_',
    'LoadClipFeature',
    'LoadFineOccGT',
    'LoadFrameImage',
    'LoadImageSegs',
    'LoadLidarPoints',
    'LoadLidarSegLabels',
    'LoadOccGTFromFile',
    'LoadPointsFromFile_',
    'NormalizePointsColor_',
    'Pack3DDetInputs_',
    'Pack3DDetInputs_Online',
    'PackOccInputs',
    'PointSegClassMappingWithRec',
    'PointToMultiViewDepth',
    'PointsLidarToEgo',
    'PrepareImageInputs',
    'ProjectPointsToImage',
    'SwapChairAndFloor',
    'SwapChairAndFloorWithRec',
    'ThinPoints',
]
