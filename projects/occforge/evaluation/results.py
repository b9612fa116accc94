"""The results file: every number with its quantity, mask, protocol, range and class."""

import json
import math
import os
from collections.abc import Iterable
from typing import NamedTuple

from occforge.fileio import atomic_write


class Number(NamedTuple):
    """One result, in percent; nan where nothing was counted."""

    name: str  # as logged and in metrics.csv: 'IoU/camera_mask/car'
    value: float
    quantity: str  # 'IoU'
    protocol: str  # a key of the document's ``protocols``
    mask: str  # 'no_mask', 'camera_mask', 'lidar_mask'
    range: str = 'all'  # '0-20m'
    class_name: str | None = None  # None: over the classes


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
        dataset_size=size,
        class_names=list(class_names),
        **details,
        numbers=[number._asdict() for number in numbers],
    )


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
