"""Memory of the running processes, in MiB, from what the kernel reports. No dependency."""

import ctypes
import os
from pathlib import Path

import torch

MIB = 2**20


def host_memory() -> float:
    """Memory of this process and its children (dataloader workers), pages they share counted once (PSS).

    Where the kernel tells no proportional size (not Linux, old kernels) it is the peak resident size of this process.
    """
    try:
        return sum(_pss(pid) for pid in [os.getpid(), *_children(os.getpid())]) / MIB
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def resident_memory() -> float:
    """Memory of this process alone (RSS); where the kernel does not tell, its peak."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE') / MIB
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def gpu_allocated() -> float:
    """Memory of tensors on the current GPU now; 0 without one."""
    return torch.cuda.memory_allocated() / MIB if torch.cuda.is_available() else 0.0


def bound_onednn_caches(entries: int = 256) -> None:
    """Let oneDNN, which runs bfloat16 layers on the CPU, keep fewer compiled kernels; call it before the first of them.

    Each size of input has its own kernels, some 0.3 MB of machine code each, and torch and oneDNN keep up to 1024 per
    kind of operation. Sparse layers see another number of rows in every step, so that the caches fill with what never
    comes again: gigabytes in an hour. The entries must hold what one step uses. Variables that the user has set stay.
    """
    for variable in ('ONEDNN_PRIMITIVE_CACHE_CAPACITY', 'LRU_CACHE_CAPACITY'):  # oneDNN's own, torch's around it
        os.environ.setdefault(variable, str(entries))


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensors instead of giving it back; returns whether it does.

    A tensor of megabytes on the CPU is else a mapping of its own that the kernel clears page by page and takes back at
    once: a fifth of the time of a training step that fills large volumes. The process stays at its peak, as a GPU's
    allocator does. glibc alone (``mallopt``); what the user has set by environment variables stays.
    """
    set_by_user = 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', '') or any(
        name in os.environ for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_', 'MALLOC_TRIM_THRESHOLD_')
    )
    library = ctypes.CDLL(None)
    if set_by_user or not hasattr(library, 'gnu_get_libc_version'):
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    largest = 2**31 - 1  # an int
    return bool(library.mallopt(mmap_threshold, largest) and library.mallopt(trim_threshold, largest))


def gpu_memory() -> float:
    """Peak memory of tensors on the current GPU; 0 without one."""
    return torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else 0.0


def _pss(pid: int) -> int:
    try:
        text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    except (FileNotFoundError, ProcessLookupError):
        if pid == os.getpid():
            raise
        return 0  # a worker that has just ended
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith('Pss:'))


def _children(pid: int) -> list[int]:
    children = []
    for task in Path(f'/proc/{pid}/task').iterdir():
        try:
            children += [int(child) for child in (task / 'children').read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has just ended
    return [each for child in children for each in (child, *_children_if_any(child))]


def _children_if_any(pid: int) -> list[int]:
    try:
        return _children(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []
