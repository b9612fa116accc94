"""Scores occupancy predictions that lie on disk as Occ3D submissions."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from occforge.datasets.fine_labels import CellCounts, read_fine_labels
from occforge.datasets.info_files import load_infos
from occforge.datasets.occ3d import NUM_CLASSES, read_labels, read_npz
from occforge.datasets.ray_origins import scene_ray_origins
from occforge.errors import DataError

LABEL_FILE = 'labels.npz'  # Occ3D's
PREDICTION_KEYS = ('arr_0', 'pred', 'semantics')  # the challenge's, SparseOcc's, that of label files


def read_prediction(path: str | os.PathLike) -> np.ndarray:
    """The (X, Y, Z) uint8 labels 0..17 of a prediction file: the one array of it, or that named in PREDICTION_KEYS.

    Raises:
        DataError: the file is missing, damaged or holds something else.
    """
    path = os.fspath(path)
    name = PREDICTION_KEYS[0]
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
        known = [key for key in PREDICTION_KEYS if key in names] or (names if len(names) == 1 else [])
        if not known:
            raise DataError(f'{path}: holds {sorted(names)}, expected one array, or one of {list(PREDICTION_KEYS)}')
        name = known[0]
    except DataError:
        raise
    except Exception:
        read_npz(path, (name,))  # says in one sentence what is wrong
        raise
    array = read_npz(path, (name,))[name]
    if array.ndim != 3 or array.dtype.kind not in 'uib':
        raise DataError(f'{path}: {name!r} is {array.dtype} {array.shape}, expected integers (X, Y, Z)')
    if array.size and not 0 <= array.min() <= array.max() < NUM_CLASSES:
        unknown = [int(v) for v in np.unique(array) if not 0 <= v < NUM_CLASSES]
        raise DataError(f'{path}: {name!r} holds the labels {unknown[:5]}, expected 0..{NUM_CLASSES - 1}')
    return array.astype(np.uint8, copy=False)


def find_files(folder: str | os.PathLike, role: str, label_file: str = LABEL_FILE) -> dict:
    """{token: path} of a folder of predictions (``<token>.npz``) or labels (``.../<token>/labels.npz``), which may also
    stand in for predictions.

    Args:
        folder: searched with all that is below it.
        role: 'predictions' or 'labels'.
        label_file: name of the label files.

    Raises:
        DataError: there is no such folder, it holds none, or two of one token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder')
    pattern = '<token>.npz' if role == 'predictions' else f'<scene>/<token>/{label_file}'
    files: dict = {}
    for parent, _, names in os.walk(folder):
        is_label = role == 'labels' or LABEL_FILE in names  # labels may be scored as predictions
        own = label_file if role == 'labels' else LABEL_FILE
        for name in names:
            if name != own if is_label else not name.endswith('.npz') or name.startswith('.'):
                continue
            path = os.path.join(parent, name)
            token = os.path.basename(parent) if is_label else name.removesuffix('.npz')
            if token in files:
                raise DataError(f'{folder}: two files for token {token}: {files[token]} and {path}')
            files[token] = path
    if not files:
        raise DataError(f'{folder}: holds no {role} ({pattern})')
    return files


def choose_samples(predictions: dict, labels: dict, info_file: str | None) -> tuple:
    """Which samples are scored, and where their rays start.

    With an info file: its samples, each of which must have labels and a prediction. Without: the predicted ones.

    Returns:
        (tokens, {token: (T, 3) origins}); no origins without an info file.

    Raises:
        DataError: a token has no labels or no prediction.
    """
    origins: dict = {}
    tokens = sorted(predictions)
    if info_file is not None:
        _, items = load_infos(info_file)
        origins = scene_ray_origins(items, info_file)
        tokens = [str(item['token']) for item in items]
        if not tokens:
            raise DataError(f'{info_file}: holds no samples')
        absent = [token for token in tokens if token not in predictions]
        if absent:
            raise DataError(
                f'{len(absent)} of the {len(tokens)} samples of {info_file} have no prediction, the first: {absent[0]}'
            )
    absent = [token for token in tokens if token not in labels]
    if absent:
        name = os.path.basename(next(iter(labels.values())))
        raise DataError(f'{len(absent)} of {len(tokens)} tokens have no {name}, the first: {absent[0]}')
    return tokens, origins


def read_truth(path: str) -> tuple[dict, tuple]:
    """``gt_occ`` of a label file as metrics take it, and the grid (X, Y, Z) that a prediction's must divide."""
    names = ('semantics', 'mask_lidar', 'mask_camera')
    coarse = os.path.join(os.path.dirname(path), LABEL_FILE)
    if path == coarse:
        arrays = dict(zip(names, read_labels(path, grid_size=None, ignore_label=255)))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, arrays['semantics'].shape
    labels = read_fine_labels(path, coarse if os.path.exists(coarse) else None)
    if isinstance(labels, CellCounts):
        return dict(fine={name: torch.as_tensor(value) for name, value in labels._asdict().items()}), labels.grid
    semantics, camera, lidar = labels.dense()
    everywhere = np.ones((len(semantics), 1, 1), dtype=np.uint8)
    masks = [everywhere if mask is None else mask for mask in (lidar, camera)]
    return {name: torch.from_numpy(array) for name, array in zip(names, (semantics, *masks))}, semantics.shape


def load_samples(
    tokens: Sequence[str], predictions: dict, labels: dict, origins: dict, workers: int = 2
) -> Iterator[dict]:
    """The samples in order, as metrics take them; read ahead by threads (reading is mostly inflating).

    Label files that are not called ``labels.npz`` may hold any form of ``occforge.datasets.fine_labels``; masks that
    they lack are those of the ``labels.npz`` beside them.
    """

    def load(token):
        truth, grid = read_truth(labels[token])
        pred = read_prediction(predictions[token])
        if any(t % p for t, p in zip(grid, pred.shape)):
            raise DataError(f'{predictions[token]}: shape {pred.shape}, expected {grid} as in {labels[token]}')
        sample = dict(token=token, pred_occ=dict(semantics=torch.from_numpy(pred)), gt_occ=truth)
        return dict(sample, ray_origins=origins[token]) if origins else sample

    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting = []
        for token in tokens:
            waiting.append(pool.submit(load, token))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def evaluate_samples(samples: Iterable[dict], metrics: Sequence, size: int) -> dict:
    """All metrics over the samples; {name: value}. Afterwards each metric has its ``document``."""
    for sample in samples:
        for metric in metrics:
            metric.process(None, [sample])
    results: dict = {}
    for metric in metrics:
        results.update(metric.evaluate(size))
    return results
