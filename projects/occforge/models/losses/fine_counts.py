"""Targets from numbers of fine voxels by cell, class and mask (``occforge.datasets.fine_labels``)."""

import torch

from ...errors import DataError


def class_table(fine, grid, num_classes: int, masked: bool) -> torch.Tensor:
    """Supervised fine voxels of each class in each cell.

    Args:
        fine: ``gt_occ.fine`` of a sample: ``cells``, ``codes`` (4 * class + camera mask + 2 * LiDAR mask), ``counts``
            (M,), ``grid`` (3,).
        grid: (X, Y, Z) of the logits.
        num_classes: classes, "free" included.
        masked: only voxels of the camera mask.

    Returns:
        (X*Y*Z, num_classes) int32.

    Raises:
        DataError: the counts are by cells of another grid, or of an unknown class.
    """
    if tuple(fine.grid.tolist()) != tuple(grid):
        raise DataError(
            f"fine labels are counted on the grid {tuple(fine.grid.tolist())}, expected the logits' {tuple(grid)}"
        )
    cells, codes, counts = fine.cells.long(), fine.codes.long(), fine.counts.int()
    if masked:
        seen = (codes & 1).bool()
        cells, codes, counts = cells[seen], codes[seen], counts[seen]
    classes = codes >> 2
    if classes.numel() and int(classes.max()) >= num_classes:
        raise DataError(f'fine labels hold the class {int(classes.max())}, expected 0 to {num_classes - 1}')
    table = torch.zeros(grid[0] * grid[1] * grid[2] * num_classes, dtype=torch.int32, device=cells.device)
    return table.index_add_(0, cells * num_classes + classes, counts).view(-1, num_classes)
