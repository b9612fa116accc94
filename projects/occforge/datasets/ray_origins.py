"""Where the rays of RayIoU start: the LiDAR's positions at the key frames of a scene. numpy only.

Source: H. Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024.
"""

from collections.abc import Iterable

import numpy as np

from occforge.errors import DataError

MAX_ORIGINS = 8
ORIGIN_LIMIT = 39.0  # metres: an origin has |x| and |y| below this in the sample's ego frame


def ray_origins(
    lidar2global, sample: int, lidar2ego, limit: float = ORIGIN_LIMIT, max_origins: int = MAX_ORIGINS
) -> np.ndarray:
    """Where the rays of one sample start: the LiDAR's positions at the key frames of its scene.

    Args:
        lidar2global: (F, 4, 4) poses of the LiDAR at the scene's key frames, in time order.
        sample: index of the sample's own frame.
        lidar2ego: (4, 4) of the sample.
        limit: metres; positions with \\|x\\| or \\|y\\| of this or more are left out.
        max_origins: of more positions than that, as many are taken at equal spacing of their indices.

    Returns:
        (T, 3) float64 metres in the ego frame of the sample, T <= max_origins, in time order.
    """
    lidar2global = np.asarray(lidar2global, dtype=np.float64)
    lidar2ego = np.asarray(lidar2ego, dtype=np.float64)
    in_lidar = np.linalg.solve(lidar2global[sample], lidar2global[:, :, 3].T)
    origins = (lidar2ego @ in_lidar)[:3].T
    origins[sample] = lidar2ego[:3, 3]  # itself: exactly the mounting point
    origins = origins[(np.abs(origins[:, :2]) < limit).all(1)]
    if len(origins) > max_origins:
        origins = origins[np.round(np.linspace(0, len(origins) - 1, max_origins)).astype(np.int64)]
    return origins


def scene_ray_origins(data_list: Iterable[dict], source: str = 'info file', **options) -> dict:
    """``ray_origins`` of every sample of an info file.

    Args:
        data_list: items in mmdet3d-v2 layout (``load_infos``) with ``token``, ``scene_token``, ``timestamp``,
            ``ego2global`` and ``lidar_points.lidar2ego``; a scene's frames may come in any order.
        source: name for messages.
        **options: ``limit``, ``max_origins``.

    Returns:
        {token: (T, 3) float64}.

    Raises:
        DataError: an item lacks a pose.
    """
    scenes: dict = {}
    for index, item in enumerate(data_list):
        try:
            lidar2ego = np.asarray(item['lidar_points']['lidar2ego'], dtype=np.float64).reshape(4, 4)
            pose = np.asarray(item['ego2global'], dtype=np.float64).reshape(4, 4) @ lidar2ego
            frame = (item['timestamp'], str(item['token']), pose, lidar2ego)
            scenes.setdefault(str(item['scene_token']), []).append(frame)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{source}: item {index}: RayIoU needs token, scene_token, timestamp, ego2global (4 x 4) and '
                f'lidar_points.lidar2ego (4 x 4): {type(error).__name__}: {error}'
            ) from None
    origins = {}
    for frames in scenes.values():
        frames.sort(key=lambda frame: frame[0])
        poses = np.stack([pose for _, _, pose, _ in frames])
        for index, (_, token, _, lidar2ego) in enumerate(frames):
            origins[token] = ray_origins(poses, index, lidar2ego, **options)
    return origins
