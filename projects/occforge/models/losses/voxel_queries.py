"""Occupancy losses over lists of voxels whose logits never exist all at once.

A voxel query is whatever a classifier needs to know about a voxel: its features, or only its place in a feature
volume. The classifier and the cross entropy run over chunks of the list, and run again in the backward pass, so that
the memory is that of a chunk. With ``draw_fine_targets`` and ``fine_features`` the voxels may be those of a grid that
is too large for any dense tensor of classes, such as 1600 x 1600 x 128.
"""

import math
from collections.abc import Callable, Sequence

import torch
from mmdet3d.registry import MODELS
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...engine.dist import reduce_mean_count
from ...errors import ConfigError, DataError
from .occupancy import OccTargets, OccupancyLoss

# fine voxels that the drawing looks at in one go (a dozen bytes each)
_SLAB = 1 << 22


def chunked_cross_entropy(
    classify: Callable,
    queries: Sequence[torch.Tensor],
    labels: torch.Tensor,
    weight: torch.Tensor | None = None,
    class_weight: torch.Tensor | None = None,
    chunk_size: int = 1 << 17,
) -> torch.Tensor:
    """Sum of cross entropies over a list of voxels, in chunks.

    Equals ``F.cross_entropy(classify(*queries), labels, class_weight, reduction='none')``, each term times its weight,
    summed; value and gradients. Peak memory is that of ``chunk_size`` voxels besides the queries and their gradients.

    Args:
        classify: function of as many tensors (v, ...) as there are queries; (v, classes) logits. Called twice a chunk
            when training (random numbers repeat); it must not mix voxels (no batch statistics).
        queries: tensors (V, ...) of the same V.
        labels: (V,) int64 classes, or (V, classes) float32 numbers of voxels of each class.
        weight: (V,) float32 factor of each voxel, or None.
        class_weight: (classes,) float32, or None.
        chunk_size: voxels a chunk.

    Returns:
        float32 scalar; 0 with zero gradients for an empty list.

    Raises:
        ValueError: queries, labels and weight of different lengths; ``chunk_size`` below 1.
    """
    lengths = {len(tensor) for tensor in (*queries, labels)} | (set() if weight is None else {len(weight)})
    if len(lengths) != 1 or not queries:
        raise ValueError(f'queries, labels and weight must be lists of the same voxels, found lengths {lengths}')
    if chunk_size < 1:
        raise ValueError(f'chunk_size must be at least 1, found {chunk_size}')

    def chunk_sum(labels, weight, *rows):
        logits = classify(*rows)
        with torch.autocast(logits.device.type, enabled=False):
            log_probability = logits.float().log_softmax(dim=1)
            if labels.ndim == 1:
                loss = F.nll_loss(log_probability, labels, class_weight, reduction='none')
            else:
                loss = -((labels if class_weight is None else labels * class_weight) * log_probability).sum(dim=1)
            return (loss if weight is None else loss * weight).sum()

    # split, not slices: its backward joins the parts, where every slice's would fill a tensor of the whole length
    parts = [tensor.split(chunk_size) for tensor in queries]
    weights = [None] * len(parts[0]) if weight is None else weight.split(chunk_size)
    total = torch.zeros((), device=labels.device)
    for chunk in zip(labels.split(chunk_size), weights, *parts):
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_sum, *chunk, use_reentrant=False)
        else:
            total = total + chunk_sum(*chunk)
    return total


@MODELS.register_module()
class ChunkedOccupancyLoss(OccupancyLoss):
    """``OccupancyLoss`` that also takes a classifier and voxel queries instead of logits.

    Args:
        chunk_size: voxels whose logits exist at a time.
        **kwargs: of ``OccupancyLoss``. The Lovasz-softmax term needs the logits of all its voxels at once, so it is
            taken over ``lovasz_samples`` of them.

    Raises:
        ConfigError: ``lovasz_weight`` without ``lovasz_samples``.
    """

    def __init__(self, chunk_size=1 << 17, **kwargs):
        super().__init__(**kwargs)
        if self.lovasz_weight and self.lovasz_samples is None:
            raise ConfigError('loss_occ.lovasz_samples is None, expected a number: chunks cannot be sorted together')
        self.chunk_size = chunk_size

    def forward_queries(self, classify, queries, targets: OccTargets, masked: bool) -> dict:
        """What ``forward(classify(*queries), targets, masked)`` returns.

        Args:
            classify, queries: as in ``chunked_cross_entropy``, one row for each of ``targets.index``.
            targets: of ``targets`` or ``draw_fine_targets``.
            masked: whether a mask chose the voxels.
        """
        total = chunked_cross_entropy(
            classify, queries, targets.labels, targets.weight, self.class_weight, self.chunk_size
        )
        counts = targets.class_counts
        number = counts.sum() if self.class_weight is None else (counts * self.class_weight.double()).sum()
        if masked:
            number = number + torch.finfo(torch.float32).eps
        number = reduce_mean_count(number, minimum=torch.finfo(torch.float32).tiny).to(total.dtype)
        losses = dict(loss_occ=self.loss_weight * total / number)
        if self.lovasz_weight:
            picks = self._lovasz_picks(targets)
            chosen = targets._replace(
                index=targets.index[picks],
                labels=targets.labels[picks],
                weight=None if targets.weight is None else targets.weight[picks],
                sample=targets.sample[picks],
            )
            logits = classify(*(tensor[picks] for tensor in queries))
            with torch.autocast(logits.device.type, enabled=False):
                losses['loss_lovasz'] = self.lovasz_weight * self._lovasz(logits.float().log_softmax(dim=1), chosen)
        return losses

    def _lovasz_picks(self, targets):
        """The rows that ``_lovasz`` would take: evenly spread over those of each sample."""
        picks = []
        for sample in range(targets.batch_size):
            chosen = (targets.sample == sample).nonzero().squeeze(1)
            if len(chosen) > self.lovasz_samples:
                even = torch.linspace(0, len(chosen) - 1, self.lovasz_samples, device=chosen.device).long()
                chosen = chosen[even]
            picks.append(chosen)
        return torch.cat(picks)


def draw_fine_targets(
    semantics: torch.Tensor,
    mask: torch.Tensor | None,
    budget: int,
    num_classes: int = 18,
    free_index: int = 17,
    ignore_index: int = 255,
    sample_seed: Sequence[int] | None = None,
) -> OccTargets:
    """Draw supervised voxels of a fine grid, without a dense tensor beyond the labels themselves.

    Of each sample about ``budget`` voxels are taken: up to half of them (or all there are) not free, the rest free.
    Each counts 1 / probability times, so that the expectation of the loss is that over all supervised voxels.

    Args:
        semantics: (B, X, Y, Z) uint8 labels on the fine grid.
        mask: bool or uint8, supervised or not: (B, X / a, Y / b, Z / c) for whole numbers a, b, c, the same without B
            for all samples, or None (all).
        budget: expected number of voxels a sample.
        num_classes: labels are 0 ... num_classes - 1 or ``ignore_index`` (never supervised).
        free_index: the class "free".
        sample_seed: (B,) seeds of the draws; None draws from torch's global generator.

    Returns:
        OccTargets whose ``index`` counts through (B, X, Y, Z); ``class_counts`` before the drawing.

    Raises:
        DataError: the labels' grid is no multiple of the mask's, or a label is unknown.
        ValueError: ``budget`` below 1, labels that are not uint8.

    Runs on the CPU or the GPU where ``semantics`` is; the draws are made on the CPU and are the same on both.
    """
    if budget < 1:
        raise ValueError(f'budget must be at least 1, found {budget}')
    if semantics.dtype != torch.uint8:
        raise ValueError(f'semantics must be uint8, found {semantics.dtype}')
    batch, shape = len(semantics), tuple(semantics.shape[1:])
    if mask is not None and mask.ndim == 3:
        mask = mask.expand(batch, *mask.shape)
    if mask is not None and (len(mask) != batch or any(m == 0 or n % m for n, m in zip(shape, mask.shape[1:]))):
        raise DataError(
            f'the mask has the shape {tuple(mask.shape)}, expected {batch} samples whose grid divides that of the '
            f'labels, {shape}'
        )
    columns = {name: [] for name in ('index', 'labels', 'weight', 'sample')}
    class_counts = torch.zeros(num_classes, dtype=torch.float64, device=semantics.device)
    for sample in range(batch):
        own, own_mask = semantics[sample], None if mask is None else mask[sample]
        counts = _supervised_counts(own, own_mask, ignore_index)
        unknown = counts[num_classes:].nonzero()
        if len(unknown):
            raise DataError(
                f'semantics holds the label {num_classes + int(unknown[-1])}, expected 0 to {num_classes - 1} or '
                f'{ignore_index} (ignore)'
            )
        counts = counts[:num_classes]
        class_counts += counts
        free = int(counts[free_index])
        other = int(counts.sum()) - free
        generator = None if sample_seed is None else torch.Generator().manual_seed(int(sample_seed[sample]))
        for number, rest, is_free in ((free, other, True), (other, free, False)):
            share = min(1.0, max(budget / 2, budget - rest) / max(number, 1))
            if number == 0:
                continue
            for start, slab in _slabs(own, own_mask):
                place = _bernoulli(slab.numel(), share, generator).to(slab.device)
                labels = slab.flatten()[place]
                kept = (labels == free_index) if is_free else (labels != free_index) & (labels != ignore_index)
                place, labels = place[kept] + start * shape[1] * shape[2], labels[kept]
                if own_mask is not None:
                    inside = _mask_at(own_mask, place, shape)
                    place, labels = place[inside], labels[inside]
                columns['index'].append(place + sample * own.numel())
                columns['labels'].append(labels.long())
                columns['weight'].append(torch.full(place.shape, 1 / share, device=place.device))
                columns['sample'].append(torch.full_like(place, sample))
    empty = dict.fromkeys(columns, torch.zeros(0, dtype=torch.int64, device=semantics.device))
    empty['weight'] = class_counts.new_zeros(0, dtype=torch.float32)
    joined = {name: torch.cat([empty[name], *parts]) for name, parts in columns.items()}
    order = joined['index'].argsort()
    joined = {name: column[order] for name, column in joined.items()}
    return OccTargets(**joined, class_counts=class_counts, batch_size=batch)


def _slabs(semantics, mask):
    """``(first x, labels)`` of parts with not too many fine voxels, cut between cells of the mask."""
    step = 1 if mask is None else semantics.shape[0] // mask.shape[0]
    planes = max(1, _SLAB // max(1, semantics[0].numel()) // step) * step
    for start in range(0, semantics.shape[0], planes):
        yield start, semantics[start : start + planes]


def _supervised_counts(semantics, mask, ignore_index):
    """(256,) int64 supervised voxels of each label of one sample; none of ``ignore_index``."""
    counts = torch.zeros(256, dtype=torch.int64, device=semantics.device)
    for start, slab in _slabs(semantics, mask):
        if mask is not None:
            ratio = [fine // coarse for fine, coarse in zip(semantics.shape, mask.shape)]
            inside = mask[start // ratio[0] : (start + len(slab)) // ratio[0]].bool()
            for dim, factor in enumerate(ratio):
                inside = inside.repeat_interleave(factor, dim=dim) if factor > 1 else inside
            slab = torch.where(inside, slab, ignore_index)
        counts += slab.flatten().bincount(minlength=256)
    counts[ignore_index] = 0
    return counts


def _mask_at(mask, place, shape):
    """Whether voxels, counted through a fine grid of this shape, are inside the mask."""
    coarse = [i // (fine // own) for i, fine, own in zip(torch.unravel_index(place, shape), shape, mask.shape)]
    return mask[tuple(coarse)].bool()


def _bernoulli(total: int, share: float, generator) -> torch.Tensor:
    """Numbers below ``total``, ascending, each in with probability ``share``; the work is that of what comes out.

    The gaps between successes of independent trials are geometric.
    """
    if share >= 1:
        return torch.arange(total)
    parts, last = [], -1
    while last < total - 1:
        count = int(share * total + 6 * math.sqrt(share * total)) + 16
        uniform = torch.rand(count, dtype=torch.float64, generator=generator)
        gaps = (uniform.neg_().log1p_() / math.log1p(-share)).clamp_(max=total).long() + 1
        places = last + gaps.cumsum(0)
        parts.append(places[places < total])
        last = int(places[-1])
    return torch.cat(parts)


def fine_features(volume: torch.Tensor, index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Features of voxels of a fine grid: the trilinear interpolation of a coarse volume at their centres.

    Args:
        volume: (B, C, Z, Y, X) features.
        index: (V,) int64 voxels, counted through the fine grid (B, X', Y', Z').
        shape: (X', Y', Z'), each an integer multiple of the volume's side. Both grids cover the same box.

    Returns:
        (V, C) of the volume's dtype. Beyond the outermost centres of the volume the nearest one's value holds.

    Raises:
        ValueError: a side is no multiple.

    Differentiable in ``volume``.
    """
    sides = volume.shape[:1:-1]  # X, Y, Z
    if len(shape) != 3 or any(fine % coarse for fine, coarse in zip(shape, sides)):
        raise ValueError(f"shape must be a multiple of the volume's grid {tuple(sides)}, found {tuple(shape)}")
    sample, x, y, z = torch.unravel_index(index, (len(volume), *shape))
    # grid_sample's coordinates: -1 and 1 are the outer faces of the box, so the ratio of the grids drops out
    at = [(2 * i + 1).to(volume.dtype) / n - 1 for i, n in zip((x, y, z), shape)]
    at = torch.stack(at, dim=1)
    out = volume.new_zeros(len(index), volume.shape[1])
    for number in sample.unique().tolist():
        rows = (sample == number).nonzero().squeeze(1)
        grid = at[rows].view(1, 1, 1, -1, 3)
        found = F.grid_sample(volume[number : number + 1], grid, 'bilinear', 'border', align_corners=False)
        out = out.index_copy(0, rows, found[0, :, 0, 0].t())
    return out
