"""A procedural city, written as a nuScenes dataset with Occ3D labels.

A scene is a pair of roads with everything beside them (``layout``), the agents on it (``traffic``, built in
``objects``), put together in ``world``; ``cameras`` and ``lidar`` look at it, ``labels`` voxelises it, ``frames``,
``tables`` and ``maps`` write it, ``generate`` runs all that.
"""

from .generate import generate
from .rig import load_rig

__all__ = ['generate', 'load_rig']
