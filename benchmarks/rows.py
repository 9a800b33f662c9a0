"""A figure with its budget, and what stands beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Budget:
    """What a figure should be; nothing fails if it is not."""

    sign: Literal["<=", ">="]
    limit: float

    def is_met(self, figure: float) -> bool:
        return figure <= self.limit if self.sign == "<=" else figure >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:,.4g}"


FULL = 1_000_000  # what budgets of large numbers are for


def short_of_full(number: int) -> str:
    """The note of a row whose budget is for more than was measured; empty if it is not."""
    return "" if number >= FULL else f"at {number:,}; the budget is for {FULL:,}: --full"


@dataclass(frozen=True)
class Row:
    """One figure: the median of its samples.

    Attributes:
        unit: `x` for a ratio, else what the samples count.
        samples: One of each round; none if it could not be measured, and the note says why.
        note: What it was measured from.
        axis: The unit in full, where a chart needs more than that.
        beside: Others on the same scale.
    """

    what: str
    unit: str
    samples: Sequence[float]
    budget: Budget | None = None
    note: str = ""
    axis: str = ""
    beside: Sequence[Row] = ()

    @property
    def figure(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The first and the third; None unless there were several rounds."""
        if len(self.samples) < 2:
            return None
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return first, third

    @property
    def verdict(self) -> Literal["pass", "MISS", "not measured"] | None:
        if self.budget is None:
            return None
        if self.figure is None:
            return "not measured"
        return "pass" if self.budget.is_met(self.figure) else "MISS"


@dataclass(frozen=True)
class Section:
    """What is measured together, and drawn as one chart.

    Attributes:
        packages: Those whose versions matter to it.
        rows: Those without a budget are details, which are not drawn.
    """

    name: str
    title: str
    packages: Sequence[str]
    rows: Sequence[Row]


def in_digits(figure: float) -> str:
    """Three digits, or all that stand before the point."""
    places = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2
    return f"{figure:,.{places}f}"
