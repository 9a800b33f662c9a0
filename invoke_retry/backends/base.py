"""What a backend is, and what it must promise.

A backend keeps records and says when one is due. It knows nothing of services, attempts or
policies: what happens to a record is decided by the pure functions of `machine`, and a backend
makes each of them one guarded write.

The promises, held by `invoke_retry.testing.conformance`:

1. When `accept` returns, the record is kept: in memory as long as the process, else for good.
2. A transition through a claim stands only while the claim's token is the record's: a late one
   answers False and changes nothing.
3. A record is given to the runner when it is due, never earlier, and to one holder at a time.
4. A service that has much due delays no other.
5. An outcome is never changed, and a record without a delivered outcome is never pruned.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Concatenate, Literal, NamedTuple, ParamSpec, Protocol

from invoke_retry.clock import Clock
from invoke_retry.durations import Duration, seconds_of, shown
from invoke_retry.errors import BackendError
from invoke_retry.models import State
from invoke_retry.record import Record

T = ParamSpec("T")
Transition = Callable[Concatenate[Record, T], None]

DEFAULT_MAX_BYTES = 1_048_576
DAY = 86_400.0
_PAGE = 500


class Claim:
    """A record that is held for one attempt or one delivery, or for one after the other.

    Attributes:
        record: What is held. In memory it is the record itself, elsewhere a copy.
        token: The record's token when it was taken. If it is another now, the claim is lost.
        slot: The service whose slot the runner holds for it.
        died: What was being done for it has failed with the process that did it.
        is_lost: Somebody else has decided over it before it was begun.
    """

    __slots__ = ("died", "is_lost", "record", "slot", "token")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.token = record.token
        self.slot: str | None = None
        self.died = False
        self.is_lost = False


class Runner(Protocol):
    """Who runs what is due, as a backend sees it. None of this blocks or awaits.

    Attributes:
        services: The names of those that can be run here; it may grow.
    """

    services: Collection[str]

    def room(self) -> int:
        """How many attempts and deliveries may begin now."""
        ...

    def room_for(self, service: str) -> int:
        """How many of the service may."""
        ...

    def limit(self, service: str) -> int | None:
        """Its `max_running`: how many of the service may run at most, where that is limited."""
        ...

    def take(self, service: str) -> bool:
        """Take a slot for the service if there is one; it is for `start`, or to `give` back."""
        ...

    def give(self, service: str) -> None:
        """A slot is not needed after all."""
        ...

    def start(self, claim: Claim, *, died: bool = False) -> None:
        """Begin; a slot was taken. When it is over, the runner calls `Backend.wake`.

        Args:
            died: It was held by a process that died: what that was doing has failed. To record
                that takes no slot.
        """
        ...

    def failing(self, error: Exception) -> None:
        """The backend itself cannot do its work now; it tries again."""
        ...

    def notable(self, kind: str, text: str, *args: object) -> None:
        """Something that a person should know, at most some lines of a kind a minute."""
        ...

    def ended(self, record: Record) -> None:
        """The backend itself has recorded an outcome: a deadline or `park_for` has passed."""
        ...

    def parked(self, record: Record) -> None:
        """The backend itself has parked it: no process that is alive can run its service."""
        ...

    def hold_back(self, services: frozenset[str]) -> None:
        """These services are paused, and no others: nothing of theirs begins."""
        ...

    def lost(self, cid: str) -> None:
        """Somebody else has taken the invocation, or decided over it: stop running it."""
        ...

    def fail(self, error: Exception) -> None:
        """A fault of the backend itself, in no call that the runner made: stop, and say so."""
        ...


class Query(NamedTuple):
    """What `search` looks for, newest first; None means any.

    Attributes:
        created_from: Seconds since the Unix epoch, inclusive.
        created_before: Seconds since the Unix epoch, exclusive.
    """

    state: State | None = None
    target: str | None = None
    source: str | None = None
    error_type: str | None = None
    limit: int = 100
    after: str | None = None
    created_from: float | None = None
    created_before: float | None = None

    def fits(self, record: Record) -> bool:
        """Whether the record is one of them, *limit* and *after* apart."""
        return (
            (self.state is None or record.state == self.state)
            and (self.target is None or record.target == self.target)
            and (self.source is None or record.source == self.source)
            and (
                self.error_type is None
                or ((error := record.error) is not None and error.type == self.error_type)
            )
            and (self.created_from is None or record.created_at >= self.created_from)
            and (self.created_before is None or record.created_at < self.created_before)
        )


class Finding(NamedTuple):
    """One thing that `examine` has looked at.

    Attributes:
        level: `ok`; `warning`: a person should look at it; `bad`: something does not work.
        what: A short name: `file`, `disk`, `schema`, `sqlite`, `log`, `lock` (SQLite), `server`,
            `account`, `stream`, `replicas`, `sync`, `consumers` (NATS), `workers`, `stuck`,
            `overdue`, `paused`, `parked`, `dead`, `integrity`, or `backend`.
        text: What is so, what is wrong with it, and what to do. It may contain text that is
            stored, as it is.
    """

    level: Literal["ok", "warning", "bad"]
    what: str
    text: str


class Backend(ABC):
    """Where background invocations wait. It belongs to one coordinator, and is opened once.

    Every method but the constructor is called in the coordinator's event loop. Cancelling one
    leaves each record either wholly changed or wholly unchanged.

    Args:
        max_waiting: How many unfinished invocations are kept at most. Default: no limit.
        max_bytes: How many bytes of JSON a payload, a context or a response may take.
        retention: How long finished invocations are kept, in seconds or as a timedelta.
        dead_retention: How long dead letters are.
        park_for: How long parked ones may wait for what they miss, until they fail.

    Attributes:
        durable: Whether what is kept survives the process.
        problem: What keeps the backend from working; None if nothing does.
        read_only: Whether it only looks, once it is opened, and then makes and changes nothing.
    """

    durable: bool = True
    read_only: bool = False
    problem: str | None = None

    def __init__(
        self,
        *,
        max_waiting: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        retention: Duration = 7 * DAY,
        dead_retention: Duration = 30 * DAY,
        park_for: Duration = 7 * DAY,
    ) -> None:
        self.max_waiting = None if max_waiting is None else at_least("max_waiting", max_waiting, 1)
        self.max_bytes = at_least("max_bytes", max_bytes, 1)
        self.retention = seconds_of("retention", retention)
        self.dead_retention = seconds_of("dead_retention", dead_retention)
        self.park_for = seconds_of("park_for", park_for)

    @abstractmethod
    async def open(self, clock: Clock, runner: Runner | None) -> None:
        """Get ready; then give *runner* what is due. Without a runner nothing is run here.

        Raises:
            BackendError: It cannot be opened; nothing was changed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything. Nothing is held any more when it is called."""

    @abstractmethod
    def pause(self) -> None:
        """Give the runner nothing more but what it still holds."""

    @abstractmethod
    def wake(self) -> None:
        """The runner has room again."""

    @abstractmethod
    async def accept(self, record: Record) -> Record:
        """Keep a new record, due at `record.due`.

        Returns:
            The record, or the one that has its cid already.

        Raises:
            BackendFull: There are `max_waiting` of them.
            BackendError: It may or may not be kept.
        """

    @abstractmethod
    async def apply(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        """Make a transition of a record that is held; False if the claim was lost.

        Raises:
            BackendError: It was not written; the claim stands.
        """

    @abstractmethod
    async def amend(
        self, cid: str, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> Record:
        """Make a transition from outside, whoever holds the record.

        Returns:
            The record after it.

        Raises:
            InvocationNotFound: There is no such record.
            IllegalTransition: Its state does not allow it; nothing was changed.
        """

    @abstractmethod
    async def get(self, cid: str) -> Record:
        """The record as it is now.

        Raises:
            InvocationNotFound: There is no such record.
        """

    @abstractmethod
    async def outcome(self, cid: str) -> Record:
        """Wait until the record has an outcome.

        Raises:
            InvocationNotFound: There is no such record, or it was pruned meanwhile.
        """

    @abstractmethod
    async def set_paused(self, service: str, *, paused: bool) -> bool:
        """Pause a service, for every process that uses the store, or let it go on.

        Returns:
            Whether it was otherwise before.
        """

    @abstractmethod
    async def paused(self) -> frozenset[str]:
        """The services that are paused."""

    @abstractmethod
    async def search(self, query: Query) -> Sequence[Record]:
        """Records that fit, newest first."""

    async def cids(self, query: Query) -> list[str]:
        """The ids of all records that fit, newest first, whatever `query.limit` says.

        Raises:
            InvocationNotFound: `query.after` is not known.
        """
        found: list[str] = []
        page = query._replace(limit=_PAGE)
        while records := await self.search(page):
            found.extend(record.cid for record in records)
            page = page._replace(after=found[-1])
        return found

    @abstractmethod
    async def counts(self) -> dict[State, int]:
        """How many records are in each state; those of a final state count after pruning, too."""

    async def tally(self) -> dict[str, dict[State, int]]:
        """How many records are kept, by target and state; pruned ones are not among them.

        Raises:
            BackendError: This backend does not know that.
        """
        raise BackendError(
            f"{type(self).__name__} does not count by target; use counts(), or search(target=...)"
        )

    # What people do to keep it in order.

    async def prune(self, older_than: float, *, dead: bool = False) -> int:  # noqa: ARG002
        """Delete some of the finished records before their retention is over.

        `counts` still counts them. Each call is one short transaction: call it until it gives 0.

        Args:
            older_than: Seconds since the Unix epoch: an older outcome goes.
            dead: Dead letters go, too.

        Returns:
            How many were deleted; 0 when none is left.

        Raises:
            BackendError: This backend cannot, or it was not done.
        """
        raise BackendError(f"{type(self).__name__} {_PRUNES_ITSELF}")

    async def prunable(self, older_than: float, *, dead: bool = False) -> int:  # noqa: ARG002
        """How many records `prune` would delete in all, called until it gives 0.

        Raises:
            BackendError: This backend cannot prune when it is told to.
        """
        raise BackendError(f"{type(self).__name__} {_PRUNES_ITSELF}")

    async def examine(self, *, deep: bool = False) -> list[Finding]:  # noqa: ARG002
        """Whether all is well, as far as can be seen without changing or holding up anything.

        Args:
            deep: Look at everything that is kept; takes as long as reading it.
        """
        findings = [Finding("bad", "backend", self.problem)] if self.problem else []
        findings += [paused_finding(name) for name in sorted(await self.paused())]
        return findings or [Finding("ok", "backend", "it works, and nothing is paused")]

    def is_idle(self) -> bool:
        """Whether nothing waits, runs or is to be delivered; what is parked does not count.

        Asked only of a backend that is not durable, when its coordinator is left.
        """
        raise NotImplementedError

    async def unfinished(self) -> Sequence[Record]:
        """Records that are neither finished nor dead; asked only where `is_idle` is."""
        raise NotImplementedError


_PRUNES_ITSELF = (
    "deletes what is finished by itself, after its retention and dead_retention, and not when "
    "it is told to"
)


def tallied(records: Iterable[Record]) -> dict[str, dict[State, int]]:
    """How many they are, by target and state."""
    tally: dict[str, dict[State, int]] = {}
    for record in records:
        states = tally.setdefault(record.target, {})
        states[record.state] = states.get(record.state, 0) + 1
    return tally


def paused_finding(service: str, since: str = "") -> Finding:
    """A service that is paused."""
    text = f"the service {service} is paused{since}: nothing of it begins; resume it if it may run"
    return Finding("warning", "paused", text)


def at_least(name: str, value: object, least: int) -> int:
    """*value* if it is an int of at least *least*.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {shown(value)}, but must be an int of at least {least}")
    return value


def without_password(url: str) -> str:
    """A URL that can be shown; also one whose password has a character that must not be there."""
    return re.sub(r"(?<=://)[^/].*@", "***@", url)
