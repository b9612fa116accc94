"""The results file: every number with its quantity, unit, mask, protocol, range and class."""

import json
import math
import os
from collections.abc import Iterable
from typing import NamedTuple

from occforge.fileio import atomic_write


class Number(NamedTuple):
    """One result as it is logged; nan where nothing was counted."""

    name: str  # as logged and in metrics.csv: 'IoU/camera_mask/car'
    value: float
    quantity: str  # 'IoU'
    protocol: str  # a key of the document's ``protocols``
    mask: str | None  # 'no_mask', 'camera_mask', 'lidar_mask'; None: the protocol has no masks
    range: str = 'all'  # '0-20m'
    class_name: str | None = None  # None: over the classes
    unit: str = '%'  # 'fraction' (0..1), 'm', 'rad', 'm/s'


def results_document(
    numbers: Iterable[Number], protocols: dict, samples: int, size: int, class_names, **details
) -> dict:
    """One metric's part of the results file.

    Args:
        numbers: the results.
        protocols: {name: what it counts and how}.
        samples: how many were scored.
        size: samples of the data set.
        class_names: names of all classes, free included.
        **details: anything else that json can write, under keys that no other metric uses.
    """
    numbers = [number._replace(value=finite_or_none(number.value)) for number in numbers]
    return dict(
        metrics={number.name: number.value for number in numbers},
        protocols=dict(protocols),
        samples=samples,
        samples_by_protocol=dict.fromkeys(protocols, samples),
        dataset_size=size,
        class_names=list(class_names),
        **details,
        numbers=[number._asdict() for number in numbers],
    )


class DocumentedMetric:
    """Mixin for an mmengine metric: after ``evaluate``, ``document`` holds its part of ``results.json``.

    ``compute_metrics`` of the metric sets ``document`` (:func:`results_document`); it runs on the main process alone,
    which is the one that writes. ``dataset_size`` is what ``evaluate`` was told.
    """

    document: dict | None = None
    dataset_size: int = 0

    def evaluate(self, size: int) -> dict:
        self.document, self.dataset_size = None, size
        return super().evaluate(size)


def with_prefix(document: dict, prefix: str | None) -> dict:
    """The document with its numbers' names as a metric with this ``prefix`` logs them."""
    if not prefix:
        return document
    return {
        **document,
        'metrics': {f'{prefix}/{name}': value for name, value in document['metrics'].items()},
        'numbers': [{**number, 'name': f'{prefix}/{number["name"]}'} for number in document['numbers']],
    }


def merge_documents(documents: Iterable[dict]) -> dict:
    """The parts of several metrics in one: their dicts and lists joined, else the first one's value."""
    merged: dict = {}
    for document in documents:
        for key, value in document.items():
            if isinstance(value, dict) and key in merged:
                merged[key] = {**merged[key], **value}
            elif key == 'numbers' and key in merged:
                merged[key] = merged[key] + value
            else:
                merged.setdefault(key, value)
    if 'numbers' in merged:  # the long list last
        merged['numbers'] = merged.pop('numbers')
    return merged


def write_results(path, documents: Iterable[dict], **header) -> None:
    """Write the merged documents as JSON, atomically; ``header`` comes first."""
    document = {**header, **merge_documents(documents)}
    with atomic_write(os.fspath(path)) as file:
        file.write((json.dumps(document, indent=1, allow_nan=False) + '\n').encode())


def finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def percent(value: float) -> str:
    """For tables: two digits, '-' for what was not counted."""
    return f'{value:.2f}' if math.isfinite(value) else '-'
