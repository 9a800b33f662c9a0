"""Limits: how many run, what is paused, how many wait, how much is logged (I8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf

from .evidence import HAIR, STORE_SECONDS, Evidence, Play
from .journal import Line

_LINES_OF_PROCESS = 20


def check(evidence: Evidence) -> Iterator[str]:
    plays = [
        play
        for story in evidence.stories.values()
        for play in (*story.attempts, *story.deliveries)
        if not play.begin.caller
    ]
    yield from _slots(evidence, plays)
    yield from _pauses(evidence, plays)
    yield from _waiting(evidence)
    yield from _log(evidence, plays)


def _slots(evidence: Evidence, plays: list[Play]) -> Iterator[str]:
    """Whether no more ran at a time than may, in each process; one that waits lends its slot."""
    shape = evidence.shape
    if shape.max_running == 100 and shape.max_running_of_b is None:
        return
    edges = [(play.begin.place, 1, play) for play in plays if play.step.kind != "nest"]
    edges += [(play.end.place, -1, play) for _, _, play in edges]
    running, of_b = Counter[int](), Counter[int]()
    for _, change, play in sorted(edges, key=lambda edge: edge[:2]):
        process = play.begin.process
        running[process] += change
        if running[process] > shape.max_running:
            yield f"{running[process]} run in process {process}, not {shape.max_running}"
            return
        if play.begin.text == "b":
            of_b[process] += change
            if of_b[process] > (shape.max_running_of_b or inf):
                yield f"{of_b[process]} of b run in process {process}"
                return


def _pauses(evidence: Evidence, plays: list[Play]) -> Iterator[str]:
    """Whether nothing of a service begins while it is paused."""
    asked = [own for own in evidence.callers.values() if own[0].kind == "calls"]
    slack = HAIR if evidence.is_memory else STORE_SECONDS
    for own in asked:
        what, _, name = own[0].text.partition(" ")
        if what != "pause" or own[-1].kind != "answer" or not own[-1].text.startswith("value"):
            continue
        until = min(
            (begins for begins, ends in _resumes(asked, name, evidence) if ends > own[0].place),
            default=10**9,
        )
        for play in plays:
            begin = play.begin
            if evidence.is_memory and begin.process != own[0].process:
                continue  # a pause is forgotten there with all else
            late = begin.at > own[-1].at + slack
            if late and own[-1].place < begin.place < until and _service(evidence, play) == name:
                yield f"{name} is paused at {own[-1].at}, and begins at {begin.at}"


def _resumes(asked: list[list[Line]], name: str, evidence: Evidence) -> Iterator[tuple[int, float]]:
    """Where it was resumed, from the call to the answer."""
    for own in asked:
        if own[0].text == f"resume {name}":
            yield own[0].place, own[-1].place if own[-1].kind == "answer" else inf
    yield from ((line.place, inf) for line in evidence.lines if line.kind == "drain")


def _service(evidence: Evidence, play: Play) -> str:
    if play.begin.kind == "begin":
        return play.begin.text
    return evidence.world.jobs[int(play.begin.detail)].callback or ""


def _waiting(evidence: Evidence) -> Iterator[str]:
    """Whether never more was accepted than may wait: what is called later was not finished yet."""
    most = evidence.shape.max_waiting
    if most is None:
        return
    edges = list[tuple[int, int]]()
    for cid in evidence.records:
        story = evidence.stories[cid]
        accepted, plays = story.of("accepted"), (*story.attempts, *story.deliveries)
        if accepted and plays and not story.of("redeliver?"):
            last = max(play.begin.place for play in plays)
            if last > accepted[0].place:
                edges += [(accepted[0].place, 1), (last, -1)]
    waiting = 0
    for _, change in sorted(edges):
        waiting += change
        if waiting > most:
            yield f"I8: {waiting} wait, and {most} may"
            return


def _log(evidence: Evidence, plays: list[Play]) -> Iterator[str]:
    """Whether the log has at most a line for each failure, and some for each process."""
    processes = sum(line.kind == "start" for line in evidence.lines)
    parked = sum(line.kind in ("run_now?", "spoil", "start") for line in evidence.lines)
    inline = sum(line.kind == "end" and line.caller > 0 for line in evidence.lines)
    most = (
        len(plays) + inline + (3 + parked) * len(evidence.records) + _LINES_OF_PROCESS * processes
    )
    if evidence.world.logged > most:
        yield f"I8: {evidence.world.logged} lines are logged, not {most} at most"
