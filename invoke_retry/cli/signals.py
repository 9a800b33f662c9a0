"""Signals that ask a long command to end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    ENDING.append(signal.SIGHUP)


@contextmanager
def caught(
    told: Callable[[signal.Signals], object], *, patience: float | None = None
) -> Generator[None]:
    """Have SIGINT, SIGTERM and SIGHUP call a function in the loop, as long as the block lasts.

    One that is ignored, as `nohup` has it, stays so.

    Args:
        patience: Seconds after a second signal in which the process ends, even if the loop is
            blocked; its code is then 128 and the signal's number. None: as long as it takes.
    """
    loop = asyncio.get_running_loop()
    number_of_signals = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal number_of_signals
        number_of_signals += 1
        if number_of_signals == 2 and patience is not None:
            end_within(patience, 128 + number)
        with suppress(RuntimeError):  # the loop has just been closed
            loop.call_soon_threadsafe(told, signal.Signals(number))

    before = {
        number: signal.signal(number, handle)
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def cancelled_by_signals() -> Generator[list[signal.Signals]]:
    """Have SIGINT, SIGTERM and SIGHUP cancel the task, and let that end with the block.

    Yields:
        Those that came.
    """
    told: list[signal.Signals] = []
    task = asyncio.current_task()

    def end(number: signal.Signals) -> None:
        told.append(number)
        if task is not None:
            task.cancel()

    with caught(end):
        try:
            yield told
        except asyncio.CancelledError:
            if not told:  # it is somebody else's
                raise


@contextmanager
def interruptible() -> Generator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, as long as the block lasts; else it ends the process."""
    is_deadly = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if is_deadly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if is_deadly:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_input() -> None:
    """Wait until standard input has a line, or has ended; Ctrl-C ends the wait, whenever it comes.

    A blocking read alone misses one that comes just before it.
    """
    if sys.platform == "win32":  # it cannot wait for a console
        return
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake)
    try:
        select.select([sys.stdin, woken], [], [])
    finally:
        signal.set_wakeup_fd(before)
        os.close(wake)
        os.close(woken)


def end_within(seconds: float, code: int) -> None:
    """End this process with that code, if it has not ended by itself by then.

    A thread that somebody else's code has started, and that hangs, holds up the end of a process.
    """
    timer = threading.Timer(seconds, _end, (code,))
    timer.daemon = True
    timer.start()


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # whatever a stream raises now, the process ends
            stream.flush()
    os._exit(code)
