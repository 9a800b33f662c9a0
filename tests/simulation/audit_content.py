"""What is told of an invocation: by its record, and to its callback, as its target has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from invoke_retry import Invocation

from .evidence import Evidence, Play, Story, of_each_record
from .loop import EPOCH
from .saying import ODD

_MILLI = 1e-3


def check(evidence: Evidence) -> Iterator[str]:
    return of_each_record(evidence, _one)


def _one(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    yield from _request(evidence, record)
    yield from _times(evidence, story, record)
    yield from _response(story, record)
    yield from _error(evidence, story, record)
    yield from _history(evidence, story, record)
    shown = record.model_dump(mode="json") if story.deliveries else {}
    for play in story.deliveries:
        told = json.loads(play.begin.text)
        wrong = {name for name in told if told[name] != shown[name]}
        if wrong:
            yield f"its callback is told something else than its record says: {wrong}"


def _request(evidence: Evidence, record: Invocation) -> Iterator[str]:
    """Whether it is the request that was made."""
    job = evidence.job(str(record.call_cid))
    asked: dict[str, Any] = {
        "target": job.target,
        "callback": job.callback,
        "context": None if job.orig else job.context,
        "retry_repeats": job.policy.repeats,
        "retry_seconds": job.policy.seconds,
    }
    for name, value in asked.items():
        if getattr(record, name) != value:
            yield f"its {name} is {getattr(record, name)}, not {value}"
    world = evidence.world
    if job.orig:
        parent = next((each for each in evidence.stories[job.orig].attempts), None)
        if record.orig_cid != job.orig or parent is None or record.source != parent.begin.text:
            yield f"comes from {record.source} {record.orig_cid}, not from {job.orig}"
    elif record.source != "main" or record.orig_cid not in world.own_cids:
        yield f"comes from {record.source} {record.orig_cid}, not from a coordinator"


def _times(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    times = [record.created_at, record.req_ts_utc, record.resp_ts_utc]
    if any(time is not None and time.utcoffset() is None for time in times):
        yield "I4: has a naive time"
    for past in record.history:
        if past.ended_at is None or past.ended_at < past.started_at:
            yield f"I4: attempt {past.number} took a negative time, or no end"
    if evidence.has_steps or evidence.kills or not evidence.is_memory:
        return
    first = record.req_ts_utc.timestamp() - EPOCH if record.req_ts_utc else None
    begun = [play.begin.at for play in story.attempts]
    if (begun and first is None) or (first and begun and abs(first - begun[0]) > _MILLI):
        yield f"began at {begun[0]}, and says {first}"


def _response(story: Story, record: Invocation) -> Iterator[str]:
    said, omitted = record.response, record.response_omitted
    if record.reason != "succeeded":
        if (said, omitted) != (None, None):
            yield f"is {record.reason}, and has a response: {said} {omitted}"
        return
    last = story.attempts[-1] if story.attempts else None
    if last is None or not last.is_own:
        return  # its end is audited elsewhere
    value = json.loads(last.end.detail)
    if said != (None if value == ODD else value) or bool(omitted) != (value == ODD):
        yield f"its target said {value}, and its record says {said} {omitted}"


def _error(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    """Whether its error is that of its last attempt."""
    error = record.error
    if record.reason == "succeeded" or record.reason is None:
        if record.reason and error is not None:
            yield f"has succeeded, and has an error: {error}"
        return
    if evidence.kills or not story.attempts or evidence.has_left(story.attempts[-1].end):
        return
    if record.reason == "cancelled" or record.attempts > len(story.attempts):
        return  # cut while an attempt ran, between two, or before its service was called
    if error is None or not _is_of(story.attempts[-1], error.type, error.message):
        yield f"its target raised {story.attempts[-1].end.detail}, and its record says {error}"


def _is_of(play: Play, name: str, message: str) -> bool:
    if play.end.text == "cut":
        return name == "TimeoutError"
    if not play.is_own or play.end.text == "ok":
        return False
    said: dict[str, str] = json.loads(play.end.detail)
    return (name, message) == (said["type"], said["message"])


def _history(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    numbers = [past.number for past in record.history]
    if numbers != sorted(set(numbers)):
        yield f"I4: its history says {numbers}"
    plays = story.attempts
    if evidence.kills or any(evidence.has_left(each.end) for each in plays):
        return
    most = len(plays) + (record.reason in ("cancelled", "deadline", "abandoned"))
    if not len(plays) <= len(numbers) <= most:
        yield f"was attempted {len(plays)} times, and its history says {numbers}"
    for play, past in zip(plays, record.history, strict=False):
        if record.reason == "cancelled" and play is plays[-1]:
            continue
        if play.end.text == "ok" and past.error is None:
            continue
        if past.error is None or not _is_of(play, past.error.type, past.error.message):
            yield f"attempt {play.number} ended as {play.end.text}, and has {past.error}"
