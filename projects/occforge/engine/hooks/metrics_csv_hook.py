"""``metrics.csv``: one table of a work dir with what was logged in training, validation and test."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...fileio import atomic_write
from ..memory import gpu_memory, host_memory

_FIRST = ['phase', 'epoch', 'iter', 'time', 'data_time', 'host_memory_mb', 'gpu_memory_mb', 'lr']


@HOOKS.register_module()
class MetricsCsvHook(Hook):
    """Write ``metrics.csv`` into the work dir: a row each ``interval`` training iterations and each evaluation.

    Columns: phase (train, val, test), epoch and iter (finished ones, from 1), time and data_time (seconds an
    iteration, mean since the last row), host_memory_mb (process and workers), gpu_memory_mb (peak of tensors), lr,
    then losses and metrics under their own names; empty where a phase does not have one.

    A row is appended in one write; a new column rewrites the file atomically. Rows later than the iteration from which
    training resumes are dropped, so nothing appears twice. Only the first process writes.

    Args:
        interval: training iterations between rows; an epoch's last one always gives a row.
        filename: name inside the work dir.
    """

    priority = 'LOW'  # after the timer, before checkpoints

    def __init__(self, interval: int = 50, filename: str = 'metrics.csv'):
        self.interval = interval
        self.filename = filename
        self._since_row = 0

    # ------------------------------------------------------------------------------------------------------- phases
    def before_run(self, runner) -> None:
        self._table = MetricsTable(Path(runner.work_dir) / self.filename)

    def before_train(self, runner) -> None:
        """Forget what a killed run did after the checkpoint that this one resumes from."""
        if is_main_process():
            self._table.keep(lambda row: row.get('phase') == 'test' or _number(row.get('iter')) <= runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._since_row += 1
        last = batch_idx + 1 == len(runner.train_dataloader)
        if not is_main_process() or not (self.every_n_train_iters(runner, self.interval) or last):
            return
        scalars = {
            key.removeprefix('train/'): buffer
            for key, buffer in runner.message_hub.log_scalars.items()
            if key.startswith('train/')
        }
        row = dict(phase='train', epoch=runner.epoch + 1, iter=runner.iter + 1)
        for name, buffer in scalars.items():
            # losses and times are means since the last row, rates and the like the current value
            mean = name in ('time', 'data_time') or 'loss' in name or 'grad_norm' in name
            row[name] = buffer.mean(self._since_row) if mean else buffer.current()
        self._since_row = 0
        self._add(row)

    def after_val_epoch(self, runner, metrics=None) -> None:
        training = not (isinstance(runner._train_loop, dict) or runner._train_loop is None)
        where = dict(epoch=runner.epoch, iter=runner.iter) if training else {}
        self._add(dict(phase='val', **where, **self._times(runner, 'val'), **_scalars(metrics)))

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._add(dict(phase='test', **self._times(runner, 'test'), **_scalars(metrics)))

    def _times(self, runner, phase: str) -> dict:
        scalars = runner.message_hub.log_scalars
        batches = len(runner.val_dataloader if phase == 'val' else runner.test_dataloader)
        return {
            name: scalars[f'{phase}/{name}'].mean(batches)
            for name in ('time', 'data_time')
            if f'{phase}/{name}' in scalars
        }

    def _add(self, row: dict) -> None:
        if is_main_process():
            self._table.add(dict(row, host_memory_mb=host_memory(), gpu_memory_mb=gpu_memory()))


class MetricsTable:
    """A CSV table to which rows are appended; a row that has new columns rewrites the file atomically.

    Args:
        path: of the file; what it holds already stays.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.columns, self.rows = read_table(self.path)

    def add(self, row: dict) -> None:
        """Append {column: text or number}."""
        row = {name: _text(value) for name, value in row.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new or not self.path.is_file():
            first = [name for name in _FIRST if name in new or name in self.columns]
            self.columns = first + [name for name in [*self.columns, *new] if name not in first]
            self._rewrite()
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, self._format([row]).encode())
        finally:
            os.close(descriptor)

    def keep(self, wanted) -> None:
        """Drop the rows for which ``wanted(row)`` is false."""
        kept = [row for row in self.rows if wanted(row)]
        if len(kept) != len(self.rows):
            self.rows = kept
            self._rewrite()

    def _rewrite(self) -> None:
        header = self._format([dict(zip(self.columns, self.columns))])
        with atomic_write(self.path, 'w', encoding='utf-8', newline='') as file:
            file.write(header + self._format(self.rows))

    def _format(self, rows: list[dict]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self.columns, restval='', lineterminator='\n').writerows(rows)
        return buffer.getvalue()


def read_table(path: str | os.PathLike) -> tuple[list[str], list[dict]]:
    """Columns and rows of a metrics file, without the torn last line that a kill may have left."""
    path = Path(path)
    if not path.is_file():
        return [], []
    text = path.read_text(encoding='utf-8')
    whole = text[: text.rfind('\n') + 1]
    reader = csv.DictReader(io.StringIO(whole))
    rows = [{name: value for name, value in row.items() if value and name} for row in reader]
    return list(reader.fieldnames or []), rows


def _scalars(metrics: dict | None) -> dict:
    kept = {}
    for name, value in (metrics or {}).items():
        if isinstance(value, (int, float, np.number)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
            kept[name] = float(value)
    return kept


def _text(value) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else f'{float(value):.6g}'


def _number(text: str | None) -> float:
    return float(text) if text else 0.0
