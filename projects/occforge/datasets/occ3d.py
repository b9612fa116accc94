"""Occ3D-nuScenes: the 18 classes, the label grid and the label files. numpy only.

The one home of these constants. Source: Tian et al., "Occ3D: A Large-Scale 3D Occupancy Prediction Benchmark for
Autonomous Driving", NeurIPS 2023; nuScenes-lidarseg: Fong et al., "Panoptic nuScenes", RA-L 2022.
"""

import os
from typing import NamedTuple

import numpy as np

from occforge.errors import ConfigError, DataError

CLASS_NAMES = (
    'others',
    'barrier',
    'bicycle',
    'bus',
    'car',
    'construction_vehicle',
    'motorcycle',
    'pedestrian',
    'traffic_cone',
    'trailer',
    'truck',
    'driveable_surface',
    'other_flat',
    'sidewalk',
    'terrain',
    'manmade',
    'vegetation',
    'free',
)
NUM_CLASSES = len(CLASS_NAMES)
NUM_SEMANTIC_CLASSES = NUM_CLASSES - 1  # without free: the classes that the mean IoU runs over
FREE = 17  # a free voxel; in a 2-D label image: no label

# RGB per class; those of the nuScenes kit for 0..16, white for free
PALETTE = np.array(
    [
        (0, 0, 0),
        (112, 128, 144),
        (220, 20, 60),
        (255, 127, 80),
        (255, 158, 0),
        (233, 150, 70),
        (255, 61, 99),
        (0, 0, 230),
        (47, 79, 79),
        (255, 140, 0),
        (255, 99, 71),
        (0, 207, 191),
        (175, 0, 75),
        (75, 0, 75),
        (112, 180, 60),
        (222, 184, 135),
        (0, 175, 0),
        (255, 255, 255),
    ],
    dtype=np.uint8,
)

# The label grid: axes (X, Y, Z) of the ego frame (x forward, y left, z up; metres) at the LiDAR timestamp.
# Voxel i covers [lower + i * size, lower + (i + 1) * size).
POINT_CLOUD_RANGE = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
VOXEL_SIZE = (0.4, 0.4, 0.4)
GRID_SIZE = (200, 200, 16)

# nuScenes-lidarseg's 32 raw labels -> 0..16 above (raw label = index)
LIDARSEG_TO_OCC = np.zeros(32, dtype=np.uint8)
for _raw, _occ in {
    9: 1, 14: 2, 15: 3, 16: 3, 17: 4, 18: 5, 21: 6, 2: 7, 3: 7, 4: 7, 6: 7, 12: 8, 22: 9, 23: 10,
    24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 30: 16,
}.items():  # fmt: skip
    LIDARSEG_TO_OCC[_raw] = _occ  # the rest (noise, animal, debris, ego, ...) stays 0, others


def label_map(classes, class_map=None) -> np.ndarray | None:
    """Numbers of Occ3D's classes among other ones, by name.

    Args:
        classes: names of the classes wanted, "free" last.
        class_map: Occ3D's name -> one of ``classes``, or None: such voxels are neither trained nor scored (255). For
            all classes of Occ3D that ``classes`` does not name; needs nothing for the others.

    Returns:
        (256,) uint8, Occ3D's number -> number in ``classes``; 255 stays. None where the classes are Occ3D's own.

    Raises:
        ConfigError: a class of Occ3D has no place, one of ``classes`` that Occ3D does not know gets nothing, an unknown
            name, "free" not last.
    """
    classes, class_map = tuple(classes), dict(class_map or {})
    if classes == CLASS_NAMES and not class_map:
        return None
    if not classes or classes[-1] != 'free' or len(set(classes)) != len(classes) or len(classes) > 64:
        raise ConfigError(f"classes are {list(classes)}, expected different names, 'free' last, 64 at most")
    for old, new in class_map.items():
        if old not in CLASS_NAMES or (new is not None and new not in classes) or (old == 'free') != (new == 'free'):
            raise ConfigError(
                f"class_map: {old!r} -> {new!r}, expected Occ3D's name -> one of {list(classes)} or None; "
                "'free' stays 'free'"
            )
    places = {name: class_map.get(name, name) for name in CLASS_NAMES}
    lost = [name for name, place in places.items() if place is not None and place not in classes]
    if lost:
        raise ConfigError(f"class_map does not say what becomes of Occ3D's {', '.join(lost)} (None: ignored)")
    unfed = [name for name in classes if name not in places.values() and name not in CLASS_NAMES]
    if unfed:
        raise ConfigError(f"none of Occ3D's classes becomes {', '.join(unfed)}: name it in class_map")
    table = np.full(256, 255, dtype=np.uint8)
    for number, name in enumerate(CLASS_NAMES):
        if places[name] is not None:
            table[number] = classes.index(places[name])
    return table


def palette_of(classes, class_map=None) -> list[tuple]:
    """RGB of other classes: that of Occ3D's class of the same name, else of the first that becomes it."""
    class_map = dict(class_map or {})
    names = [
        name if name in CLASS_NAMES else next((old for old, new in class_map.items() if new == name), 'others')
        for name in classes
    ]
    return [tuple(PALETTE[CLASS_NAMES.index(name)].tolist()) for name in names]


class OccLabels(NamedTuple):
    """One Occ3D label file, each (X, Y, Z) uint8. A mask that was not asked for is None."""

    semantics: np.ndarray
    mask_lidar: np.ndarray | None
    mask_camera: np.ndarray | None


def label_file(path: str) -> str:
    """The label file of ``occ_path``, which info files give either as the file or as its folder."""
    path = os.fspath(path)
    return path if path.endswith('.npz') else os.path.join(path, 'labels.npz')


def read_labels(path, grid_size=GRID_SIZE, masks=('mask_lidar', 'mask_camera'), ignore_label=None) -> OccLabels:
    """Reads and checks an Occ3D label file.

    Args:
        path: ``labels.npz`` or the folder that holds it.
        grid_size: expected (X, Y, Z), or None for any three-dimensional grid.
        masks: the masks that must be there.
        ignore_label: one label beside 0..17 that may occur (255 in derived labels), or None.

    Returns:
        OccLabels: ``semantics`` (X, Y, Z) uint8, 17 = free; masks (X, Y, Z) uint8, 0 or 1. A voxel that is 17 and
        whose mask is 0 was not observed.

    Raises:
        DataError: the file is missing, not readable, or an array has another shape, type or value than expected.
    """
    path = label_file(path)
    wanted = ('semantics', *masks)
    arrays = read_npz(path, wanted)
    for name in wanted:
        array = arrays[name]
        if array.ndim != 3 or (grid_size is not None and array.shape != tuple(grid_size)):
            expected = '(X, Y, Z)' if grid_size is None else tuple(grid_size)
            raise DataError(f'{path}: field {name!r} has shape {array.shape}, expected {expected}')
        if array.shape != arrays['semantics'].shape:
            raise DataError(
                f"{path}: field {name!r} has shape {array.shape}, expected that of 'semantics', "
                f'{arrays["semantics"].shape}'
            )
        if array.dtype.kind not in 'uib':
            raise DataError(f'{path}: field {name!r} has type {array.dtype}, expected uint8')
        allowed = NUM_CLASSES - 1 if name == 'semantics' else 1
        if array.size and (array.max() > allowed or array.min() < 0):
            values = np.unique(array)
            unknown = [int(v) for v in values if not 0 <= v <= allowed and v != ignore_label]
            if unknown:
                raise DataError(f'{path}: field {name!r} holds {unknown[:5]}, expected 0..{allowed}')
        arrays[name] = array.astype(np.uint8, copy=False)
    return OccLabels(arrays['semantics'], arrays.get('mask_lidar'), arrays.get('mask_camera'))


def read_npz(path, names) -> dict:
    """The arrays ``names`` of an npz file, without pickled objects.

    Raises:
        DataError: the file is missing, truncated or no npz, or an array is missing or damaged; names file and array.
    """
    path = os.fspath(path)
    arrays, name = {}, None
    expected = f'an npz file with {", ".join(names)}'
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f'{path}: holds one bare array, expected {expected}')
        with archive:
            for name in names:
                if name not in archive.files:
                    raise DataError(f'{path}: field {name!r} is missing, found {sorted(archive.files)}')
                arrays[name] = archive[name]
    except FileNotFoundError:
        raise DataError(f'{path}: the file is missing, expected {expected}') from None
    except DataError:
        raise
    except Exception as error:  # damaged bytes raise a dozen kinds, from zipfile, zlib, the header's parser...
        where = f'field {name!r} cannot be read' if name else f'truncated or of another kind, expected {expected}'
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f'{path}: {where}: {reason}') from error
    return arrays


def class_counts(semantics: np.ndarray) -> np.ndarray:
    """Voxels per class, (18,) int64; ``semantics`` of any shape, values 0..17."""
    return np.bincount(np.asarray(semantics, dtype=np.uint8).ravel(), minlength=NUM_CLASSES)
