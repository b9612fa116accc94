"""Checked access to infos and files, shared by the transforms. Every message names file and field."""

import os

import numpy as np

from occforge.errors import DataError


def where(info: dict) -> str:
    """'<info file>: sample <token>', the start of a message."""
    return f'{info.get("source", "info file")}: sample {info.get("token")}'


def matrix(info: dict, holder: dict, field: str, prefix: str, shape=(4, 4)) -> np.ndarray:
    """``holder[field]`` as a float64 matrix that is finite and invertible; a 4x4 one must be a rigid pose."""
    name = f'{where(info)}: field {prefix + field!r}'
    value = holder.get(field)
    if value is None:
        raise DataError(f'{name} is missing')
    try:
        value = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f'{name} is no matrix of numbers') from None
    if value.shape != shape:
        raise DataError(f'{name} has shape {value.shape}, expected {shape}')
    if not np.isfinite(value).all():
        raise DataError(f'{name} holds NaN or infinity')
    if shape == (4, 4):
        det = np.linalg.det(value[:3, :3])
        if abs(det - 1) > 0.01 or not np.array_equal(value[3], (0, 0, 0, 1)):
            raise DataError(f'{name} is no rigid pose (determinant of its rotation {det:.3g}, expected 1)')
    elif abs(np.linalg.det(value)) < 1e-6:
        raise DataError(f'{name} is singular: {value.tolist()}')
    return value


def camera(info: dict, name: str) -> dict:
    """The entry of a camera, with an image path."""
    images = info.get('images') or {}
    if name not in images:
        raise DataError(f"{where(info)}: field 'images.{name}' is missing, found {sorted(images)}")
    if not images[name].get('img_path'):
        raise DataError(f"{where(info)}: field 'images.{name}.img_path' is missing")
    return images[name]


def camera_matrices(info: dict, name: str) -> tuple:
    """(cam2img (3, 3), cam2ego (4, 4), ego2global at the camera's time (4, 4)), float64."""
    entry, prefix = camera(info, name), f'images.{name}.'
    intrinsics = entry.get('cam2img')
    if intrinsics is not None and np.shape(intrinsics) == (4, 4):  # some v2 files pad it
        entry = dict(entry, cam2img=np.asarray(intrinsics)[:3, :3])
    return (
        matrix(info, entry, 'cam2img', prefix, (3, 3)),
        matrix(info, entry, 'cam2ego', prefix),
        matrix(info, entry, 'ego2global', prefix),
    )


def lidar_matrices(info: dict) -> tuple:
    """(lidar2ego (4, 4), ego2global at the LiDAR's time (4, 4)), float64."""
    return (
        matrix(info, info.get('lidar_points') or {}, 'lidar2ego', 'lidar_points.'),
        matrix(info, info, 'ego2global', ''),
    )


def read_bytes(path, field: str) -> bytes:
    """A file's content; DataError where it is missing, unreadable or empty."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        raise DataError(f'{path}: {field}: {error.strerror}') from error
    if not content:
        raise DataError(f'{path}: {field}: the file is empty (0 bytes)')
    return content


def read_points(path, load_dim: int = 5, nonfinite: str = 'error') -> np.ndarray:
    """A ``.bin`` point cloud, (P, load_dim) float32, writable.

    Args:
        path: file of little-endian float32 values.
        load_dim: values a point, x, y, z (metres) first.
        nonfinite: 'error', or 'drop' to leave out points with NaN or infinity (no-returns of some sensors).

    Raises:
        DataError: missing, empty, not divisible by ``load_dim``, or NaN points.
    """
    content = read_bytes(path, 'point file')
    if len(content) % (4 * load_dim):
        raise DataError(
            f'{path}: point file: {len(content)} bytes are no multiple of {4 * load_dim} '
            f'(load_dim={load_dim} float32 values a point)'
        )
    points = np.frombuffer(content, dtype='<f4').reshape(-1, load_dim)
    if not np.isfinite(points).all():
        finite = np.isfinite(points).all(axis=1)
        bad = len(points) - int(finite.sum())
        if nonfinite == 'error' or bad == len(points):
            raise DataError(f'{path}: point file: {bad} of {len(points)} points hold NaN or infinity')
        points = points[finite]
    return np.array(points, dtype=np.float32)


def get_points(results: dict) -> np.ndarray:
    """The sample's points (P, F) float32 numpy, whether our loader or mmdet3d's LoadPointsFromFile has read them.

    Also keeps the first cloud that it sees under ``key_points``: key frame, LiDAR frame, nothing fused or flipped.
    """
    points = results.get('points')
    if points is None:
        raise DataError(f"{where(results)}: field 'points' is missing: a transform needs a point loader before it")
    points = np.asarray(getattr(points, 'tensor', points), dtype=np.float32)
    results.setdefault('key_points', points)
    return points


def own_points(results: dict) -> np.ndarray:
    """``get_points`` as an array that may be written to: the key cloud keeps its values."""
    points = get_points(results)
    return points.copy() if np.shares_memory(points, results['key_points']) else points


def key_points(results: dict) -> np.ndarray:
    """The key frame's own cloud in its LiDAR frame, (P, F) float32."""
    if 'key_points' not in results:
        get_points(results)
    return results['key_points']


def required_path(info: dict, field: str) -> str:
    """A path of the info; DataError where the info has none."""
    path = info.get(field)
    if not path:
        raise DataError(f'{where(info)}: field {field!r} is missing')
    return os.fspath(path)
