"""Standard streams that are closed, or cannot be written."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

_STREAMS: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}


def open_closed_streams() -> None:
    """Have closed standard streams lead nowhere; else files of the store might get their places."""
    for name, mode in _STREAMS.items():
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nowhere, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (it stays open)


def discard_output() -> None:
    """Drop what standard output has not written yet, and all that is still to come."""
    with suppress(OSError, ValueError):  # it is no file of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
