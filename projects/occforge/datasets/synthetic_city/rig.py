"""Sensors of a vehicle: cameras and one spinning LiDAR, read from a JSON file."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from occforge.errors import DataError

RIGS = Path(__file__).parent / 'rigs'


class Camera(NamedTuple):
    """A pinhole camera; camera axes x right, y down, z forward."""

    name: str
    intrinsic: np.ndarray  # (3, 3) at the rig's image size
    translation: np.ndarray  # (3,) camera to ego, metres
    rotation: np.ndarray  # (4,) camera to ego, unit quaternion w, x, y, z
    delay: float  # seconds after the key frame's LiDAR time


class Lidar(NamedTuple):
    """A spinning LiDAR; its own axes, z up."""

    name: str
    translation: np.ndarray
    rotation: np.ndarray
    elevations: np.ndarray  # (beams,) degrees, ring 0 first
    columns: int  # firings in a turn
    max_range: float  # metres
    noise: float  # deviation of the range, metres


class Rig(NamedTuple):
    name: str
    image_size: tuple[int, int]  # (width, height) that the intrinsics are for
    cameras: tuple[Camera, ...]
    lidar: Lidar


def load_rig(path=None) -> Rig:
    """Read a rig file; None gives the nuScenes rig (six cameras, 32 beams), a bare name a shipped one.

    The file is JSON: ``{"name", "image_size": [w, h], "cameras": {NAME: {"intrinsic": 3x3, "translation": [3],
    "rotation": [w, x, y, z], "delay": s}}, "lidar": {"name", "translation", "rotation", "elevations": degrees of every
    ring or {"lower", "upper", "beams"}, "columns", "max_range", "noise"}}``.

    Raises:
        DataError: file missing, not JSON, or a field missing or wrong; the message names file and field.
    """
    path = RIGS / 'nuscenes.json' if path is None else Path(path)
    if not path.exists() and path.suffix == '' and (RIGS / f'{path.name}.json').exists():
        path = RIGS / f'{path.name}.json'
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        shipped = ', '.join(sorted(p.stem for p in RIGS.glob('*.json')))
        raise DataError(f'{path}: no such rig file (shipped rigs: {shipped})') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: not a JSON file: {error}') from None
    read = _Reader(path, data)
    size = tuple(int(v) for v in read.array('image_size', (2,)))
    cameras = []
    names = read.get('cameras')
    if not isinstance(names, dict) or not names:
        raise DataError(f'{path}: cameras: expected an object of at least one camera')
    for name in names:
        at = f'cameras.{name}'
        intrinsic = read.array(f'{at}.intrinsic', (3, 3))
        if not (intrinsic[0, 0] > 0 and intrinsic[1, 1] > 0 and abs(intrinsic[2, 2] - 1) < 1e-9):
            raise DataError(f'{path}: {at}.intrinsic: expected positive focal lengths and a last row of 0, 0, 1')
        cameras.append(
            Camera(name, intrinsic, read.array(f'{at}.translation', (3,)), read.quaternion(f'{at}.rotation'),
                   float(read.array(f'{at}.delay', (), 0.0)))
        )  # fmt: skip
    elevations = read.get('lidar.elevations')
    if isinstance(elevations, dict):
        parts = [float(read.array(f'lidar.elevations.{key}', ())) for key in ('lower', 'upper', 'beams')]
        elevations = np.linspace(parts[0], parts[1], int(parts[2]))
    else:
        elevations = read.array('lidar.elevations', (None,))
    if not 1 <= len(elevations) <= 255:
        raise DataError(f'{path}: lidar.elevations: expected 1 to 255 beams, found {len(elevations)}')
    lidar = Lidar(
        str(read.get('lidar.name')), read.array('lidar.translation', (3,)), read.quaternion('lidar.rotation'),
        elevations, int(read.array('lidar.columns', ())), float(read.array('lidar.max_range', (), 100.0)),
        float(read.array('lidar.noise', (), 0.02)),
    )  # fmt: skip
    if lidar.columns < 1 or lidar.max_range <= 0 or lidar.noise < 0:
        raise DataError(f'{path}: lidar: columns and max_range must be positive, noise not negative')
    return Rig(str(read.get('name')), size, tuple(cameras), lidar)


class _Reader:
    def __init__(self, path, data):
        self.path, self.data = path, data

    def get(self, field, default=None):
        value = self.data
        for key in field.split('.'):
            if not isinstance(value, dict) or key not in value:
                if default is not None:
                    return default
                raise DataError(f'{self.path}: field {field} is missing')
            value = value[key]
        return value

    def array(self, field, shape, default=None):
        value = self.get(field, default)
        try:
            array = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.array(np.nan)
        fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape))
        if not fits or not np.isfinite(array).all():
            want = 'x'.join('n' if s is None else str(s) for s in shape) or 'one'
            raise DataError(f'{self.path}: field {field}: expected {want} finite numbers, found {value!r}')
        return array

    def quaternion(self, field):
        q = self.array(field, (4,))
        if not math.isclose(float(np.linalg.norm(q)), 1.0, abs_tol=1e-3):
            raise DataError(f'{self.path}: field {field}: expected a unit quaternion, found length {np.linalg.norm(q)}')
        return q / np.linalg.norm(q)


def quaternion_matrix(q) -> np.ndarray:
    """(3, 3) rotation of a unit quaternion (w, x, y, z)."""
    w, x, y, z = q
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def matrix_quaternion(m) -> np.ndarray:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix."""
    k = np.array([
        [m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
        [0, m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
        [0, 0, m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
        [0, 0, 0, m[0, 0] + m[1, 1] + m[2, 2]],
    ])  # fmt: skip
    _, vectors = np.linalg.eigh((k + np.triu(k, 1).T) / 3)
    x, y, z, w = vectors[:, -1]
    q = np.array([w, x, y, z])
    return q if w >= 0 else -q
