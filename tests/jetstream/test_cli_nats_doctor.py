"""`doctor` on a stream: what it finds where all is well, and where something is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_help import PACKAGE, run, told

from invoke_retry.testing.nats_server import NatsCluster, NatsServer

from .cli_nats_help import (
    coordinator,
    due_of,
    in_thread,
    make_due,
    make_parked,
    make_varied,
    rewrite,
    seen,
)
from .nats_help import Raw, eventually

NAMES = [
    "server", "account", "stream", "replicas", "sync", "workers", "consumers", "stuck", "overdue",
    "paused", "parked", "dead",
]  # fmt: skip
PAGE = PACKAGE.parent / "docs" / "nats.md"


def of(data: Any, what: str) -> list[tuple[str, str]]:
    """Level and text of the findings of that name."""
    return [(each["level"], each["text"]) for each in data["findings"] if each["what"] == what]


def worst(data: Any) -> dict[str, str]:
    """The names of what is not well, and how bad it is."""
    return {
        each["what"]: each["level"] for each in data["findings"] if each["level"] != "ok"
    }  # fmt: skip


async def doctor(url: str, *options: str, code: int) -> Any:
    return await in_thread(told, "doctor", *options, store=url, code=code)


async def test_all_is_well_while_a_process_works(url: str) -> None:
    async with coordinator(url):
        before = await seen(url)
        data = await doctor(url, "--deep", code=0)
        assert (await seen(url))[1:] == before[1:]  # it says from time to time that it lives
        done = await in_thread(run, "doctor", store=url)
    assert (done.code, done.err) == (0, "all is well\n")
    names = [each["what"] for each in data["findings"]]
    assert list(dict.fromkeys(names)) == [*NAMES, "integrity"]
    assert data["ok"] is True
    assert re.search(r"version \d+\.\d+.*, at nats://127.0.0.1:\d+, without TLS", done.out)
    ((_, text),) = of(data, "account")
    assert text.startswith("$G: ")
    assert "sync_interval) cannot be seen from here" in of(data, "sync")[0][1]
    assert "can run deaf, echo, fail, hold, tell" in of(data, "workers")[0][1]
    assert [text.partition(":")[0] for _, text in of(data, "consumers")] == [
        "deaf", "echo", "fail", "hold", "tell",
    ]  # fmt: skip
    assert "its lease is 30 s" in of(data, "consumers")[0][1]


async def test_what_a_person_should_look_at(url: str) -> None:
    await make_varied(url, 2)
    await make_parked(url, 1)
    await make_due(url, "echo")
    await in_thread(told, "pause", "echo", store=url)
    data = await doctor(url, code=1)
    assert worst(data) == dict.fromkeys(("workers", "paused", "parked", "dead"), "warning")
    assert of(data, "workers")[0][1] == (
        "no process works, and 3 invocations wait for one: start one"
    )
    assert "the service echo is paused" in of(data, "paused")[0][1]
    assert of(data, "parked")[0][1].startswith("1 cannot run")
    assert of(data, "dead")[0][1].startswith("the callbacks of 2 gave up")


async def test_what_is_overdue(url: str) -> None:
    for cid in await make_due(url, "echo", "echo", "fail"):
        await rewrite(url, cid, due=await due_of(url, cid) - 300)
    data = await doctor(url, code=1)
    assert worst(data) == {"workers": "warning", "overdue": "bad"}
    texts = [text for _, text in of(data, "overdue")]
    assert any(text.startswith("2 of echo are due, the first for 5 minutes") for text in texts)
    assert any(text.startswith("1 of fail are due") for text in texts)
    assert all("start one" in text for text in texts)
    await in_thread(told, "pause", "echo", store=url)
    assert len(of(await doctor(url, code=1), "overdue")) == 1


@pytest.mark.slow
async def test_what_hangs_and_what_nobody_can_run(url: str) -> None:
    (cid,) = await make_due(url, "echo")
    raw = Raw(url)
    await raw.put(f"ir.{raw.stream}.ctl.worker.other", json.dumps(["mail"]).encode())
    data = await doctor(url, code=1)
    assert ("bad", "no process can run echo, of which something is due: start one that has it") in (
        of(data, "stuck")
    )
    async with coordinator(url) as retry:
        long = await retry.invoke_async("hold", repeats=0, seconds=0)

        async def is_held() -> bool:
            return (await retry.get(long)).state == "running"

        await eventually(is_held)
        _, _, body = await raw.newest(long)
        first, _, rest = body.partition(b"\n")
        since = json.loads(first)["attempt_at"] - 7_200
        data = await doctor(url, code=0)
        await rewrite_held(raw, long, first, rest, since)
        data = await doctor(url, code=1)
        (level, text), *_ = of(data, "stuck")
        assert level == "warning"
        assert text.startswith("an attempt of hold has run since 20")
        assert f"{long}; cancel it" in text
        assert cid not in text


async def rewrite_held(raw: Raw, cid: str, first: bytes, rest: bytes, since: float) -> None:
    fields = {**json.loads(first), "attempt_at": since}
    await raw.put(f"ir.{raw.stream}.run.{cid}.held", json.dumps(fields).encode() + b"\n" + rest)


async def test_a_stream_and_a_consumer_that_were_altered(url: str) -> None:
    async with coordinator(url, "echo"):
        pass
    raw = Raw(url)
    consumer = (await raw.api(f"CONSUMER.INFO.{raw.stream}.echo"))["config"]
    what = {"stream_name": raw.stream, "config": {**consumer, "max_deliver": 7}}
    assert "error" not in await raw.api(f"CONSUMER.CREATE.{raw.stream}.echo", what)
    config = (await raw.api(f"STREAM.INFO.{raw.stream}"))["config"]
    told_ = await raw.api(f"STREAM.UPDATE.{raw.stream}", {**config, "max_msgs": 10_000})
    assert "error" not in told_, told_
    data = await doctor(url, code=1)
    assert worst(data) == {"stream": "bad", "consumers": "bad"}
    assert "max_msgs is 10000, but must be -1" in of(data, "stream")[0][1]
    assert "max_deliver is 7, but must be -1" in of(data, "consumers")[0][1]
    # nothing can be decided over there, as no process would work there
    error = await in_thread(told, "pause", "echo", store=url, code=3)
    assert "is not as it must be" in error["message"]


@pytest.mark.slow
async def test_what_is_damaged_or_left_behind(url: str) -> None:
    damaged, late, newer = await make_due(url, "echo", "echo", "echo")
    raw = Raw(url)
    subject, _, _ = await raw.newest(damaged)
    await raw.put(subject, b"no JSON")
    await rewrite(url, newer, v=99)
    async with coordinator(url) as retry:
        left = await retry.invoke_async("hold", repeats=0, seconds=0)

        async def is_held() -> bool:
            return (await retry.get(left)).state == "running"

        await eventually(is_held)
        held = await raw.newest(left)
    # as if somebody had purged the stream by hand: what it is held by is gone
    await raw.api(f"STREAM.PURGE.{raw.stream}", {"filter": f"ir.{raw.stream}.*.{left}.>"})
    await raw.put(held[0], held[2])
    assert "integrity" not in worst(await doctor(url, code=1))
    data = await doctor(url, "--deep", code=1)
    texts = " ".join(text for _, text in of(data, "integrity"))
    assert re.search(rf"1 of \d messages cannot be read: {damaged};", texts)
    assert f"1 are held by nobody: {left}; " in texts
    assert "were written by a newer release" in texts
    assert late not in texts


def permitted(*publish: str) -> dict[str, object]:
    """The settings of a server with one user, who may do that."""
    rights = {"publish": [*publish], "subscribe": ["_INBOX.>", "irn.orders.>"]}
    user = {"user": "retries", "password": "right", "permissions": rights}
    return {"authorization": {"users": [user]}}


def rights_of_the_page(*, to_look: bool) -> list[str]:
    """Those that the manual names."""
    publish = PAGE.read_text().partition("publish: [")[2].partition("]")[0]
    kept = [line for line in publish.splitlines() if to_look or "doctor" not in line]
    return re.findall(r'"([^"]+)"', "\n".join(kept))


@pytest.mark.parametrize("to_look", [True, False])
async def test_a_user_with_the_rights_of_the_manual(
    make_server: Callable[..., NatsServer], *, to_look: bool
) -> None:
    server = make_server(settings=permitted(*rights_of_the_page(to_look=to_look)))
    url = f"nats://retries:right@{server.address}/orders"
    await make_varied(url)
    await in_thread(told, "prune", "--older", "0s", "--dead", "--yes", store=url)
    async with coordinator(url):
        data = await doctor(url, "--deep", code=0 if to_look else 1)
    if to_look:
        return
    assert worst(data) == {"account": "warning", "consumers": "warning"}
    assert "no permission to publish to $JS.API.CONSUMER.LIST.orders" in of(data, "consumers")[0][1]
    assert "docs/nats.md" in of(data, "account")[0][1]


async def test_an_account_that_is_nearly_full(make_server: Callable[..., NatsServer]) -> None:
    limits = {"jetstream": {"max_store": 100_000}, "users": [{"user": "u", "password": "right"}]}
    server = make_server(settings={"accounts": {"shop": limits}})
    url = f"nats://u:right@{server.address}/orders"
    async with coordinator(url) as retry:
        await retry.invoke_async("echo", "x" * 90_000, repeats=0, seconds=3_600)
        data = await doctor(url, code=1)
    ((level, text),) = of(data, "account")
    assert level in ("warning", "bad")
    assert text.startswith("shop: ")
    assert "raise the limit, or shorten retention" in text


@pytest.mark.slow
async def test_replicas(tmp_path: Path) -> None:
    with NatsCluster(tmp_path) as cluster:
        url = f"{cluster.url_of('orders')}?replicas=3"
        async with coordinator(url):
            data = await doctor(url, code=0)
            assert "kept on 3 servers, led by n" in of(data, "replicas")[0][1]
            leader = cluster.leader_of("orders")
            # not the one that the URL names
            other = next(node for node in cluster.nodes[1:] if node is not leader)
            await in_thread(other.kill)

            async def is_seen() -> bool:
                done = await in_thread(run, "doctor", "--json", store=url)
                told_: dict[str, Any] = json.loads(done.out)
                if "data" not in told_:  # a leader is being elected
                    return False
                return any(level == "warning" for level, _ in of(told_["data"], "replicas"))

            await eventually(is_seen)
