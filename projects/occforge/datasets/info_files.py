"""Info files: one pickle a split that lists every key frame with its files, poses and annotations.

Two layouts are read: mmdet3d's v2 (``metainfo``, ``data_list``), which is what our own tools write, and the classic one
of mmdet3d 0.x that the BEVDet family keeps (``infos``, ``metadata``; names ``bevdetv2-nuscenes_infos_*.pkl``). Both
arrive as v2 items. Files are opened with an unpickler that knows containers, numbers, text and numpy arrays and refuses
everything else, because a pickle may otherwise run any code.

Item of a v2 list, the keys that this project uses (poses are 4x4, metres; times in seconds)::

    sample_idx int, token, scene_token, scene_name, timestamp
    ego2global                       ego pose at the LiDAR's time
    images    {camera: img_path, cam2img (3x3), cam2ego, ego2global (pose at the camera's time), lidar2cam,
               timestamp, sample_data_token, and width, height in pixels where known}
    lidar_points   lidar_path, num_pts_feats, lidar2ego
    lidar_sweeps   [timestamp, ego2global, sample_data_token, lidar_points{lidar_path, lidar2ego, lidar2sensor}]
                   the sweeps before the key frame, latest first
    image_sweeps   [images{camera: as above}], latest first (only where asked for)
    instances [bbox_3d (x, y, z, l, w, h, yaw; gravity centre, LiDAR frame), bbox_label_3d, bbox_3d_isvalid,
               num_lidar_pts, num_radar_pts, velocity (vx, vy), instance_token]
    prev, next                       tokens of the neighbouring key frames of the scene, '' at its ends
    occ_path 'gts/<scene>/<token>/labels.npz', pts_semantic_mask_path 'lidarseg/<version>/<token>_lidarseg.bin'

``img_path`` and key-frame ``lidar_path`` are bare names where the file lies in ``samples/<channel>/`` (mmdet3d's
``data_prefix`` adds the folder), all other paths are relative to the data root.
"""

import contextlib
import gc
import io
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import DataError
from ..fileio import atomic_write

#: detection classes in the order of mmdet3d's NuScenesDataset; index = ``bbox_label_3d``
DETECTION_CLASSES = (
    'car',
    'truck',
    'trailer',
    'bus',
    'construction_vehicle',
    'bicycle',
    'motorcycle',
    'pedestrian',
    'traffic_cone',
    'barrier',
)
#: label order of ``ann_infos`` in BEVDet-style files
BEVDET_CLASSES = (
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
)


# ---------------------------------------------------------------------------------------------- safe unpickling
def _numpy_dtype(name, align=False, copy=False):
    """``numpy.dtype`` as pickles call it, for plain kinds only (a structured dtype has no business here)."""
    if not isinstance(name, str) or not re.fullmatch(r'[<>=|]?[biufcUSO]\d*|bool|float\d+|u?int\d+', name):
        raise pickle.UnpicklingError(f'numpy.dtype({name!r})')
    return np.dtype(name, bool(align), bool(copy))


def _numpy_frombuffer(buffer, dtype, shape, order):
    """``numpy.core.numeric._frombuffer`` of protocol-5 pickles."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _encode_latin1(text, encoding):
    """How pickles before protocol 3 spell bytes: ``_codecs.encode(text, 'latin1')``."""
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'_codecs.encode(..., {encoding!r})')
    return text.encode('latin1')


def _empty_bytes():
    """How pickles before protocol 3 spell ``b''``."""
    return b''


_ALLOWED = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('builtins', 'bytes'): _empty_bytes,
    ('builtins', 'bytearray'): bytearray,
    ('builtins', 'complex'): complex,
    ('builtins', 'dict'): dict,
    ('builtins', 'list'): list,
    ('builtins', 'tuple'): tuple,
    ('_codecs', 'encode'): _encode_latin1,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): _numpy_dtype,
}
for _package in ('numpy.core', 'numpy._core'):  # as numpy 1 and numpy 2 write it
    _ALLOWED[_package + '.multiarray', '_reconstruct'] = np.core.multiarray._reconstruct
    _ALLOWED[_package + '.multiarray', 'scalar'] = np.core.multiarray.scalar
    _ALLOWED[_package + '.numeric', '_frombuffer'] = _numpy_frombuffer


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something that is not data."""


class DataUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and numpy arrays; raises on any other global, naming it.

    Globals are only looked up in a fixed table: nothing is imported and no attribute is followed on the way.
    """

    def find_class(self, module, name):
        if module == '__builtin__':  # protocols before 3 use Python 2's name
            module = 'builtins'
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f'{module}.{name}') from None


@contextlib.contextmanager
def _no_gc():
    """Millions of small new lists make the cycle collector run over and over: most of the time of a load."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_pickle(path: str | os.PathLike):
    """Load a pickle of plain data.

    Args:
        path: file to read.

    Returns:
        Containers, numbers, text and numpy arrays as they were saved.

    Raises:
        DataError: the file is missing, empty, truncated or no pickle, or holds anything but plain data (the message
            names the global that it asked for).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    if not content:
        raise DataError(f'{path}: the file is empty; expected a pickled info file')
    try:
        with _no_gc():
            return DataUnpickler(io.BytesIO(content)).load()
    except _RefusedError as error:
        raise DataError(
            f'{path}: refused, because it asks for the global {error}; info files hold containers, numbers, text and '
            'numpy arrays only'
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = str(error) or type(error).__name__
        raise DataError(
            f'{path}: not a readable info file, truncated or damaged after {len(content)} bytes ({reason})'
        ) from error


# -------------------------------------------------------------------------------------------------- small algebra
def pose_matrix(rotation, translation) -> np.ndarray:
    """4x4 float64 pose from a quaternion (w, x, y, z; any length but zero) or a 3x3 matrix and a translation.

    Raises:
        ValueError: wrong shapes, or a quaternion of length zero.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    pose = np.eye(4)
    pose[:3, 3] = np.asarray(translation, dtype=np.float64).reshape(3)
    if rotation.shape == (3, 3):
        pose[:3, :3] = rotation
        return pose
    if rotation.shape != (4,):
        raise ValueError(f'a rotation is a quaternion (4,) or a matrix (3, 3), not {rotation.shape}')
    norm = np.linalg.norm(rotation)
    if not norm > 0:
        raise ValueError('a quaternion of length zero is no rotation')
    w, x, y, z = rotation / norm
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return pose


def invert_pose(pose) -> np.ndarray:
    """Inverse of a rigid 4x4 pose in float64, (R, t) -> (R^T, -R^T t)."""
    pose = np.asarray(pose, dtype=np.float64)
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def nearest_rotation(matrix) -> np.ndarray:
    """The rotation closest to a 3x3 matrix (float32 files are off by 1e-7): orthogonal part of the SVD, float64."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def quaternion_of(pose) -> list:
    """Quaternion (w, x, y, z; w >= 0) of the rotation in a 3x3 or 4x4 matrix."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(nearest_rotation(np.asarray(pose)[:3, :3])).as_quat()
    sign = -1.0 if w < 0 else 1.0
    return [sign * float(value) for value in (w, x, y, z)]


# ------------------------------------------------------------------------------------------------------- reading
def load_infos(path: str | os.PathLike) -> tuple[dict, list[dict]]:
    """Read an info file of either layout.

    Args:
        path: ``*_infos_*.pkl`` in mmdet3d-v2 or in classic (BEVDet) layout.

    Returns:
        ``(metainfo, data_list)`` in v2 layout (module docstring). Items of other writers are completed where that
        needs no guess: the cameras' own ``ego2global`` follows from ``lidar2cam``. Without scene tokens every item
        becomes a scene of its own, with one warning, so that no frame is taken for the predecessor of another.

    Raises:
        DataError: unreadable file (:func:`load_pickle`), unknown layout, or an item without a needed key.
    """
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise DataError(f'{path}: holds a {type(content).__name__}; expected a dict with data_list or infos')
    if 'data_list' in content:
        metainfo, items, convert = content.get('metainfo') or {}, content['data_list'], _complete_item
    elif 'infos' in content:
        metainfo, items, convert = content.get('metadata') or {}, content['infos'], _from_classic
    else:
        raise DataError(
            f'{path}: has the keys {sorted(map(str, content))}; expected metainfo and data_list (mmdet3d v2) '
            'or infos and metadata (BEVDet)'
        )
    if not isinstance(items, (list, tuple)) or not isinstance(metainfo, Mapping):
        raise DataError(f'{path}: the list of samples must be a list and the metadata a dict')
    data_list = []
    with _no_gc():
        for index, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise DataError(f'{path}: item {index} is a {type(item).__name__}; expected a dict')
            try:
                data_list.append(convert(dict(item), index))
            except KeyError as error:
                raise DataError(f'{path}: item {index} has no field {error.args[0]!r}') from error
            except (ValueError, TypeError, AttributeError, IndexError, np.linalg.LinAlgError) as error:
                raise DataError(f'{path}: item {index} (token {item.get("token")!r}): {error}') from error
    if data_list and not all(item.get('scene_token') for item in data_list):
        warnings.warn(
            f'{path}: has no scene tokens, so every frame stands alone; tools/create_data.py writes them',
            stacklevel=2,
        )
        for item in data_list:
            item['scene_token'] = item.get('scene_token') or item['token']
    metainfo = dict(metainfo)
    if 'categories' not in metainfo:
        metainfo['categories'] = {name: index for index, name in enumerate(DETECTION_CLASSES)}
    metainfo.setdefault('dataset', 'nuscenes')
    metainfo.setdefault('info_version', '1.1')
    return metainfo, data_list


def _complete_item(item: dict, index: int) -> dict:
    """Fill what mmdet3d's own converter leaves out of a v2 item and what follows from the rest."""
    item['token'] = str(item['token']) if 'token' in item else str(item['sample_idx'])
    item.setdefault('sample_idx', index)
    images = item.get('images') or {}
    if any('ego2global' not in image for image in images.values()):
        lidar2global = _matrix(item, 'ego2global') @ _matrix(item['lidar_points'], 'lidar2ego')
        item['images'] = {
            camera: image
            if 'ego2global' in image
            else dict(image, ego2global=camera_ego_pose(lidar2global, image).tolist())
            for camera, image in images.items()
        }
    return item


def camera_ego_pose(lidar2global, image: Mapping) -> np.ndarray:
    """Ego pose at a camera's time, from where the camera stood relative to the LiDAR's key-frame pose.

    ``camera2global = lidar2global @ inv(lidar2cam)`` and ``camera2global = ego2global @ cam2ego``.

    Args:
        lidar2global: 4x4, the LiDAR at its own time.
        image: with ``lidar2cam`` and ``cam2ego`` (4x4).

    Returns:
        4x4 float64 with an exactly orthogonal rotation.
    """
    lidar2cam, cam2ego = _matrix(image, 'lidar2cam'), _matrix(image, 'cam2ego')
    pose = np.asarray(lidar2global, dtype=np.float64) @ np.linalg.inv(lidar2cam) @ np.linalg.inv(cam2ego)
    pose[:3, :3] = nearest_rotation(pose[:3, :3])
    pose[3] = (0, 0, 0, 1)
    return pose


def _matrix(holder: Mapping, field: str, shape=(4, 4)) -> np.ndarray:
    matrix = np.asarray(holder[field], dtype=np.float64)
    if matrix.shape != shape:
        raise ValueError(f'{field} has shape {matrix.shape}; expected {shape}')
    return matrix


def _seconds(timestamp) -> float:
    """nuScenes tables and classic files count microseconds, v2 files seconds."""
    timestamp = float(timestamp)
    return timestamp / 1e6 if timestamp > 1e12 else timestamp


def shorten_path(path, bare_samples: bool = True) -> str:
    """Path as v2 items hold it: bare name for ``.../samples/<channel>/<name>``, from the standard folder on for
    sweeps, gts and lidarseg; unchanged where no standard folder is in it."""
    parts = PurePosixPath(str(path).replace('\\', '/')).parts
    for folder in ('samples', 'sweeps', 'gts', 'lidarseg'):
        if folder in parts[:-1]:
            tail = parts[len(parts) - 1 - parts[::-1].index(folder) :]
            return tail[-1] if bare_samples and folder == 'samples' and len(tail) == 3 else '/'.join(tail)
    return str(path)


def _from_classic(info: dict, index: int) -> dict:
    """One entry of ``infos`` -> v2 item."""
    ego2global = pose_matrix(info['ego2global_rotation'], info['ego2global_translation'])
    lidar2ego = pose_matrix(info['lidar2ego_rotation'], info['lidar2ego_translation'])
    item = dict(
        sample_idx=index,
        token=str(info['token']),
        scene_token=str(info['scene_token']) if info.get('scene_token') else '',
        timestamp=_seconds(info['timestamp']),
        ego2global=ego2global.tolist(),
        lidar_points=dict(
            num_pts_feats=int(info.get('num_features', 5)),
            lidar_path=shorten_path(info['lidar_path']),
            lidar2ego=lidar2ego.tolist(),
        ),
        images={},
        lidar_sweeps=[],
        instances=[],
    )
    lidar2global = ego2global @ lidar2ego
    for camera, cam in info.get('cams', {}).items():
        cam2ego = pose_matrix(cam['sensor2ego_rotation'], cam['sensor2ego_translation'])
        camera_ego = pose_matrix(cam['ego2global_rotation'], cam['ego2global_translation'])
        item['images'][camera] = dict(
            img_path=shorten_path(cam['data_path']),
            cam2img=np.asarray(cam['cam_intrinsic'], dtype=np.float64).reshape(3, 3).tolist(),
            cam2ego=cam2ego.tolist(),
            ego2global=camera_ego.tolist(),
            lidar2cam=(invert_pose(camera_ego @ cam2ego) @ lidar2global).tolist(),
            sample_data_token=cam.get('sample_data_token', ''),
            timestamp=_seconds(cam['timestamp']),
        )
    for sweep in info.get('sweeps') or ():
        sensor2ego = pose_matrix(sweep['sensor2ego_rotation'], sweep['sensor2ego_translation'])
        sweep_ego = pose_matrix(sweep['ego2global_rotation'], sweep['ego2global_translation'])
        item['lidar_sweeps'].append(
            dict(
                timestamp=_seconds(sweep['timestamp']),
                ego2global=sweep_ego.tolist(),
                sample_data_token=sweep.get('sample_data_token', ''),
                lidar_points=dict(
                    lidar_path=shorten_path(sweep['data_path'], bare_samples=False),
                    lidar2ego=sensor2ego.tolist(),
                    lidar2sensor=(invert_pose(sweep_ego @ sensor2ego) @ lidar2global).tolist(),
                ),
            )
        )
    if 'gt_boxes' in info:
        boxes = np.asarray(info['gt_boxes'], dtype=np.float64).reshape(len(info['gt_names']), -1)
        velocity = np.asarray(info.get('gt_velocity', boxes[:, 7:9]), dtype=np.float64)
        velocity = velocity.reshape(len(boxes), -1) if velocity.size else np.zeros((len(boxes), 2))
        lidar_counts = info.get('num_lidar_pts', np.ones(len(boxes), dtype=int))
        radar_counts = info.get('num_radar_pts', np.zeros(len(boxes), dtype=int))
        valid = info.get('valid_flag', np.ones(len(boxes), dtype=bool))
        for row, name in enumerate(info['gt_names']):
            item['instances'].append(
                make_instance(boxes[row], str(name), velocity[row], lidar_counts[row], radar_counts[row], valid[row])
            )
    occ_path = info.get('occ_path')
    if occ_path:
        short = shorten_path(occ_path)
        item['occ_path'] = short if short.endswith('.npz') else short.rstrip('/') + '/labels.npz'
    if info.get('scene_name') or occ_path:
        item['scene_name'] = str(info.get('scene_name') or PurePosixPath(item['occ_path']).parts[-3])
    if info.get('pts_semantic_mask_path'):
        item['pts_semantic_mask_path'] = shorten_path(info['pts_semantic_mask_path'])
    if 'prev' in info:
        item['prev'] = str(info['prev'])
    return item


def make_instance(box, name: str, velocity, num_lidar_pts, num_radar_pts, valid, instance_token: str = '') -> dict:
    """One entry of ``instances``.

    Args:
        box: (7,) x, y, z, l, w, h, yaw in the LiDAR frame, gravity centre.
        name: detection class; any other name gets label -1, as mmdet3d writes it.
        velocity: (2,) metres a second in the LiDAR frame, NaN where unknown.
        num_lidar_pts, num_radar_pts, valid: as in nuScenes.
        instance_token: the object's token, same in all frames of a scene.
    """
    label = DETECTION_CLASSES.index(name) if name in DETECTION_CLASSES else -1
    return dict(
        bbox_3d=[float(value) for value in box[:7]],
        bbox_label=label,
        bbox_label_3d=label,
        bbox_3d_isvalid=bool(valid),
        num_lidar_pts=int(num_lidar_pts),
        num_radar_pts=int(num_radar_pts),
        velocity=[float(value) for value in velocity[:2]],
        instance_token=instance_token,
    )


# ------------------------------------------------------------------------------------------------------- writing
def save_infos(path: str | os.PathLike, metainfo: dict, data_list: list[dict]) -> None:
    """Write a v2 info file; ``path`` never holds half of one."""
    _dump(path, dict(metainfo=metainfo, data_list=data_list))


def save_classic_infos(path: str | os.PathLike, metainfo: dict, data_list: list[dict], data_root: str) -> None:
    """Write v2 items as a BEVDet-style file (``infos``, ``metadata``).

    Args:
        path: file to write.
        metainfo, data_list: v2 content.
        data_root: put in front of every path, since files of this layout hold paths from the working directory.
    """
    infos = [_to_classic(item, data_root) for item in data_list]
    _dump(path, dict(infos=infos, metadata=dict(version=metainfo.get('version', 'v1.0-trainval'))))


def _dump(path, content):
    with atomic_write(path) as file:
        pickle.dump(content, file, protocol=4)


def _to_classic(item: dict, data_root: str) -> dict:
    root = data_root.rstrip('/')

    def located(path, folder):
        return f'{root}/{folder}/{path}' if '/' not in path else path if path.startswith('/') else f'{root}/{path}'

    def pose(prefix, matrix):
        matrix = np.asarray(matrix, dtype=np.float64)
        return {f'{prefix}_translation': matrix[:3, 3].tolist(), f'{prefix}_rotation': quaternion_of(matrix)}

    ego2global = np.asarray(item['ego2global'], dtype=np.float64)
    lidar2ego = np.asarray(item['lidar_points']['lidar2ego'], dtype=np.float64)
    global2lidar = invert_pose(ego2global @ lidar2ego)

    def sensor(sensor_type, path, sensor2ego, sensor_ego, timestamp, token):
        sensor2lidar = global2lidar @ np.asarray(sensor_ego) @ np.asarray(sensor2ego)
        return dict(
            data_path=path,
            type=sensor_type,
            sample_data_token=token,
            timestamp=round(timestamp * 1e6),
            sensor2lidar_rotation=sensor2lidar[:3, :3],
            sensor2lidar_translation=sensor2lidar[:3, 3],
            **pose('sensor2ego', sensor2ego),
            **pose('ego2global', sensor_ego),
        )

    info = dict(
        lidar_path=located(item['lidar_points']['lidar_path'], 'samples/LIDAR_TOP'),
        num_features=item['lidar_points'].get('num_pts_feats', 5),
        token=item['token'],
        scene_token=item['scene_token'],
        scene_name=item.get('scene_name', ''),
        prev=item.get('prev', ''),
        timestamp=round(item['timestamp'] * 1e6),
        cams={},
        sweeps=[],
        **pose('lidar2ego', lidar2ego),
        **pose('ego2global', ego2global),
    )
    for camera, image in item['images'].items():
        info['cams'][camera] = sensor(
            camera,
            located(image['img_path'], f'samples/{camera}'),
            image['cam2ego'],
            image['ego2global'],
            image['timestamp'],
            image.get('sample_data_token', ''),
        )
        info['cams'][camera]['cam_intrinsic'] = np.asarray(image['cam2img'], dtype=np.float64)
    for sweep in item.get('lidar_sweeps', ()):
        points = sweep['lidar_points']
        path = located(points['lidar_path'], 'sweeps/LIDAR_TOP')
        token = sweep.get('sample_data_token', '')
        info['sweeps'].append(
            sensor('lidar', path, points['lidar2ego'], sweep['ego2global'], sweep['timestamp'], token)
        )
    instances = item.get('instances', [])
    boxes = np.array([instance['bbox_3d'] for instance in instances], dtype=np.float64).reshape(-1, 7)
    labels = [instance['bbox_label_3d'] for instance in instances]
    names = [DETECTION_CLASSES[label] if label >= 0 else 'ignore' for label in labels]
    velocity = np.array([instance['velocity'] for instance in instances], dtype=np.float64).reshape(-1, 2)
    lidar_counts = np.array([instance.get('num_lidar_pts', 1) for instance in instances], dtype=np.int64)
    radar_counts = np.array([instance.get('num_radar_pts', 0) for instance in instances], dtype=np.int64)
    info.update(
        gt_boxes=boxes,
        gt_names=np.array(names, dtype='<U32'),
        gt_velocity=velocity,
        num_lidar_pts=lidar_counts,
        num_radar_pts=radar_counts,
        valid_flag=np.array([instance['bbox_3d_isvalid'] for instance in instances], dtype=bool),
        ann_infos=_ego_annotations(item, boxes, names, velocity, lidar_counts + radar_counts),
    )
    if item.get('occ_path'):
        info['occ_path'] = f'{root}/{PurePosixPath(item["occ_path"]).parent}'
    if item.get('pts_semantic_mask_path'):
        info['pts_semantic_mask_path'] = f'{root}/{item["pts_semantic_mask_path"]}'
    return info


def _ego_annotations(item, boxes, names, velocity, num_points):
    """``ann_infos``: 9-value boxes (gravity centre) in the ego frame of CAM_FRONT's time, and labels in BEVDet's order.

    Only the ten classes, and only boxes with a LiDAR or radar point.
    """
    images = item['images']
    if not images:
        return [], []
    front = images.get('CAM_FRONT') or next(iter(images.values()))
    lidar2ego = invert_pose(front['ego2global']) @ np.asarray(item['ego2global'])
    lidar2ego = lidar2ego @ np.asarray(item['lidar_points']['lidar2ego'])
    yaw_offset = np.arctan2(lidar2ego[1, 0], lidar2ego[0, 0])
    ego_boxes, labels = [], []
    for box, name, speed, count in zip(boxes, names, velocity, num_points):
        if name not in BEVDET_CLASSES or count < 1:
            continue
        centre = lidar2ego[:3, :3] @ box[:3] + lidar2ego[:3, 3]
        moved = lidar2ego[:2, :2] @ np.nan_to_num(speed)
        yaw = (box[6] + yaw_offset + np.pi) % (2 * np.pi) - np.pi
        ego_boxes.append(np.array([*centre, *box[3:6], yaw, *moved]))
        labels.append(BEVDET_CLASSES.index(name))
    return ego_boxes, labels
