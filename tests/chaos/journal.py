"""What the processes of a chaos test have done, each fact one line that survives their death."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One fact; *at* is on the monotonic clock, which all processes of a machine share.

    Attributes:
        number: Of the attempt or the delivery; of a killing, the process that was killed.
    """

    kind: str
    pid: int
    at: float
    cid: str
    number: int
    text: str


class Journal:
    """Appends lines to a file that many processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, kind: str, cid: str = "", number: int = 0, text: str = "") -> None:
        line = json.dumps(Line(kind, os.getpid(), time.monotonic(), cid, number, text))
        # the first line break ends what another one, killed within its write, has left
        os.write(self._descriptor, f"\n{line}\n".encode())

    def lines(self, *kinds: str) -> list[Line]:
        """What was written, by all; of these kinds only, if any are given."""
        found: list[Line] = []
        for text in self.path.read_bytes().splitlines():
            try:
                line = Line(*json.loads(text))
            except ValueError:  # empty, or torn
                continue
            if not kinds or line.kind in kinds:
                found.append(line)
        return found

    def close(self) -> None:
        os.close(self._descriptor)
