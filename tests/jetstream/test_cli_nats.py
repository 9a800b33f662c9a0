"""The command line on a stream: looking and deciding, for people and for scripts."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from cli_help import COMMAND, SECRET, environment, reaches, run, told

from invoke_retry.backends.nats import looking
from invoke_retry.testing.nats_server import NatsServer

from .cli_nats_help import (
    PASSWORD,
    coordinator,
    in_thread,
    make_due,
    make_parked,
    make_varied,
    seen,
)

TIMES = 20
LOOKS = (
    ("list",), ("list", "--state", "waiting"), ("list", "--target", "fail"), ("counts",),
    ("show", "K0"), ("doctor",), ("doctor", "--deep"), ("watch", "--looks", "1"),
    ("prune", "--older", "1h"),
)  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[NatsServer]:
    """A server that wants a password."""
    folder = tmp_path_factory.mktemp("guarded")
    with NatsServer(folder, user="retries", password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def kept(guarded: NatsServer) -> tuple[str, dict[str, list[str]]]:
    """A store to look at, with many invocations in all states at rest, and their cids."""
    url = guarded.url_of("kept")
    cids = asyncio.run(make_varied(url, TIMES))
    cids["parked"] = asyncio.run(make_parked(url, TIMES))
    return url, cids


def listed(store: str, *filters: object) -> list[str]:
    """All cids that `list` shows, page by page."""
    found: list[str] = []
    after: list[str] = []
    while True:
        data = told("list", *filters, "--limit", 7, *after, store=store)
        found += [each["call_cid"] for each in data["invocations"]]
        if data["next"] is None:
            return found
        after = ["--after", data["next"]]


# Looking.


def test_list_with_each_filter(kept: tuple[str, dict[str, list[str]]]) -> None:
    url, cids = kept
    everything = [cid for some in cids.values() for cid in some]
    for state, some in cids.items():
        assert sorted(listed(url, "--state", state)) == sorted(some), state
    assert listed(url, "--state", "running") == []
    assert sorted(listed(url)) == sorted(everything)
    assert sorted(listed(url, "--target", "echo")) == sorted(cids["succeeded"] + cids["dead"])
    assert sorted(listed(url, "--error-type", "ConnectionError")) == sorted(
        cids["failed"] + cids["waiting"]
    )
    assert len(listed(url, "--source", "shop", "--newer", "1h")) == len(everything)
    assert listed(url, "--older", "1h") == listed(url, "--source", "mail") == []
    newest = told("list", "--limit", 1, store=url)["invocations"]
    assert newest[0]["call_cid"] == cids["parked"][-1]
    done = run("list", "--target", "eccho", store=url)
    assert (done.code, done.out) == (0, "")
    assert "there are: echo" in done.err


def test_show_by_the_beginning_of_a_cid(kept: tuple[str, dict[str, list[str]]]) -> None:
    url, cids = kept
    cid = cids["failed"][0]
    shown = told("show", cid[:12], store=url)
    assert (shown["call_cid"], shown["state"], shown["attempts"]) == (cid, "failed", 1)
    done = run("show", cid.lower(), store=url)
    assert done.code == 0
    assert cid in done.out
    assert "ConnectionError: the CRM is down" in done.out
    assert SECRET not in done.out
    typo = cid[:-1] + ("0" if cid[-1] != "0" else "1")
    error = told("show", typo, store=url, code=4)
    assert error["kind"] == "not_found"
    assert f"Close to it: {cid}" in error["message"]
    for unknown in ("K0", "nonsense", "K00000000000000000000000000", "*", ">"):
        assert told("show", unknown, store=url, code=4)["kind"] == "not_found"


def test_counts_and_watch(kept: tuple[str, dict[str, list[str]]]) -> None:
    url, cids = kept
    data = told("counts", store=url)
    expected = {state: len(some) for state, some in cids.items()}
    assert data["counts"] == {"running": 0, "notifying": 0, **expected}
    assert data["services"] == {
        "echo": {"succeeded": TIMES, "dead": TIMES},
        "fail": {"failed": TIMES, "waiting": TIMES},
        "hold": {"cancelled": TIMES, "parked": TIMES},
    }
    done = run("watch", "--looks", 2, "--interval", 0.1, "--json", store=url)
    looks = [json.loads(line)["data"] for line in done.out.splitlines()]
    assert [look["counts"] for look in looks] == [data["counts"]] * 2
    assert looks[1]["rates"]["accepted"]["now"] == 0
    states = {failure["state"] for failure in looks[0]["failures"]}
    assert states <= {"failed", "dead", "waiting", "parked"}
    assert states


def test_looking_changes_nothing(kept: tuple[str, dict[str, list[str]]]) -> None:
    url, _ = kept
    before = asyncio.run(seen(url))
    for command in LOOKS:
        done = run(*command, store=url)
        assert done.code in (0, 1, 4), done
        assert PASSWORD not in done.out + done.err
    assert asyncio.run(seen(url)) == before


def test_what_is_too_much_to_search(
    kept: tuple[str, dict[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, cids = kept
    monkeypatch.setattr(looking, "MOST_READ", TIMES)
    error = told("list", store=url, code=3)
    assert error["kind"] == "store"
    assert "ask for another state (dead, failed, parked)" in error["message"]
    assert sorted(listed(url, "--state", "failed")) == sorted(cids["failed"])
    assert told("show", cids["failed"][0][:14], store=url)["call_cid"] == cids["failed"][0]
    assert told("counts", store=url)["services"] is None
    done = run("counts", store=url)
    assert done.code == 0
    assert "not by service: " in done.err
    assert "the counts by state are known all the same" in done.err
    data = told("watch", "--looks", "1", store=url)
    assert data["services"] is None
    assert {each["state"] for each in data["failures"]} <= {"failed", "dead", "parked"}


# Deciding.


async def test_deciding_over_one(url: str) -> None:
    cids = {state: some[0] for state, some in (await make_varied(url)).items()}

    def decide() -> None:
        for command, state in (
            ("run-now", "waiting"), ("redeliver", "dead"), ("cancel", "waiting"),
            ("resubmit", "failed"),
        ):  # fmt: skip
            data = told(command, cids[state][:14], store=url)
            assert [each["cid"] for each in data["done"]] == [cids[state]], command
            assert data["refused"] == []
        for command, state in (
            ("run-now", "succeeded"), ("cancel", "failed"), ("redeliver", "cancelled"),
            ("resubmit", "succeeded"),
        ):  # fmt: skip
            data = told(command, cids[state], store=url, code=1)
            assert data["done"] == []
            assert cids[state] in data["refused"][0]["why"]

    await in_thread(decide)
    assert await in_thread(listed, url, "--state", "notifying") == [cids["dead"]]
    async with coordinator(url) as retry:  # and a process goes on with all of it
        await reaches(retry, cids["dead"], "dead")
        assert (await retry.get(cids["waiting"])).state == "cancelled"
        again = [each for each in await retry.search() if each.resubmit_of == cids["failed"]]
        await reaches(retry, again[0].call_cid, "failed")


async def test_deciding_over_many(url: str) -> None:
    cids = await make_varied(url, 3)

    def decide(*arguments: str) -> list[str]:
        assert run(*arguments, store=url).code == 2  # nobody is there to ask
        data = told(*arguments, "--yes", store=url)
        assert data["refused"] == []
        return sorted(each["cid"] for each in data["done"])

    assert await in_thread(decide, "redeliver", "--state", "dead") == sorted(cids["dead"])
    found = await in_thread(decide, "resubmit", "--error-type", "ConnectionError")
    assert found == sorted(cids["failed"])
    found = await in_thread(decide, "cancel", "--state", "waiting", "--target", "fail")
    assert set(cids["waiting"]) < set(found)
    done = await in_thread(run, "run-now", "--target", "hold", store=url)
    assert (done.code, done.err) == (1, "no invocation fits\n")


async def test_a_running_process_hears_of_it(url: str) -> None:
    async with coordinator(url) as retry:
        cid = await retry.invoke_async("hold", repeats=0, seconds=0)
        await reaches(retry, cid, "running")
        assert (await in_thread(told, "cancel", cid, store=url))["refused"] == []
        async with asyncio.timeout(10):
            while retry.health().running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await in_thread(told, "pause", "echo", store=url))["paused"] == ["echo"]
        data = await in_thread(told, "pause", "echo", store=url, code=1)
        assert data == {"changed": False, "paused": ["echo"]}
        waits = await retry.invoke_async("echo", repeats=0, seconds=0)
        other = await retry.invoke_async("fail", repeats=0, seconds=0)
        await reaches(retry, other, "failed")
        assert (await retry.get(waits)).state == "waiting"
        assert (await in_thread(told, "resume", "echo", store=url))["paused"] == []
        await reaches(retry, waits, "succeeded")


async def test_pruning(url: str) -> None:
    await make_varied(url, 3)
    await make_due(url, "echo")

    def prune() -> None:
        before = told("counts", store=url)["counts"]
        assert told("prune", "--older", "1h", "--yes", store=url) == {"pruned": 0}
        done = run("prune", "--older", "0s", store=url)
        assert done.code == 2
        assert "delete 9 invocations" in done.err
        assert told("prune", "--older", "0s", "--yes", store=url) == {"pruned": 9}
        data = told("counts", store=url)
        assert data["services"] == {"echo": {"dead": 3, "waiting": 1}, "fail": {"waiting": 3}}
        assert told("prune", "--older", "0s", "--dead", "--yes", store=url) == {"pruned": 3}
        assert told("prune", "--older", "0s", "--dead", "--yes", store=url) == {"pruned": 0}
        assert told("counts", store=url)["counts"] == before

    await in_thread(prune)


# A worker.

MODULE = """
import os
from invoke_retry import InvokeRetry, ServiceRegistry

services = ServiceRegistry()

@services.service("echo")
async def echo(n: int) -> int:
    return n

retry = InvokeRetry(services, backend=os.environ["INVOKE_RETRY_STORE"])
"""


def begin_worker(url: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "worker", "jobs:retry", "--json"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(url),
    )  # fmt: skip


async def test_a_worker_process(guarded: NatsServer, tmp_path: Path) -> None:
    url = guarded.url_of("worked")
    (tmp_path / "jobs.py").write_text(MODULE)
    process = begin_worker(url, tmp_path)
    try:
        async with coordinator(url, work=False) as asks:
            cid = await asks.invoke_async("echo", 7, repeats=0, seconds=0)
            assert (await asks.wait(cid, timeout=30)).response == 7
        process.send_signal(signal.SIGTERM)
        out, err = await in_thread(process.communicate, None, 30)
    finally:
        process.kill()
        await in_thread(process.wait, 10)
    begun, ended = [json.loads(line)["data"] for line in out.decode().splitlines()]
    assert begun["store"] == re.sub(r"(?<=//).*@", "", url)
    assert (process.returncode, ended["why"]) == (0, "ended after SIGTERM")
    assert PASSWORD not in (out + err).decode()


def test_the_extra_is_not_installed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "invoke_retry.backends.nats")
    monkeypatch.setitem(sys.modules, "nats", None)
    error: Any = told("counts", store=url, code=3)
    assert "pip install 'invoke-retry[nats]'" in error["message"]
