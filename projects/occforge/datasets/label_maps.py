"""Dense 2D label maps on disk: classes or depths of every pixel, from whatever made them.

The slot for pseudo labels (a segmentation network such as SAM with a vision-language model, a depth network) and for
labels of one's own. One file an image, in one of two places:

* ``<folder>/<camera>/<image name>.<png|npz|npy>``, the image's name without its extension;
* ``<folder>/<image file name>.<png|npz|npy>`` (``...jpg.npy``), the published layout.

A map has the image's size, or a whole fraction of it (each value then stands for a block of pixels).

* Classes: integers. PNG of 8 or 16 bits (grey or palette), or an array. A class map says what they mean; a value that
  it does not name has no class. Without one, values 0..16 are Occ3D's classes and all others have none.
* Depths: metres along the camera's axis. Arrays of floats; PNG of 16 bits holds ``metres / depth_scale`` (1/256 by
  default, KITTI's). 0, negative and not finite: not known.

An npz holds one array, or the one named ``labels`` (``depth``). numpy and Pillow only.
"""

import io
import json
import os

import numpy as np
from PIL import Image

from occforge.errors import ConfigError, DataError

from .occ3d import CLASS_NAMES, NUM_SEMANTIC_CLASSES

NO_CLASS = 255
EXTENSIONS = ('.png', '.npz', '.npy')


def find_map(folder, camera: str, img_path) -> str:
    """The label map of an image.

    Raises:
        DataError: there is none; names what was looked for.
    """
    folder, name = os.fspath(folder), os.path.basename(os.fspath(img_path))
    stems = [os.path.join(folder, camera, os.path.splitext(name)[0]), os.path.join(folder, name)]
    for stem in stems:
        for extension in EXTENSIONS:
            if os.path.exists(stem + extension):
                return stem + extension
    raise DataError(f'{folder}: no label map of {name}: expected {stems[0]} or {stems[1]} with {", ".join(EXTENSIONS)}')


def read_classes(path, size, class_map=None) -> np.ndarray:
    """The class map of an image of ``size`` (H, W): (h, w) uint8, 255 = none; h, w are whole fractions of H, W.

    Args:
        path: see ``find_map``.
        size: (H, W) of the image.
        class_map: (raw values,) uint8 of ``class_table``, or None.

    Raises:
        DataError: not readable, no integers, or of another size.
    """
    raw = _read(path, 'labels')
    if raw.dtype.kind not in 'uib':
        raise DataError(f'{path}: class map: holds {raw.dtype}, expected integers')
    _check_size(path, raw, size)
    table = np.full(256, NO_CLASS, dtype=np.uint8)
    table[:NUM_SEMANTIC_CLASSES] = np.arange(NUM_SEMANTIC_CLASSES)
    table = table if class_map is None else class_map
    known = (raw >= 0) & (raw < len(table))
    return np.where(known, table[np.where(known, raw, 0)], NO_CLASS).astype(np.uint8)


def read_depths(path, size, depth_scale: float = 1 / 256) -> np.ndarray:
    """The depth map of an image of ``size`` (H, W): (h, w) float32 metres, 0 = not known.

    Raises:
        DataError: not readable, of another type or size.
    """
    raw = _read(path, 'depth')
    if raw.dtype.kind in 'ui':
        if not os.fspath(path).endswith('.png'):
            raise DataError(f'{path}: depth map: holds {raw.dtype}, expected floats in metres')
        raw = raw * depth_scale
    elif raw.dtype.kind != 'f':
        raise DataError(f'{path}: depth map: holds {raw.dtype}, expected floats in metres')
    _check_size(path, raw, size)
    return np.where(np.isfinite(raw) & (raw > 0), raw, 0).astype(np.float32)


def look_up(labels: np.ndarray, uv, size) -> np.ndarray:
    """Values of a map (h, w) at continuous pixels (P, 2) of an image of ``size`` (H, W), of which it is a fraction."""
    column = (uv[:, 0] * labels.shape[1] / size[1]).astype(np.int64).clip(0, labels.shape[1] - 1)
    row = (uv[:, 1] * labels.shape[0] / size[0]).astype(np.int64).clip(0, labels.shape[0] - 1)
    return labels[row, column]


def class_table(mapping) -> np.ndarray:
    """A lookup table raw value -> class, (largest raw value + 1,) uint8, 255 = none.

    Args:
        mapping: ``{raw value: class}`` (class: 0..16 or Occ3D's name; JSON's string keys are numbers), or the path of a
            JSON file that holds one.

    Raises:
        DataError: the file is missing or damaged. ConfigError: an unknown class, or keys that are no numbers.
    """
    source = 'class map'
    if isinstance(mapping, (str, os.PathLike)):
        source = os.fspath(mapping)
        try:
            with open(source, encoding='utf-8') as file:
                mapping = json.load(file)
        except OSError as error:
            raise DataError(f'{source}: class map: {error.strerror}') from error
        except ValueError as error:
            raise DataError(f'{source}: class map: no JSON: {error}') from error
    if not isinstance(mapping, dict) or not mapping:
        raise ConfigError(f'{source}: expected {{raw value: class}}')
    known = {name: index for index, name in enumerate(CLASS_NAMES[:NUM_SEMANTIC_CLASSES])}
    pairs = []
    for raw, target in mapping.items():
        target = known.get(target, target)
        if not str(raw).isdigit():
            raise ConfigError(f'{source}: key {raw!r} is no number of 0 or more')
        if not (type(target) is int and 0 <= target < NUM_SEMANTIC_CLASSES):
            raise ConfigError(f'{source}: {raw}: {target!r} is no class, expected 0..16 or one of {", ".join(known)}')
        pairs.append((int(raw), target))
    if max(pairs)[0] > 65535:
        raise ConfigError(f'{source}: key {max(pairs)[0]} is above 65535')
    table = np.full(max(pairs)[0] + 1, NO_CLASS, dtype=np.uint8)
    for raw, target in pairs:
        table[raw] = target
    return table


def _read(path, field) -> np.ndarray:
    try:
        with open(path, 'rb') as file:
            content = file.read()
        if os.fspath(path).endswith('.png'):
            with Image.open(io.BytesIO(content)) as image:
                if image.mode not in ('L', 'P', 'I;16', 'I', '1'):
                    raise DataError(f'{path}: label map: has the mode {image.mode}, expected one channel')
                return np.asarray(image)
        stored = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        names = stored.files
        if field not in names and len(names) != 1:
            raise DataError(f'{path}: label map: holds {names}, expected one array or {field!r}')
        return stored[field if field in names else names[0]]
    except DataError:
        raise
    except Exception as error:  # damaged bytes raise many kinds
        raise DataError(f'{path}: label map: cannot be read: {error}') from error


def _check_size(path, raw, size) -> None:
    fits = raw.ndim == 2 and raw.size and size[0] % raw.shape[0] == 0 and size[1] % raw.shape[1] == 0
    if not fits or size[0] // raw.shape[0] != size[1] // raw.shape[1]:
        raise DataError(
            f'{path}: label map: has the shape {raw.shape}, expected {tuple(size)} or a whole fraction of it'
        )
