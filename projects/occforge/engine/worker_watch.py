"""Which sample a data worker was reading when it died.

torch says that a worker was killed (most often by a kernel that ran out of memory), not what it was doing.
"""

import contextlib
import functools
import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils.data import DataLoader, get_worker_info

from ..errors import DataError

_DEATH = re.compile(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)')  # torch's words


def watch_workers(loader: DataLoader) -> None:
    """Let each worker of ``loader`` note the index that it is asked for, in memory shared with this process, and leave
    the objects that it inherits to themselves."""
    if loader.num_workers:
        loader.worker_notes = torch.full((loader.num_workers, 2), -1).share_memory_()  # process, index
        loader.worker_init_fn = functools.partial(_take_notes, loader.worker_notes, loader.worker_init_fn)


def _take_notes(notes: torch.Tensor, init: Callable | None, worker: int) -> None:
    """In a worker, before it reads: its copy of the data set gets a class that notes indices."""
    gc.freeze()  # else a collection writes to every object inherited here, and so copies the parent's memory
    if init is not None:
        init(worker)
    dataset = get_worker_info().dataset
    kind = type(dataset)
    notes[worker, 0] = os.getpid()

    class Watched(kind):
        def __getitem__(self, index):
            notes[worker, 1] = index[0] if isinstance(index, tuple) else index  # samplers may ask for (index, visit)
            return kind.__getitem__(self, index)

    Watched.__name__, Watched.__qualname__, Watched.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    with contextlib.suppress(TypeError):  # a list or another built-in type as data set: its reads stay unknown
        dataset.__class__ = Watched


@contextlib.contextmanager
def dead_workers_named(loaders: Callable[[], Iterable[DataLoader]]) -> Iterator[None]:
    """Around what reads from ``loaders()``: the error of a dead worker says which sample it was reading.

    Raises:
        DataError: in place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        found = _DEATH.search(str(error))
        processes = [] if found is None else [int(number) for number in found[1].split(',')]
        for loader in loaders():
            for process, index in getattr(loader, 'worker_notes', torch.empty(0, 2)).tolist():
                if process in processes:
                    raise DataError(_describe(loader.dataset, process, index, str(error))) from error
        raise


def _describe(dataset, process: int, index: int, said: str) -> str:
    where = f'before it read anything of {type(dataset).__name__}'
    if index >= 0:
        token = None
        with contextlib.suppress(Exception):  # wrappers of data sets and those of others need not have it
            token = dataset.get_data_info(index).get('token')
        where = f'at sample {index}{f" ({token})" if token else ""} of {type(dataset).__name__}'
    said = said.strip().splitlines()[0]
    return (
        f'a data worker (process {process}) died {where}: {said} '
        'Where nothing else is said above, memory ran out: fewer num_workers, or smaller batches, need less.'
    )
