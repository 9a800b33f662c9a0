"""Callbacks: told of each outcome at least once, again only with a reason (I1, I2), in time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from invoke_retry import Invocation

from .audit_attempts import wait_after
from .evidence import HAIR, Evidence, Play, Story, of_each_record
from .plan import LINGER

_FINAL = ("succeeded", "failed", "cancelled")


def check(evidence: Evidence) -> Iterator[str]:
    return of_each_record(evidence, _one)


def _one(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    told = story.deliveries
    if record.callback is None:
        if told:
            yield "has no callback, and one is told"
        return
    if any(play.begin.caller for play in told):
        yield "its callback sees the caller's context"
    yield from _taken(evidence, story, record)
    yield from _numbers(evidence, story)
    yield from _first(evidence, story, record)
    for first, second in pairwise(told):
        yield from _second(evidence, story, first, second)
    for play in told:
        yield from _length(evidence, play)


def _taken(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    """Whether it was delivered, or is dead because it could not be."""
    took = story.of("took")
    if record.state in _FINAL and not took:
        yield "I1: its callback was lost"
    if record.state == "notifying" and story.cid not in evidence.world.left_cids:
        yield "I7: was left undelivered, and nobody says so"
    if record.state != "dead":
        return
    if took and not evidence.died_between(took[0].place):
        yield "I1: its callback has taken it, and it is dead"
    last = story.deliveries[-1] if story.deliveries else None
    most, number = 1 + evidence.shape.told.repeats, last.number if last else 0
    at = story.lines[0] if last is None else last.end
    is_left = evidence.is_memory and evidence.is_cut_by_leaving(
        at.process, evidence.ends.get(at.process, at).at
    )
    if number < most and not (is_left or evidence.kills or evidence.may_park):
        yield f"I1: is dead after {number} deliveries of {most}"


def _numbers(evidence: Evidence, story: Story) -> Iterator[str]:
    """Whether deliveries are numbered from 1, and after they were asked for again from 1."""
    before, place, is_given_back = 0, -1, False
    for play in story.deliveries:
        begin = play.begin
        anew = any(place < line.place < begin.place for line in story.of("redeliver?"))
        gap = begin.number - before
        most = 1 + evidence.died_between(place, begin.place)
        is_next = (0 if is_given_back else 1) <= gap <= most
        if not is_next and not (anew and begin.number <= most):
            yield f"delivery {begin.number} follows delivery {before}"
        if begin.number > 1 + evidence.shape.told.repeats:
            yield f"is told too often: {begin.number}"
        before, place = begin.number, begin.place
        is_given_back = play.is_own and evidence.has_left(play.end)


def _first(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    decided_at = evidence.decided_at(story.cid)
    if decided_at is None or not story.deliveries:
        return
    begin = story.deliveries[0].begin
    before = [line for line in story.lines if line.kind in ("accepted", "end", "cancel?")]
    before = [line for line in before if line.place < begin.place]
    if not before:
        return
    if begin.at < decided_at - HAIR:
        yield "I6: is told before its outcome was recorded"
    if late := evidence.lateness(record.callback or "", before[-1], decided_at, begin):
        yield f"I4: is told {late:g} s late"


def _second(evidence: Evidence, story: Story, first: Play, second: Play) -> Iterator[str]:
    end, begin = first.end, second.begin
    if end.place > begin.place:
        yield "is told twice at a time"
        return
    if end.kind == "took" and not evidence.died_between(end.place, begin.place):
        yield "I2: was told again after it was told"
    if end.kind != "refused" or evidence.has_left(end) or evidence.has_left(begin):
        return
    between = [line for line in story.lines if first.begin.place < line.place < begin.place]
    if any(line.kind == "redeliver?" for line in between):
        return
    wait = wait_after(first, evidence.shape.told)[0]
    hurried = any(line.kind == "run_now?" for line in between)
    if not hurried and begin.at - end.at < wait - HAIR:
        yield f"I6: is told again {end.at + wait - begin.at:g} s too early"
    service = evidence.job(story.cid).callback or ""
    if late := evidence.lateness(service, end, end.at + wait, begin):
        yield f"I4: is told again {late:g} s late"


def _length(evidence: Evidence, play: Play) -> Iterator[str]:
    timeout, begin, end = evidence.shape.told.timeout, play.begin, play.end
    passed = end.at - begin.at
    if timeout is not None and passed > timeout + LINGER + HAIR:
        yield f"delivery {play.number} was not cut by its timeout"
    if play.cut_at is None or (timeout is not None and passed >= timeout - HAIR):
        return
    if not evidence.is_cut_by_leaving(end.process, end.at):
        yield f"delivery {play.number} was cut after {passed:g} s, and nobody knows why"
