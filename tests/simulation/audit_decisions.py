"""What people decide, and what they wait for: the answers, and that something comes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .evidence import HAIR, STORE_SECONDS, Evidence, Play, Story, key
from .journal import Line
from .plan import LINGER


def check(evidence: Evidence) -> Iterator[str]:
    for own in evidence.callers.values():
        calls, answer = own[0], own[-1]
        if calls.cid not in evidence.records or answer.kind != "answer":
            continue
        audit = _AUDITS.get(calls.text)
        if audit is not None and not any(line.kind == "limit" for line in own):
            for text in audit(evidence, evidence.stories[calls.cid], calls, answer):
                yield f"{key(calls.cid)} {text}"


def _is_running(play: Play, first: Line, second: Line) -> bool:
    """Whether it ran all the time between two lines."""
    return play.begin.place < first.place and second.place < play.end.place


def _cancel(evidence: Evidence, story: Story, calls: Line, answer: Line) -> Iterator[str]:
    if answer.text == "value false":
        is_known = any(line.place < answer.place for line in story.of("cancel!"))
        for play in story.attempts:
            goes_on = play.begin.place > answer.place or (
                _is_running(play, calls, answer) and play.end.text in ("ok", "failed")
            )
            if goes_on and play.cut_at is None and not is_known and not play.begin.caller:
                yield f"was not cancelled, and attempt {play.number} went on after that"
    for play in story.attempts if answer.text == "value true" else ():
        is_here = play.end.process == answer.process
        is_late = play.end.at > answer.at + LINGER + HAIR
        if is_here and is_late and _is_running(play, answer, answer):
            yield f"was cancelled, and attempt {play.number} went on until {play.end.at}"


def _run_now(evidence: Evidence, story: Story, calls: Line, answer: Line) -> Iterator[str]:
    plays = sorted((*story.attempts, *story.deliveries), key=lambda play: play.begin.place)
    later = next((play for play in plays if play.begin.place > calls.place), None)
    if later is None or any(_is_running(play, calls, calls) for play in plays):
        return
    service = later.begin.text
    if later.begin.kind == "told":
        decided = evidence.decided_at(story.cid)
        if decided is None or decided > calls.at:
            return  # then it was an attempt that waited, and none was made any more
        service = evidence.job(story.cid).callback or ""
    late = evidence.lateness(service, calls, answer.at, later.begin)
    if late and answer.text == "value true":
        yield f"was to run at once, and ran {late:g} s later"
    is_waiting = any(play.end.place < calls.place for play in plays)
    others = [line for line in story.lines if calls.place < line.place < later.begin.place]
    if (
        late
        and is_waiting
        and answer.text == "value false"
        and not any(line.kind in ("cancel?", "redeliver?", "run_now?") for line in others)
    ):
        yield f"has waited for {late:g} s, and was said to wait for nothing"


def _redeliver(evidence: Evidence, story: Story, calls: Line, answer: Line) -> Iterator[str]:
    later = [play for play in story.deliveries if play.begin.place > calls.place]
    is_final = evidence.ends.get(answer.process) is None or not evidence.has_left(answer)
    if answer.text == "value true" and not later and is_final and not evidence.may_park:
        yield "was to be told again, and was not"
    if answer.text == "value false" and not later and evidence.records[story.cid].state == "dead":
        last = story.deliveries[-1] if story.deliveries else None
        if last is not None and last.end.at < calls.at - HAIR and not evidence.may_park:
            yield "is dead, and was not to be told again"


def _resubmit(evidence: Evidence, story: Story, calls: Line, answer: Line) -> Iterator[str]:
    reason = evidence.records[story.cid].reason
    if answer.text.startswith("cid ") and reason == "succeeded":
        yield "has succeeded, and was resubmitted"
    decided_at = evidence.decided_at(story.cid)
    was_decided = decided_at is not None and decided_at < calls.at - HAIR
    if answer.text == "InvalidState" and reason != "succeeded" and was_decided:
        yield f"is {reason}, and cannot be resubmitted"


def _wait(evidence: Evidence, story: Story, calls: Line, answer: Line) -> Iterator[str]:
    timeout: float | None = json.loads(calls.detail)
    slack = HAIR if evidence.is_memory else STORE_SECONDS
    decided_at = evidence.decided_at(story.cid)
    if answer.text == "TimeoutError":
        waited = answer.at - calls.at
        if timeout is None or not timeout - HAIR <= waited <= timeout + slack:
            yield f"was waited for {waited:g} s, not {timeout}"
        if decided_at is not None and decided_at < answer.at - slack:
            yield f"had its outcome at {decided_at}, and nobody was told until {answer.at}"
    elif answer.text == "value null" and decided_at is not None:
        if answer.at > max(decided_at, calls.at) + slack:
            yield f"had its outcome at {decided_at}, and was told of it at {answer.at}"
        if answer.at < decided_at - HAIR:
            yield "has told its outcome before it was recorded"


def _conflict(evidence: Evidence, story: Story, calls: Line, answer: Line) -> Iterator[str]:
    if answer.text.startswith(("cid", "value")):
        yield f"is another request, and its caller is told {answer.text}"


_AUDITS = {
    "cancel": _cancel,
    "run_now": _run_now,
    "redeliver": _redeliver,
    "resubmit": _resubmit,
    "wait": _wait,
    "conflict": _conflict,
}
