"""Calls whose attempts are made in the caller's task: all of them, or the first one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from .audit_attempts import length, numbers, wait_after
from .evidence import HAIR, Evidence, Play
from .journal import Line
from .plan import Job

_OWN_ERRORS = ("Permanent", "Odd", "SystemExit")


def check(evidence: Evidence) -> Iterator[str]:
    plays: dict[int, list[Play]] = {}
    for story in evidence.stories.values():
        for play in story.attempts:
            if play.begin.caller:
                plays.setdefault(play.begin.caller, []).append(play)
    for number, own in evidence.callers.items():
        if own[0].kind == "calls" and own[0].text in ("async", "fallback", "inline", "resubmit"):
            for text in _one(evidence, own, plays.get(number, [])):
                yield f"caller {number} ({own[0].text}): {text}"


def _one(evidence: Evidence, own: list[Line], plays: list[Play]) -> Iterator[str]:
    calls, job = own[0], evidence.world.jobs[own[0].number]
    most = {"inline": 1 + job.policy.repeats, "fallback": 1}.get(calls.text, 0)
    if len(plays) > most:
        yield f"{len(plays)} attempts are made in the caller's task, not {most}"
    if len({play.begin.cid for play in plays}) > 1:
        yield "its attempts have different cids"
    yield from numbers(evidence, plays, job.policy.repeats)
    yield from _waits(evidence, job, plays)
    if calls.text == "inline":  # the others are audited with their invocation, if there is one
        for play in plays:
            story = evidence.stories[play.begin.cid]
            yield from length(evidence, story, play, job.policy, calls.at)
    answer = next((line for line in own if line.kind == "answer"), None)
    if answer is not None and plays and not any(line.kind == "limit" for line in own):
        yield from _answer(evidence, calls, answer, job, plays[-1])


def _waits(evidence: Evidence, job: Job, plays: list[Play]) -> Iterator[str]:
    for first, second in pairwise(plays):
        least, most = wait_after(first, job.policy)
        waited = second.begin.at - first.end.at
        if not least - HAIR <= waited <= most + HAIR:
            yield f"waits {waited:g} s before attempt {second.number}, not {least:g} to {most:g}"
        if not first.has_failed:
            yield f"attempt {second.number} follows one that was {first.end.text}"


def _answer(evidence: Evidence, calls: Line, answer: Line, job: Job, last: Play) -> Iterator[str]:
    """Whether the answer is what the last attempt implies."""
    if not last.is_own:
        yield f"is told {answer.text}, and its target still runs"
        return
    how, said = last.end.text, json.loads(last.end.detail)
    told: Any = json.loads(answer.detail) if answer.detail != "?" else None
    if how == "ok":
        if not answer.text.startswith("value") or told != said:
            yield f"its target said {said}, and it is told {answer.text}"
    elif how == "permanent":
        if answer.text not in _OWN_ERRORS or told["type"] != said["type"]:
            yield f"its target raised {said}, and it is told {answer.text}"
    elif said["type"] == "asyncio.exceptions.CancelledError" and said["message"] == "own":
        if answer.text != "own CancelledError":
            yield f"its target was cancelled by itself, and it is told {answer.text}"
    elif answer.text == "RetriesExhausted":
        yield from _exhausted(evidence, calls, told, job, last)
    elif calls.text == "inline" or not _is_handed_over(evidence, answer):
        yield f"attempt {last.number} has failed, and it is told {answer.text}"
    elif last.number > job.policy.repeats:
        yield f"nothing is left to repeat, and it is told {answer.text}"


def _exhausted(
    evidence: Evidence, calls: Line, told: dict[str, Any], job: Job, last: Play
) -> Iterator[str]:
    policy = job.policy
    error = "TimeoutError" if last.end.text == "cut" else json.loads(last.end.detail)["type"]
    if told["cause"] is None or told["cause"]["type"] != error:
        yield f"its target raised {error}, and it is told {told}"
    if told["attempts"] != last.number:
        yield f"made {last.number} attempts, and is told {told}"
    if told["reason"] == "exhausted":
        if last.number != 1 + policy.repeats:
            yield f"has given up after attempt {last.number}"
        return
    wait = wait_after(last, policy)[1] if last.number <= policy.repeats else 0
    passed = last.end.at - calls.at
    if policy.deadline is None or passed + wait < policy.deadline - HAIR:
        yield f"has given up for its deadline of {policy.deadline} s after {passed:g} s"


def _is_handed_over(evidence: Evidence, answer: Line) -> bool:
    """Whether the background has it, or may refuse it."""
    if answer.text == "BackendFull":
        return evidence.shape.max_waiting is not None
    if answer.text in ("NotRunning", "BackendError"):
        return evidence.has_left(answer)
    return answer.text.startswith("cid ")
