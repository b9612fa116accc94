"""Confusion matrix of label grids under a mask, in one pass over the cells."""

import torch

from ._backend import choose, compiled
from ._checks import check_device, check_tensor

__all__ = ['confusion_matrix', 'confusion_matrix_reference']

_INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def confusion_matrix(
    pred: torch.Tensor, target: torch.Tensor, num_classes: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """How many cells of each class are predicted as which class.

    Args:
        pred: predicted labels of any shape, for instance (B, X, Y, Z); integers, fastest as uint8 or int64.
        target: true labels of the same shape; cells with a label outside 0..num_classes - 1 do not count.
        num_classes: number of classes, 1 to 1024.
        mask: bool (or uint8, 0 or not) of the same shape; cells where it is 0 do not count. None: all cells.

    Returns:
        Tensor: (num_classes, num_classes) int64, rows: target, columns: prediction. IoU of class c is
        ``m[c, c] / (m[c].sum() + m[:, c].sum() - m[c, c])``.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; a prediction outside 0..num_classes - 1 where it counts.

    Not differentiable. Deterministic. CPU (threaded) and CUDA; on a GPU the host waits once, to raise on a bad
    prediction.
    """
    for name, value in (('pred', pred), ('target', target)):
        check_tensor(name, value, dtypes=_INTEGER)
    if pred.shape != target.shape:
        raise ValueError(
            f'pred and target must have the same shape, found {tuple(pred.shape)} and {tuple(target.shape)}'
        )
    if mask is not None:
        check_tensor('mask', mask, dtypes=(torch.bool, torch.uint8))
        if mask.shape != target.shape:
            raise ValueError(f'mask must have the shape of target, found {tuple(mask.shape)} and {tuple(target.shape)}')
        mask = mask if mask.dtype == torch.bool else mask != 0
    check_device(pred=pred, target=target, mask=mask)
    if not 1 <= int(num_classes) <= 1024:
        raise ValueError(f'num_classes must be in 1..1024, found {num_classes}')
    pred, target = (
        value if value.dtype in (torch.uint8, torch.int64) else value.to(torch.int64) for value in (pred, target)
    )
    run = choose('confusion_matrix', target.device, confusion_matrix_reference)
    return run(pred, target, int(num_classes), mask)


def confusion_matrix_reference(pred, target, num_classes, mask):
    """Plain-torch form of ``confusion_matrix`` (arguments checked by the caller)."""
    pred, target = pred.to(torch.int64), target.to(torch.int64)
    counts = (target >= 0) & (target < num_classes)
    if mask is not None:
        counts = counts & mask
    pred, target = pred[counts], target[counts]
    wrong = int(((pred < 0) | (pred >= num_classes)).sum())
    if wrong:
        raise ValueError(
            f'pred must be in 0..{num_classes - 1} wherever it counts, found {wrong} cells with another label'
        )
    return torch.bincount(target * num_classes + pred, minlength=num_classes**2).view(num_classes, num_classes)


if compiled('confusion_matrix'):

    @torch.library.register_fake('occforge::confusion_matrix')
    def _(pred, target, num_classes, mask):
        return target.new_empty((num_classes, num_classes), dtype=torch.int64)
