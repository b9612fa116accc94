"""Rays through a predicted and a true label grid: the counters of RayIoU."""

from collections.abc import Sequence

import torch

from ._backend import choose, compiled
from ._checks import check_device, check_tensor, three_floats
from .grid_raycast import _check_free, _label_grid, _rays, cast_rays_reference

__all__ = ['ray_counts', 'ray_counts_reference']


def ray_counts(
    pred: torch.Tensor,
    target: torch.Tensor,
    origins: torch.Tensor,
    directions: torch.Tensor,
    lower: Sequence[float],
    voxel_size: Sequence[float],
    num_classes: int,
    thresholds: Sequence[float] = (1.0, 2.0, 4.0),
    free: int = 17,
    ring: torch.Tensor | None = None,
    rings: int = 1,
) -> torch.Tensor:
    """What the rays from each origin meet in a prediction and in the truth, counted by class.

    Each ray is cast in both grids as ``cast_rays`` does, and its depth is where it *leaves* the first cell that is not
    ``free``. A ray that meets nothing in ``target`` does not count at all. The others count for the class that they
    meet in ``target``, for the class that they meet in ``pred`` (none if they meet nothing), and where the two are
    equal also as a hit for every threshold that is larger than the difference of the depths.

    Args:
        pred, target: (X, Y, Z) labels, uint8.
        origins: (T, 3) start points x, y, z in metres; rays from outside the grid are followed from where they enter.
        directions: (R, 3) directions that are cast from each origin; unit vectors for depths in metres.
        lower: metres, lower corner of the grid (x, y, z).
        voxel_size: metres, size of a cell (x, y, z).
        num_classes: labels 0..num_classes - 1 are counted, others (and ``free``) are not.
        thresholds: in the unit of the depths; up to 16.
        free: the label that rays pass through.
        ring: (X, Y) uint8, the ring that a ray belongs to if it meets ``target`` in this column; values from ``rings``
            on: not counted. None: all in ring 0.
        rings: number of rings, 1 to 255.

    Returns:
        Tensor: (rings, 2 + K, num_classes) int64: rays by true class, rays by predicted class, hits within each of the
        K thresholds.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.

    Not differentiable. Deterministic. CPU (threaded) and CUDA.
    Source: H. Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024.
    """
    pred, target = _label_grid(pred, '(X, Y, Z)', 3), _label_grid(target, '(X, Y, Z)', 3)
    if pred.shape != target.shape:
        raise ValueError(
            f'pred and target must have the same shape, found {tuple(pred.shape)} and {tuple(target.shape)}'
        )
    if ring is None:
        ring = torch.zeros(target.shape[:2], dtype=torch.uint8, device=target.device)
    check_tensor('ring', ring, '(X, Y)', 2, target.shape[1], (torch.uint8,))
    if ring.shape != target.shape[:2]:
        raise ValueError(f'ring must have shape {tuple(target.shape[:2])}, found {tuple(ring.shape)}')
    origins, directions = _rays('origins', origins, target.device), _rays('directions', directions, target.device)
    check_device(pred=pred, target=target, ring=ring, origins=origins, directions=directions)
    if not 1 <= int(num_classes) <= 256:
        raise ValueError(f'num_classes must be in 1..256, found {num_classes}')
    if not 1 <= int(rings) <= 255:
        raise ValueError(f'rings must be in 1..255, found {rings}')
    thresholds = [float(threshold) for threshold in thresholds]
    if len(thresholds) > 16:
        raise ValueError(f'thresholds: at most 16, found {len(thresholds)}')
    arguments = (
        pred,
        target,
        ring,
        origins,
        directions,
        three_floats('lower', lower),
        three_floats('voxel_size', voxel_size, positive=True),
        _check_free(free),
        int(num_classes),
        int(rings),
        thresholds,
    )
    run = choose('ray_counts', target.device, ray_counts_reference)
    return run(*arguments)


def ray_counts_reference(
    pred, target, ring, origins, directions, lower, voxel_size, free, num_classes, rings, thresholds
):
    """Plain-torch form of ``ray_counts`` (arguments checked by the caller)."""
    counts = torch.zeros(rings, 2 + len(thresholds), num_classes, dtype=torch.int64, device=target.device)
    grids = torch.stack([target, pred])
    for origin in origins:
        start = origin.expand(len(directions), 3)
        first = torch.zeros(len(directions), dtype=torch.int64, device=target.device)
        labels, cells, _, exits = zip(
            *(
                cast_rays_reference(grids, start, directions, first + g, lower, voxel_size, free, float('inf'))
                for g in (0, 1)
            )
        )
        of_ray = ring[cells[0][:, 0].long(), cells[0][:, 1].long()].long()
        counts_at_all = (cells[0][:, 0] >= 0) & (of_ray < rings)
        error = (exits[1] - exits[0]).abs()
        equal = labels[0] == labels[1]
        conditions = [labels[0], labels[1], *(labels[0] for _ in thresholds)]
        chosen = [counts_at_all, counts_at_all & (cells[1][:, 0] >= 0)]
        chosen += [counts_at_all & equal & (error < threshold) for threshold in thresholds]
        for row, (label, select) in enumerate(zip(conditions, chosen)):
            select = select & (label < num_classes)
            bins = of_ray[select] * num_classes + label[select].long()
            counts[:, row] += torch.bincount(bins, minlength=rings * num_classes).view(rings, num_classes)
    return counts


if compiled('ray_counts'):

    @torch.library.register_fake('occforge::ray_counts')
    def _(pred, target, ring, origins, directions, lower, voxel_size, free, num_classes, rings, thresholds):
        return target.new_empty((rings, 2 + len(thresholds), num_classes), dtype=torch.int64)
