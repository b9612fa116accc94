"""One copy of a data set's annotations for all processes of a machine.

mmengine's data sets keep their annotations serialised in one array, which the workers of a process share. Several
processes each have an array of their own, eight times the same where there are eight GPUs: here they map one instead.
"""

import contextlib
import hashlib
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
from mmengine.dist import all_gather_object
from torch import distributed as torch_dist

from .dist import rank_and_world


def share_annotations(dataset) -> int:
    """Let the processes of each machine whose annotations are equal map the same ones. Every process must call it.

    Through a file without a name (removed as soon as all have mapped it, so nothing is left behind however a training
    ends) in shared memory, or in the temporary folder where that is too small. Where neither works, or the annotations
    differ, each process keeps its own.

    Args:
        dataset: an mmengine ``BaseDataset``, or data sets around such (``dataset.dataset``, ``dataset.datasets``).

    Returns:
        bytes that this process shares with others now.
    """
    if rank_and_world()[1] == 1:
        return 0
    shared = 0
    parts = list(_base_datasets(dataset))
    for index in range(max(all_gather_object(len(parts)))):
        part = parts[index] if index < len(parts) else None
        array = _share(getattr(part, 'data_bytes', None))
        if array is not None:
            part.data_bytes = array
            shared += array.nbytes
    return shared


def _base_datasets(dataset):
    if isinstance(getattr(dataset, 'data_bytes', None), np.ndarray):
        yield dataset
    for inner in [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]:
        if inner is not None:
            yield from _base_datasets(inner)


def _share(array: np.ndarray | None) -> np.ndarray | None:
    """The common array, or None where this process keeps its own."""
    own = None
    if array is not None and array.nbytes:
        own = _machine(), array.nbytes, hashlib.blake2b(array, digest_size=16).hexdigest()
    everyone = all_gather_object(own)
    rank = rank_and_world()[0]
    first = everyone.index(own)
    together = own is not None and everyone.count(own) > 1
    paths = all_gather_object(_write(array) if together and first == rank else None)
    mapped = None
    if together and paths[first] is not None:
        with contextlib.suppress(OSError, ValueError):  # not visible from here, as between containers
            mapped = np.memmap(paths[first], dtype=array.dtype, mode='r', shape=array.shape)
    torch_dist.barrier()
    if paths[rank] is not None:
        os.unlink(paths[rank])
    return mapped


def _machine() -> str:
    boot = Path('/proc/sys/kernel/random/boot_id')
    return f'{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ""}'


def _write(array: np.ndarray) -> str | None:
    for folder in ('/dev/shm', tempfile.gettempdir()):
        path = None
        try:
            handle, path = tempfile.mkstemp(prefix=f'occforge-annotations-{os.getpid()}-', dir=folder)
            with os.fdopen(handle, 'wb') as file:
                file.write(array.data)  # written, not mapped: a full disk is an error here and not a signal later
            return path
        except OSError:
            if path is not None:
                os.unlink(path)
    return None
