"""A parallel map with a progress bar."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...errors import DataError
from ...processes import end_with_parent


def default_workers() -> int:
    """One process a core that this process may use, four at most (the disk is then the limit)."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)


def progress_bar(quiet: bool = False) -> Progress:
    """rich's progress bar on stderr; silent where stderr is no terminal (the closing summary tells enough)."""
    console = Console(stderr=True)
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )


_state = None


def _start_worker(state, parent):
    global _state
    _state = state
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ['OMP_NUM_THREADS'] = '1'
    import torch

    torch.set_num_threads(1)  # one process a core: threads inside would only fight


def _call(function, item):
    return function(_state, item)


def parallel_map(
    function: Callable, state, items: Iterable, workers: int, description: str, quiet: bool = False
) -> Iterator[tuple[int, object]]:
    """``function(state, item)`` for every item in ``workers`` processes, with a progress bar.

    Args:
        function: a module-level function.
        state: what all calls share. Workers inherit it by fork, so it is never copied through a pipe.
        items: one call each.
        workers: 1 or less runs in this process.
        description: text in front of the bar.
        quiet: no bar.

    Yields:
        ``(index, result)`` in the order in which calls end.

    Raises:
        Whatever a call raises; DataError where a worker process was killed.
    """
    items = list(items)
    with progress_bar(quiet) as progress:
        task = progress.add_task(description, total=len(items))
        if workers <= 1 or len(items) <= 1:
            for index, item in enumerate(items):
                result = function(state, item)
                progress.advance(task)
                yield index, result
            return
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context('fork' if 'fork' in methods else 'spawn')
        workers = min(workers, len(items))
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(state, os.getpid())
        )
        try:
            waiting, queue = {}, iter(enumerate(items))
            while True:
                for index, item in queue:
                    waiting[pool.submit(_call, function, item)] = index
                    if len(waiting) >= 2 * workers:
                        break
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    index = waiting.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool as error:
                        raise DataError(
                            f'{description}: a worker process was killed (out of memory?) near item {index}; '
                            'try fewer --workers'
                        ) from error
                    progress.advance(task)
                    yield index, result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
