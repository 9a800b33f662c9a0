"""Inline: what `invoke` adds to a call."""

from __future__ import annotations

import asyncio

from benchmarks.peers import Flaw, Function, peers
from benchmarks.report import Budget, Row
from benchmarks.timing import Case, Times, race
from invoke_retry import InvokeRetry, ServiceRegistry

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
        "invoke_retry": invoked(InvokeRetry(services), name),
        "hand-written loop": called(hand_written(function)),
    }
    return found | {peer: called(decorated) for peer, decorated in peers(function).items()}


async def success(rounds: int) -> list[Row]:
    times = await race(
        {"bare await": called(good), **cases(good, "good")}, calls=400, rounds=rounds
    )
    rows = [
        Row(
            "success / bare await f(x)",
            times.ratio("invoke_retry", "bare await"),
            "x",
            Budget("<=", 11),
            f"{times.median('invoke_retry'):,.0f} ns / {times.median('bare await'):,.0f} ns",
        )
    ]
    if "tenacity" in times.samples:
        rows.append(
            Row(
                "success: tenacity's decorator / invoke",
                times.ratio("tenacity", "invoke_retry"),
                "x",
                Budget(">=", 20),
                f"{times.median('tenacity'):,.0f} ns",
            )
        )
    return rows + beside(times, "bare await", "success")


async def failures(rounds: int) -> list[Row]:
    times = await race(cases(flaky, "flaky"), calls=60, rounds=rounds)
    floor = "hand-written loop"
    row = Row(
        "3 failures, then success / hand-written loop",
        times.ratio("invoke_retry", floor),
        "x",
        Budget("<=", 1.5),
        f"{times.median('invoke_retry'):,.0f} ns / {times.median(floor):,.0f} ns",
    )
    return [row, *beside(times, floor, "3 failures, then success")]


def beside(times: Times, base: str, what: str) -> list[Row]:
    others = [name for name in times.samples if name not in ("invoke_retry", base)]
    return [
        Row(
            f"    {name}: {what}",
            times.ratio(name, base),
            "x",
            None,
            f"{times.median(name):,.0f} ns",
        )
        for name in others
    ]
