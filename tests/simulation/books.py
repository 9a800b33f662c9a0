"""Whether the books of a run balance: what always holds (I1-I8), from outside.

What the coordinator says (its records, its counts, what it told callbacks and callers) is held
against what its targets, its callers and its processes have written down.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from invoke_retry import Invocation

from .journal import Line
from .plan import LINGER, Job
from .world import World

_FINAL = ("succeeded", "failed", "cancelled")
_HAIR = 1e-6
_LEAVE_SECONDS = 5.0
_TOLD = ("ok", "reason", "attempts", "response", "response_omitted")
_CUT_ANSWERS = ("cut", "own CancelledError")


def audit(world: World) -> list[str]:
    """What is wrong with a run that has come to its end."""
    return _Audit(world).problems


class _Audit:
    def __init__(self, world: World) -> None:
        self._world = world
        self.problems: list[str] = []
        lines = world.journal.lines
        self._by_cid = defaultdict[str, list[Line]](list)
        self._ends: dict[int, Line] = {}
        self._leaving: dict[int, Line] = {}
        self._kills: list[int] = []
        by_caller = defaultdict[int, list[Line]](list)
        for line in lines:
            if line.cid:
                self._by_cid[line.cid].append(line)
            if line.caller:
                by_caller[line.caller].append(line)
            if line.kind in ("killed", "left"):
                self._ends[line.process] = line
            if line.kind == "killed":
                self._kills.append(line.place)
            if line.kind == "leaving":
                self._leaving[line.process] = line
        self._called = {each[0].number for each in by_caller.values() if each[0].kind == "calls"}
        self._records: dict[str, Invocation] = {}
        for records, counts in world.epochs:
            self._check_counts(records, counts)
            self._records.update((str(record.call_cid), record) for record in records)
        self._check_processes()
        for number, own in by_caller.items():
            self._check_caller(number, own)
        for cid in self._by_cid.keys() - self._records.keys():
            if any(line.kind == "accepted" for line in self._by_cid[cid]):
                self._wrong(cid, "I1: was accepted, and is lost")
        for cid, record in self._records.items():
            self._check_record(cid, record)

    def _wrong(self, cid: str, text: str) -> None:
        self.problems.append(f"{cid[-6:]} {text}")

    # All together.

    def _check_counts(self, records: list[Invocation], counts: dict[str, int]) -> None:
        found = Counter(record.state for record in records)
        if any(counts[state] != found[state] for state in counts):  # type: ignore[index]
            self.problems.append(f"I1: the counts are {counts}, but there are {found}")

    def _check_processes(self) -> None:
        limit = self._world.shape.grace + _LEAVE_SECONDS + _HAIR
        for process, leaving in self._leaving.items():
            end = self._ends.get(process)
            if end is None or end.at - leaving.at > limit:
                self.problems.append(f"I7: process {process} took too long to leave")
        for line in self._world.journal.lines:
            end = self._ends.get(line.process)
            if end is not None and line.place > end.place and self._is_background(line):
                self.problems.append(f"I7: process {line.process} goes on after its end")

    def _is_background(self, line: Line) -> bool:
        return line.kind == "told" or (line.kind == "begin" and not line.caller)

    # A caller.

    def _check_caller(self, number: int, own: list[Line]) -> None:
        calls = next((line for line in own if line.kind == "calls"), None)
        if calls is None:  # cancelled before it began
            if any(line.kind == "begin" for line in own):
                self.problems.append(f"I5: caller {number} was cancelled, and its target called")
            return
        answer = next((line for line in own if line.kind == "answer"), None)
        end = self._ends.get(calls.process)
        if answer is None:
            if end is None or end.kind != "killed":
                self.problems.append(f"I5: caller {number} was never answered")
            return
        limit = next((line for line in own if line.kind == "limit"), None)
        if limit is None:
            return
        at = float(limit.text) if limit.text else limit.at
        if answer.at > at + LINGER + _HAIR:
            self.problems.append(f"I5: caller {number} was cut off at {at} and left late")
        if any(line.kind == "begin" and line.at > at for line in own):
            self.problems.append(f"I5: caller {number} was cut off, and its target called again")
        if answer.text not in _CUT_ANSWERS and "kept" not in answer.text:
            self.problems.append(f"I5: caller {number} was cut off, and told {answer.text}")

    # An invocation.

    def _check_record(self, cid: str, record: Invocation) -> None:
        own = self._by_cid[cid]
        n: int = record.payload["n"]
        job = self._world.jobs[n]
        if n not in self._called and not job.orig:
            self._wrong(cid, "was never asked for")
        self._check_facts(cid, record, job)
        begun = [line for line in own if line.kind == "begin"]
        ends = {
            (line.number, line.process, line.caller): line for line in own if line.kind == "end"
        }
        self._check_attempts(cid, record, job, begun, ends, own)
        self._check_outcome(cid, record, job, begun, own)
        self._check_callback(cid, record, job, own)

    def _check_facts(self, cid: str, record: Invocation, job: Job) -> None:
        if job.orig and record.orig_cid != job.orig:
            self._wrong(cid, f"comes from {record.orig_cid}, not from {job.orig}")
        if record.target != job.target or record.callback != job.callback:
            self._wrong(cid, "is another request")
        times = [record.created_at, record.req_ts_utc, record.resp_ts_utc]
        if any(time is not None and time.utcoffset() is None for time in times):
            self._wrong(cid, "I4: has a naive time")
        for past in record.history:
            if past.ended_at is None or past.ended_at < past.started_at:
                self._wrong(cid, f"I4: attempt {past.number} took a negative time, or no end")
        numbers = [past.number for past in record.history]
        if numbers != sorted(set(numbers)):
            self._wrong(cid, f"I4: its history says {numbers}")
        if record.attempts > 1 + job.policy.repeats or record.attempts < 0:
            self._wrong(cid, f"I4: {record.attempts} attempts")

    def _died_between(self, first: int, second: int) -> bool:
        return any(first < index < second for index in self._kills)

    def _has_left(self, line: Line) -> bool:
        """Whether it happened while its process was being left, or at that moment."""
        leaving = self._leaving.get(line.process)
        return leaving is not None and line.at >= leaving.at

    def _check_attempts(
        self, cid: str, record: Invocation, job: Job, begun: list[Line], ends: dict[Any, Line],
        own: list[Line],
    ) -> None:  # fmt: skip
        policy = job.policy
        waits = list(policy.delays())
        for line in begun:
            end = self._end_of(line, ends)
            if line.number > 1 + policy.repeats:
                self._wrong(cid, f"is repeated too often: {line.number}")
            if policy.timeout is not None and end.at - line.at > policy.timeout + LINGER + _HAIR:
                self._wrong(cid, f"attempt {line.number} was not cut by its timeout")
            if policy.deadline is not None and (
                line.at >= begun[0].at + policy.deadline and not self._is_first(line, begun)
            ):
                self._wrong(cid, f"attempt {line.number} began after the deadline")
        for first, second in pairwise(begun):
            end = self._end_of(first, ends)
            if end.place > second.place:
                self._wrong(cid, f"I6: attempts {first.number} and {second.number} overlap")
                continue
            died = self._died_between(first.place, second.place)
            given_back = self._has_left(end)
            gap = second.number - first.number
            if gap < (0 if given_back and end.kind == "end" else 1) or (gap > 1 and not died):
                self._wrong(cid, f"attempt {second.number} follows attempt {first.number}")
            hastened = any(
                line.kind in ("run_now?", "run_now!") and first.place < line.place < second.place
                for line in own
            )
            if gap != 1 or policy.jitter == "full" or hastened or given_back:
                continue
            wait = waits[first.number - 1]
            if end.text == "after" and not died:
                wait = 2.5
            late = second.at - end.at - wait
            if late < -_HAIR:
                self._wrong(cid, f"I6: attempt {second.number} began {-late:g} s early")
            elif late > _HAIR and self._is_punctual(first, second, own):
                self._wrong(cid, f"I4: attempt {second.number} began {late:g} s late")
        if not self._kills and not self._leaving_before_end(own) and begun:
            unmade = record.reason in ("cancelled", "deadline", "abandoned")  # cut before it began
            if record.attempts - begun[-1].number not in ((0, 1) if unmade else (0,)):
                self._wrong(cid, f"made {begun[-1].number} attempts, and says {record.attempts}")

    def _is_punctual(self, first: Line, second: Line, own: Iterable[Line]) -> bool:
        """Whether nothing may have held the second attempt up."""
        is_parked = any("Parked" in line.text for line in own) or any(
            line.kind == "spoil" for line in self._world.journal.lines
        )
        return (
            self._world.disk is None
            and self._world.shape.is_unhindered
            and first.process == second.process
            and not is_parked
        )

    def _leaving_before_end(self, own: Iterable[Line]) -> bool:
        return any(line.kind in ("begin", "end") and self._has_left(line) for line in own)

    def _is_first(self, line: Line, begun: list[Line]) -> bool:
        return line is begun[0]

    def _end_of(self, line: Line, ends: dict[Any, Line]) -> Line:
        end = ends.get((line.number, line.process, line.caller))
        if end is None or end.place < line.place:
            end = self._ends.get(line.process, line._replace(at=float("inf"), place=10**9))
        return end

    def _check_outcome(
        self, cid: str, record: Invocation, job: Job, begun: list[Line], own: list[Line]
    ) -> None:
        reason = record.reason
        if reason is None:
            if record.state in _FINAL or record.state == "notifying":
                self._wrong(cid, f"is {record.state} without an outcome")
            else:
                self._wrong(cid, f"I1: has no outcome, and is {record.state}")
            return
        known = [
            line.place
            for line in own
            if line.kind in ("told", "seen", "cancel!")
            or (line.kind == "hook" and line.text.startswith("Outcome"))
        ]
        if known and begun and begun[-1].place > min(known):
            self._wrong(cid, "I6: is called after its outcome was known")
        outcomes = [line.text for line in own if line.kind in ("told", "seen")]
        if len(set(outcomes)) > 1:
            self._wrong(cid, f"I2, I3: is told differently: {set(outcomes)}")
        for text in set(outcomes):
            said, shown = json.loads(text), record.model_dump(mode="json")
            if any(said[name] != shown[name] for name in _TOLD) or said["error"] != shown["error"]:
                self._wrong(cid, f"I3: was told as {text}, and is {shown}")
        hooked = [line.text for line in own if line.text.startswith("Outcome")]
        if len(hooked) > 1 or any(text != f"Outcome {reason}" for text in hooked):
            self._wrong(cid, f"I3: hooks were told {hooked}, but it is {reason}")
        self._check_reason(cid, record, job, own)

    def _check_reason(self, cid: str, record: Invocation, job: Job, own: list[Line]) -> None:
        reason = record.reason
        ended = [line for line in own if line.kind == "end"]
        last = ended[-1].text if ended else ""
        asked = any(line.kind == "cancel?" for line in own)
        cancelled = any(line.kind == "cancel!" for line in own)
        killed = bool(self._kills)
        left = self._leaving_before_end(own)
        fits = {
            "succeeded": last == "ok",
            "exhausted": record.attempts == 1 + job.policy.repeats and (last != "ok" or killed),
            "permanent": last == "permanent",
            "deadline": job.policy.deadline is not None,
            "cancelled": asked,
            "abandoned": self._world.disk is None,
            "parked": True,
        }
        if not fits[str(reason)]:
            self._wrong(cid, f"is {reason}, but {last} after {record.attempts}")
        if cancelled and reason != "cancelled":
            self._wrong(cid, f"I3: was cancelled, and is {reason}")
        may_end_so = ("succeeded", "cancelled", "deadline")
        if last == "ok" and reason not in may_end_so and not killed and not left:
            self._wrong(cid, f"I3: has succeeded, and is {reason}")

    def _check_callback(self, cid: str, record: Invocation, job: Job, own: list[Line]) -> None:
        told = [line for line in own if line.kind == "told"]
        took = [line for line in own if line.kind == "took"]
        if record.callback is None:
            if told:
                self._wrong(cid, "has no callback, and one is told")
            return
        if record.state in _FINAL and not took:
            self._wrong(cid, "I1: its callback was lost")
        if record.state == "dead" and took and not self._died_between(took[0].place, 10**9):
            self._wrong(cid, "I1: its callback has taken it, and it is dead")
        if record.state == "notifying" and cid not in self._world.left_cids:
            self._wrong(cid, "I7: was left undelivered, and nobody says so")
        ends = [line for line in own if line.kind in ("took", "refused")]
        for first, second in pairwise(told):
            end = next(
                (
                    line
                    for line in ends
                    if first.place < line.place and line.process == first.process
                ),
                None,
            ) or self._ends.get(first.process)
            if end is None or end.place > second.place:
                self._wrong(cid, "is told twice at a time")
                continue
            if end.kind == "took" and not self._died_between(end.place, second.place):
                self._wrong(cid, "I2: was told again after it was told")
            hurried = any(
                first.place < line.place < second.place
                and line.kind in ("run_now?", "run_now!", "redeliver?")
                for line in own
            )
            died = self._died_between(first.place, second.place)
            wait = 2.5 if end.text == "after" and not died else self._world.shape.told.seconds or 0
            is_left = self._has_left(end) or self._has_left(second)
            is_refused = end.kind == "refused" and not hurried and not is_left
            if is_refused and second.at - end.at < wait - _HAIR:
                self._wrong(cid, "I6: is told again too early")
        if any(line.number > 1 + self._world.shape.told.repeats for line in told):
            self._wrong(cid, "is told too often")
        if any(line.caller for line in told):
            self._wrong(cid, "its callback sees the caller's context")
