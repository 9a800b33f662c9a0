"""What strangers publish on the subjects of a stream: the worker goes on, and nothing vanishes."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Self

from jetstream.nats_help import Raw
from jetstream.raw import connected

from invoke_retry import (
    BackendError,
    CorrelationId,
    InvocationNotFound,
    InvokeRetry,
    RetryPolicy,
)
from invoke_retry.testing.nats_server import NatsServer

from .kind import Kind, decide_over, expect, plain_services, tried, until
from .rows import Bomb
from .values import NUMBERS, text

VICTIMS, NEIGHBOURS, HOSTILE = 5, 3, 6
# always the same ones: each other one is kept in a cache for a while, which looks like a leak
POLICIES = [RetryPolicy(repeats, 0) for repeats in range(3)]
# none that takes messages away: who may publish these may delete as well
HEADERS = {
    "Nats-Schedule": ("@at 2200-01-01T00:00:00Z", "@at 1970-01-01T00:00:00Z", "@every 1s", "x"),
    "Nats-Schedule-Target": ("ir.x", "", ">"),
    "Nats-Expected-Last-Subject-Sequence": ("0", "-1", "99999999999999999999", "x"),
    "Nats-Msg-Id": ("1", "x" * 500),
    "Nats-Subject": ("ir.other.due.x.y.z", ""),
    "Nats-Sequence": ("0", "-5", "nonsense"),
    "X-Strange": ("\u00e9", "x" * 2_000),
}
_streams = count()


class Messages(Kind):
    """Each round has a stream of its own, on one server."""

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[Self]:
        with NatsServer(self.folder / "server") as self._server:
            yield self

    async def round(self, chance: Random) -> None:
        stream = f"fuzz{next(_streams)}"
        url, raw = self._server.url_of(stream), Raw(self._server.url_of(stream))
        proof = self.folder / "proof"
        async with self._on(url, work=False) as retry:
            victims = [
                await retry.invoke_async(
                    "fail", n, policy=POLICIES[n % 3], callback="tell", cid=_cid(n)
                )
                for n in range(VICTIMS)
            ]
        await self._publish(raw, victims, proof, chance)
        async with self._on(url) as retry:
            neighbours = [
                await retry.invoke_async("echo", n, policy=POLICIES[0], callback="tell")
                for n in range(NEIGHBOURS)
            ]
            await self._publish(raw, victims, proof, chance)
            await self._see_running(retry, neighbours, victims)
        await raw.api(f"STREAM.DELETE.{stream}")
        expect(not proof.exists(), "a pickle was opened")

    def _on(self, url: str, *, work: bool = True) -> InvokeRetry:
        return InvokeRetry(
            plain_services(), backend=url, callback_policy=POLICIES[1], work=work, grace=1
        )

    async def _see_running(
        self, retry: InvokeRetry, neighbours: list[CorrelationId], victims: list[CorrelationId]
    ) -> None:
        for cid in neighbours:
            await until(lambda: _is_over(retry, cid), "a neighbour")
        for cid in victims:
            found = await tried((InvocationNotFound,), lambda: retry.get(cid))
            expect(found.error is None, f"{cid} is not found")
            self.seen[f"victim {found.result.state}"] += 1
        shown = {each.call_cid for each in await retry.search(limit=1_000)}
        expect({*neighbours, *victims} <= shown, "what is kept is not shown")
        await retry.counts()
        await retry.backend.examine(deep=True)
        await decide_over(retry, [*victims[:2]])
        expect(retry.health().ok, f"{retry.health()}")

    async def _publish(
        self, raw: Raw, victims: list[CorrelationId], proof: Path, chance: Random
    ) -> None:
        server = self._server.url
        async with connected(server) as client:
            for _ in range(HOSTILE):
                victim = chance.choice(victims)
                subject, _, body = await raw.newest(victim)
                where = _subject(chance, raw.stream, subject, victim)
                headers = {
                    name: chance.choice(values)
                    for name, values in HEADERS.items()
                    if chance.random() < 0.1
                }
                data = _mutated(chance, body, proof)
                answer = json.loads((await client.request(where, data, 5, headers=headers)).data)
                self.seen["message refused" if "error" in answer else "message stored"] += 1
            news = _mutated(chance, b'{"kind": "outcome", "cid": "x"}', proof)
            await client.publish(f"irn.{raw.stream}", news)
            await client.publish(f"irn.{raw.stream}.{victims[0]}", news)
            await client.flush()


async def _is_over(retry: InvokeRetry, cid: str) -> bool:
    try:
        return (await retry.get(cid)).state == "succeeded"
    except BackendError:
        return False


def _cid(number: int) -> CorrelationId:
    return CorrelationId.from_key(f"victim {number}")


def _subject(chance: Random, stream: str, own: str, victim: CorrelationId) -> str:
    """Its own most of the time, else another one of the stream."""
    stranger = CorrelationId.new(chance)
    others = (
        f"ir.{stream}.due.{victim}.fail.call", f"ir.{stream}.at.{victim}.fail.call",
        f"ir.{stream}.run.{victim}.held", f"ir.{stream}.park.{victim}.fail.call",
        f"ir.{stream}.end.{victim}.fail.failed", f"ir.{stream}.due.{victim}.echo.tell",
        f"ir.{stream}.due.{stranger}.echo.call", f"ir.{stream}.end.{stranger}.echo.succeeded",
        f"ir.{stream}.due.no-cid.echo.call", f"ir.{stream}.x.y.z", f"ir.{stream}.due",
        f"ir.{stream}.due.{stranger}.{'x' * 200}.call", f"ir.{stream}.due.é.echo.call",
        f"ir.{stream}.due.{stranger}.echo.call.more.than.that", f"ir.{stream}.count",
    )  # fmt: skip
    return own if chance.random() < 0.5 else chance.choice(others)


def _mutated(chance: Random, body: bytes, proof: Path) -> bytes:
    """The body of a message, no more what it was."""
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: _with_other_bytes(chance, body),
        lambda: body[: chance.randrange(len(body) + 1)],
        lambda: body + b"\n" * chance.randrange(1, 4),
        lambda: _with_another_field(chance, body),
        lambda: _with_another_field(chance, body),
        lambda: pickle.dumps(Bomb(proof)),
        lambda: b"",
        lambda: chance.randbytes(200),
        lambda: b"[" * 10_000,
        lambda: b"{}\n\n\n",
        lambda: b"x" * 500_000,
        lambda: body,
    )
    return chance.choice(ways)()


def _with_other_bytes(chance: Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.choice((1, 3, 30)) if changed else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _with_another_field(chance: Random, body: bytes) -> bytes:
    first, _, rest = body.partition(b"\n")
    try:
        form: dict[str, Any] = json.loads(first)
    except (ValueError, RecursionError):  # it was changed before
        return b"null\n" + rest
    if not isinstance(form, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        return rest
    name = chance.choice([*form, "another"])
    junk: tuple[Any, ...] = (
        None, text(chance), *NUMBERS[:9], -1, 1e308, [], {}, [[1, 2, 3, None]], "running", "parked",
        "waiting", "succeeded", ["exhausted", 1.0, None, None], 2**53, "x" * 10_000,
    )  # fmt: skip
    form[name] = chance.choice(junk)
    return json.dumps(form).encode() + b"\n" + rest
