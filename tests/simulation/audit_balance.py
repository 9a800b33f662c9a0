"""One call is one invocation: what was asked for, and what there is (I1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from . import audit_retention
from .evidence import Evidence, key
from .journal import Line
from .world import Epoch

_MAY_BE_ACCEPTED = ("cut", "own CancelledError", "BackendError", "NotRunning")


def check(evidence: Evidence) -> Iterator[str]:
    for epoch in evidence.world.epochs:
        yield from _counts(evidence, epoch)
    for cid, story in evidence.stories.items():
        accepted = story.of("accepted") if cid not in evidence.records else ()
        if accepted and not audit_retention.may_be_pruned(evidence, story):
            yield f"{key(cid)} I1: was accepted, and is lost"
    yield from _asked_for(evidence)
    yield from _once(evidence)


def _counts(evidence: Evidence, epoch: Epoch) -> Iterator[str]:
    """Whether all are counted, and also those that are pruned."""
    found, counts = Counter[str](record.state for record in epoch.records), Counter(epoch.counts)
    pruned = sum(
        cid not in evidence.records
        and any(line.process == epoch.process for line in story.of("accepted"))
        for cid, story in evidence.stories.items()
    )
    missing = (counts - found).total()
    if found - counts or missing < pruned or (missing and evidence.shape.retention is None):
        yield f"I1: the counts are {counts}, but there are {found}"


def _asked_for(evidence: Evidence) -> Iterator[str]:
    """Whether each record belongs to a call that was told of it, or was never told."""
    unclaimed = Counter[tuple[int, str | None]]()
    for cid, record in evidence.records.items():
        accepted = evidence.stories[cid].of("accepted")
        if not accepted:
            unclaimed[record.payload["n"], record.resubmit_of] += 1
        elif bool(record.resubmit_of) != (accepted[0].text == "resubmit"):
            yield f"{key(cid)} comes from {record.resubmit_of}, and not from a call that said so"
    if not unclaimed:
        return
    open_calls = Counter(
        (own[0].number, own[0].cid or None)
        for own in evidence.callers.values()
        if own[0].text in ("async", "fallback", "resubmit") and _is_open(evidence, own)
    )
    for (n, old), count in unclaimed.items():
        job = evidence.world.jobs[n]
        most = 1 if job.orig and old is None and not job.cids else open_calls[n, old]
        if count > most:
            yield f"I1: of job {n} there are {count} that nobody has asked for"


def _is_open(evidence: Evidence, own: list[Line]) -> bool:
    """Whether the caller cannot know if its call was accepted."""
    answer = next((line for line in own if line.kind == "answer"), None)
    return answer is None or answer.text in _MAY_BE_ACCEPTED


def _once(evidence: Evidence) -> Iterator[str]:
    """Whether a call was given one id, and that no other call has."""
    for number, own in evidence.callers.items():
        if own[0].text not in ("async", "fallback", "resubmit"):
            continue
        given = {line.cid for line in own if line.kind == "accepted" and line.text != "nested"}
        told = {line.text for line in own if line.kind == "answer" and line.text[:4] == "cid "}
        if told and told != {f"cid {cid}" for cid in given}:
            yield f"caller {number} was given {given}, and told {told}"
    for cid, story in evidence.stories.items():
        accepted = [line for line in story.of("accepted") if line.text != "nested"]
        job = evidence.world.by_cid.get(cid)
        is_own = job is None or job.key != cid
        if is_own and len(accepted) > 1:
            yield f"{key(cid)} was given to {len(accepted)} callers"
