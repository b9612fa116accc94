"""The rays of RayIoU and RayPQ, and what the counted rays are worth. numpy only.

Where they start: ``occforge.datasets.ray_origins``.

Source: H. Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024.
"""

from collections.abc import Sequence

import numpy as np

THRESHOLDS = (1.0, 2.0, 4.0)  # metres


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
