"""Attempts of the target: numbered without gaps, one at a time, neither early nor late (I4, I6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from invoke_retry import RetryPolicy

from .evidence import HAIR, Evidence, Play, Story, key
from .plan import LINGER

AFTER_SECONDS = 2.5
"""What `RetryAfter` asks for here."""


def check(evidence: Evidence) -> Iterator[str]:
    for cid in evidence.records:
        story, policy = evidence.stories[cid], evidence.job(cid).policy
        for text in _one(evidence, story, policy):
            yield f"{key(cid)} {text}"


def _one(evidence: Evidence, story: Story, policy: RetryPolicy) -> Iterator[str]:
    asked = evidence.asked(story.cid)
    yield from numbers(evidence, story.attempts, policy.repeats)
    yield from _first(evidence, story, asked[1])
    for first, second in pairwise(story.attempts):
        yield from _second(evidence, story, policy, first, second)
    for play in story.attempts:
        yield from length(evidence, story, play, policy, asked[0])
    yield from _in_time(evidence, story, policy, asked[1])
    yield from _counted(evidence, story)


def numbers(evidence: Evidence, plays: Sequence[Play], repeats: int) -> Iterator[str]:
    """Whether calls have the numbers 1 to 1 + repeats; a death may cost one that nobody saw."""
    before = 0
    place = -1
    is_given_back = False
    for play in plays:
        gap = play.number - before
        least = 0 if is_given_back else 1
        died = evidence.died_between(place, play.begin.place)
        if not least <= gap <= 1 + died:
            yield f"I6: attempt {play.number} follows attempt {before}"
        if play.number > 1 + repeats:
            yield f"I6: is repeated too often: {play.number}"
        before, place = play.number, play.begin.place
        is_given_back = play.is_own and evidence.has_left(play.end)


def wait_after(play: Play, policy: RetryPolicy) -> tuple[float, float]:
    """Between which seconds the wait lies that follows a failed attempt."""
    if play.end.text == "after":
        return AFTER_SECONDS, AFTER_SECONDS
    longest = policy.interval(play.number)
    return (0 if policy.jitter == "full" else longest), longest


def _first(evidence: Evidence, story: Story, due: float) -> Iterator[str]:
    accepted = story.of("accepted")
    if not accepted or not story.attempts or story.attempts[0].begin.caller:
        return
    begin = story.attempts[0].begin
    if late := evidence.lateness(begin.text, accepted[0], due, begin):
        yield f"I4: its first attempt began {late:g} s late"


def _second(
    evidence: Evidence, story: Story, policy: RetryPolicy, first: Play, second: Play
) -> Iterator[str]:
    end, begin = first.end, second.begin
    if end.place > begin.place:
        yield f"I6: attempts {first.number} and {second.number} overlap"
        return
    is_given_back = evidence.has_left(end)
    if second.number != first.number + 1 or is_given_back or not first.is_own:
        return
    least, most = wait_after(first, policy)
    hastened = any(
        line.place > first.begin.place and line.place < begin.place for line in story.of("run_now?")
    )
    if not hastened and begin.at - end.at < least - HAIR:
        yield f"I6: attempt {second.number} began {end.at + least - begin.at:g} s early"
    if late := evidence.lateness(begin.text, end, end.at + most, begin):
        yield f"I4: attempt {second.number} began {late:g} s late"


def length(
    evidence: Evidence, story: Story, play: Play, policy: RetryPolicy, asked_at: float
) -> Iterator[str]:
    """Whether it was cut when a limit of the policy was reached, and otherwise by nobody."""
    begin, end, timeout = play.begin, play.end, policy.timeout
    if timeout is not None and end.at - begin.at > timeout + LINGER + HAIR:
        yield f"attempt {play.number} was not cut by its timeout"
    if play.cut_at is None or _is_cut_from_outside(evidence, story, play):
        return
    deadline = policy.deadline
    if (timeout is None or end.at - begin.at < timeout - HAIR) and (
        deadline is None or end.at - asked_at < deadline - HAIR
    ):
        yield f"attempt {play.number} was cut after {end.at - begin.at:g} s, and nobody knows why"


def _is_cut_from_outside(evidence: Evidence, story: Story, play: Play) -> bool:
    end, caller = play.end, play.begin.caller
    if caller:
        return any(line.kind == "limit" for line in evidence.callers[caller])
    is_cancelled = any(line.place < end.place for line in story.of("cancel?"))
    return is_cancelled or evidence.is_cut_by_leaving(end.process, end.at)


def _in_time(
    evidence: Evidence, story: Story, policy: RetryPolicy, asked_by: float
) -> Iterator[str]:
    """Whether the deadline has ended it."""
    if policy.deadline is None:
        return
    until = asked_by + policy.deadline
    for first, second in pairwise(story.attempts):
        until_at_most = story.attempts[0].begin.at + policy.deadline
        if second.begin.at >= until_at_most and first.begin.place < second.begin.place:
            yield f"attempt {second.number} began after the deadline"
    decided_at = evidence.decided_at(story.cid)
    if decided_at is None or evidence.may_park or not evidence.is_memory:
        return
    if decided_at > until + LINGER + HAIR:
        yield f"ended {decided_at - until:g} s after its deadline"


def _counted(evidence: Evidence, story: Story) -> Iterator[str]:
    """Whether the record has as many attempts as were made."""
    record, made = evidence.records[story.cid], story.attempts
    if evidence.kills or any(map(evidence.meets_leaving, made)):
        return
    unmade = record.reason in ("cancelled", "deadline", "abandoned")  # cut before it began
    most = 1 if unmade else 0
    last = made[-1].number if made else 0
    if not 0 <= record.attempts - last <= most:
        yield f"made {last} attempts, and says {record.attempts}"
