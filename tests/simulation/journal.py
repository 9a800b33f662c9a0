"""What happened in a run, in order: a log that the coordinator knows nothing of."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Line(NamedTuple):
    """One thing that happened.

    Attributes:
        at: On the loop's clock.
        process: The number of the process in which it did; 0 outside of all.
        kind: See `world.World` and `calls.Calls`, which write them.
        number: Of an attempt, a delivery, or a job.
        caller: In whose task it happened; 0 in the background.
        detail: As JSON: what a service was to do, or came to; what a caller was told.
    """

    place: int
    at: float
    process: int
    kind: str
    cid: str = ""
    number: int = 0
    text: str = ""
    caller: int = 0
    detail: str = ""

    def shown(self) -> str:
        where = f" caller {self.caller}" if self.caller else ""
        return (
            f"{self.place:4} {self.at:10.4f} [{self.process}] {self.kind:9} {self.cid[-6:]:6} "
            f"{self.number or '':2} {self.text}{where}"
        )


class Journal:
    """All lines of one run."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def write(
        self,
        at: float,
        process: int,
        kind: str,
        cid: str = "",
        number: int = 0,
        text: str = "",
        caller: int = 0,
        detail: str = "",
    ) -> int:
        """Add a line; its index."""
        index = len(self.lines)
        self.lines.append(Line(index, at, process, kind, cid, number, text, caller, detail))
        return index

    def shown(self) -> str:
        """The whole trace as text."""
        return "\n".join(map(Line.shown, self.lines))

    def digest(self) -> str:
        """What tells one trace from another."""
        return hashlib.sha256(repr(list(map(tuple, self.lines))).encode()).hexdigest()
