"""Metrics that keep whole-number counters and nothing else."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from occforge.datasets.occ3d import CLASS_NAMES
from occforge.errors import ConfigError, DataError

from .results import write_results


class StreamedMetric(BaseMetric):
    """Base of metrics whose result follows from counters that are summed over the samples.

    Counters are added sample by sample, no prediction is kept. Several processes sum them, so the result depends
    neither on the order nor on the number of processes; a sample that comes twice (padding of a distributed sampler,
    stand-in of a skipped one) counts once.

    After ``evaluate`` the attribute ``document`` holds this metric's part of ``results.json``
    (:func:`~occforge.evaluation.results.results_document`); OutputFolderHook writes those of all metrics into the work
    dir. A subclass defines ``counts_shape``, ``count`` and ``summarize``.

    Args:
        class_names: names of all classes, free included; None: the data set's, where "free" is among them, else
            Occ3D's.
        free: index of the free class; None: that of "free".
        out_file: JSON file for this metric alone; None: not written.
    """

    default_prefix = ''  # 'mIoU/no_mask' needs none; None would warn

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        free: int | None = None,
        out_file: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self._follows_data = class_names is None and free is None
        self.set_classes(CLASS_NAMES if class_names is None else class_names, free)
        self.out_file = out_file
        self.document: dict | None = None

    def set_classes(self, names: Sequence[str], free: int | None = None) -> None:
        """Settle the classes.

        Raises:
            ConfigError: ``free`` is no class.
        """
        if free is None and 'free' not in names:
            raise ConfigError(f"{self.label}: class_names {list(names)} have no 'free', so field 'free' is needed")
        free = list(names).index('free') if free is None else free
        if not 0 <= free < len(names):
            raise ConfigError(f"{self.label} field 'free' is {free}, expected 0..{len(names) - 1}")
        self.class_names = tuple(names)
        self.free = free

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, meta: dict | None) -> None:
        self._dataset_meta = meta
        names = (meta or {}).get('classes') or ()
        if self._follows_data and 'free' in names:
            self.set_classes(names)

    @property
    def label(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------------------------------------ what a subclass defines
    @property
    def counts_shape(self) -> tuple:
        """Shape of the counters."""
        raise NotImplementedError

    def count(self, name: str, sample: dict) -> np.ndarray:
        """The counters of one sample, int64 of ``counts_shape``; DataError where it cannot be scored."""
        raise NotImplementedError

    def summarize(self, counts: np.ndarray, samples: int, size: int) -> tuple:
        """(metrics {name: value} to log and return, document, text to log) from the summed counters."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------------------- counting
    def reset(self) -> None:
        self._seen: dict = {}  # sample -> its non-zero counters; None where no other process can have it
        self._total = np.zeros(self.counts_shape, dtype=np.int64)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Adds a batch.

        Args:
            data_batch: not used.
            data_samples: per sample a dict (or data sample) with ``token`` or ``sample_idx`` and what ``count`` reads.
        """
        if not hasattr(self, '_seen'):
            self.reset()
        for sample in data_samples:
            sample = sample.to_dict() if hasattr(sample, 'to_dict') else sample
            name = str(sample.get('token', sample.get('sample_idx')))
            if name == 'None':
                raise DataError(f"{self.label}: a sample has neither 'token' nor 'sample_idx'")
            if name in self._seen:
                continue
            try:
                counts = np.asarray(self.count(name, sample))
            except DataError as error:
                raise DataError(f'{self.label}: sample {name}: {error}') from None
            self._total += counts
            self._seen[name] = None
            if is_distributed():
                entries = np.flatnonzero(counts)
                self._seen[name] = (entries.astype(np.uint32), counts.ravel()[entries])

    def evaluate(self, size: int) -> dict:
        """Sums over the processes, logs the tables, writes ``out_file`` and starts afresh.

        Args:
            size: samples of the data set; used to say how many of them were scored.
        """
        if not hasattr(self, '_seen'):
            self.reset()
        total, samples = self._collect()
        self.reset()
        metrics = self.compute_metrics([(total, samples, size)])
        return {f'{self.prefix}/{key}': value for key, value in metrics.items()} if self.prefix else metrics

    def _collect(self) -> tuple:
        """The summed counters and the number of different samples, equal in all processes."""
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
        """Metrics from the summed counters; logs and writes on the main process."""
        metrics, self.document, text = self.summarize(*results[0])
        if get_rank() == 0:
            print_log(text, logger='current')
            if self.out_file:
                write_results(self.out_file, [self.document])
                print_log(f'results written to {self.out_file}', logger='current')
        return metrics


def labels_of(sample: dict, holder: str, field: str, device=None) -> torch.Tensor:
    """A field of ``pred_occ`` or ``gt_occ`` as a tensor.

    Raises:
        DataError: it is missing.
    """
    value = sample.get(holder)
    value = None if value is None else value.get(field)
    if value is None:
        raise DataError(f"field '{holder}.{field}' is missing")
    value = torch.as_tensor(value)
    return value if device is None else value.to(device)


def check_labels(pred: torch.Tensor, num_classes: int, name: str = 'the predicted semantics') -> None:
    """Raise DataError unless ``pred`` holds integers of 0..num_classes - 1."""
    if pred.is_floating_point() or pred.is_complex():
        raise DataError(f'{name} are {pred.dtype}, expected integer labels')
    if pred.numel() and not 0 <= int(pred.min()) <= int(pred.max()) < num_classes:
        raise DataError(f'{name} hold {int(pred.min())}..{int(pred.max())}, expected 0..{num_classes - 1}')


def whole_factors(pred: torch.Tensor, target: torch.Tensor, name: str = 'the predicted semantics') -> list[int]:
    """How many target voxels lie in one of ``pred`` (called ``name`` in messages), per axis.

    Raises:
        DataError: the shapes do not fit.
    """
    shape, fine = tuple(pred.shape), tuple(target.shape)
    if len(fine) != len(shape) or any(f % s or f < s for f, s in zip(fine, shape)):
        raise DataError(f'{name} have shape {shape}, the labels {fine}')
    return [f // s for f, s in zip(fine, shape)]
