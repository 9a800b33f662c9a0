"""Deleting what is finished when a person asks for it, a little at a time.

A message is deleted by its number. If somebody decides over its record meanwhile, either that write
comes first, and what is deleted is no longer the newest message of the record, or it is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from invoke_retry.backends.nats.client import ApiError, Message
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.store import Store

_AT_ONCE = 20
_NO_MESSAGE = (10037, 10043)


class Pruner:
    """Deletes from the oldest on, and remembers how far it has come."""

    def __init__(self, store: Store, looking: Looking) -> None:
        self._store = store
        self._looking = looking
        self._wanted: tuple[float, bool] | None = None
        self._after: int | None = None
        self._finished = f"{store.layout.base}.end.>"

    async def prune(self, older_than: float, *, dead: bool) -> int:
        """Delete some; how many. 0 when none is left."""
        if self._wanted != (older_than, dead):
            self._wanted, self._after = (older_than, dead), 0
        while self._after is not None:
            page, after = await self._looking.page(self._finished, self._after)
            deleted = await self._delete(self._old(page, older_than, dead=dead))
            self._after = after
            if deleted:
                return deleted
        self._wanted = None
        return 0

    async def prunable(self, older_than: float, *, dead: bool) -> int:
        """How many there are to delete."""
        number = 0
        after: int | None = 0
        while after is not None:
            page, after = await self._looking.page(self._finished, after)
            number += len(self._old(page, older_than, dead=dead))
        return number

    def _old(self, page: Sequence[Message], older_than: float, *, dead: bool) -> list[int]:
        return [
            found.sequence
            for found in map(self._looking.loaded, page)
            if found is not None
            and not found.is_newer
            and (dead or found.record.state != "dead")
            and (outcome := found.record.outcome) is not None
            and outcome.at < older_than
        ]

    async def _delete(self, sequences: Sequence[int]) -> int:
        deleted = 0
        for begin in range(0, len(sequences), _AT_ONCE):
            some = sequences[begin : begin + _AT_ONCE]
            answers = await asyncio.gather(*map(self._deleted, some), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
                deleted += answer
        return deleted

    async def _deleted(self, sequence: int) -> bool:
        """Delete one; False if it is gone already."""
        name = f"STREAM.MSG.DELETE.{self._store.layout.stream}"
        what = {"seq": sequence, "no_erase": True}
        try:
            await self._store.patiently(lambda: self._store.connection.api(name, what))
        except ApiError as error:
            if error.err_code not in _NO_MESSAGE and error.code != 404:
                raise
            return False
        return True
