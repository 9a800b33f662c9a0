"""From a lease to a claim: is the record still as it was handed out, and what is to be done?"""

from __future__ import annotations

from invoke_retry import machine
from invoke_retry.backends.base import Claim
from invoke_retry.backends.nats.claiming import Lease
from invoke_retry.backends.nats.layout import place_of
from invoke_retry.backends.nats.state import Found
from invoke_retry.backends.nats.store import Store, Written
from invoke_retry.models import Reason
from invoke_retry.record import Record


class StreamClaim(Claim):
    """A claim of a record that stands in the stream.

    Attributes:
        lease: By which it is held.
        subject: Where its newest message stands.
        sequence: That message's number.
        doubtful: The write that may or may not have been made, and its mark.
    """

    __slots__ = ("doubtful", "lease", "sequence", "subject")

    def __init__(self, record: Record, lease: Lease, subject: str, sequence: int) -> None:
        super().__init__(record)
        self.lease = lease
        self.subject = subject
        self.sequence = sequence
        self.doubtful: tuple[object, str] | None = None


class Ended:
    """The record has got an outcome instead."""

    __slots__ = ("record", "written")

    def __init__(self, record: Record, written: Written) -> None:
        self.record = record
        self.written = written


async def begin(store: Store, lease: Lease) -> StreamClaim | Ended | None:
    """Take the record for an attempt or a delivery, which is counted before it runs.

    After an error it may be called again: what was taken then is found.

    Returns:
        What was taken; its `died` says that somebody else had begun it. None if the lease is
        stale: the record has gone on without it, or cannot be read any more.

    Raises:
        BackendError: It may or may not be taken.
    """
    found: Found | None = lease.found
    may_have_gone_on = lease.is_again or lease.is_tried
    lease.is_tried = True
    if may_have_gone_on:
        # whoever had it has given it back, has begun it and died, or was us a moment ago
        found = await store.newest_if_readable(lease.found.record.cid)
    for _ in range(2):
        if found is None:
            return None
        if found.sequence == lease.sequence:
            taken = await _start(store, lease, found)
        elif place_of(found.subject) == "run" and found.lease == lease.sequence:
            if store.is_mine(found.op):  # it was written, and its answer was lost
                return StreamClaim(found.record, lease, found.subject, found.sequence)
            if not lease.is_again or store.clock.monotonic() >= lease.until:
                return None  # whoever has it was given it after us, and lives
            taken = await _take_over(store, lease, found)
        else:
            return None
        if taken is not None:
            return taken
        found = await store.newest_if_readable(lease.found.record.cid)
    return None


async def _start(store: Store, lease: Lease, found: Found) -> StreamClaim | Ended | None:
    record, clock = found.record, store.clock
    now, utc = clock.monotonic(), clock.utc()
    if record.state == "parked":  # its time is up
        if record.outcome is not None:
            machine.bury(record, None)
            return await _end(store, record, found)
        return await _end(store, record, found, "parked", now, utc)
    if (deadline := record.deadline) is not None and deadline <= now:
        return await _end(store, record, found, "deadline", now, utc)
    if record.due is None:  # the message is gone by which it was held
        return await _take_over(store, lease, found)
    if record.outcome is None:
        machine.start(record, utc)
    else:
        machine.deliver(record)
    return await _claim(store, record, lease, found)


async def _take_over(store: Store, lease: Lease, found: Found) -> StreamClaim | None:
    record = found.record
    machine.take_over(record)
    claim = await _claim(store, record, lease, found)
    if claim is not None:
        claim.died = True
    return claim


async def _claim(store: Store, record: Record, lease: Lease, found: Found) -> StreamClaim | None:
    written = await store.write(
        record, store.new_op(), found.subject, found.sequence, lease.sequence
    )
    return None if written is None else StreamClaim(record, lease, *written)


async def _end(
    store: Store,
    record: Record,
    found: Found,
    reason: Reason | None = None,
    now: float = 0.0,
    utc: float = 0.0,
) -> Ended | None:
    if reason is not None:
        machine.end(record, now, reason, utc)
    written = await store.write(record, store.new_op(), found.subject, found.sequence)
    return None if written is None else Ended(record, written)
