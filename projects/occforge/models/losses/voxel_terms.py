"""Loss terms of dense semantic occupancy over a list of supervised voxels.

Sources: Cao and de Charette, "MonoScene", CVPR 2022 (scaling terms); Lin et al., "Focal Loss", ICCV 2017; Milletari et
al., "V-Net", 3DV 2016 (dice); Li et al., "FB-OCC", 2023 (their combination, the distance weight).
"""

import torch
from torch.nn import functional as F

from ...engine.dist import reduce_mean_count

# Voxels of each Occ3D-nuScenes class, 0 (others) to 17 (free), in the training split.
OCC3D_VOXEL_COUNTS = (
    944004, 1897170, 152386, 2391677, 16957802, 724139, 189027, 2074468, 413451, 2384460, 5916653, 175883646, 4275424,
    51393615, 61411620, 105975596, 116424404, 1892500630,
)  # fmt: skip


def log_frequency_weights(counts=OCC3D_VOXEL_COUNTS) -> torch.Tensor:
    """(classes,) float32: 1 / ln(voxels of the class)."""
    return (1.0 / torch.log(torch.tensor(counts, dtype=torch.float64) + 1e-3)).float()


def distance_map(height: int, width: int) -> torch.Tensor:
    """(Y, X) float32 weight that grows with the distance from the vehicle: 1 at cell (Y/2, X/2), 2 at cell (0, 0)."""
    rows = torch.arange(height, dtype=torch.float64)[:, None] - height // 2
    columns = torch.arange(width, dtype=torch.float64)[None] - width // 2
    radius = torch.hypot(rows, columns)
    return (1.0 + radius / radius.max()).float()


def voxel_focal_loss(logits, labels, class_weight=None, voxel_weight=None, gamma=2.0, alpha=0.25):
    """Sigmoid focal loss, summed over classes, averaged over voxels (of all processes).

    Args:
        logits: (V, C); labels: (V,) int64 in 0 ... C - 1.
        class_weight: (C,) factor of each channel, also where it is the wrong one; voxel_weight: (V,).
    """
    hot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    probability = logits.sigmoid()
    missed = hot * (1 - probability) + (1 - hot) * probability
    share = hot * alpha + (1 - hot) * (1 - alpha)
    loss = share * missed.pow(gamma) * F.binary_cross_entropy_with_logits(logits, hot, reduction='none')
    loss = loss.sum(dim=1) if class_weight is None else loss @ class_weight.to(loss.dtype)
    if voxel_weight is not None:
        loss = loss * voxel_weight
    return loss.sum() / reduce_mean_count(torch.as_tensor(len(loss), device=loss.device))


def _minus_log(ratio, eps=1e-5):
    """-log of ratios in [0, 1], moved by whole steps of ``eps`` into [eps, 1 - eps]; the gradient knows of no move."""
    value = ratio.detach()
    down = ((value - (1 - eps)) / eps).ceil().clamp(min=0)
    up = ((eps - value) / eps).ceil().clamp(min=0)
    return -(ratio + (up - down) * eps).log()


def semantic_scaling_loss(probability, labels, classes, eps=1e-5):
    """Precision, recall and specificity of each class, from soft counts.

    Args:
        probability: (V, C); labels: (V,) int64.
        classes: range of the channels that take part.

    Returns:
        Scalar, the mean over the classes that occur in ``labels``; 0 (with a graph) where none does.
    """
    hot = F.one_hot(labels, probability.shape[1]).to(probability.dtype)
    chosen = slice(classes.start, classes.stop)
    hit = (probability * hot).sum(dim=0)[chosen]
    predicted = probability.sum(dim=0)[chosen]
    number = hot.sum(dim=0)[chosen]
    others = len(labels) - number
    # what the others do not give to the class, summed directly where it could cancel
    rejected = ((1 - probability) * (1 - hot)).sum(dim=0)[chosen]
    loss = _minus_log(hit / (predicted + eps)) + _minus_log(hit / (number + eps))
    loss = loss + torch.where(others > 0, _minus_log(rejected / (others + eps)), 0.0)
    present = number > 0
    return torch.where(present, loss, 0.0).sum() / present.sum().clamp(min=1)


def geometric_scaling_loss(probability, labels, free_index, eps=1e-5):
    """Precision, recall and specificity of "occupied" (V, C), (V,) -> scalar; 0 (with a graph) without voxels."""
    free = probability[:, free_index]
    occupied = 1 - free
    target = (labels != free_index).to(free.dtype)
    hit = (occupied * target).sum()
    loss = _minus_log(hit / (occupied.sum() + eps)) + _minus_log(hit / (target.sum() + eps))
    loss = loss + _minus_log((free * (1 - target)).sum() / ((1 - target).sum() + eps))
    return loss if len(labels) else probability.sum() * 0.0


def voxel_dice_loss(logits, labels, eps=1e-3):
    """Dice loss over the classes of every voxel, of sigmoid probabilities, averaged over voxels (of all processes)."""
    hot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    probability = logits.sigmoid()
    overlap = 2 * (probability * hot).sum(dim=1)
    loss = 1 - overlap / (probability.square().sum(dim=1) + hot.sum(dim=1) + 2 * eps)
    return loss.sum() / reduce_mean_count(torch.as_tensor(len(loss), device=loss.device))
