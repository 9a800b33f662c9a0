"""What the system says of a process, and of the files of its store."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
MIB = 1_048_576


class Sample(NamedTuple):
    """One look.

    Attributes:
        at: Seconds since the soak began.
        life: Which process it was, from 0.
        age: Seconds since that process was ready.
        rss, wal, store: Bytes.
        objects: How many the garbage collector knew after its last collection, as the process says.
        counts: How many invocations are in each state, as the process says.
        inline: How many inline calls of this life have ended.
    """

    at: float
    life: int
    age: float
    rss: int
    wal: int
    store: int
    fds: int
    threads: int
    objects: int
    counts: dict[str, int]
    inline: int


class Usage(NamedTuple):
    """What a process has of the system; `rss` in bytes."""

    rss: int
    fds: int
    threads: int


def check_system() -> None:
    """Refuse a system that cannot be asked."""
    if not (PROC / "self" / "status").exists():
        sys.exit(f"the soak reads /proc, which {sys.platform} has not: run it on Linux")


def usage(pid: int) -> Usage | None:
    """Of a process; None if it is gone."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines)
        fds = len(list((PROC / str(pid) / "fd").iterdir()))
        return Usage(int(told["VmRSS"].split()[0]) * 1_024, fds, int(told["Threads"]))
    except (OSError, KeyError):  # one that has ended, and waits for its parent, has no memory
        return None


def size(path: Path) -> int:
    """Of a file, or of all files of a folder; 0 where there is none."""
    total = 0
    for each in path.rglob("*") if path.is_dir() else (path,):
        with suppress(FileNotFoundError):  # others come and go meanwhile
            total += each.stat().st_size
    return total
