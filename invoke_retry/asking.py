"""What people ask of the invocations that a backend keeps, and decide over them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, get_args

import anyio

from invoke_retry import machine
from invoke_retry.acceptance import Acceptance
from invoke_retry.backends.base import Backend, Query, at_least
from invoke_retry.clock import Clock
from invoke_retry.correlation import CorrelationId
from invoke_retry.durations import Duration, seconds_of, shown
from invoke_retry.environment import Environment
from invoke_retry.errors import InvalidState, InvocationNotFound
from invoke_retry.lifecycle import Lifecycle
from invoke_retry.machine import IllegalTransition
from invoke_retry.models import CallbackPayload, Invocation, State, utc_time
from invoke_retry.record import Record, callback_payload, invocation
from invoke_retry.registry import Service
from invoke_retry.storable import checked_text

_LOOK_SECONDS = 1.0


class Asking:
    """The half of a coordinator that speaks of what was accepted; `InvokeRetry` adds the calls."""

    def __init__(
        self, backend: Backend, environment: Environment, life: Lifecycle, acceptance: Acceptance
    ) -> None:
        self._backend = backend
        self._environment = environment
        self._life = life
        self._acceptance = acceptance

    @property
    def clock(self) -> Clock:
        """Where this coordinator reads time; inside an event loop only."""
        return self._environment.clock

    @property
    def backend(self) -> Backend:
        """Where background invocations wait."""
        return self._backend

    @property
    def is_durable(self) -> bool:
        """Whether what is accepted survives the process."""
        return self._backend.durable

    # Asking.

    async def get(self, cid: str) -> Invocation:
        """An invocation as it stands now.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
        """
        self._life.entered()
        return self._view(await self._backend.get(cid))

    async def wait(self, cid: str, timeout: Duration | None = None) -> CallbackPayload:
        """Wait for the outcome of a background invocation; its callback may come later.

        Cancelling the wait leaves the invocation alone. A service that waits lends its slot to
        others meanwhile.

        Args:
            cid: The id that `invoke` or `invoke_async` returned.
            timeout: Seconds (or a timedelta) to wait at most; None waits for ever. However short
                it is, an outcome that is known already is given, if the backend answers within
                one second.

        Returns:
            What its callback gets. `attempts` is 1 or more, unless it was ended first.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
            TimeoutError: No outcome within *timeout*; the invocation goes on.
            NotRunning: No outcome, and the background has ended, so that none will come.
        """
        life = self._life
        life.entered()
        limit = None if timeout is None else seconds_of("timeout", timeout)
        scope = asyncio.timeout(limit)
        if not life.has_ended:
            try:
                async with scope:
                    with life.waiting(scope):
                        return callback_payload(await self._backend.outcome(cid))
            except TimeoutError:
                if not scope.expired():
                    raise
                if not life.has_ended:
                    assert limit is not None
                    # a store may need longer than that for its first answer
                    with anyio.move_on_after(_LOOK_SECONDS - limit):
                        record = await self._backend.get(cid)
                        if record.outcome is not None:
                            return callback_payload(record)
                    raise TimeoutError(
                        f"no outcome of {cid} within {limit:g} s; the invocation goes on"
                    ) from None
        record = await self._backend.get(cid)
        if record.outcome is None:
            raise life.not_running()
        return callback_payload(record)

    async def search(
        self,
        *,
        state: State | None = None,
        target: str | Service[Any, Any] | None = None,
        source: str | None = None,
        error_type: str | None = None,
        limit: int = 100,
        after: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
    ) -> list[Invocation]:
        """Invocations that fit, newest first.

        Args:
            target: A service or its name.
            error_type: The `type` of the latest error.
            limit: How many at most, 1 or more.
            after: A cid; only invocations older than this one.
            created_from: An aware time; only those accepted then or later.
            created_before: An aware time; only those accepted earlier.

        Raises:
            ValueError: *state* or *limit* is none, or a time is not aware.
            InvocationNotFound: *after* is not known.
        """
        self._life.entered()
        if state is not None and state not in get_args(State):
            raise ValueError(
                f"state is {shown(state)}, but must be one of {', '.join(get_args(State))}"
            )
        query = Query(
            state, target.name if isinstance(target, Service) else target, source, error_type,
            at_least("limit", limit, 1), after,
            _timestamp("created_from", created_from),
            _timestamp("created_before", created_before),
        )  # fmt: skip
        return [self._view(record) for record in await self._backend.search(query)]

    async def counts(self) -> dict[str, int]:
        """How many invocations are in each state; finished and dead ones count after pruning, too.

        All accepted ones are in the sum: the books balance.
        """
        self._life.entered()
        return {str(state): count for state, count in (await self._backend.counts()).items()}

    async def paused(self) -> frozenset[str]:
        """The names of the services that are paused."""
        self._life.entered()
        return await self._backend.paused()

    # Deciding.

    async def pause(self, service: str | Service[Any, Any]) -> bool:
        """Begin nothing more of a service, neither attempts nor callbacks, in any process.

        What runs goes on; what waits is kept. It lasts until `resume`, also over a restart where
        the backend is stored.

        Args:
            service: A service or its name; it need not be registered here.

        Returns:
            False if it was paused already.
        """
        self._life.entered()
        return await self._backend.set_paused(_name(service), paused=True)

    async def resume(self, service: str | Service[Any, Any]) -> bool:
        """Let a paused service go on.

        Returns:
            False if it was not paused.
        """
        self._life.entered()
        return await self._backend.set_paused(_name(service), paused=False)

    async def cancel(self, cid: str) -> bool:
        """End an invocation that has no outcome yet.

        The outcome is recorded at once and its callback is told; an attempt that runs in this
        process is cancelled, and its result dropped.

        Returns:
            False if it has an outcome already.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
        """
        clock = self.clock
        record = await self._amend(
            cid, machine.end, clock.monotonic(), "cancelled", clock.utc(), None
        )
        if record is None:
            return False
        self._life.entered().ended(record)
        return True

    async def run_now(self, cid: str) -> bool:
        """Do at once what an invocation waits for: its next attempt, or its callback's.

        A parked one is tried again.

        Returns:
            False if it waits for nothing.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
            NotRunning: The coordinator was not entered, or is being left.
        """
        self._life.running()
        return await self._amend(cid, machine.hasten, self.clock.monotonic()) is not None

    async def redeliver(self, cid: str) -> bool:
        """Tell the callback of a dead letter again, with all attempts of its policy.

        Returns:
            False if it is not dead.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
            NotRunning: The coordinator was not entered, or is being left.
        """
        self._life.running()
        return await self._amend(cid, machine.redeliver, self.clock.monotonic()) is not None

    async def resubmit(self, cid: str, *, once: bool = False) -> CorrelationId:
        """Run a failed or cancelled invocation again, as a new one.

        It has the payload, context, callback, policy, source and orig_cid of the old one, and
        says in `resubmit_of` which that was.

        Args:
            cid: The id of the old one.
            once: Refuse what was resubmitted with `once` before, as long as that new one is kept:
                so that what resubmits many may be run again after it was interrupted.

        Returns:
            The id of the new invocation.

        Raises:
            InvalidState: Its outcome is not known yet, or is a success; or *once* refuses it.
            InvocationNotFound: No such invocation, or it was pruned after its retention.
            NotRunning: The coordinator was not entered, or is being left.
        """
        clock = self._life.running().clock
        old = await self._backend.get(cid)
        if old.outcome is None or old.outcome.reason == "succeeded":
            raise InvalidState(
                f"{cid} is {old.state}; only an invocation that failed or was cancelled can be "
                "resubmitted"
            )
        new = CorrelationId.from_key(f"{cid} again") if once else self._environment.new_cid()
        if once and await self._is_known(new):
            raise InvalidState(
                f"{cid} was resubmitted before, as {new}; see what became of that one"
            )
        now = clock.monotonic()
        record = Record(
            new, old.target, old.callback, old.source, old.orig_cid,
            old.payload, old.context, old.policy, clock.utc(), now, now, resubmit_of=old.cid,
        )  # fmt: skip
        return await self._acceptance.accept(record)

    async def _is_known(self, cid: CorrelationId) -> bool:
        try:
            await self._backend.get(cid)
        except InvocationNotFound:
            return False
        return True

    async def _amend(self, cid: str, transition: Any, *args: Any) -> Record | None:
        background = self._life.entered()
        try:
            return await self._backend.amend(cid, transition, *args)
        except IllegalTransition:
            return None
        except Exception as error:
            background.check_fault(error)
            raise

    def _view(self, record: Record) -> Invocation:
        clock = self.clock
        return invocation(record, clock.monotonic(), clock.utc())


def _timestamp(name: str, time: datetime | None) -> float | None:
    """A time as `Query` has it: the least number that is shown as that very microsecond."""
    if time is None:
        return None
    is_time: bool = isinstance(time, datetime)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_time or time.utcoffset() is None:
        raise ValueError(
            f"{name} is {shown(time)}, but must be an aware datetime, such as "
            "datetime.now(UTC) - timedelta(hours=1)"
        )
    number = time.timestamp()
    low, high = number - 1e-6, number + 1e-6
    try:
        while low < (middle := (low + high) / 2) < high:
            if utc_time(middle) < time:
                low = middle
            else:
                high = middle
    except (ValueError, OverflowError):  # the first or last moment that there is
        return number
    return high


def _name(service: str | Service[Any, Any]) -> str:
    return service.name if isinstance(service, Service) else checked_text("service", service)
