"""What the stream can tell of many records: how many, and which.

The engine finds messages by their subject, and counts them; it does not search. So a search reads
what it searches, up to a limit, and what was finished and is forgotten is counted by the processes
themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args

from invoke_retry.backends.base import Query, tallied
from invoke_retry.backends.nats.client import Message
from invoke_retry.backends.nats.layout import cid_of, place_of
from invoke_retry.backends.nats.state import Found, Unreadable, damaged, load
from invoke_retry.backends.nats.store import Store, last_message
from invoke_retry.backends.wording import unknown
from invoke_retry.errors import BackendError
from invoke_retry.models import State
from invoke_retry.record import Record

MOST_READ: Final = 10_000
_MOST_EXACT = 2_000
_PAGE = 1_000
_PLACES = ("due", "at", "run", "park", "end")
_FINAL: Final[tuple[State, ...]] = ("succeeded", "failed", "cancelled", "dead")
_TOTALS = "ctl.totals.all"
_TRIES = 20
_INSTEAD = (
    "ask for another state (dead, failed, parked), for one of them by its cid, or for the counts "
    "by state"
)
_NOT_BY_TARGET = "the counts by state are known all the same"


class Looking:
    """Counts and searches one stream.

    Attributes:
        ended: What this process has ended since it was added to the totals, by state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layout = store.layout
        self.ended: Counter[str] = Counter()
        self._unsure: tuple[str, Counter[str]] | None = None
        self._adding = asyncio.Lock()

    # Counting.

    async def count(self, where: str) -> int:
        """How many messages stand there."""
        what = json.dumps({"seq": 1, "next_by_subj": where, "batch": 1}).encode()
        for message in await self._collect(what):
            return int((message.headers or {}).get("Nats-Num-Pending", 0)) + 1
        return 0

    async def _collect(self, what: bytes) -> list[Message]:
        store, subject = self._store, f"$JS.API.DIRECT.GET.{self._layout.stream}"
        return await store.patiently(lambda: store.connection.collect(subject, what))

    async def unfinished(self) -> int:
        """How many records are neither finished nor dead."""
        base = self._layout.base
        return sum([await self.count(f"{base}.{place}.>") for place in ("due", "at", "park")])

    async def counts(self) -> dict[State, int]:
        """How many records are in each state, and of those that are forgotten, were at the end."""
        base = self._layout.base
        total = sum([await self.count(f"{base}.{place}.>") for place in _PLACES])
        present = await (self._exact() if total <= _MOST_EXACT else self._roughly())
        totals = await self.add_totals()
        counts: dict[State, int] = dict.fromkeys(get_args(State), 0)
        counts.update({state: max(0, present[state]) for state in counts})
        counts.update({state: max(counts[state], totals[state]) for state in _FINAL})
        return counts

    async def _exact(self) -> Counter[str]:
        # in one go, by number: what is moved meanwhile is met again
        records = await self._newest_of((f"{self._layout.base}.>",), 2 * _MOST_EXACT)
        return Counter(str(record.state) for record in records)

    async def _roughly(self) -> Counter[str]:
        base = self._layout.base
        held = [found.record for found in await self._load(f"{base}.run.>")]
        attempts = sum(record.outcome is None for record in held)
        # what is held stands in `due` as well, mostly as what it was begun for: an attempt
        following = sum(record.outcome is not None for record in held)
        waiting = await self.count(f"{base}.at.*.*.call") + await self.count(f"{base}.due.*.*.call")
        telling = await self.count(f"{base}.at.*.*.tell") + await self.count(f"{base}.due.*.*.tell")
        present: Counter[str] = Counter(
            running=attempts,
            notifying=telling + following,
            waiting=waiting - attempts - following,
            parked=await self.count(f"{base}.park.>"),
        )
        for state in _FINAL:
            present[state] = await self.count(f"{base}.end.*.*.{state}")
        return present

    async def add_totals(self) -> Counter[str]:
        """Add what this process has ended since the last time; what all have, as far as known."""
        async with self._adding:
            if self._unsure is None and self.ended:
                self._unsure = self._store.new_op(), self.ended
                self.ended = Counter()
            known = await self._add_totals(*(self._unsure or ("", Counter[str]())))
            self._unsure = None
            return known

    async def _add_totals(self, op: str, new: Counter[str]) -> Counter[str]:
        connection, subject = self._store.connection, f"{self._layout.base}.{_TOTALS}"
        for _ in range(_TRIES):
            sequence, told = await self._last_json(subject)
            known: Counter[str] = Counter(told.get("ended", {}))
            if not new or told.get("op") == op:  # the answer to an earlier try was lost
                return known
            known.update(new)
            body = json.dumps({"op": op, "ended": dict(known)}).encode()
            headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
            answer = json.loads((await connection.request(subject, body, headers)).data)
            if "error" not in answer:
                return known
        raise BackendError("the totals are changed by too many at once")

    async def _last_json(self, subject: str) -> tuple[int, dict[str, Any]]:
        told = await last_message(self._store.connection, self._layout.stream, subject)
        return (0, {}) if told is None else (told.sequence, json.loads(told.data))

    # Searching.

    async def search(self, query: Query) -> Sequence[Record]:
        """Records that fit, newest first by when they were accepted."""
        after = await self._after(query)
        records = await self._read(_filters(self._layout.base, query.state), "to search", _INSTEAD)
        records.sort(key=_age, reverse=True)
        fitting = (
            record
            for record in records
            if query.fits(record) and (after is None or _age(record) < after)
        )
        return [record for record, _ in zip(fitting, range(query.limit), strict=False)]

    async def cids(self, query: Query) -> list[str]:
        """The ids of all records that fit, newest first, however many must be read.

        All of more than `MOST_READ` are not read, and come in the order of their ids.
        """
        after = await self._after(query)
        if query == Query(limit=query.limit) and await self.count(self._all) > MOST_READ:
            return await self._all_cids()
        newest: dict[str, tuple[int, tuple[float, str], bool]] = {}
        for where in _filters(self._layout.base, query.state):
            begin: int | None = 0
            while begin is not None:
                page, begin = await self.page(where, begin)
                for found in filter(None, map(self.loaded, page)):
                    record, sequence = found.record, found.sequence
                    if record.cid not in newest or newest[record.cid][0] < sequence:
                        newest[record.cid] = sequence, _age(record), query.fits(record)
        ages = [age for _, age, fits in newest.values() if fits and (after is None or age < after)]
        return [cid for _, cid in sorted(ages, reverse=True)]

    async def _all_cids(self) -> list[str]:
        """By the subjects alone, which the server lists."""
        cids: set[str] = set()
        what: dict[str, object] = {"subjects_filter": self._all}
        offset, total = 0, 1
        while offset < total:
            told = await self._store.connection.api(
                f"STREAM.INFO.{self._layout.stream}", {**what, "offset": offset}
            )
            subjects: dict[str, int] = told["state"].get("subjects") or {}
            cids |= {cid_of(each) for each in subjects if place_of(each) in _PLACES}
            offset, total = offset + len(subjects), int(told.get("total", 0)) if subjects else 0
        return sorted(cids)

    async def tally(self) -> dict[str, dict[State, int]]:
        """How many records are kept, by target and state.

        Raises:
            BackendError: There are too many of them.
        """
        return tallied(await self._read((self._all,), "to count by their target", _NOT_BY_TARGET))

    @property
    def _all(self) -> str:
        return f"{self._layout.base}.>"

    async def _after(self, query: Query) -> tuple[float, str] | None:
        if query.after is None:
            return None
        try:
            found = await self._store.newest(query.after)
        except Unreadable as error:
            return _age(damaged(query.after, str(error)))
        if found is None:
            raise unknown(query.after)
        return _age(found.record)

    async def _read(self, filters: Sequence[str], what_for: str, instead: str) -> list[Record]:
        """The newest of each record that stands there."""
        total = 0
        for where in filters:
            total += await self.count(where)
        if total > MOST_READ:
            raise BackendError(
                f"there are {total:,} messages {what_for}, and NATS finds them by nothing but "
                f"their state: at most {MOST_READ:,} are read; {instead}"
            )
        return await self._newest_of(filters, MOST_READ)

    async def _newest_of(self, filters: Iterable[str], limit: int) -> list[Record]:
        newest: dict[str, Found] = {}
        for where in filters:
            for found in await self._load(where, limit):
                known = newest.get(found.record.cid)
                if known is None or known.sequence < found.sequence:
                    newest[found.record.cid] = found
        return [found.record for found in newest.values()]

    async def _load(self, where: str, limit: int = MOST_READ) -> list[Found]:
        messages = await self.messages(where, limit)
        return [found for each in messages if (found := self.loaded(each)) is not None]

    def loaded(self, message: Message) -> Found | None:
        """The record that a message is; None if it is none. What is damaged is shown as parked."""
        headers = message.headers or {}
        subject = headers.get("Nats-Subject", "")
        if len(subject.split(".")) < 5 or place_of(subject) not in _PLACES:
            return None
        sequence = int(headers.get("Nats-Sequence", 0))
        try:
            return load(message.data, self._store.shift, subject, sequence)
        except Unreadable as error:
            return Found(damaged(cid_of(subject), str(error)), subject, sequence, 0, "", None)

    async def messages(self, where: str, limit: int) -> list[Message]:
        """What stands there, oldest first."""
        messages: list[Message] = []
        after: int | None = 0
        while after is not None and len(messages) < limit:
            page, after = await self.page(where, after, min(_PAGE, limit))
            messages += page
        return messages

    async def page(
        self, where: str, after: int, size: int = _PAGE
    ) -> tuple[list[Message], int | None]:
        """A part of what stands there, oldest first, and after which number the next one begins.

        Returns:
            The messages, and None instead of a number if they are the last ones.
        """
        what = {"seq": after + 1, "next_by_subj": where, "batch": size}
        page = await self._collect(json.dumps(what).encode())
        if not page:
            return page, None
        headers = page[-1].headers or {}
        is_last = headers.get("Nats-Num-Pending", "0") == "0"
        return page, None if is_last else int(headers.get("Nats-Sequence", 0))


def _filters(base: str, state: State | None) -> tuple[str, ...]:
    if state in _FINAL:
        return (f"{base}.end.*.*.{state}",)
    if state == "parked":
        return (f"{base}.park.>",)
    if state is not None:
        return tuple(f"{base}.{place}.>" for place in ("at", "due", "run", "end"))
    return (f"{base}.>",)


def _age(record: Record) -> tuple[float, str]:
    return record.created_at, record.cid
