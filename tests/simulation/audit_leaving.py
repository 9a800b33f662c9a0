"""Leaving: it ends in time, and so does everything of its process (I7)."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import HAIR, Evidence
from .journal import Line

_LEAVE_SECONDS = 5.0


def check(evidence: Evidence) -> Iterator[str]:
    limit = evidence.shape.grace + _LEAVE_SECONDS + HAIR
    for process, leaving in evidence.leavings.items():
        end = evidence.ends.get(process)
        if end is None or end.at - leaving.at > limit:
            yield f"I7: process {process} took too long to leave"
    for line in evidence.lines:
        end = evidence.ends.get(line.process)
        if end is not None and line.place > end.place and _is_background(line):
            yield f"I7: process {line.process} goes on after its end"


def _is_background(line: Line) -> bool:
    return line.kind == "told" or (line.kind == "begin" and not line.caller)
