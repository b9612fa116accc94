"""Occupancy losses over supervised voxels only.

A supervised voxel is one inside the training mask (all voxels without one) whose label is not the ignore label. Labels
and masks may live on a grid that is an integer multiple of the logits' grid; the loss then equals that of the logits
repeated to the fine grid, and is computed from the number of fine voxels of each class in each cell, so that neither
fine logits nor fine weights are ever made.
"""

from typing import NamedTuple

import torch
from mmdet3d.registry import MODELS
from torch import nn
from torch.nn import functional as F

from ...engine.dist import reduce_mean_count
from ...errors import ConfigError, DataError

# fine voxels that the counting looks at in one go (their keys take 8 bytes each)
_SLAB = 1 << 21


class OccTargets(NamedTuple):
    """What the logits of a batch are compared with.

    Attributes:
        index: (V,) int64 positions of the supervised voxels in the flattened (B, X, Y, Z) grid of the logits.
        labels: (V,) int64 classes, or (V, classes) float32 numbers of fine voxels of each class in the cell.
        weight: (V,) float32 inverse of the probability with which the voxel was drawn, or None (all were taken).
        class_counts: (classes,) float64 supervised voxels of each class before the drawing.
        sample: (V,) int64 sample in the batch.
        batch_size: samples in the batch.
    """

    index: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor | None
    class_counts: torch.Tensor
    sample: torch.Tensor
    batch_size: int


def _ratio(shape, grid, what: str) -> tuple:
    shape, grid = tuple(shape), tuple(grid)
    if len(shape) != 3 or any(fine % coarse for fine, coarse in zip(shape, grid)) or min(shape) == 0:
        raise DataError(f"{what} has the grid {shape}, expected the logits' grid {grid} or an integer multiple of it")
    return tuple(fine // coarse for fine, coarse in zip(shape, grid))


def _expand(volume, factors):
    for dim, factor in enumerate(factors):
        if factor > 1:
            volume = volume.repeat_interleave(factor, dim=dim)
    return volume


def cell_class_counts(semantics, mask, grid, num_classes: int, ignore_index: int = 255) -> torch.Tensor:
    """Count the supervised fine voxels of each class in each cell of a coarse grid.

    Args:
        semantics: (X', Y', Z') integer labels; each side an integer multiple of ``grid``'s.
        mask: (X'', Y'', Z'') supervised or not, a multiple of ``grid`` too, or None (all). Where one of the two is
            coarser than the other along an axis it holds for all the finer voxels inside.
        grid: (X, Y, Z) of the logits.
        num_classes: labels are 0 ... num_classes - 1 or ``ignore_index``.

    Returns:
        (X*Y*Z, num_classes) int32.

    Raises:
        DataError: a side is no integer multiple, or a label is unknown.
    """
    ratio = _ratio(semantics.shape, grid, 'semantics')
    mask_ratio = ratio if mask is None else _ratio(mask.shape, grid, 'the mask')
    fine = tuple(max(a, b) for a, b in zip(ratio, mask_ratio))
    if any(f % a or f % b for f, a, b in zip(fine, ratio, mask_ratio)):
        raise DataError(
            f'semantics {tuple(semantics.shape)} and mask {tuple(mask.shape)}: along each axis one must be an integer '
            'multiple of the other'
        )
    counts = torch.empty((grid[0], grid[1] * grid[2], num_classes), dtype=torch.int32, device=semantics.device)
    y = torch.arange(grid[1] * fine[1], device=semantics.device) // fine[1]
    z = torch.arange(grid[2] * fine[2], device=semantics.device) // fine[2]
    cell = (y[:, None] * grid[2] + z)[None]  # (1, Y', Z')
    step = max(1, _SLAB // (fine[0] * cell.numel()))
    for start in range(0, grid[0], step):
        stop = min(start + step, grid[0])
        labels = semantics[start * ratio[0] : stop * ratio[0]]
        labels = _expand(labels, [f // r for f, r in zip(fine, ratio)]).long()
        taken = labels != ignore_index
        if mask is not None:
            inside = mask[start * mask_ratio[0] : stop * mask_ratio[0]]
            taken &= _expand(inside, [f // r for f, r in zip(fine, mask_ratio)]).bool()
        x = torch.arange(stop - start, device=semantics.device).repeat_interleave(fine[0])
        cells = (x[:, None, None] * (grid[1] * grid[2]) + cell)[taken]
        labels = labels[taken]
        _check_labels(labels, num_classes, ignore_index)
        size = (stop - start) * grid[1] * grid[2]
        histogram = torch.bincount(cells * num_classes + labels, minlength=size * num_classes)
        counts[start:stop] = histogram.view(stop - start, -1, num_classes).int()
    return counts.view(-1, num_classes)


def _check_labels(labels, num_classes, ignore_index):
    if labels.numel() and int(labels.max()) >= num_classes:
        raise DataError(
            f'semantics holds the label {int(labels.max())}, expected 0 to {num_classes - 1} or {ignore_index} (ignore)'
        )


def lovasz_softmax(probability, labels, weight=None, skip: int | None = None):
    """Lovasz-softmax loss of one sample, the mean over the classes that occur in its labels.

    Source: Berman, Triki and Blaschko, "The Lovasz-Softmax loss", CVPR 2018. mmseg's version has no weights; here each
    voxel may stand for ``weight`` voxels of which it was drawn.

    Args:
        probability: (V, C); labels: (V,) int64; weight: (V,) or None; skip: class to leave out.
    """
    hot = F.one_hot(labels, probability.shape[1]).to(probability.dtype)
    present = hot.sum(dim=0) > 0
    if skip is not None:
        present[skip] = False
    classes = present.nonzero().squeeze(1)
    if classes.numel() == 0:
        return probability.sum() * 0.0
    hot = hot[:, classes].t()
    errors = (hot - probability[:, classes].t()).abs()
    errors, order = errors.contiguous().sort(dim=1, descending=True)  # a class's errors side by side: faster
    mass = torch.ones_like(probability[:, 0]) if weight is None else weight
    foreground = hot.gather(1, order) * mass[order]
    background = mass[order] - foreground
    total = foreground.sum(dim=1, keepdim=True)
    union = total + background.cumsum(dim=1)
    jaccard = 1.0 - (total - foreground.cumsum(dim=1)) / union
    steps = torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(classes), 1))
    return (errors * steps).sum(dim=1).mean()


@MODELS.register_module()
class OccupancyLoss(nn.Module):
    """Cross entropy over supervised voxels, with optional class weights, drawing of voxels and Lovasz-softmax.

    Without options it is the published FusionOcc loss: with a mask ``sum of masked cross entropies / (masked voxels +
    eps)``, without one the mean over all voxels. The normaliser counts the voxels of all processes.

    Args:
        loss_weight: factor of the cross entropy.
        num_classes: classes, "free" included.
        class_weight: one factor a class, or None. The normaliser is then the supervised voxels' sum of factors.
        ignore_index: label that is never supervised.
        free_index: the class "free".
        free_keep: share of the free voxels that a training step looks at; each counts 1 / share times, so the loss's
            expectation does not change. The draw depends on ``sample_seed`` alone.
        near_free_keep: the share for free voxels that touch (26 neighbours) a voxel that is not free; default
            ``free_keep``.
        lovasz_weight: factor of the Lovasz-softmax term, 0 leaves it out.
        lovasz_samples: voxels a sample that this term looks at, the rest is drawn away; None takes all.
    """

    def __init__(
        self,
        loss_weight=1.0,
        num_classes=18,
        class_weight=None,
        ignore_index=255,
        free_index=17,
        free_keep=1.0,
        near_free_keep=None,
        lovasz_weight=0.0,
        lovasz_samples=None,
    ):
        super().__init__()
        if class_weight is not None and len(class_weight) != num_classes:
            raise ConfigError(f'loss_occ.class_weight has {len(class_weight)} entries, expected {num_classes}')
        near_free_keep = free_keep if near_free_keep is None else near_free_keep
        for name, share in (('free_keep', free_keep), ('near_free_keep', near_free_keep)):
            if not 0 < share <= 1:
                raise ConfigError(f'loss_occ.{name} is {share}, expected a share in (0, 1]')
        self.loss_weight, self.lovasz_weight = loss_weight, lovasz_weight
        self.num_classes, self.ignore_index, self.free_index = num_classes, ignore_index, free_index
        self.free_keep, self.near_free_keep = free_keep, near_free_keep
        self.lovasz_samples = lovasz_samples
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer('class_weight', weight, persistent=False)

    def targets(self, semantics, mask, grid, sample_seed=None) -> OccTargets:
        """Choose the supervised voxels of a batch.

        Args:
            semantics: (B, X', Y', Z') integer labels on the logits' grid or an integer multiple of it.
            mask: the same or (X'', Y'', Z'') for all samples, True where supervised, or None.
            grid: (X, Y, Z) of the logits.
            sample_seed: (B,) seeds of the draws; None draws from torch's global generator.

        Raises:
            DataError: wrong grid or unknown label.
        """
        batch = len(semantics)
        if mask is not None and len(mask) != batch and mask.ndim == 4:
            raise DataError(f'the mask is for {len(mask)} samples, semantics for {batch}')
        masks = [mask if mask is None or mask.ndim == 3 else mask[i] for i in range(batch)]
        return self._targets(list(zip(semantics, masks)), grid, sample_seed)

    def count_targets(self, tables, grid, sample_seed=None) -> OccTargets:
        """``targets`` where the supervised fine voxels have been counted before.

        Args:
            tables: B tensors (X*Y*Z, num_classes) of integers, fine voxels of each class in each cell.
            grid, sample_seed: see ``targets``.
        """
        return self._targets([(None, None, table) for table in tables], grid, sample_seed)

    def _targets(self, samples, grid, sample_seed):
        cells = grid[0] * grid[1] * grid[2]
        index, labels, weight, sample = [], [], [], []
        class_counts = 0
        for i, label in enumerate(samples):
            seed = None if sample_seed is None else int(sample_seed[i])
            chosen, own_labels, counts, own_weight = self._sample_targets(grid, seed, *label)
            class_counts = class_counts + counts
            index.append(chosen + i * cells)
            labels.append(own_labels)
            weight.append(own_weight)
            sample.append(torch.full_like(chosen, i))
        weight = None if weight[0] is None else torch.cat(weight)
        return OccTargets(torch.cat(index), torch.cat(labels), weight, class_counts, torch.cat(sample), len(samples))

    def _sample_targets(self, grid, seed, semantics, mask, table=None):
        same_grid = table is None and all(part is None or part.shape == tuple(grid) for part in (semantics, mask))
        if same_grid:
            flat = semantics.flatten()
            supervised = flat != self.ignore_index
            if mask is not None:
                supervised &= mask.flatten().bool()
            free = flat == self.free_index
        else:
            if table is None:
                table = cell_class_counts(semantics, mask, grid, self.num_classes, self.ignore_index)
            number = table.sum(dim=1)
            supervised = number > 0
            free = table[:, self.free_index] == number
        if same_grid:
            counts = torch.bincount(flat[supervised].int(), minlength=self.num_classes)
            if len(counts) > self.num_classes:
                _check_labels(flat[supervised], self.num_classes, self.ignore_index)
        else:
            counts = table.sum(dim=0)
        weight = None
        if self.free_keep < 1 or self.near_free_keep < 1:
            share = self._keep_share(free, grid)
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            draw = torch.rand(free.numel(), generator=generator).to(free.device)
            supervised = supervised & (draw < share)
            chosen = supervised.nonzero().squeeze(1)
            weight = 1.0 / share[chosen]
        else:
            chosen = supervised.nonzero().squeeze(1)
        labels = flat[chosen].long() if same_grid else table[chosen].float()
        return chosen, labels, counts.double(), weight

    def _keep_share(self, free, grid):
        """(X*Y*Z,) probability with which each voxel is looked at."""
        share = torch.where(free, self.free_keep, 1.0)
        if self.near_free_keep != self.free_keep:
            near = (~free).view(grid)
            for axis, length in enumerate(
                grid
            ):  # one axis after the other; booleans, a max pooling takes ten times as long
                grown = near.clone()
                grown.narrow(axis, 1, length - 1).logical_or_(near.narrow(axis, 0, length - 1))
                grown.narrow(axis, 0, length - 1).logical_or_(near.narrow(axis, 1, length - 1))
                near = grown
            share = torch.where(free & near.view(-1), self.near_free_keep, share)
        return share

    def forward(self, logits, targets: OccTargets, masked: bool) -> dict:
        """Losses of the supervised voxels.

        Args:
            logits: (V, classes) of the voxels ``targets.index``, in that order.
            targets: of ``targets``.
            masked: whether a mask chose the voxels (its normaliser has the published epsilon, so that an empty mask
                gives exactly 0).

        Returns:
            ``{'loss_occ': scalar}``, with ``'loss_lovasz'`` where asked for.
        """
        with torch.autocast(logits.device.type, enabled=False):
            log_probability = logits.float().log_softmax(dim=1)
            if targets.labels.ndim == 1:
                weight = self.class_weight
                loss = F.nll_loss(log_probability, targets.labels, weight, reduction='none')
                counts = targets.class_counts
            else:
                counts = targets.class_counts
                number = targets.labels if self.class_weight is None else targets.labels * self.class_weight
                loss = -(number * log_probability).sum(dim=1)
            if targets.weight is not None:
                loss = loss * targets.weight
            total = counts.sum() if self.class_weight is None else (counts * self.class_weight.double()).sum()
            if masked:
                total = total + torch.finfo(torch.float32).eps
            normaliser = reduce_mean_count(total, minimum=torch.finfo(torch.float32).tiny).to(loss.dtype)
            losses = dict(loss_occ=self.loss_weight * loss.sum() / normaliser)
            if self.lovasz_weight:
                losses['loss_lovasz'] = self.lovasz_weight * self._lovasz(log_probability, targets)
        return losses

    def _lovasz(self, log_probability, targets):
        """Mean over the samples, so that it does not depend on how samples are grouped in batches."""
        labels = targets.labels if targets.labels.ndim == 1 else targets.labels.argmax(dim=1)
        total = log_probability.sum() * 0.0
        for sample in range(targets.batch_size):
            chosen = (targets.sample == sample).nonzero().squeeze(1)
            weight = None if targets.weight is None else targets.weight[chosen]
            if self.lovasz_samples is not None and len(chosen) > self.lovasz_samples:
                # evenly spread over the drawn list, so a repeated step sees the same voxels
                picks = torch.linspace(0, len(chosen) - 1, self.lovasz_samples, device=chosen.device).long()
                chosen, weight = chosen[picks], None if weight is None else weight[picks]
            if len(chosen):
                total = total + lovasz_softmax(
                    log_probability.index_select(0, chosen).exp(), labels[chosen], weight, skip=self.free_index
                )
        return total / targets.batch_size
