"""How fast something grows, over lives that begin anew each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

from .process import Sample

WARM_UP = 1 / 3  # of each life, but no more than:
LONGEST_WARM_UP = 120.0


class Trend(NamedTuple):
    """A straight line through what was measured.

    Attributes:
        slope: A second.
        error: Its standard error, as if all samples were independent.
    """

    slope: float
    error: float


def lives(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each life."""
    found: dict[int, list[Sample]] = {}
    for each in samples:
        found.setdefault(each.life, []).append(each)
    return list(found.values())


def warm(life: Sequence[Sample]) -> list[Sample]:
    """Those after the warm-up."""
    begins = min(life[-1].age * WARM_UP, LONGEST_WARM_UP)
    return [each for each in life if each.age >= begins]


def trend(parts: Iterable[Sequence[tuple[float, float]]]) -> Trend:
    """One slope for all parts, each of which may begin at a level of its own: least squares."""
    points: list[tuple[float, float]] = []
    number = 0
    for part in filter(None, parts):
        number += 1
        x0, y0 = (sum(each) / len(part) for each in zip(*part, strict=True))
        points += [(x - x0, y - y0) for x, y in part]
    square = sum(x * x for x, _ in points)
    if not square:
        return Trend(0.0, 0.0)
    slope = sum(x * y for x, y in points) / square
    free = len(points) - number - 1
    rest = sum((y - slope * x) ** 2 for x, y in points)
    return Trend(slope, sqrt(rest / free / square) if free > 0 else 0.0)


def rss_trend(samples: Sequence[Sample]) -> Trend:
    """Bytes a second of the resident set, after the warm-up of each life."""
    return trend([[(each.age, float(each.rss)) for each in warm(life)] for life in lives(samples)])
