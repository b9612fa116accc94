"""Mean IoU of occupancy under the Occ3D protocol, for all three masks in one pass."""

import json
import os
from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import METRICS
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from terminaltables import AsciiTable

from occforge.datasets.occ3d import CLASS_NAMES, FREE
from occforge.errors import ConfigError, DataError
from occforge.fileio import atomic_write
from occforge.ops import confusion_matrix

MASKS = ('no_mask', 'camera_mask', 'lidar_mask')
EVAL_MASKS = {'none': 'no_mask', 'camera': 'camera_mask', 'lidar': 'lidar_mask'}


def masked_confusions(pred, target, mask_camera, mask_lidar, num_classes: int) -> torch.Tensor:
    """The confusion matrices of one sample under all three masks.

    Args:
        pred: (X, Y, Z) integer tensor, 0..num_classes-1.
        target: (X, Y, Z) integer tensor; labels outside 0..num_classes-1 are left out. It and the masks may also be
            finer by a whole factor per axis, (rX, sY, tZ): a prediction then holds for its r x s x t fine voxels.
        mask_camera, mask_lidar: (X, Y, Z) bool tensors (of the target's shape).
        num_classes: classes, free included.

    Returns:
        (3, num_classes, num_classes) int64 in the order of MASKS; rows: target, columns: prediction.

    Raises:
        DataError: shapes do not fit, or a prediction is outside its range.
    """
    if pred.is_floating_point() or pred.is_complex():
        raise DataError(f'the predicted semantics are {pred.dtype}, expected integer labels')
    if pred.numel() and not 0 <= int(pred.min()) <= int(pred.max()) < num_classes:
        raise DataError(
            f'the predicted semantics hold {int(pred.min())}..{int(pred.max())}, expected 0..{num_classes - 1}'
        )
    shape, fine = tuple(pred.shape), tuple(target.shape)
    if len(fine) != len(shape) or any(f % s or f < s for f, s in zip(fine, shape)):
        raise DataError(f'the predicted semantics have shape {shape}, the labels {fine}')
    for name, mask in (('mask_camera', mask_camera), ('mask_lidar', mask_lidar)):
        if tuple(mask.shape) != fine:
            raise DataError(f'{name} has shape {tuple(mask.shape)}, the labels {fine}')
    factors = [f // s for f, s in zip(fine, shape)]
    # The masks go into the row as two bits, so that one count serves all three; a slab of x at a time bounds memory.
    rows = 4 * num_classes
    row_type = torch.uint8 if rows < 256 else torch.int64
    total = torch.zeros(rows, rows, dtype=torch.int64, device=pred.device)
    slab = max(1, (1 << 21) // max(1, factors[0] * int(np.prod(fine[1:]))))
    for start in range(0, shape[0], slab):
        here = slice(start * factors[0], (start + slab) * factors[0])
        predicted = pred[start : start + slab]
        for axis, factor in enumerate(factors):
            if factor > 1:
                predicted = predicted.repeat_interleave(factor, dim=axis)
        labels = target[here]
        bits = (mask_camera[here] != 0).to(row_type) + 2 * (mask_lidar[here] != 0).to(row_type)
        row = bits * num_classes + labels.to(row_type)
        row[(labels < 0) | (labels >= num_classes)] = rows  # out of range: not counted
        total += confusion_matrix(predicted.contiguous(), row, rows)
    by_bits = total[:, :num_classes].unflatten(0, (4, num_classes))
    return torch.stack([by_bits.sum(0), by_bits[1] + by_bits[3], by_bits[2] + by_bits[3]])


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
class OccupancyMetric(BaseMetric):
    """mIoU and geometric IoU without a mask, under the camera mask and under the LiDAR mask, in one pass.

    Confusion matrices are summed sample by sample and then divided (never a mean of per-sample IoUs); no prediction
    is kept. Several processes sum their integer matrices, so the result depends neither on order nor on the number of
    processes; a sample that comes twice (padding of a distributed sampler, stand-in of a skipped one) counts once.
    mIoU is the mean over the 17 classes but free that occur in labels or predictions; absent classes are nan and named
    in the log.

    Results, in percent: ``mIoU/<mask>``, ``geo_IoU/<mask>``, ``IoU/<mask>/<class>`` for the masks ``no_mask``,
    ``camera_mask``, ``lidar_mask``; ``mIoU``: that of ``eval_mask``. The same, with voxel counts, confusion matrices
    and the protocol, goes into ``results.json``.

    Source: the protocol of the CVPR 2023 occupancy challenge and Occ3D (Tian et al., NeurIPS 2023), which scores under
    the camera mask.

    Args:
        eval_mask: 'none', 'camera' or 'lidar': whose mIoU is called plain ``mIoU``. It has nothing to do with the
            mask of the training loss.
        class_names: names of all classes, free included.
        free: index of the free class.
        out_file: JSON file of the results. None: ``results.json`` in ``work_dir`` where that is set.
        work_dir: folder for the default ``out_file``; OutputFolderHook sets the run's.
        dump_dir: folder for the predictions as ``<token>.npz`` with one uint8 array (X, Y, Z) named ``arr_0`` (the
            challenge's form). None: not written.
    """

    default_prefix = ''  # 'mIoU/no_mask' needs none; None would warn

    def __init__(
        self,
        eval_mask: str = 'none',
        class_names: Sequence[str] = CLASS_NAMES,
        free: int = FREE,
        out_file: str | None = None,
        work_dir: str | None = None,
        dump_dir: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        if eval_mask not in EVAL_MASKS:
            raise ConfigError(f"OccupancyMetric field 'eval_mask' is {eval_mask!r}, expected one of {list(EVAL_MASKS)}")
        if not 0 <= free < len(class_names):
            raise ConfigError(f"OccupancyMetric field 'free' is {free}, expected 0..{len(class_names) - 1}")
        self.eval_mask = eval_mask
        self.class_names = tuple(class_names)
        self.free = free
        self.out_file = out_file
        self.work_dir = work_dir
        self.dump_dir = dump_dir
        self._reset()

    def _reset(self) -> None:
        classes = len(self.class_names)
        self._seen: dict = {}  # sample -> its matrices' non-zero entries; None where no other process can have it
        self._total = np.zeros((len(MASKS), classes, classes), dtype=np.int64)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Adds a batch.

        Args:
            data_batch: not used.
            data_samples: per sample a dict with ``pred_occ`` {semantics}, ``gt_occ`` {semantics, mask_camera,
                mask_lidar} and ``token`` or ``sample_idx``.
        """
        for sample in data_samples:
            sample = sample.to_dict() if hasattr(sample, 'to_dict') else sample
            name = str(sample.get('token', sample.get('sample_idx')))
            if name == 'None':
                raise DataError("OccupancyMetric: a sample has neither 'token' nor 'sample_idx'")
            if name in self._seen:
                continue
            pred = torch.as_tensor(_field(sample, 'pred_occ', 'semantics', name))
            truth = {
                field: torch.as_tensor(_field(sample, 'gt_occ', field, name)).to(pred.device)
                for field in ('semantics', 'mask_camera', 'mask_lidar')
            }
            try:
                matrices = masked_confusions(
                    pred, truth['semantics'], truth['mask_camera'], truth['mask_lidar'], len(self.class_names)
                )
            except DataError as error:
                raise DataError(f'OccupancyMetric: sample {name}: {error}') from None
            matrices = matrices.cpu().numpy()
            self._total += matrices
            self._seen[name] = None
            if is_distributed():
                entries = np.flatnonzero(matrices)
                self._seen[name] = (entries.astype(np.uint16), matrices.ravel()[entries].astype(np.int64))
            if self.dump_dir is not None:
                self._dump(name, pred)

    def _dump(self, name: str, pred: torch.Tensor) -> None:
        os.makedirs(self.dump_dir, exist_ok=True)
        with atomic_write(os.path.join(self.dump_dir, f'{name}.npz')) as file:
            np.savez_compressed(file, pred.cpu().numpy().astype(np.uint8))

    def evaluate(self, size: int) -> dict:
        """Sums over the processes, logs the tables, writes the results file and starts afresh.

        Args:
            size: samples of the data set; used to say how many of them were scored.
        """
        total, count = self._collect()
        self._reset()
        metrics = self.compute_metrics([dict(confusion=total, samples=count, size=size)])
        if self.prefix:
            metrics = {f'{self.prefix}/{key}': value for key, value in metrics.items()}
        return metrics

    def _collect(self) -> tuple:
        """The summed matrices (3, C, C) and the number of different samples, equal in all processes."""
        if not is_distributed():
            return self._total, len(self._seen)
        names = all_gather_object(list(self._seen))
        taken = set().union(*names[: get_rank()])
        total = self._total.copy()
        for name in taken.intersection(self._seen):  # a lower rank counts it
            entries, counts = self._seen[name]
            total.ravel()[entries] -= counts
        totals = all_gather_object(total)
        return np.sum(totals, axis=0), len(set().union(*names))

    def compute_metrics(self, results: list) -> dict:
        """Metrics in percent from the summed matrices; logs and writes on the main process."""
        confusion, count, size = results[0]['confusion'], results[0]['samples'], results[0]['size']
        metrics = {}
        for mask, matrix in zip(MASKS, confusion):
            metrics[f'mIoU/{mask}'] = 100 * mean_iou(matrix, self.free)
            metrics[f'geo_IoU/{mask}'] = 100 * geometric_iou(matrix, self.free)
            for name, iou in zip(self.class_names, iou_per_class(matrix)):
                metrics[f'IoU/{mask}/{name}'] = 100 * float(iou)
        metrics['mIoU'] = metrics[f'mIoU/{EVAL_MASKS[self.eval_mask]}']
        if get_rank() == 0:
            self._log(metrics, confusion, count, size)
            self._write(metrics, confusion, count, size)
        return metrics

    def _log(self, metrics: dict, confusion: np.ndarray, count: int, size: int) -> None:
        short = {'no_mask': 'no mask', 'camera_mask': 'camera mask', 'lidar_mask': 'LiDAR mask'}
        head = ['class', *(f'IoU, {short[m]}' for m in MASKS), *(f'voxels, {short[m]}' for m in MASKS)]
        voxels = confusion.sum(axis=2)
        rows = [
            [name]
            + [_percent(metrics[f'IoU/{mask}/{name}']) for mask in MASKS]
            + [f'{voxels[m, c]:,}' for m in range(len(MASKS))]
            for c, name in enumerate(self.class_names)
        ]
        occupied = np.delete(voxels, self.free, axis=1).sum(axis=1)
        for label, key in (('mIoU', 'mIoU'), ('geometric IoU', 'geo_IoU')):
            rows.append([label] + [_percent(metrics[f'{key}/{m}']) for m in MASKS] + [f'{n:,}' for n in occupied])
        table = AsciiTable([head, *rows], title=f'occupancy, {count} of {size} samples, IoU in %')
        table.inner_footing_row_border = True
        print_log('\n' + table.table, logger='current')
        print_log(f"'mIoU' is that of eval_mask={self.eval_mask!r}; free is not in the mean", logger='current')
        for mask in MASKS:
            absent = self._absent(metrics, mask)
            if absent:
                print_log(
                    f'{short[mask]}: not in the mean, because neither labels nor predictions hold them: '
                    f'{", ".join(absent)}',
                    logger='current',
                )

    def _absent(self, metrics: dict, mask: str) -> list:
        return [
            name
            for c, name in enumerate(self.class_names)
            if c != self.free and not np.isfinite(metrics[f'IoU/{mask}/{name}'])
        ]

    def _write(self, metrics: dict, confusion: np.ndarray, count: int, size: int) -> None:
        path = self.out_file or (self.work_dir and os.path.join(self.work_dir, 'results.json'))
        if not path:
            return
        document = dict(
            metric='occupancy mIoU (Occ3D protocol)',
            protocol='confusion matrices summed over all samples; IoU = TP / (TP + FP + FN); mean over the classes but '
            'free that occur in labels or predictions; in percent; null: no such voxel',
            eval_mask=self.eval_mask,
            masks=dict(
                no_mask='all voxels',
                camera_mask='voxels observed by a camera',
                lidar_mask='voxels observed by the LiDAR',
            ),
            samples=count,
            dataset_size=size,
            class_names=list(self.class_names),
            absent_classes={mask: self._absent(metrics, mask) for mask in MASKS},
            metrics={key: value if np.isfinite(value) else None for key, value in metrics.items()},
            voxels={
                mask: dict(zip(self.class_names, confusion[m].sum(axis=1).tolist())) for m, mask in enumerate(MASKS)
            },
            confusion={mask: confusion[m].tolist() for m, mask in enumerate(MASKS)},
        )
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with atomic_write(path) as file:
            file.write((json.dumps(document, indent=1, allow_nan=False) + '\n').encode())
        print_log(f'results written to {path}', logger='current')


def _field(sample: dict, holder: str, field: str, name: str):
    value = sample.get(holder)
    value = None if value is None else value.get(field)
    if value is None:
        raise DataError(f"OccupancyMetric: sample {name}: field '{holder}.{field}' is missing")
    return value


def _percent(value: float) -> str:
    return f'{value:.2f}' if np.isfinite(value) else '-'
