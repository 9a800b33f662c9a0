"""Timing that a noisy machine does not fool.

Every case is sampled once in each round, in a new random order, and ratios are taken inside a
round: what drifts meanwhile cancels. What is reported is the median of these ratios.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Case = Callable[[int], Awaitable[None]]
"""Makes so many calls."""

WARM_UP = 2


@dataclass(frozen=True)
class Times:
    """Nanoseconds per call, by case; those of one round have the same index."""

    samples: Mapping[str, list[float]]

    def median(self, case: str) -> float:
        return statistics.median(self.samples[case])

    def ratio(self, case: str, to: str) -> float:
        pairs = zip(self.samples[case], self.samples[to], strict=True)
        return statistics.median(a / b for a, b in pairs)


async def race(cases: Mapping[str, Case], *, calls: int, rounds: int) -> Times:
    """Time the cases against each other."""
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
    return Times(samples)
