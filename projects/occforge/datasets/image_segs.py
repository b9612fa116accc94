"""2D class images painted from labelled LiDAR points, and their files.

A class image has one pixel for ``STRIDE`` x ``STRIDE`` pixels of the camera's image, those at multiples of the stride:
(113, 200) uint8 for 900 x 1600, classes 0..16 of Occ3D, 17 = no label. numpy only.

Source: FusionOcc (ACM MM 2024), its auxiliary segmentation labels.
"""

import os

import numpy as np

from occforge.errors import DataError

from .occ3d import FREE

STRIDE = 8  # pixels of the image
REACH = (4, 8)  # pixels to the left and right, above and below a point that it paints
NEAREST = 0.1  # metres; points closer to the camera's plane are left out


def paint(uvd, labels, size) -> np.ndarray:
    """Paint points as rectangles into an empty class image; later points cover earlier ones.

    Args:
        uvd: (P, 3) pixels u (right), v (down) of the camera's image and depth in metres.
        labels: (P,) uint8 classes.
        size: (H, W) of the camera's image.

    Returns:
        (ceil(H / STRIDE), ceil(W / STRIDE)) uint8.
    """
    height, width = size
    uvd, labels = np.asarray(uvd), np.asarray(labels, dtype=np.uint8)
    cell = np.rint(uvd[:, :2])
    seen = (uvd[:, 2] > NEAREST) & (cell >= 0).all(axis=1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    cell, labels = cell[seen].astype(np.int64), labels[seen]
    image = np.full((-(-height // STRIDE), -(-width // STRIDE)), FREE, dtype=np.uint8)
    # the kept pixels in [u - REACH, u + REACH) and [v - REACH, v + REACH): always equally many
    first = -((REACH - cell) // STRIDE)
    columns = first[:, 0, None] + np.arange(2 * REACH[0] // STRIDE)
    rows = first[:, 1, None] + np.arange(2 * REACH[1] // STRIDE)
    rows, columns = np.broadcast_arrays(rows[:, :, None], columns[:, None, :])
    value = np.broadcast_to(labels[:, None, None], rows.shape)
    inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
    image[rows[inside], columns[inside]] = value[inside]  # of equal places the last one stays
    return image


def seg_file(folder, camera: str, img_path) -> str:
    """``<folder>/samples/<camera>/<image name>.npy``, the image's name without its extension."""
    stem = os.path.splitext(os.path.basename(os.fspath(img_path)))[0]
    return os.path.join(os.fspath(folder), 'samples', camera, f'{stem}.npy')


def read_seg(path, size) -> np.ndarray:
    """A class image of a camera image of ``size`` (H, W).

    Raises:
        DataError: the file is missing, unreadable, of another size, or holds an unknown class.
    """
    expected = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
    try:
        image = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f'{path}: class image: the file is missing; tools/create_img_seg.py makes these files'
        ) from None
    except Exception as error:  # damaged bytes raise many kinds
        raise DataError(f'{path}: class image: cannot be read: {error}') from error
    if not isinstance(image, np.ndarray) or image.shape != expected or image.dtype.kind not in 'ui':
        found = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f'{path}: class image: holds {found}, expected uint8 {expected} for an image of {tuple(size)}')
    if image.max() > FREE:
        raise DataError(f'{path}: class image: holds the class {int(image.max())}, expected 0..{FREE}')
    return image.astype(np.uint8, copy=False)
