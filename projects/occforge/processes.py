"""Worker processes. Standard library only."""

import ctypes
import os
import signal
import sys


def end_with_parent(parent: int) -> None:
    """Called in a worker: be killed when the process ``parent`` that started it dies, however that dies.

    A pool's workers wait for work on a queue that they hold open themselves, so that they would outlive a killed parent
    for ever, and write into folders that the next call writes into. Linux only; elsewhere nothing happens.
    """
    if sys.platform != 'linux':
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
