"""What a run has left behind, put in order: who called what, how it ended, and what was recorded.

The coordinator has written none of it but the records: the rest is what targets, callbacks, callers
and processes wrote down themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import NamedTuple

from invoke_retry import Invocation

from .journal import Line
from .loop import EPOCH
from .plan import LINGER, Job, Step
from .world import NAMES, World

HAIR = 1e-5
"""Seconds by which times may differ that are the same: recorded ones have microseconds."""
STORE_SECONDS = 2.0
_DISTURBING = ("start", "leaving", "left", "killed", "drain")
_ENDS_OF = {"begin": ("end",), "told": ("took", "refused")}


class Play(NamedTuple):
    """One call of a service, as the service saw it.

    Attributes:
        end: Where it did not end itself, the end of its process, or of all time.
        is_own: Whether it ended itself.
        step: What it was to do.
        planned: When it is over if nobody cuts it; None if that hangs on others.
    """

    begin: Line
    end: Line
    is_own: bool
    step: Step
    planned: float | None

    @property
    def number(self) -> int:
        return self.begin.number

    @property
    def cut_at(self) -> float | None:
        """When somebody cut it; None if nobody did."""
        planned = self.planned
        is_early = planned is not None and self.end.at < planned - HAIR
        if not self.is_own or not (self.end.text == "cut" or is_early):
            return None
        return self.end.at - (LINGER if self.step.kind == "stubborn" else 0)

    @property
    def has_failed(self) -> bool:
        return self.end.text not in ("ok", "permanent")


@dataclass
class Story:
    """All that is known of one cid.

    Attributes:
        lines: In order, whoever wrote them.
        attempts: Of the target, inline ones among them.
        deliveries: To the callback.
    """

    cid: str
    lines: list[Line] = field(default_factory=list[Line])
    attempts: list[Play] = field(default_factory=list[Play])
    deliveries: list[Play] = field(default_factory=list[Play])

    def of(self, *kinds: str) -> list[Line]:
        """Its lines of these kinds."""
        return [line for line in self.lines if line.kind in kinds]

    @cached_property
    def known(self) -> list[Line]:
        """Lines that could only be written when its outcome was recorded."""
        return [
            line
            for line in self.lines
            if line.kind in ("told", "seen", "cancel!")
            or (line.kind == "hook" and line.text.startswith("Outcome"))
        ]


class Evidence:
    """A run that has come to its end.

    Attributes:
        stories: By cid: of invocations, and of inline calls.
        records: By cid: what the stores have said in the end.
        callers: Their lines, by number.
        ends: How each process ended, by number; a line `left` or `killed`.
        leavings: When each process began to leave, by number.
        kills: Lines.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.shape = world.shape
        self.is_memory = world.disk is None
        self.lines = world.journal.lines
        self.stories = dict[str, Story]()
        self.callers = defaultdict[int, list[Line]](list)
        self.ends = dict[int, Line]()
        self.leavings = dict[int, Line]()
        self.kills = list[Line]()
        self.records = dict[str, Invocation]()
        for epoch in world.epochs:
            self.records.update((str(record.call_cid), record) for record in epoch.records)
        for line in self.lines:
            self._sort(line)
        for cid in self.records:
            self._story(cid)
        for story in self.stories.values():
            story.attempts = list(self._plays(story, "begin"))
            story.deliveries = list(self._plays(story, "told"))

    def _story(self, cid: str) -> Story:
        return self.stories.setdefault(cid, Story(cid))

    def _sort(self, line: Line) -> None:
        if line.cid:
            self._story(line.cid).lines.append(line)
        if line.caller:
            self.callers[line.caller].append(line)
        if line.kind in ("killed", "left"):
            self.ends[line.process] = line
        if line.kind == "killed":
            self.kills.append(line)
        if line.kind == "leaving":
            self.leavings[line.process] = line

    def _plays(self, story: Story, kind: str) -> Iterable[Play]:
        ends = story.of(*_ENDS_OF[kind])
        for begin in story.of(kind):
            end = next((line for line in ends if self._is_end(line, begin)), None)
            job = self.world.jobs[int(begin.detail)]
            steps = job.steps if kind == "begin" else job.told
            step = steps[min(begin.number, len(steps)) - 1]
            never = begin._replace(at=inf, place=10**9, text="")
            other = self.ends.get(begin.process, never)
            seconds = self.shape.hang if step.kind == "hang" else step.seconds
            planned = None if step.kind == "nest" else begin.at + seconds
            yield Play(begin, end or other, end is not None, step, planned)

    def _is_end(self, line: Line, begin: Line) -> bool:
        return (
            line.place > begin.place
            and (line.number, line.process) == (begin.number, begin.process)
            and (line.caller == begin.caller or begin.kind == "told")
        )

    # An invocation.

    def job(self, cid: str) -> Job:
        """What was to be done in it; it has a record."""
        n: int = self.records[cid].payload["n"]
        return self.world.jobs[n]

    def asked(self, cid: str) -> tuple[float, float]:
        """Between which times it was asked for: that of the call, and that of the answer."""
        accepted = self.stories[cid].of("accepted")
        until = min((line.at for line in accepted), default=inf)
        n = self.records[cid].payload["n"]
        calls = [
            own[0].at
            for own in self.callers.values()
            if own[0].kind == "calls" and own[0].number == n and self._asks_for(own[0], cid)
        ]
        return min(calls, default=-inf), until

    def _asks_for(self, calls: Line, cid: str) -> bool:
        old = self.records[cid].resubmit_of
        return calls.cid == old if old else calls.text in ("async", "fallback")

    def decided_at(self, cid: str) -> float | None:
        """When its outcome was recorded; None if nobody can tell."""
        record, story = self.records[cid], self.stories[cid]
        if record.resp_ts_utc is None:
            return None
        if not self.has_steps:
            return record.resp_ts_utc.timestamp() - EPOCH
        if record.reason in ("succeeded", "exhausted", "permanent") and story.attempts:
            last = story.attempts[-1]
            return last.end.at if last.is_own else None
        return None

    # What else happened meanwhile.

    @cached_property
    def has_steps(self) -> bool:
        """Whether somebody has changed the wall clock."""
        return any(line.kind == "step" for line in self.lines)

    @cached_property
    def has_spoils(self) -> bool:
        """Whether stored payloads did not fit for a while."""
        return any(line.kind == "spoil" for line in self.lines)

    @cached_property
    def has_gaps(self) -> bool:
        """Whether some process did not know all services."""
        return any(
            line.kind == "start" and len(line.text.split()) < len(NAMES) for line in self.lines
        )

    @property
    def may_park(self) -> bool:
        """Whether anything may have been parked."""
        return self.has_spoils or self.has_gaps

    def died_between(self, first: int, second: float = inf) -> int:
        """How many processes were killed between two places."""
        return sum(first < line.place < second for line in self.kills)

    def has_left(self, line: Line) -> bool:
        """Whether it happened while its process was being left, or at that moment."""
        leaving = self.leavings.get(line.process)
        return leaving is not None and line.at >= leaving.at

    def meets_leaving(self, play: Play) -> bool:
        """Whether it began or ended while its process was being left, or at that moment."""
        return self.has_left(play.begin) or self.has_left(play.end)

    def is_cut_by_leaving(self, process: int, at: float) -> bool:
        """Whether its process had been waiting for its work as long as it may."""
        leaving = self.leavings.get(process)
        return leaving is not None and at >= leaving.at + self.shape.grace - HAIR

    @cached_property
    def _disturbances(self) -> list[Line]:
        return [line for line in self.lines if line.kind in _DISTURBING]

    @cached_property
    def _paused(self) -> dict[str, int]:
        """Where each service was paused first."""
        found = dict[str, int]()
        for line in self.lines:
            if line.kind == "calls" and line.text.startswith("pause "):
                found.setdefault(line.text.removeprefix("pause "), line.place)
        return found

    def lateness(self, service: str, first: Line, due: float, begun: Line) -> float:
        """Seconds by which the service began too late; 0 if something explains it.

        Args:
            first: From when on it was known that the service would be called.
            due: When it was to begin.
        """
        late = max(0.0, begun.at - due)
        if not self.is_memory:
            late = max(0.0, late - STORE_SECONDS)
        if late <= HAIR or not self._is_free(service, begun.place):
            return 0
        disturbed = any(
            first.place <= line.place <= begun.place
            or (line.kind == "leaving" and self._is_leaving(line, first.place, begun.place))
            for line in self._disturbances
        )
        return 0 if disturbed else late

    def _is_free(self, service: str, place: int) -> bool:
        shape = self.shape
        return (
            shape.max_running == 100
            and (service != "b" or shape.max_running_of_b is None)
            and self._paused.get(service, inf) > place
            and not self.may_park
        )

    def _is_leaving(self, leaving: Line, first: int, second: int) -> bool:
        end = self.ends.get(leaving.process)
        return leaving.place <= second and (end is None or end.place >= first)


def of_each_record(
    evidence: Evidence, audit: Callable[[Evidence, Story, Invocation], Iterable[str]]
) -> Iterator[str]:
    """What is wrong with each invocation, under its name."""
    for cid, record in evidence.records.items():
        for text in audit(evidence, evidence.stories[cid], record):
            yield f"{key(cid)} {text}"


def key(cid: str) -> str:
    """A cid as problems name it."""
    return cid[-6:]
