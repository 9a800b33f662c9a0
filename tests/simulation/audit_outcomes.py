"""Outcomes: one for each, never another one (I1, I3), and for the reason that it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator

from invoke_retry import Invocation

from .audit_attempts import wait_after
from .evidence import HAIR, Evidence, Story, of_each_record

_STORE_SECONDS = 0.5
_FINAL = ("succeeded", "failed", "cancelled")
_TOLD = ("ok", "reason", "attempts", "response", "response_omitted", "error")


def check(evidence: Evidence) -> Iterator[str]:
    return of_each_record(evidence, _one)


def _one(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    if record.reason is None:
        if record.state in _FINAL or record.state == "notifying":
            yield f"is {record.state} without an outcome"
        else:
            yield f"I1: has no outcome, and is {record.state}"
        return
    yield from _told_alike(story, record)
    yield from _kept(evidence, story, record)
    yield from _REASONS[record.reason](evidence, story)


def _told_alike(story: Story, record: Invocation) -> Iterator[str]:
    known, begun = story.known, story.attempts
    if known and begun and begun[-1].begin.place > known[0].place:
        yield "I6: is called after its outcome was known"
    texts = {line.text for line in story.of("told", "seen")}
    if len(texts) > 1:
        yield f"I2, I3: is told differently: {texts}"
    shown = record.model_dump(mode="json") if texts else {}
    for text in texts:
        said = json.loads(text)
        if any(said[name] != shown[name] for name in _TOLD):
            yield f"I3: was told as {text}, and is {shown}"
    hooked = [line.text for line in story.of("hook") if line.text.startswith("Outcome")]
    if len(hooked) > 1 or any(text != f"Outcome {record.reason}" for text in hooked):
        yield f"I3: hooks were told {hooked}, but it is {record.reason}"


def _kept(evidence: Evidence, story: Story, record: Invocation) -> Iterator[str]:
    """Whether what the target has reached, or somebody was told, stands."""
    reason = record.reason
    if story.of("cancel!") and reason != "cancelled":
        yield f"I3: was cancelled, and is {reason}"
    has_left = any(map(evidence.meets_leaving, story.attempts))
    last = story.attempts[-1].end.text if story.attempts else ""
    may_be_so = reason in ("succeeded", "cancelled", "deadline") or evidence.kills or has_left
    if last == "ok" and not may_be_so:
        yield f"I3: has succeeded, and is {reason}"


# Why it ended.


def _succeeded(_: Evidence, story: Story) -> Iterator[str]:
    if not story.attempts or story.attempts[-1].end.text != "ok":
        yield "is succeeded, but its target did not"


def _exhausted(evidence: Evidence, story: Story) -> Iterator[str]:
    record, most = evidence.records[story.cid], 1 + evidence.job(story.cid).policy.repeats
    if record.attempts != most:
        yield f"is exhausted after {record.attempts} attempts of {most}"
    if evidence.kills:
        return
    if not story.attempts or not story.attempts[-1].has_failed:
        yield "is exhausted, but its last attempt has not failed"
    elif story.attempts[-1].number != most:
        yield f"is exhausted after attempt {story.attempts[-1].number} of {most}"


def _permanent(_: Evidence, story: Story) -> Iterator[str]:
    if not story.attempts or story.attempts[-1].end.text != "permanent":
        yield "is permanent, but its target did not say so"


def _deadline(evidence: Evidence, story: Story) -> Iterator[str]:
    policy, at = evidence.job(story.cid).policy, _at(evidence, story)
    if policy.deadline is None:
        yield "has no deadline, and ended for it"
        return
    if at is None:
        return
    wait = 0.0
    last = story.attempts[-1] if story.attempts else None
    if last is not None and last.has_failed and last.number <= policy.repeats:
        wait = max(0, last.end.at - at) + wait_after(last, policy)[1]
    passed = at - evidence.asked(story.cid)[0]
    # an attempt is noted down from its claim on, which a store takes a while to write
    if passed + wait < policy.deadline - (HAIR if evidence.is_memory else _STORE_SECONDS):
        yield f"ended for its deadline of {policy.deadline} s after {passed:g} s"


def _cancelled(_: Evidence, story: Story) -> Iterator[str]:
    if not story.of("cancel?"):
        yield "is cancelled, and nobody has asked for that"


def _abandoned(evidence: Evidence, story: Story) -> Iterator[str]:
    leaving = evidence.leavings.get(story.lines[0].process)
    if not evidence.is_memory or leaving is None:
        yield "is abandoned by a process that did not leave it"
        return
    at = _at(evidence, story)
    until = leaving.at + (0 if evidence.may_park else evidence.shape.grace)
    if at is not None and at < until - HAIR:
        yield f"I7: is abandoned {until - at:g} s before its process had to leave it"


def _parked(evidence: Evidence, story: Story) -> Iterator[str]:
    at, park_for = _at(evidence, story), evidence.shape.park_for
    since = max(
        (each.end.at for each in story.attempts if each.is_own),
        default=evidence.asked(story.cid)[0],
    )
    if not evidence.may_park:
        yield "was parked, and its services were always there"
    elif at is not None and at - since < park_for - HAIR:
        yield f"was parked for {at - since:g} s at most, not for {park_for}"


_REASONS = {
    "succeeded": _succeeded,
    "exhausted": _exhausted,
    "permanent": _permanent,
    "deadline": _deadline,
    "cancelled": _cancelled,
    "abandoned": _abandoned,
    "parked": _parked,
}


def _at(evidence: Evidence, story: Story) -> float | None:
    """When it ended at the latest."""
    at = evidence.decided_at(story.cid)
    if at is None and story.known:
        return story.known[0].at
    return at
