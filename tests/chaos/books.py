"""Whether the books of a store agree with what its processes did: the promises, one by one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from .journal import Line

Problems = dict[str, list[str]]
_AFTERWARDS = 10.0  # seconds; then all have found each other again, and know what they have lost


@dataclass
class Books:
    """What was counted, and what was found wrong.

    Attributes:
        repeated: Callbacks beyond the first of an invocation.
        problems: By promise, what breaks it.
    """

    accepted: int = 0
    attempts: int = 0
    callbacks: int = 0
    repeated: int = 0
    problems: Problems = field(default_factory=lambda: defaultdict[str, list[str]](list))

    def add(self, other: Books) -> None:
        """Sum up."""
        for name in ("accepted", "attempts", "callbacks", "repeated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, found in other.problems.items():
            self.problems[name] += found

    def number(self, *names: str) -> int:
        """How many problems of these kinds there are."""
        return sum(len(self.problems.get(name, ())) for name in names)

    @property
    def is_sound(self) -> bool:
        """Whether no problem was found."""
        return not any(self.problems.values())

    def shown(self) -> str:
        """The first problems of each kind."""
        return "\n".join(
            f"{name}: {len(found)}, e.g. {'; '.join(found[:3])[-1500:]}"
            for name, found in self.problems.items()
            if found
        )


def audit(lines: Iterable[Line], repeats: int) -> Books:
    """Go through the journal of a store that was drained.

    Args:
        repeats: The policy of everything that was invoked.
    """
    books, by_cid = Books(), defaultdict[str, list[Line]](list)
    deaths: dict[int, float] = {}
    absences = Absences()
    for line in lines:
        absences.note(line)
        if line.kind == "killed":
            deaths.setdefault(line.number, line.at)
        elif line.kind == "error":
            books.problems["errors"].append(line.text)
        elif line.cid:
            by_cid[line.cid].append(line)
    for cid, own in by_cid.items():
        one = _Invocation(cid, own, deaths, absences, books)
        one.check_outcome()
        one.check_callbacks()
        one.check_attempts(repeats)
    return books


class Absences:
    """When a process could not renew its leases: it was paused, or what it needs was down."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []

    def note(self, line: Line) -> None:
        """Look at the next line of the journal; *number* is the process that was paused."""
        if line.kind in ("paused", "down"):
            who = line.number if line.kind == "paused" else 0
            self._spans.append([who, line.at, float("inf")])
        elif line.kind in ("resumed", "up"):
            who = line.number if line.kind == "resumed" else 0
            for span in self._spans:
                if span[0] == who and span[2] == float("inf"):
                    span[2] = line.at + _AFTERWARDS

    def within(self, pid: int, begin: float, end: float) -> bool:
        """Whether there was one of the process, or a moment ago, between two times."""
        return any(
            who in (0, pid) and since <= end and begin <= until for who, since, until in self._spans
        )


class _Invocation:
    """All that is known of one invocation."""

    def __init__(
        self,
        cid: str,
        lines: list[Line],
        deaths: dict[int, float],
        absences: Absences,
        books: Books,
    ) -> None:
        self._cid = cid
        self._deaths = deaths
        self._absences = absences
        self._books = books
        self._lines = lines
        self._told = self._of("told")
        self._began = self._of("began")
        books.accepted += bool(self._of("accepted"))
        books.attempts += len(self._began)
        books.callbacks += len(self._told)
        books.repeated += max(0, len(self._told) - 1)

    def _of(self, *kinds: str) -> list[Line]:
        return [line for line in self._lines if line.kind in kinds]

    def _wrong(self, name: str, text: str = "") -> None:
        self._books.problems[name].append(f"{self._cid} {text}")

    def check_outcome(self) -> None:
        """Accepted is told, and never told otherwise."""
        if self._of("accepted") and not self._told:
            self._wrong("lost")
        shown = self._told + self._of("seen")
        if len({json.loads(line.text)["ok"] for line in shown}) > 1:
            self._wrong("flipped")
        elif len({line.text for line in shown}) > 1:
            self._wrong("other content", " / ".join(sorted({line.text for line in shown})))

    def check_callbacks(self) -> None:
        """One is repeated only after the death, or an absence, of the process that made it."""
        for earlier, later in pairwise(self._told):
            died_at = self._deaths.get(earlier.pid)
            if self._is_absent(earlier, later):
                continue
            if died_at is None or later.at < died_at:
                self._wrong("callbacks repeated without a death", f"{earlier.pid}, {later.pid}")

    def check_attempts(self, repeats: int) -> None:
        """Each once, one after the other, not too many, none after the outcome."""
        numbers = [line.number for line in self._began]
        # what a process that left had to cut is given back, and made again
        cut = [line.number for line in self._of("ended") if line.text == "cut"]
        if len(numbers) - len(set(numbers)) > len(cut):
            self._wrong("attempts made twice", f"{numbers}")
        if numbers and max(numbers) > 1 + repeats:
            self._wrong("too many attempts", f"{numbers}")
        for earlier, later in pairwise(sorted(self._began, key=lambda line: line.at)):
            over = self._end(earlier) - later.at
            if over > 0 and not self._is_absent(earlier, later):
                self._wrong("attempts overlap", f"by {over:.3f} s")
        if not self._told:
            return
        outcome = json.loads(self._told[0].text)
        first = self._told[0]
        # one that was taken, and counted, when somebody else cancelled it may not have heard of it
        taken = outcome["attempts"] if outcome.get("reason") == "cancelled" else 0
        if any(
            line.at > first.at and line.number > taken and not self._was_absent(line)
            for line in self._began
        ):
            self._wrong("attempts after the outcome")
        if numbers and max(numbers) > outcome["attempts"]:
            self._wrong("attempts not counted", f"{numbers}, counted {outcome['attempts']}")
        good = [line.number for line in self._of("ended") if line.text == "ok"]
        if outcome["ok"] and outcome["attempts"] not in good:
            self._wrong("success of nothing", f"{good}, counted {outcome['attempts']}")

    def _is_absent(self, earlier: Line, later: Line) -> bool:
        return self._absences.within(earlier.pid, earlier.at, later.at)

    def _was_absent(self, line: Line) -> bool:
        return self._absences.within(line.pid, line.at, line.at)

    def _end(self, began: Line) -> float:
        """When an attempt was over: it ended, or its process did."""
        ends = [
            line.at
            for line in self._of("ended")
            if (line.pid, line.number) == (began.pid, began.number)
        ]
        # a process may have a moment left after its killer has made a note
        died_at = max(began.at, self._deaths.get(began.pid, float("inf")))
        return min([*ends, died_at])
