"""Measuring that a noisy machine does not fool.

Every case is sampled once in each round, in a new random order, and ratios are taken inside a
round: what drifts meanwhile cancels. What is reported is the median of these ratios.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.machine import missing
from benchmarks.rows import Budget, Row, in_digits

Case = Callable[[int], Awaitable[None]]
"""Makes so many calls."""

WARM_UP = 2


@dataclass(frozen=True)
class Rounds:
    """What was measured, by case; samples of one round have the same index.

    A case that has no samples is a package that is not installed.
    """

    samples: Mapping[str, list[float]]
    unit: Literal["ns", "/s"]

    def told(self, case: str) -> str:
        """The median, as people say it."""
        median = statistics.median(self.samples[case])
        if self.unit == "/s":
            return f"{median:,.0f}/s"
        for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
            if median >= size:
                return f"{in_digits(median / size)} {unit}"
        return f"{median:.0f} ns"

    def row(
        self,
        what: str,
        case: str,
        base: str,
        budget: Budget | None = None,
        beside: Collection[str] = (),
    ) -> Row:
        """A case as a multiple of another one, and those *beside* it likewise."""
        others = [self.row(name, name, base) for name in beside]
        axis = f"times {base}"
        for name in (case, base):
            if name not in self.samples:
                return Row(what, "x", (), budget, missing(name), axis, others)
        pairs = zip(self.samples[case], self.samples[base], strict=True)
        note = self.told(case)
        if budget and base not in beside:
            note += f" / {self.told(base)}"
        return Row(what, "x", [a / b for a, b in pairs], budget, note, axis, others)


async def rates(cases: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> Rounds:
    """Have each case say how many a second it manages, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            samples[name].append(await case())
    return Rounds(samples, "/s")


async def race(cases: Mapping[str, Case], *, calls: int, rounds: int) -> Rounds:
    """Time the cases against each other: nanoseconds of a call."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for round_ in range(WARM_UP + rounds):
        random.shuffle(order)
        gc.collect()
        for name in order:
            began = time.perf_counter_ns()
            await cases[name](calls)
            took = time.perf_counter_ns() - began
            if round_ >= WARM_UP:
                samples[name].append(took / calls)
    return Rounds(samples, "ns")
