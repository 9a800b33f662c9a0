"""Callers: cut off at once, and else answered (I5); refused only with a reason."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import HAIR, Evidence
from .journal import Line
from .plan import LINGER

_ASKS = ("async", "fallback", "inline", "conflict")

_CUT_ANSWERS = ("cut", "own CancelledError")


def check(evidence: Evidence) -> Iterator[str]:
    for number, own in evidence.callers.items():
        for text in _one(evidence, own):
            yield f"I5: caller {number} {text}"


def _one(evidence: Evidence, own: list[Line]) -> Iterator[str]:
    calls = next((line for line in own if line.kind == "calls"), None)
    begun = [line for line in own if line.kind == "begin"]
    if calls is None:  # cancelled before it began
        if begun:
            yield "was cancelled, and its target called"
        return
    answer = next((line for line in own if line.kind == "answer"), None)
    if answer is None:
        end = evidence.ends.get(calls.process)
        if end is None or end.kind != "killed":
            yield "was never answered"
        return
    limit = next((line for line in own if line.kind == "limit"), None)
    if limit is None:
        if answer.text == "cut":
            yield "was cut off by nobody"
        elif not begun and answer.text[:4] not in ("cid ", "valu"):
            yield from _refused(evidence, calls, answer)
        return
    at = float(limit.text) if limit.text else limit.at
    if answer.at > at + LINGER + HAIR:
        yield f"was cut off at {at} and left late"
    if any(line.at > at for line in begun):
        yield "was cut off, and its target called again"
    if answer.text not in _CUT_ANSWERS and "kept" not in answer.text:
        yield f"was cut off, and told {answer.text}"


def _refused(evidence: Evidence, calls: Line, answer: Line) -> Iterator[str]:
    """Whether something explains why nothing came of it."""
    shape, error = evidence.shape, answer.text
    explained = {
        "NotRunning": evidence.has_left(answer),
        "BackendError": evidence.has_left(answer),
        "BackendFull": shape.max_waiting is not None and calls.text not in ("inline", "wait"),
        "InvalidPayload": evidence.has_spoils and calls.text in _ASKS,
        "ServiceNotFound": evidence.has_gaps and calls.text in _ASKS,
        "InvocationNotFound": shape.retention is not None and calls.text not in _ASKS,
        "InvalidState": calls.text == "resubmit",
        "TimeoutError": calls.text == "wait",
        "CidConflict": calls.text == "conflict",
    }
    if not explained.get(error, False):
        yield f"asks to {calls.text}, and is told {error}: {answer.detail}"
