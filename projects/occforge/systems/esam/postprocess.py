"""From a frame's predictions to its instances."""

from typing import NamedTuple

from mmdet.models.layers import mask_matrix_nms
from torch import Tensor

from ...errors import ConfigError


class FrameInstances(NamedTuple):
    """Instances of one frame, the highest score first.

    Attributes:
        masks: (n, P) bool.
        labels: (n,) int64 instance class.
        scores: (n,).
        query: (n,) int64 query of each.
    """

    masks: Tensor
    labels: Tensor
    scores: Tensor
    query: Tensor


_FIELDS = dict(
    topk_insts=100,
    inst_score_thr=0.0,
    npoint_thr=100,
    sp_score_thr=0.4,
    obj_normalization=True,
    nms=True,
    matrix_nms_kernel='linear',
)
# Of published configs, for outputs that nobody evaluates or for settings with one value; and what others read.
_UNUSED = {'pan_score_thr', 'stuff_classes', 'merge_type', 'inscat_topk_insts', 'obj_normalization_thr', 'use_memory',
           'stream'}  # fmt: skip


def check_test_cfg(cfg: dict | None) -> dict:
    """The fields that ``frame_instances`` takes, with their defaults.

    Raises:
        ConfigError: an unknown field.
    """
    cfg = dict(cfg or {})
    unknown = set(cfg) - set(_FIELDS) - _UNUSED
    if unknown:
        raise ConfigError(f'test_cfg: unknown fields {sorted(unknown)}, expected of {sorted(_FIELDS)}')
    return {name: cfg.get(name, default) for name, default in _FIELDS.items()}


def frame_instances(
    cls_preds: Tensor,
    logits: Tensor,
    scores: Tensor | None = None,
    *,
    topk_insts: int = 100,
    inst_score_thr: float = 0.0,
    npoint_thr: int = 100,
    sp_score_thr: float = 0.4,
    obj_normalization: bool = True,
    nms: bool = True,
    matrix_nms_kernel: str = 'linear',
) -> FrameInstances:
    """Best (query, class) pairs, masks thresholded, duplicates damped.

    Args:
        cls_preds: (Q, classes + 1) logits, the last "no object".
        logits: (Q, P) point mask logits.
        scores: (Q, 1) predicted quality, or None.
        topk_insts: pairs kept at first.
        inst_score_thr: least score, after damping.
        npoint_thr: an instance has more points than this.
        sp_score_thr: probability above which a point belongs to the mask.
        obj_normalization: multiply a score by the mean probability of its mask's points.
        nms: matrix NMS (Wang et al., SOLOv2, NeurIPS 2020) per class.
        matrix_nms_kernel: 'linear' or 'gaussian'.
    """
    cls_preds, logits = cls_preds.float(), logits.float()
    score = cls_preds.softmax(-1)[:, :-1]
    if scores is not None:
        score = score * scores.float()
    classes = score.shape[1]
    score, pair = score.flatten().topk(min(topk_insts, score.numel()))
    query, labels = pair // classes, pair % classes
    probability = logits.sigmoid()[query]
    if obj_normalization:
        inside = logits[query] > 0
        score = score * (probability * inside).sum(1) / (inside.sum(1) + 1e-6)
    if nms and len(score):
        # labels and masks come back in order of the score; the rest by ``kept``
        score, labels, probability, kept = mask_matrix_nms(
            probability, labels, score, mask_area=probability.sum(1), kernel=matrix_nms_kernel
        )
        query = query[kept]
    masks = probability > sp_score_thr
    keep = (score > inst_score_thr) & (masks.sum(1) > npoint_thr)
    return FrameInstances(masks[keep], labels[keep], score[keep], query[keep])


def point_semantics(sem_preds: Tensor, super_points: Tensor, classes: int) -> Tensor:
    """(P,) int64 semantic class of each point, from one prediction (S, classes + 1) for each superpoint in order."""
    return sem_preds[:, :classes].argmax(1)[super_points]
