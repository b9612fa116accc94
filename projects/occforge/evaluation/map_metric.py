"""Intersection over union of map masks.

Source: the protocol of Liu et al., "BEVFusion", ICRA 2023.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from terminaltables import AsciiTable

from occforge.errors import DataError

from .results import DocumentedMetric, Number, results_document


@METRICS.register_module()
class BEVMapMetric(DocumentedMetric, BaseMetric):
    """Each class at several thresholds, over all cells of all samples.

    ``map/<class>/iou@<threshold>``; ``map/<class>/iou@max``, the best threshold of each class; ``map/mean/iou@max``,
    the mean over all classes, and ``map/present/iou@max``, that over the classes which occur in the truth. Where no
    sample has a map: a warning and no numbers.

    Args:
        thresholds: of the probabilities; a cell counts from its threshold on.
        classes: names; None: the data set's ``map_classes``.
    """

    default_prefix = None

    def __init__(
        self,
        thresholds: Sequence[float] = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65),
        classes: Sequence[str] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.thresholds = tuple(thresholds)
        self.classes = classes

    def process(self, data_batch, data_samples) -> None:
        """Counts (2 + 1, classes, thresholds) of one sample: hits, false ones, missed ones. Samples without a map are
        left out."""
        for sample in data_samples:
            if sample.get('gt_masks_bev') is None:
                continue
            probs, masks = sample['pred_masks_bev']['probs'], sample['gt_masks_bev']['masks']
            if probs.shape != masks.shape:
                raise DataError(
                    f'sample {sample.get("token")}: masks {tuple(masks.shape)}, predictions {tuple(probs.shape)}'
                )
            thresholds = torch.tensor(self.thresholds, device=probs.device, dtype=probs.dtype)
            predicted = probs.flatten(1)[:, :, None] >= thresholds
            truth = masks.to(probs.device).flatten(1).bool()[:, :, None]
            counts = [(predicted & truth).sum(1), (predicted & ~truth).sum(1), (~predicted & truth).sum(1)]
            self.results.append(torch.stack(counts).cpu().numpy())

    def compute_metrics(self, results: list) -> dict[str, float]:
        if not results:
            # a vehicle of one's own need not have a map, and its boxes are scored all the same
            print_log(
                'BEVMapMetric: no sample has map masks (map_location, LoadBEVSegmentation), no IoU of maps is given',
                logger='current',
                level=logging.WARNING,
            )
            return {}
        names = self.classes or self.dataset_meta['map_classes']
        hits, false, missed = np.sum(results, axis=0).astype(np.float64)
        iou = hits / (hits + false + missed + 1e-7)
        best = iou.max(axis=1)
        present = (hits + missed)[:, 0] > 0

        def number(name, value, class_name=None):
            where = dict(class_name=class_name, unit='fraction')
            return Number(f'map/{name}', float(value), 'IoU', 'bev_map_iou', None, **where)

        numbers = []
        for name, row in zip(names, iou):
            numbers += [number(f'{name}/iou@{at:.2f}', value, name) for at, value in zip(self.thresholds, row)]
            numbers.append(number(f'{name}/iou@max', row.max(), name))
        numbers.append(number('mean/iou@max', best.mean()))
        numbers.append(number('present/iou@max', best[present].mean() if present.any() else 0.0))
        absent = [name for name, there in zip(names, present) if not there]
        text = (
            'IoU of map masks seen from above, over all cells of all samples; a cell counts from a threshold of its '
            'probability on; max: the best threshold of each class; mean: over all classes; present: over those that '
            'occur in the truth'
        )
        self.document = results_document(
            numbers,
            dict(bev_map_iou=text),
            len(results),
            self.dataset_size,
            names,
            map_classes=list(names),
            absent_map_classes=absent,
        )
        head = ['class', *(f'@{at:.2f}' for at in self.thresholds), 'max']
        rows = [[name, *(f'{value:.3f}' for value in (*row, row.max()))] for name, row in zip(names, iou)]
        title = f'map masks, {len(results)} of {self.dataset_size} samples, IoU'
        print_log(f'\n{AsciiTable([head, *rows], title=title).table}', logger='current')
        if absent:
            print_log(f'map classes without a cell in the truth: {", ".join(absent)}', logger='current')
        return {number.name: number.value for number in numbers}
