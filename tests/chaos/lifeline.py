"""No process outlives its test, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, seconds: float) -> None:
    """Die when the parent does, and after *seconds* in any case.

    Linux ends a stopped process, too; elsewhere a thread of this one looks after it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent, seconds), daemon=True).start()


def _watch(parent: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.2)
    os._exit(3)
