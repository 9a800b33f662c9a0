"""Names and cids: what is refused is refused alike, and what is accepted is found again."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from pydantic import TypeAdapter, ValidationError

from invoke_retry import (
    CorrelationId,
    DuplicateService,
    InvalidService,
    InvocationNotFound,
    InvokeRetry,
    ServiceNotFound,
    ServiceRegistry,
)
from invoke_retry.durations import shown

from .kind import Paired, Told, echo, expect, tried
from .values import Prickly, Text, text, value

ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_CID = re.compile(r"K0[0-7][0-9A-HJKMNP-TV-Z]{25}")
_LOOKALIKES = "ILOU*.> \u0660\uff10é\ud800"
_AT_A_TIME = 10
_LIMIT = 1_000


class Called(Paired):
    """One service, in memory and on SQLite."""

    def _register(self, services: ServiceRegistry, told: Told) -> None:
        services.register("echo", echo)


class Names(Called):
    """Names of services, targets, callbacks, callers, coordinators; filters and pauses."""

    async def round(self, chance: Random) -> None:
        for _ in range(_AT_A_TIME):
            name = _name(chance)
            await self._as_service(name)
            await self._as_target(name)
            await self._as_caller(name, _name(chance))
            await self._as_filter(name)
            await self._as_pause(name)

    async def _as_service(self, name: Any) -> None:
        services = ServiceRegistry()
        answer = await tried((InvalidService,), lambda: services.register(name, echo).name)
        self.seen[f"service {answer.verdict}"] += 1
        is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
        expect(is_name == (answer.error is None), f"{shown(name)}: {answer}")
        if is_name:
            expect([*services] == [name] and services[name].name == name, "another name")
            again = await tried((DuplicateService,), lambda: services.register(name, echo))
            expect(again.error is not None, "one name twice")

    async def _as_target(self, name: Any) -> None:
        documented = (ServiceNotFound, TypeError)
        for more in ({}, {"callback": name}):
            target: Any = "echo" if more else name
            answers = await self._pair.both(
                documented,
                lambda retry: retry.invoke_async(target, 1, **ONCE, **more),
            )
            is_known = (isinstance(name, str) and name == "echo") or (bool(more) and name is None)
            expect(is_known == (answers[0].error is None), f"{shown(name)}: {answers}")
            self.seen[f"target {answers[0].verdict}"] += 1

    async def _as_caller(self, name: Any, cid: Any) -> None:
        async def invoke(retry: InvokeRetry) -> Any:
            with retry.caller(name, cid):
                made = await retry.invoke_async("echo", 1, **ONCE)
            await retry.wait(made, timeout=20)
            found = await retry.get(made)
            expect(found.source == name, f"the source is {found.source!r:.200}")
            expect(cid is None or found.orig_cid == cid, f"orig_cid is {found.orig_cid!r:.200}")
            alike = [each.call_cid for each in await retry.search(source=name)]
            expect(made in alike, "the source is not found")

        answers = await self._pair.both((ValueError,), invoke)
        self.seen[f"caller {answers[0].verdict}"] += 1
        made = await tried((ValueError,), lambda: InvokeRetry(ServiceRegistry(), name=name).name)
        expect(made.error is not None or made.result == name, "a coordinator of another name")

    async def _as_filter(self, name: Any) -> None:
        for field in ("target", "source", "error_type", "state"):
            if name is not None and not isinstance(name, Prickly):  # no code of its own is run
                query: dict[str, Any] = {field: name}
                documented = (ValueError,) if field == "state" else ()
                await self._pair.both(documented, lambda retry: _search(retry, query))

    async def _as_pause(self, name: Any) -> None:
        async def pause(retry: InvokeRetry) -> Any:
            expect(await retry.pause(name), "it was paused already")
            try:
                expect({*await retry.paused()} == {name}, "another one is paused")
            finally:
                expect(await retry.resume(name), "it was not paused")

        answers = await self._pair.both((ValueError,), pause)
        self.seen[f"pause {answers[0].verdict}"] += 1


class Cids(Called):
    """Ids: malformed ones, lookalikes, and real ones."""

    async def round(self, chance: Random) -> None:
        for _ in range(_AT_A_TIME):
            cid = _cid(chance)
            is_cid = isinstance(cid, str) and _CID.fullmatch(cid) is not None
            await self._as_type(cid, is_cid=is_cid)
            await self._as_argument(cid, is_cid=is_cid)
            await self._as_question(cid, is_cid=is_cid)
            await self._from_key(text(chance))

    async def _as_type(self, cid: Any, *, is_cid: bool) -> None:
        made = await tried((ValueError,), lambda: CorrelationId(cid))
        adapter = TypeAdapter(CorrelationId)
        read = await tried((ValidationError,), lambda: adapter.validate_python(cid))
        for answer in (made, read):
            expect((answer.error is None) == is_cid, f"{shown(cid)}: {answer}")
            expect(not is_cid or answer.result == cid, "another id")

    async def _as_argument(self, cid: Any, *, is_cid: bool) -> None:
        async def invoke(retry: InvokeRetry) -> Any:
            made = await retry.invoke_async("echo", 1, cid=cid, **ONCE)
            expect(cid is None or made == cid, "another id")
            expect((await retry.wait(made, timeout=20)).call_cid == made, "another outcome")

        answers = await self._pair.both((ValueError,), invoke)
        expect((answers[0].error is None) == (is_cid or cid is None), f"{shown(cid)}: {answers[0]}")
        self.seen[answers[0].verdict] += 1

    async def _as_question(self, cid: Any, *, is_cid: bool) -> None:
        if is_cid:
            return
        for name in ("get", "wait", "cancel", "run_now", "redeliver", "resubmit"):
            answers = await self._pair.both(
                (InvocationNotFound,),
                lambda retry: getattr(retry, name)(cid),
            )
            expect(answers[0].error is not None, f"{name} knows {shown(cid)}")

    async def _from_key(self, key: Any) -> None:
        made = await tried((ValueError,), lambda: CorrelationId.from_key(key))
        if made.error is None:
            expect(_CID.fullmatch(made.result) is not None, "its form")
            expect(made.result == CorrelationId.from_key(key), "not the same again")


async def _search(retry: InvokeRetry, query: dict[str, Any]) -> None:
    field, wanted = next(iter(query.items()))
    for found in await retry.search(**query, limit=5):
        kept = found.error and found.error.type if field == "error_type" else getattr(found, field)
        expect(kept == wanted, f"{field}: {kept!r} for {shown(wanted)}")


def _name(chance: Random) -> Any:
    near = (
        "echo", "Echo", "echo ", "echo\n", "écho", "a" * 200, "a" * 201, "x" * 1_000, "x" * 1_001,
        "-a", ".a", "a-.b_c", Text("echo"), "\u0661", "a\u0661", "\uff45cho", None,
    )  # fmt: skip
    if chance.random() < 0.4:
        return chance.choice(near)
    return text(chance) if chance.random() < 0.6 else value(chance, _LIMIT)


def _cid(chance: Random) -> Any:
    good = CorrelationId.new(chance)
    i = chance.randrange(28)
    return chance.choice((
        good, good, str(good), Text(good), good.lower(), f"{good}\n", f" {good}", good[:-1],
        f"{good}0", f"{good[:i]}{chance.choice(_LOOKALIKES)}{good[i + 1:]}",
        f"{good[:i]}\x00{good[i + 1:]}", f"K08{good[3:]}", f"K00{good[3:]}", good.encode(), None,
        "".join(chr(ord(each) + 0xFEE0) for each in good), text(chance), value(chance, _LIMIT),
    ))  # fmt: skip
