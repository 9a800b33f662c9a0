"""The part of a process that runs services: it takes what is due while there is room, and holds it.

A claim is held by the token that this process knows, until the record goes on or somebody else
decides over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from invoke_retry import machine
from invoke_retry.backends.base import Claim, Runner
from invoke_retry.backends.sqlite import claims
from invoke_retry.backends.sqlite.claims import Look
from invoke_retry.backends.sqlite.executor import Executor, ignore
from invoke_retry.backends.sqlite.rows import Stored
from invoke_retry.backends.sqlite.upkeep import Upkeep
from invoke_retry.clock import Clock
from invoke_retry.record import Record

_TIDY_SECONDS, _TIDY_SOON_SECONDS = 1.0, 0.1
_LONGEST_TIMER = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0


class StoredClaim(Claim):
    """A claim of a record that stands in the file."""

    __slots__ = ("row",)

    def __init__(self, row: int, record: Record) -> None:
        super().__init__(record)
        self.row = row


class Working:
    """What is due, for one runner.

    Args:
        ended: Called with what has got an outcome without being run.

    Attributes:
        held: What this process holds, by cid: the token that it knows.
        problem: Why what is due cannot be read; None if it can.
    """

    def __init__(
        self,
        executor: Executor,
        upkeep: Upkeep,
        clock: Clock,
        runner: Runner,
        *,
        ended: Callable[[Record], None],
    ) -> None:
        self._executor = executor
        self._upkeep = upkeep
        self._clock = clock
        self._runner = runner
        self._ended = ended
        self.held: dict[str, int] = {}
        self.problem: str | None = None
        self._is_paused = self._is_stopped = False
        self._may_be_due = True
        self._is_looking = False
        self._looks_in_vain = False
        self._pause = _FIRST_PAUSE
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._tidy_timer: asyncio.TimerHandle | None = None

    def pause(self) -> None:
        """Begin nothing more."""
        self._is_paused = True

    def stop(self) -> None:
        """Ask for nothing more."""
        self._is_paused = self._is_stopped = True
        for timer in (self._timer, self._tidy_timer):
            if timer is not None:
                timer.cancel()

    # What is due.

    def may_be_due(self) -> None:
        """Something may be due, or have room, that was not before."""
        self._may_be_due = True
        self.wake()

    def wake(self) -> None:
        """There may be room."""
        if not self._may_be_due or self._is_looking or self._is_paused:
            return
        runner = self._runner
        room = runner.room()
        demand = {name: most for name in runner.services if (most := runner.room_for(name)) > 0}
        if room > 0 and demand:
            self._is_looking, self._may_be_due = True, False
            self._executor.submit(lambda store: claims.look(store, demand, room), self._looked)

    def _looked(self, look: Look | None, error: Exception | None) -> None:
        self._is_looking = False
        if look is None:
            self._may_be_due = self._looks_in_vain = True
            self._troubled(error)
            return
        self._looks_in_vain = False
        self._untroubled()
        self._runner.hold_back(look.paused)
        self._tell_ended(look.ended)
        self._may_be_due = self._may_be_due or look.is_more
        self.set_timer(look.next_due)
        for stored in look.taken:
            self._start(stored)
        self.wake()

    def _start(self, stored: Stored) -> None:
        record, claim = stored.record, StoredClaim(stored.id, stored.record)
        if self._is_paused or not self._runner.take(record.service):
            self._give_back(claim)
            self._may_be_due = True
        else:
            self.held[record.cid] = record.token
            self._runner.start(claim)

    def _give_back(self, claim: StoredClaim) -> None:
        """What was taken for nothing: nobody has begun it."""
        before = claim.record
        self.held.pop(before.cid, None)
        after = before.copy()
        machine.release(after, self._clock.monotonic())
        self._executor.submit(lambda store: claims.apply(store, claim.row, before, after), ignore)

    def set_timer(self, when: float) -> None:
        """Look again at that time, on the monotonic clock."""
        if when >= self._timer_at or self._is_stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        delay = min(max(0.0, when - self._clock.monotonic()), _LONGEST_TIMER)
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self.may_be_due()
        if not self._is_looking:  # there is no room, but a deadline passes all the same
            self._tidy_within(_TIDY_SOON_SECONDS)

    # What is done from time to time, and what others did.

    def tidy(self) -> None:
        """Take over what the dead held, and end what is out of time; from now on regularly."""
        self._tidy_timer = None
        if self._is_paused:
            return
        if self._is_looking:
            self._tidy_within(_TIDY_SOON_SECONDS)
            return
        self._is_looking = True
        upkeep, held, known = self._upkeep, dict(self.held), tuple(self._runner.services)
        self._executor.submit(lambda _: upkeep.tidy(known, held), self._tidied)

    def _tidied(self, found: Look | None, error: Exception | None) -> None:
        self._is_looking = False
        if found is None:
            self._troubled(error)
        else:
            if not self._looks_in_vain:  # it often has nothing to write, and succeeds meanwhile
                self._untroubled()
            self._runner.hold_back(found.paused)
            self._tell_ended(found.ended)
            self.set_timer(found.next_due)
            for record in found.parked:
                self._runner.parked(record)
            if not self._is_paused:
                for stored in found.taken:
                    self.held[stored.record.cid] = stored.record.token
                    self._runner.start(StoredClaim(stored.id, stored.record), died=True)
            self.may_be_due()
        self._tidy_within(_TIDY_SECONDS)

    def _tidy_within(self, seconds: float) -> None:
        if self._is_stopped:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._tidy_timer is not None:
            if self._tidy_timer.when() <= when:
                return
            self._tidy_timer.cancel()
        self._tidy_timer = loop.call_at(when, self.tidy)

    def _tell_ended(self, ended: Sequence[Record]) -> None:
        for record in ended:
            self._ended(record)
            self._runner.ended(record)

    def heard(self, held: dict[str, int], lost: Sequence[str], paused: frozenset[str]) -> None:
        """Another process has written.

        Args:
            held: What was held when it was asked what is lost.
        """
        for cid in lost:
            if self.held.get(cid) == held[cid]:
                del self.held[cid]
                self._runner.lost(cid)
        self.heed_paused(paused)

    def heed_paused(self, paused: frozenset[str]) -> None:
        """These services are paused now."""
        self._runner.hold_back(paused)
        self.may_be_due()

    def _troubled(self, error: Exception | None) -> None:
        self.problem = str(error)
        if error is not None and not self._is_stopped:
            self._runner.failing(error)
            self.set_timer(self._clock.monotonic() + self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _untroubled(self) -> None:
        self.problem = None
        self._pause = _FIRST_PAUSE

    # What becomes of records.

    def take(self, record: Record) -> bool:
        """Take what is about to be accepted, if it is due and there is room to spare."""
        now = self._clock.monotonic()
        is_taken = (
            record.due is not None
            and record.due <= now
            and not (self._may_be_due or self._is_looking or self._is_paused)
            and record.cid not in self.held
            and self._runner.take(record.service)
        )
        if is_taken:
            machine.start(record, self._clock.utc())
            self.held[record.cid] = record.token
        return is_taken

    def accepted(self, record: Record, row: int | None, *, is_taken: bool) -> None:
        """It was accepted, in that row; or not, or it was known already.

        Args:
            is_taken: What `take` had said.
        """
        if is_taken:
            if row is not None and not self._is_paused:
                self._runner.start(StoredClaim(row, record))
                return
            self._runner.give(record.service)
            if row is not None:
                self._give_back(StoredClaim(row, record))
            elif record.token == self.held.get(record.cid):
                del self.held[record.cid]
        if row is not None and record.due is not None:
            self.set_timer(record.due)
            if record.deadline is not None:
                self.set_timer(record.deadline)

    def applied(self, claim: StoredClaim, after: Record) -> None:
        """The claim's record has become *after*."""
        record, cid = claim.record, claim.record.cid
        record.become(after)
        claim.token = record.token
        if record.due is None and record.state in ("running", "notifying"):
            self.held[cid] = record.token
        else:
            self.held.pop(cid, None)
            if record.due is not None and record.state in ("waiting", "notifying"):
                self.set_timer(record.due)

    def lost(self, claim: StoredClaim) -> None:
        """The claim is no longer the newest."""
        cid = claim.record.cid
        if self.held.get(cid) == claim.token:  # else it is held here anew
            del self.held[cid]

    def amended(self, record: Record) -> None:
        """Somebody has decided over it, and perhaps does not wait for that any more."""
        if self.held.pop(record.cid, None) is not None:
            self._runner.lost(record.cid)
        if record.due is not None:
            self.set_timer(record.due)
