"""Reading all that is in a stream, to find what is damaged or left behind."""

from __future__ import annotations

from invoke_retry.backends.base import Finding
from invoke_retry.backends.nats.layout import place_of
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.state import Found
from invoke_retry.backends.nats.store import Store
from invoke_retry.backends.wording import names

_LATE_SECONDS = 60.0


async def integrity(store: Store, looking: Looking) -> list[Finding]:
    """Read all messages, a page at a time.

    Raises:
        BackendError: They could not be read.
    """
    read, damaged, newer, late = 0, list[str](), 0, list[str]()
    due, held = set[int](), list[Found]()
    after: int | None = 0
    while after is not None:
        page, after = await looking.page(f"{store.layout.base}.>", after)
        now = store.clock.monotonic()
        for found in filter(None, map(looking.loaded, page)):
            read += 1
            place = place_of(found.subject)
            newer += found.is_newer
            if not found.version:
                damaged.append(found.record.cid)
            elif place == "due":
                due.add(found.sequence)
            elif place == "run":
                held.append(found)
            elif (
                place == "at" and (at := found.record.due) is not None and at < now - _LATE_SECONDS
            ):
                late.append(found.record.cid)
    left = [each.record.cid for each in held if each.lease not in due and await store.is_left(each)]
    findings: list[Finding] = []
    if damaged:
        text = (
            f"{len(damaged):,} of {read:,} messages cannot be read: {names(damaged)}; somebody "
            "else has written them. Restore the stream from a copy, or delete them"
        )
        findings.append(Finding("bad", "integrity", text))
    if late:
        text = (
            f"{len(late):,} wait past their time: {names(late)}; the server does not make them "
            "due: look at its log, and at its clock"
        )
        findings.append(Finding("bad", "integrity", text))
    if left:
        text = (
            f"{len(left):,} are held by nobody: {names(left)}; somebody has deleted messages by "
            "hand. They go on within a minute or two, as soon as a process works"
        )
        findings.append(Finding("warning", "integrity", text))
    if newer:
        text = (
            f"{newer:,} of {read:,} messages were written by a newer release of invoke_retry: "
            "upgrade this one when you can"
        )
        findings.append(Finding("warning", "integrity", text))
    text = f"{read:,} messages were read, and nothing is damaged or left behind"
    return findings or [Finding("ok", "integrity", text)]
