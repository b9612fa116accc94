"""Losses between what rays see of a volume and what was measured along them.

Sources: Eigen et al., "Depth Map Prediction from a Single Image", NeurIPS 2014 (scale-invariant log error); Lee et al.,
"From Big to Small", 2019 (its variance focus); Barron et al., "Mip-NeRF 360", CVPR 2022 (distortion, an operator here);
Rematas et al., "Urban Radiance Fields", CVPR 2022 (line of sight); Pan et al., "RenderOcc", ICRA 2024 (their weights).
"""

import torch

# Voxels of each Occ3D-nuScenes class, 0 (others) to 17 (free), as RenderOcc counted them for its class weights.
RENDEROCC_VOXEL_COUNTS = (
    1163161, 2309034, 188743, 2997643, 20317180, 852476, 243808, 2457947, 497017, 2731022, 7224789, 214411435, 5565043,
    63191967, 76098082, 128860031, 141625221, 2307405309,
)  # fmt: skip


def silog_loss(pred, target, variance_focus: float = 0.85, eps: float = 1e-7):
    """Scale-invariant log error: sqrt(mean(e^2) - focus mean(e)^2) with e = ln(pred + eps) - ln(target).

    Args:
        pred: (R,) predicted depths, 0 or more.
        target: (R,) measured depths above 0, the same unit.
        variance_focus: share of a common factor that is forgiven.

    Returns:
        Scalar; 0 with a graph where R is 0, and finite gradients where all errors are 0.
    """
    if not len(pred):
        return pred.sum() * 0.0
    error = (pred + eps).log() - target.log()
    spread = error.square().mean() - variance_focus * error.mean().square()
    return (spread + 1e-12).sqrt()


def log_l1_loss(pred, target, eps: float = 1e-2):
    """Mean of |ln(pred) - ln(target)|: relative errors, without forgiving a common factor."""
    return _mean(((pred + eps).log() - (target + eps).log()).abs())


def l1_loss(pred, target):
    """Mean absolute error in the depths' unit."""
    return _mean((pred - target).abs())


def relative_l1_loss(pred, target):
    """Mean of |pred - target| / target."""
    return _mean((pred - target).abs() / target)


def _mean(values):
    return values.mean() if values.numel() else values.sum() * 0.0


DEPTH_LOSSES = {'silog': silog_loss, 'log_l1': log_l1_loss, 'l1': l1_loss, 'relative_l1': relative_l1_loss}


def weighted_cross_entropy(logits, labels, class_weight=None):
    """Cross entropy averaged by the weights of the labels' classes.

    Args:
        logits: (R, C); labels: (R,) int64; class_weight: (C,) or None.

    Returns:
        Scalar, sum(c_y -ln p_y) / sum(c_y); 0 with a graph where R is 0.
    """
    if not len(labels):
        return logits.sum() * 0.0
    return torch.nn.functional.cross_entropy(logits, labels, class_weight)


def line_of_sight_loss(free_transmittance, hit_transmittance, eps: float = 1e-4):
    """Light passes up to the measured surface and is stopped there.

    Args:
        free_transmittance: (R,) share of the light that is left in front of the surface.
        hit_transmittance: (H,) share that passes the surface itself, for the rays that have one.

    Returns:
        Scalar: mean(-ln free) + mean(-ln(1 - hit)), each 0 with a graph without rays.
    """
    return _mean(-(free_transmittance + eps).log()) + _mean(-(1 - hit_transmittance + eps).log())
