"""The rays of RayIoU and RayPQ: directions, LiDAR origins, and what the counted rays are worth. numpy only.

Source: H. Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from occforge.errors import DataError

THRESHOLDS = (1.0, 2.0, 4.0)  # metres
MAX_ORIGINS = 8
ORIGIN_LIMIT = 39.0  # metres: an origin has |x| and |y| below this in the sample's ego frame


def ray_directions() -> np.ndarray:
    """Unit vectors of the 39 x 360 = 14,040 rays of one origin, (14040, 3) float32, ego frame, pitch by pitch.

    Pitches: ten that meet flat ground at 1, 2, ... 10 times the sensor's height, then upward in the last one's spacing
    until 0.21 rad; azimuths: every degree from 0 (along x). float32 as published, so that borderline rays agree.
    """
    pitches = [-(np.pi / 2 - np.arctan(k + 1)) for k in range(10)]
    spacing = pitches[-1] - pitches[-2]
    while pitches[-1] < 0.21:
        pitches.append(pitches[-1] + spacing)
    pitch, azimuth = np.meshgrid(pitches, np.deg2rad(np.arange(360)), indexing='ij')
    vectors = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    return np.stack(vectors, -1).reshape(-1, 3).astype(np.float32)


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


def ray_iou(counts) -> np.ndarray:
    """IoU of rays per threshold and class, (K, classes) float64 in 0..1; nan for a class that no ray met.

    ``counts`` (2 + K, classes): rays by true class, rays by predicted class, hits within each threshold
    (``occforge.ops.ray_counts``).
    """
    counts = np.asarray(counts, dtype=np.float64)
    hits = counts[2:]
    union = counts[0] + counts[1] - hits
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def nan_mean(values: np.ndarray) -> float:
    """Mean of those that are not nan; nan if all are."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float('nan')


# ------------------------------------------------------------------------------------------------------------ RayPQ
THING_CLASSES = ('car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'motorcycle', 'bicycle', 'pedestrian')
MIN_RAYS = 10  # a segment of fewer rays that matches nothing is no error
IOU_UNIT = 1 << 40  # sums of IoUs are kept as whole multiples of 1 / IOU_UNIT: their order does not matter


def drop_mixed_instances(semantics, instances, things: Sequence[int], free: int) -> tuple:
    """Copies of the true labels and instances in which an instance with voxels of several things is free space.

    Args:
        semantics, instances: (X, Y, Z) integers; instance numbers are looked at in voxels of things only.
        things: class numbers.
        free: label of free space.
    """
    semantics, instances = np.array(semantics), np.array(instances)
    of_thing = np.isin(semantics, things)
    pairs = np.unique(np.stack([instances[of_thing], semantics[of_thing]]), axis=1)
    numbers, classes = np.unique(pairs[0], return_counts=True)
    semantics[of_thing & np.isin(instances, numbers[classes > 1])] = free
    return semantics, instances


def panoptic_counts(
    pred_class, pred_instance, pred_depth, true_class, true_instance, true_depth, num_classes, things, thresholds
) -> np.ndarray:
    """Segments of rays of one sample: matched, wrong and missed ones.

    A true segment is an instance of a thing or all rays of another class; a predicted one, the rays of one class and
    instance number. Two of a class match if their IoU is above 0.5, where only rays whose depths differ by less than
    the threshold count as common. Unmatched segments count from MIN_RAYS rays on.

    Args:
        pred_class, pred_instance, pred_depth, true_class, true_instance, true_depth: (R,) of the rays that meet
            something true.
        num_classes: classes 0..num_classes - 1 are looked at.
        things: class numbers with instances.
        thresholds: metres.

    Returns:
        (K, 4, num_classes) int64: matched, predicted only, true only, sum of the matches' IoUs times IOU_UNIT.
    """
    counts = np.zeros((len(thresholds), 4, num_classes), dtype=np.int64)
    error = np.abs(np.asarray(pred_depth) - np.asarray(true_depth))
    for c in range(num_classes):
        in_truth, in_pred = true_class == c, pred_class == c
        truth = np.asarray(true_instance) if c in things else np.zeros_like(true_instance)
        sizes = [
            dict(zip(*(array.tolist() for array in np.unique(ids[select], return_counts=True))))
            for ids, select in ((truth, in_truth), (pred_instance, in_pred))
        ]
        for k, threshold in enumerate(thresholds):
            common = in_truth & in_pred & (error < threshold)
            pairs, overlaps = np.unique(np.stack([truth[common], pred_instance[common]]), axis=1, return_counts=True)
            matched: tuple = (set(), set())
            for true_id, pred_id, overlap in zip(*pairs.tolist(), overlaps.tolist()):
                union = sizes[0][true_id] + sizes[1][pred_id] - overlap
                if 2 * overlap > union:
                    matched[0].add(true_id)
                    matched[1].add(pred_id)
                    counts[k, 0, c] += 1
                    counts[k, 3, c] += round(overlap / union * IOU_UNIT)
            for row, side in ((1, 1), (2, 0)):
                counts[k, row, c] += sum(
                    size >= MIN_RAYS for number, size in sizes[side].items() if number not in matched[side]
                )
    return counts


def ray_pq(counts) -> np.ndarray:
    """Panoptic quality per threshold and class, (K, classes) in 0..1; nan for a class without segments."""
    matched, pred_only, true_only, iou = np.moveaxis(np.asarray(counts, dtype=np.float64), 1, 0)
    total = matched + pred_only / 2 + true_only / 2
    return np.divide(iou / IOU_UNIT, total, out=np.full(total.shape, np.nan), where=total > 0)
