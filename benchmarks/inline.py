"""Inline: what `invoke` adds to a call."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from benchmarks.peers import DECORATORS, Flaw, Function, peers
from benchmarks.rows import Budget, Section
from benchmarks.timing import Case, race
from invoke_retry import InvokeRetry, ServiceRegistry

OURS, BARE, BY_HAND = "invoke_retry", "a bare await", "a hand-written loop"
PACKAGES = ("invoke-retry", *DECORATORS)
FAILURES = 3


class Flaky:
    """Fails FAILURES times, then succeeds; and so on."""

    def __init__(self) -> None:
        self.left = FAILURES

    async def call(self, number: int) -> int:
        if self.left:
            self.left -= 1
            raise Flaw("not yet")
        self.left = FAILURES
        return number


async def good(number: int) -> int:
    return number


flaky = Flaky().call
services = ServiceRegistry()
services.register("good", good)
services.register("flaky", flaky)


def hand_written(function: Function) -> Function:
    """What people write without a library."""

    async def call(number: int) -> int:
        attempt = 1
        while True:
            try:
                return await function(number)
            except Flaw:
                if attempt == 1 + FAILURES:
                    raise
            await asyncio.sleep(0)
            attempt += 1

    return call


def called(function: Function) -> Case:
    async def sample(calls: int) -> None:
        for _ in range(calls):
            await function(1)

    return sample


def invoked(retry: InvokeRetry, name: str) -> Case:
    invoke = retry.invoke

    async def sample(calls: int) -> None:
        for _ in range(calls):
            await invoke(name, 1, repeats=3, seconds=0)

    return sample


def cases(function: Function, name: str) -> dict[str, Case]:
    found = {
        OURS: invoked(InvokeRetry(services), name),
        BY_HAND: called(hand_written(function)),
    }
    return found | {peer: called(decorated) for peer, decorated in peers(function).items()}


async def success(rounds: int) -> Section:
    times = await race({BARE: called(good), **cases(good, "good")}, calls=400, rounds=rounds)
    whole = times.row(
        "invoke / bare await f(x)", OURS, BARE, Budget("<=", 11),
        beside=[BARE, BY_HAND, *DECORATORS],
    )  # fmt: skip
    cheaper = times.row("tenacity's decorator / invoke", "tenacity", OURS, Budget(">=", 20))
    rows = [whole, replace(cheaper, axis="times cheaper than tenacity's decorator")]
    return Section("success", "Inline, a call that succeeds", PACKAGES, rows)


async def failures(rounds: int) -> Section:
    times = await race(cases(flaky, "flaky"), calls=60, rounds=rounds)
    return Section(
        "failures",
        f"Inline, {FAILURES} failures, then success, no wait between them",
        PACKAGES,
        [
            times.row(
                "invoke / hand-written loop",
                OURS,
                BY_HAND,
                Budget("<=", 1.5),
                beside=[BY_HAND, *DECORATORS],
            )
        ],
    )
