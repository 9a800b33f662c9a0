"""What people ask of a stream as a whole: what is in it, and whether all is well."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

from invoke_retry.backends.base import Backend, Finding, Query
from invoke_retry.backends.nats.examination import Examination
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.pruning import Pruner
from invoke_retry.backends.nats.store import Store, is_cid
from invoke_retry.backends.nats.stream import Stream
from invoke_retry.backends.wording import unknown
from invoke_retry.models import State
from invoke_retry.record import Record


class Asked(Backend):
    """The part of `NATSBackend` that looks at many invocations."""

    _store: Store
    _stream: Stream
    _looking: Looking

    @abstractmethod
    def _check(self, *, to_change: bool = False) -> None: ...

    async def search(self, query: Query) -> Sequence[Record]:
        self._check_query(query)
        return await self._looking.search(query)

    async def cids(self, query: Query) -> list[str]:
        """The ids of all records that fit, newest first; it reads as much as that takes.

        Of more than 10,000 all, without any filter, come in the order of their ids.
        """
        self._check_query(query)
        return await self._looking.cids(query)

    async def counts(self) -> dict[State, int]:
        """Exact up to 2,000 messages in the stream, else each state is counted a moment later.

        What was pruned is counted by what processes have told, once a second: of one that is
        killed, the last second is missing.
        """
        self._check()
        return await self._looking.counts()

    async def tally(self) -> dict[str, dict[State, int]]:
        self._check()
        return await self._looking.tally()

    async def prune(self, older_than: float, *, dead: bool = False) -> int:
        """Delete some of the finished records; each call looks at a thousand, or more.

        What a newer release has written is left to it.
        """
        self._check(to_change=True)
        return await self._pruner.prune(older_than, dead=dead)

    async def prunable(self, older_than: float, *, dead: bool = False) -> int:
        self._check()
        return await self._pruner.prunable(older_than, dead=dead)

    async def examine(self, *, deep: bool = False) -> list[Finding]:
        """Whether all is well, as the server tells; it reads some thousand messages at most.

        Args:
            deep: Read all of them, and find what is damaged or left behind.
        """
        self._check()
        return await Examination(self._store, self._stream, self._looking).findings(
            self.paused, deep=deep
        )

    @cached_property
    def _pruner(self) -> Pruner:
        return Pruner(self._store, self._looking)

    def _check_query(self, query: Query) -> None:
        self._check()
        if query.after is not None and not is_cid(query.after):
            raise unknown(query.after)
