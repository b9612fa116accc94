"""Matching and losses of ESAM.

Source: Xu et al., EmbodiedSAM, ICLR 2025; Kolodiazhnyi et al., OneFormer3D, CVPR 2024.
"""

import itertools
from dataclasses import dataclass

import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from .merging import box_corners
from .query_decoder import Predictions

_FORBIDDEN = 1e8  # cost of a query that must not stand for an instance


@dataclass
class InstanceTargets:
    """What a frame shows.

    Attributes:
        labels: (I,) int64 classes; any value for an instance that the frame does not show.
        sp_masks: (I, S) bool superpoints of each instance.
        p_masks: (I, P) bool points.
        query_masks: (I, Q) bool: the queries that may stand for the instance.
        semantic: (Q,) int64 semantic class of each query's superpoint.
        boxes: (I, 6) corners (x1, y1, z1, x2, y2, z2) in metres, or None.
        centers: (Q, 3) centres of the queries' superpoints, metres, or None.
    """

    labels: Tensor
    sp_masks: Tensor
    p_masks: Tensor
    query_masks: Tensor
    semantic: Tensor
    boxes: Tensor | None = None
    centers: Tensor | None = None

    def masks(self, mode: str) -> Tensor:
        return self.sp_masks if mode == 'SP' else self.p_masks


def pairwise_bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross entropy of every pair: logits (Q, N), masks (G, N) -> (Q, G)."""
    positive = F.softplus(-logits) @ masks.t()
    negative = F.softplus(logits) @ (1 - masks).t()
    return (positive + negative) / logits.shape[1]


def pairwise_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss of every pair: logits (Q, N), masks (G, N) -> (Q, G)."""
    p = logits.sigmoid()
    return 1 - (2 * p @ masks.t() + 1) / (p.sum(1)[:, None] + masks.sum(1)[None] + 1)


@TASK_UTILS.register_module()
class QueryClassificationCost:
    """Minus the probability of the instance's class.

    Args:
        weight: of the cost.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, cls_preds: Tensor, logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        return -self.weight * cls_preds.softmax(-1)[:, labels]


@TASK_UTILS.register_module()
class MaskBCECost:
    """Mean binary cross entropy of the masks.

    Args:
        weight: of the cost.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, cls_preds: Tensor, logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        return self.weight * pairwise_bce(logits, masks)


@TASK_UTILS.register_module()
class MaskDiceCost:
    """Dice loss of the masks.

    Args:
        weight: of the cost.
    """

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, cls_preds: Tensor, logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        return self.weight * pairwise_dice(logits, masks)


@TASK_UTILS.register_module()
class SparseMatcher:
    """Each instance takes the cheapest of the queries that lie on it; a query may be taken by several.

    Args:
        costs: configs of the costs.
        topk: queries an instance takes.
    """

    def __init__(self, costs, topk: int = 1):
        self.costs = [TASK_UTILS.build(cost) for cost in costs]
        self.topk = topk

    @torch.no_grad()
    def __call__(self, cls_preds: Tensor, logits: Tensor, targets: InstanceTargets, mode: str) -> tuple[Tensor, Tensor]:
        """Matched (query, instance) indices, (M,) int64 each.

        An instance stays alone where no query lies on it, or where its cheapest query is not the only cheapest one.
        """
        labels, masks = targets.labels, targets.masks(mode)
        if len(labels) == 0 or len(cls_preds) <= self.topk:
            return labels.new_zeros(0), labels.new_zeros(0)
        cls_preds, logits, masks = cls_preds.float(), logits.float(), masks.float()
        # an instance that the frame does not show may have any label
        labels = labels.clamp(0, cls_preds.shape[1] - 1)
        cost = sum(each(cls_preds, logits, labels, masks) for each in self.costs)
        cost = torch.where(targets.query_masks.t(), cost, _FORBIDDEN)
        limit = cost.topk(self.topk + 1, 0, largest=False).values[-1]
        query, instance = ((cost < limit) & (cost < _FORBIDDEN)).nonzero().unbind(1)
        return query, instance


@MODELS.register_module()
class MixedInstanceCriterion(nn.Module):
    """Loss of the instances, summed over the prediction stages.

    Args:
        matcher: config.
        loss_weight: of classification, mask cross entropy, mask dice, mask quality, box.
        num_classes: instance classes, without "no object".
        non_object_weight: class weight of "no object".
        bbox_loss: config, default mmdet3d's AxisAlignedIoULoss; needed only where boxes are predicted.
        fix_dice_loss_weight, fix_mean_loss, iter_matcher: accepted as True, the published form.
        dice_weight_mode: 'published': the dice loss counts 4 times its mean in the last stage and 4 / batch size
            times in the others (so that small batches keep its weight); 'mean': the plain mean in all.
    """

    def __init__(
        self,
        matcher: dict,
        loss_weight=(0.5, 1.0, 1.0, 0.5, 0.5),
        num_classes: int = 1,
        non_object_weight: float = 0.1,
        bbox_loss: dict | None = None,
        fix_dice_loss_weight: bool = True,
        iter_matcher: bool = True,
        fix_mean_loss: bool = True,
        dice_weight_mode: str = 'published',
    ):
        super().__init__()
        for name, value in dict(
            fix_dice_loss_weight=fix_dice_loss_weight, iter_matcher=iter_matcher, fix_mean_loss=fix_mean_loss
        ).items():
            if not value:
                raise ConfigError(f'MixedInstanceCriterion.{name} is False, only True is supported')
        if dice_weight_mode not in ('published', 'mean'):
            raise ConfigError(
                f"MixedInstanceCriterion.dice_weight_mode: 'published' or 'mean', not {dice_weight_mode!r}"
            )
        weights = list(loss_weight)
        if len(weights) not in (4, 5):
            raise ConfigError(f'MixedInstanceCriterion.loss_weight: 5 numbers are expected, found {len(weights)}')
        self.loss_weight = [*weights, 0.5][:5]
        self.matcher = TASK_UTILS.build(matcher)
        self.num_classes = num_classes
        self.dice_weight_mode = dice_weight_mode
        self.bbox_loss = MODELS.build(bbox_loss or dict(type='AxisAlignedIoULoss'))
        self.register_buffer('class_weight', torch.tensor([1.0] * num_classes + [non_object_weight]), persistent=False)

    def forward(self, predictions: Predictions, targets: list[InstanceTargets]) -> dict:
        """``{'inst_loss': scalar}``."""
        total = self.stage_loss(predictions, targets, final=True)
        for stage in predictions.aux:
            total = total + self.stage_loss(stage, targets, final=False)
        return dict(inst_loss=total)

    def match(self, predictions: Predictions, targets: list[InstanceTargets]) -> list[tuple[Tensor, Tensor]]:
        """Matched (query, instance) indices of each sample, for one stage."""
        return [
            self.matcher(cls, masks, target, predictions.mask_mode)
            for cls, masks, target in zip(predictions.cls_preds, predictions.masks, targets)
        ]

    def stage_loss(self, stage: Predictions, targets: list[InstanceTargets], final: bool) -> Tensor:
        """Weighted sum of the losses of one stage; every prediction of the stage gets a gradient, if only zero."""
        matches = self.match(stage, targets)
        terms = dict(cls=[], bce=[], dice=[], score=[], box=[])
        idle = stage.masks[0].new_zeros((), dtype=torch.float32)
        for i, (target, (query, instance)) in enumerate(zip(targets, matches)):
            cls, logits = stage.cls_preds[i].float(), stage.masks[i].float()
            classes = torch.full((len(cls),), self.num_classes, device=cls.device)
            classes[query] = target.labels[instance]
            if len(cls):
                terms['cls'].append(F.cross_entropy(cls, classes, self.class_weight.to(cls)))
            for unused in (cls, logits, *(x[i].float() for x in (stage.bboxes, stage.scores) if x is not None)):
                idle = idle + unused.sum() * 0
            if len(query) == 0:
                continue
            logits, masks = logits[query], target.masks(stage.mask_mode)[instance].float()
            terms['bce'].append(F.binary_cross_entropy_with_logits(logits, masks))
            p = logits.sigmoid()
            dice = 1 - (2 * (p * masks).sum(1) + 1) / (p.sum(1) + masks.sum(1) + 1)
            terms['dice'].append(dice.mean())
            if stage.scores is not None:
                terms['score'].append(self._score_loss(stage.scores[i][query].float(), logits.detach(), masks))
            if stage.bboxes is not None and target.boxes is not None:
                box = stage.bboxes[i][query].float()
                corners = box_corners(target.centers[query], box)
                terms['box'].append(self.bbox_loss(corners[None], target.boxes[instance][None].float()))
        dice_scale = 1.0
        if self.dice_weight_mode == 'published':
            dice_scale = 4.0 if final else 4.0 / len(targets)
        weights = [w * (dice_scale if name == 'dice' else 1) for name, w in zip(terms, self.loss_weight)]
        return idle + sum(w * torch.stack(values).mean() for w, values in zip(weights, terms.values()) if values)

    @staticmethod
    def _score_loss(scores: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
        found = logits > 0
        both = (found & (masks > 0.5)).sum(1).float()
        iou = both / (found.sum(1) + masks.sum(1) - both).clamp(min=1)
        good = iou > 0.5
        return F.mse_loss(scores[good, 0], iou[good]) if good.any() else scores.sum() * 0


@MODELS.register_module()
class ScanNetSemanticCriterion(nn.Module):
    """Cross entropy of the queries' semantic classes.

    Args:
        ignore_index: class that does not count; the logits of the classes below it do.
        loss_weight: of the loss.
    """

    def __init__(self, ignore_index: int, loss_weight: float):
        super().__init__()
        self.ignore_index, self.loss_weight = ignore_index, loss_weight

    def forward(self, predictions: Predictions, targets: list[InstanceTargets]) -> dict:
        """``{'seg_loss': scalar}``."""
        losses = []
        for logits, target in zip(predictions.sem_preds, targets):
            logits = logits[:, : self.ignore_index].float()
            counted = (target.semantic != self.ignore_index).sum()
            total = F.cross_entropy(logits, target.semantic, ignore_index=self.ignore_index, reduction='sum')
            losses.append(total / counted.clamp(min=1))
        return dict(seg_loss=self.loss_weight * torch.stack(losses).mean())


@MODELS.register_module()
class ScanNetMixedCriterion(nn.Module):
    """Semantic and instance losses.

    Args:
        num_semantic_classes: classes of the semantic labels.
        sem_criterion, inst_criterion: configs.
    """

    def __init__(self, num_semantic_classes: int, sem_criterion: dict, inst_criterion: dict):
        super().__init__()
        self.num_semantic_classes = num_semantic_classes
        self.sem_criterion = MODELS.build(sem_criterion)
        self.inst_criterion = MODELS.build(inst_criterion)

    def forward(self, predictions: Predictions, targets: list[InstanceTargets]) -> dict:
        """``{'seg_loss', 'inst_loss'}``."""
        return {**self.sem_criterion(predictions, targets), **self.inst_criterion(predictions, targets)}


@MODELS.register_module()
class ScanNetMergeCriterion_Fast(nn.Module):
    """Contrastive loss of merge features: an instance is nearest to itself in the next frame, and in the one before.

    Args:
        tmp: the loss between neighbouring frames.
        p2s: accepted as False; the loss to a pooled centre was switched off in every published config.
        tmp_weight, tau: weight and temperature.
    """

    def __init__(
        self, tmp: bool = True, p2s: bool = False, tmp_weight: float = 2.0, tau: float = 0.07, p2s_weight: float = 2.0
    ):
        super().__init__()
        if p2s or not tmp:
            raise ConfigError('ScanNetMergeCriterion_Fast: only tmp=True with p2s=False is supported')
        self.weight, self.tau = tmp_weight, tau

    def forward(self, features: list[list[Tensor]], owners: list[list[Tensor]]) -> dict:
        """``{'merge_loss_tmp': scalar}``.

        Args:
            features: for each sample, for each frame, (Q, C) merge features.
            owners: likewise (I, Q) bool: the queries of each instance, instances numbered alike in all frames.
        """
        losses = []
        for sample_features, sample_owners in zip(features, owners):
            centres = [_centres(x.float(), own) for x, own in zip(sample_features, sample_owners)]
            loss = sum(x.float().sum() * 0 for x in sample_features)
            for now, later in itertools.pairwise(centres):
                loss = loss + self._direction(now, later) + self._direction(later, now)
            losses.append(loss)
        return dict(merge_loss_tmp=self.weight * torch.stack(losses).mean())

    def _direction(self, a: Tensor, b: Tensor) -> Tensor:
        logits = a @ b.t() / self.tau
        rows = (logits.diagonal() != 0).nonzero().flatten()
        if len(rows) == 0:
            return logits.sum() * 0
        # an instance that a frame does not show has no centre
        logits = logits[rows].masked_fill(logits[rows] == 0, -torch.inf)
        return F.cross_entropy(logits, rows)


def _centres(features: Tensor, owners: Tensor) -> Tensor:
    owners = owners.float()
    return owners @ features / owners.sum(1, keepdim=True).clamp(min=1)
