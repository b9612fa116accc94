"""Mean IoU of occupancy under the Occ3D protocol, for all three masks in one pass."""

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import METRICS
from terminaltables import AsciiTable

from occforge.datasets.occ3d import FREE, POINT_CLOUD_RANGE
from occforge.errors import ConfigError, DataError
from occforge.fileio import atomic_write
from occforge.ops import confusion_matrix

from .ranges import RANGE_EDGES, column_rings, range_names
from .results import Number, percent, results_document
from .streamed import StreamedMetric, check_labels, labels_of, whole_factors

MASKS = ('no_mask', 'camera_mask', 'lidar_mask')
EVAL_MASKS = {'none': 'no_mask', 'camera': 'camera_mask', 'lidar': 'lidar_mask'}


def masked_confusions(pred, target, mask_camera, mask_lidar, num_classes: int, ring=None, rings: int = 1):
    """The confusion matrices of one sample under all three masks.

    Args:
        pred: (X, Y, Z) integer tensor, 0..num_classes-1.
        target: (X, Y, Z) integer tensor; labels outside 0..num_classes-1 are left out. It and the masks may also be
            finer by a whole factor per axis, (rX, sY, tZ): a prediction then holds for its r x s x t fine voxels.
        mask_camera, mask_lidar: (X, Y, Z) bool tensors (of the target's shape, or coarser by a whole factor per axis).
        num_classes: classes, free included.
        ring: (X, Y) uint8 of the target's columns, 0..rings-1: counted apart. None: not.
        rings: number of rings.

    Returns:
        (3, num_classes, num_classes) int64 in the order of MASKS; rows: target, columns: prediction. With ``ring``
        (rings, 3, num_classes, num_classes).

    Raises:
        DataError: shapes do not fit, or a prediction is outside its range.
    """
    check_labels(pred, num_classes)
    fine = tuple(target.shape)
    factors = dict(pred=whole_factors(pred, target))
    for name, mask in (('mask_camera', mask_camera), ('mask_lidar', mask_lidar)):
        factors[name] = whole_factors(mask, target, name)
    # Ring and masks go into the row, the masks as two bits, so that one count serves all; a slab of x at a time bounds
    # memory.
    block = 4 * num_classes
    rows = block * (1 if ring is None else rings)
    row_type = torch.uint8 if rows < 256 else torch.int64
    total = torch.zeros(rows, num_classes, dtype=torch.int64, device=pred.device)
    slab = math.lcm(*(own[0] for own in factors.values()))  # ends between voxels of all
    slab *= max(1, (1 << 21) // max(1, slab * math.prod(fine[1:])))

    def planes(values, name, start):
        own = factors[name]
        values = values[start // own[0] : (start + slab) // own[0]]
        for axis, factor in enumerate(own):
            if factor > 1:
                values = values.repeat_interleave(factor, dim=axis)
        return values

    for start in range(0, fine[0], slab):
        here = slice(start, start + slab)
        predicted = planes(pred, 'pred', start)
        labels = target[here]
        camera, lidar = (planes(m, n, start) for m, n in ((mask_camera, 'mask_camera'), (mask_lidar, 'mask_lidar')))
        bits = (camera != 0).to(row_type) + 2 * (lidar != 0).to(row_type)
        row = bits * num_classes + labels.to(row_type)
        if ring is not None:
            row += (ring[here].to(row_type) * block)[:, :, None]
        row.masked_fill_((labels < 0) | (labels >= num_classes), rows)  # out of range: not counted
        total += confusion_matrix(predicted.contiguous(), row, rows)[:, :num_classes]
    matrices = _by_mask(total.unflatten(0, (-1, 4, num_classes)))
    return matrices[0] if ring is None else matrices


def _by_mask(by_bits):
    """(rings, 4, classes, classes), 4 combinations camera + 2 * LiDAR -> (rings, 3, ...) in the order of MASKS."""
    return torch.stack([by_bits.sum(1), by_bits[:, 1] + by_bits[:, 3], by_bits[:, 2] + by_bits[:, 3]], 1)


def counted_confusions(pred, fine, num_classes: int, ring=None, rings: int = 1):
    """``masked_confusions`` from numbers of fine voxels by cell, class and mask.

    Args:
        pred: (X, Y, Z) integer tensor, 0..num_classes-1.
        fine: dict of tensors ``cells``, ``codes``, ``counts`` (M,), ``grid`` (3,), see
            ``occforge.datasets.fine_labels.CellCounts``.
        num_classes, rings: see ``masked_confusions``.
        ring: (X, Y) uint8 of the prediction's columns.

    Raises:
        DataError: the counts are by cells of another grid, or a prediction or class is outside its range.
    """
    check_labels(pred, num_classes)
    grid = tuple(int(side) for side in fine['grid'])
    if grid != tuple(pred.shape):
        raise DataError(f'the predicted semantics have shape {tuple(pred.shape)}, the labels are counted on {grid}')
    cells, codes, counts = (fine[name].to(pred.device).long() for name in ('cells', 'codes', 'counts'))
    if codes.numel() and int(codes.max()) >= 4 * num_classes:
        raise DataError(f'fine labels hold the class {int(codes.max()) >> 2}, expected 0..{num_classes - 1}')
    # codes are 4 * class + bits; rows of the result are bits, then class
    row = (codes & 3) * num_classes + (codes >> 2)
    if ring is not None:
        row += ring.long().flatten()[cells // grid[2]] * (4 * num_classes)
    total = torch.zeros(rings * 4 * num_classes * num_classes, dtype=torch.int64, device=pred.device)
    total.index_add_(0, row * num_classes + pred.flatten()[cells].long(), counts)
    matrices = _by_mask(total.view(rings, 4, num_classes, num_classes))
    return matrices[0] if ring is None else matrices


def iou_per_class(confusion) -> np.ndarray:
    """IoU of every class, (classes,) float64 in 0..1; nan for a class in neither target nor prediction.

    ``confusion`` (classes, classes): rows target, columns prediction.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion, free: int = FREE) -> float:
    """Mean IoU over the classes but free that occur, 0..1; nan if none does."""
    values = np.delete(iou_per_class(confusion), free)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')


def geometric_iou(confusion, free: int = FREE) -> float:
    """IoU of occupied against free, 0..1; nan if all is free in both."""
    confusion = np.asarray(confusion, dtype=np.float64)
    missed_or_false = np.delete(confusion[:, free], free).sum() + np.delete(confusion[free], free).sum()
    hits = np.delete(np.delete(confusion, free, 0), free, 1).sum()
    return float(hits / (hits + missed_or_false)) if hits + missed_or_false else float('nan')


@METRICS.register_module()
class OccupancyMetric(StreamedMetric):
    """mIoU and geometric IoU without a mask, under the camera mask and under the LiDAR mask, in one pass.

    Confusion matrices are summed sample by sample and then divided (never a mean of per-sample IoUs). mIoU is the mean
    over the 17 classes but free that occur in labels or predictions; absent classes are nan and named in the log.

    Results, in percent: ``mIoU/<mask>``, ``geo_IoU/<mask>``, both also as ``.../<mask>/<range>``,
    ``IoU/<mask>/<class>`` for the masks ``no_mask``, ``camera_mask``, ``lidar_mask``; ``mIoU``: that of ``eval_mask``.
    The same, classes by range, voxel counts, confusion matrices and the protocol go into the results file.

    Labels may be finer than the prediction by a whole factor per axis, and masks coarser than the labels: a prediction
    and a mask hold for all voxels inside. Where ``gt_occ.fine`` gives numbers of fine voxels by cell, class and mask
    (LoadFineOccGT) these are used, with the same result; ranges are then those of the prediction's columns.

    Source: the protocol of the CVPR 2023 occupancy challenge and Occ3D (Tian et al., NeurIPS 2023), which scores under
    the camera mask.

    Args:
        eval_mask: 'none', 'camera' or 'lidar': whose mIoU is called plain ``mIoU``. It has nothing to do with the
            mask of the training loss.
        class_names, free: names of all classes and the index of the free one, see StreamedMetric; default the data
            set's.
        point_cloud_range: metres, lower and upper corner of the label grid in the ego frame; for the ranges.
        range_edges: metres; rings around the ego vehicle for which results are given apart, the last one open.
        out_file: JSON file for this metric alone. Those of all metrics together go into ``results.json`` of the work
            dir (OutputFolderHook).
        dump_dir: folder for the predictions as ``<token>.npz`` with one uint8 array (X, Y, Z) named ``arr_0`` (the
            challenge's form). None: not written.
    """

    def __init__(
        self,
        eval_mask: str = 'none',
        class_names: Sequence[str] | None = None,
        free: int | None = None,
        point_cloud_range: Sequence[float] = POINT_CLOUD_RANGE,
        range_edges: Sequence[float] = RANGE_EDGES,
        dump_dir: str | None = None,
        **options,
    ):
        super().__init__(class_names, free, **options)
        if eval_mask not in EVAL_MASKS:
            raise ConfigError(f"OccupancyMetric field 'eval_mask' is {eval_mask!r}, expected one of {list(EVAL_MASKS)}")
        self.eval_mask = eval_mask
        self.point_cloud_range = tuple(point_cloud_range)
        self.range_edges = tuple(range_edges)
        self.range_names = range_names(self.range_edges)
        self.dump_dir = dump_dir

    @property
    def counts_shape(self) -> tuple:
        return len(self.range_edges), len(MASKS), len(self.class_names), len(self.class_names)

    def count(self, name: str, sample: dict) -> np.ndarray:
        pred = labels_of(sample, 'pred_occ', 'semantics')
        classes, rings = len(self.class_names), len(self.range_edges)
        if self.dump_dir is not None:
            write_prediction(self.dump_dir, name, pred)
        fine = (sample.get('gt_occ') or {}).get('fine')
        if fine is not None:
            fine = {key: fine.get(key) for key in ('cells', 'codes', 'counts', 'grid')}
            ring = column_rings(pred.shape, self.point_cloud_range, self.range_edges).to(pred.device)
            return counted_confusions(pred, fine, classes, ring, rings).cpu().numpy()
        target, camera, lidar = (
            labels_of(sample, 'gt_occ', field, pred.device) for field in ('semantics', 'mask_camera', 'mask_lidar')
        )
        ring = column_rings(target.shape, self.point_cloud_range, self.range_edges).to(pred.device)
        return masked_confusions(pred, target, camera, lidar, classes, ring, rings).cpu().numpy()

    def summarize(self, counts: np.ndarray, samples: int, size: int) -> tuple:
        """See StreamedMetric."""
        confusion = counts.sum(0)
        regions = [('all', '', confusion)]
        regions += [(name, f'/{name}', part) for name, part in zip(self.range_names, counts)]
        logged, numbers = [], []
        for mask_index, mask in enumerate(MASKS):
            for region, suffix, matrices in regions:
                matrix = matrices[mask_index]
                means = dict(mIoU=mean_iou(matrix, self.free), geo_IoU=geometric_iou(matrix, self.free))
                logged += [
                    Number(f'{quantity}/{mask}{suffix}', 100 * value, quantity, 'occ3d_miou', mask, region)
                    for quantity, value in means.items()
                ]
                per_class = [
                    Number(f'IoU/{mask}{suffix}/{name}', 100 * float(iou), 'IoU', 'occ3d_miou', mask, region, name)
                    for name, iou in zip(self.class_names, iou_per_class(matrix))
                ]
                (logged if region == 'all' else numbers).extend(per_class)
        mask = EVAL_MASKS[self.eval_mask]
        plain = next(number for number in logged if number.name == f'mIoU/{mask}')
        logged.append(plain._replace(name='mIoU'))
        metrics = {number.name: number.value for number in logged}
        absent = {mask: self._absent(metrics, mask) for mask in MASKS}
        document = results_document(
            logged + numbers,
            dict(
                occ3d_miou='IoU of voxels (Occ3D): confusion matrices summed over all samples; '
                'IoU = TP / (TP + FP + FN); mIoU: mean over the classes but free that occur in labels or predictions; '
                'geo_IoU: occupied against free; ranges: distance of a column from the ego origin in the ground plane; '
                'in percent; null: no such voxel'
            ),
            samples,
            size,
            self.class_names,
            eval_mask=self.eval_mask,
            masks=dict(
                no_mask='all voxels',
                camera_mask='voxels observed by a camera',
                lidar_mask='voxels observed by the LiDAR',
            ),
            absent_classes=absent,
            voxels={
                mask: dict(zip(self.class_names, confusion[m].sum(axis=1).tolist())) for m, mask in enumerate(MASKS)
            },
            confusion={mask: confusion[m].tolist() for m, mask in enumerate(MASKS)},
        )
        return metrics, document, self._text(metrics, confusion, absent, samples, size)

    def _text(self, metrics: dict, confusion: np.ndarray, absent: dict, samples: int, size: int) -> str:
        short = {'no_mask': 'no mask', 'camera_mask': 'camera mask', 'lidar_mask': 'LiDAR mask'}
        head = ['class', *(f'IoU, {short[m]}' for m in MASKS), *(f'voxels, {short[m]}' for m in MASKS)]
        voxels = confusion.sum(axis=2)
        rows = [
            [name]
            + [percent(metrics[f'IoU/{mask}/{name}']) for mask in MASKS]
            + [f'{voxels[m, c]:,}' for m in range(len(MASKS))]
            for c, name in enumerate(self.class_names)
        ]
        occupied = np.delete(voxels, self.free, axis=1).sum(axis=1)
        for suffix, title in (('', ''), *((f'/{name}', f', {name}') for name in self.range_names)):
            for label, key in (('mIoU', 'mIoU'), ('geometric IoU', 'geo_IoU')):
                counted = [f'{n:,}' for n in occupied] if not suffix else [''] * len(MASKS)
                rows.append([label + title, *(percent(metrics[f'{key}/{m}{suffix}']) for m in MASKS), *counted])
        table = AsciiTable([head, *rows], title=f'occupancy, {samples} of {size} samples, IoU in %')
        lines = ['', table.table, f"'mIoU' is that of eval_mask={self.eval_mask!r}; free is not in the mean"]
        lines += [
            f'{short[mask]}: not in the mean, because neither labels nor predictions hold them: {", ".join(names)}'
            for mask, names in absent.items()
            if names
        ]
        return '\n'.join(lines)

    def _absent(self, metrics: dict, mask: str) -> list:
        return [
            name
            for c, name in enumerate(self.class_names)
            if c != self.free and not np.isfinite(metrics[f'IoU/{mask}/{name}'])
        ]


def write_prediction(folder: str, name: str, semantics) -> None:
    """Write ``<folder>/<name>.npz`` with one uint8 array (X, Y, Z) named ``arr_0``, the Occ3D challenge's form."""
    os.makedirs(folder, exist_ok=True)
    with atomic_write(os.path.join(folder, f'{name}.npz'), durable=False) as file:
        np.savez_compressed(file, torch.as_tensor(semantics).cpu().numpy().astype(np.uint8))
