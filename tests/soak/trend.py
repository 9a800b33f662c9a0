"""What grows within one long life: medians, which a step or a high-water mark does not fool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal, NamedTuple

from .process import MIB, Sample

# ten minutes, less the start of the process and the time to its last look; what an allocator
# keeps for itself rises for minutes, so that less says nothing of hours
SHORTEST = 590.0
MOST_GROWTH = 0.05  # from one quarter to the next


class Quantity(NamedTuple):
    """Something of a sample that should not grow.

    Attributes:
        unit: How many of the sample's own are one of what is shown.
        places: How many digits are shown behind the point.
    """

    name: str
    attribute: Literal["rss", "objects"]
    unit: int
    places: int

    def of(self, sample: Sample) -> float:
        """How much it was."""
        return float(getattr(sample, self.attribute)) / self.unit

    def shown(self, grown: Growth) -> str:
        """Both quarters, and what that would make in an hour."""
        figures = (f"{each:,.{self.places}f}" for each in (grown.third, grown.fourth))
        return (
            f"{', '.join(figures)}: {grown.share:+.1%}, {grown.per_hour:+,.{self.places}f} an hour "
            f"(wrong above {grown.most_per_hour:+,.{self.places}f})"
        )


MEMORY = Quantity("memory, MiB", "rss", MIB, 1)
OBJECTS = Quantity("Python objects", "objects", 1, 0)
QUANTITIES = (MEMORY, OBJECTS)


class Growth(NamedTuple):
    """What a life had of something in its third and in its fourth quarter.

    Attributes:
        third, fourth: The medians.
        seconds: From the middle of the one to the middle of the other: a quarter of the life.
    """

    third: float
    fourth: float
    seconds: float

    @property
    def share(self) -> float:
        """By how much it has grown, as a part of what it was."""
        return self.fourth / self.third - 1 if self.third else 0.0

    @property
    def per_hour(self) -> float:
        """By how much it would grow in an hour that goes on so."""
        return (self.fourth - self.third) / self.seconds * 3_600

    @property
    def most_per_hour(self) -> float:
        """The slowest growth that is called wrong."""
        return MOST_GROWTH * self.third / self.seconds * 3_600

    @property
    def is_wrong(self) -> bool:
        """Whether it is more than what varies anyhow."""
        return self.share > MOST_GROWTH


def lives(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each life."""
    found: dict[int, list[Sample]] = {}
    for each in samples:
        found.setdefault(each.life, []).append(each)
    return list(found.values())


def long_life(samples: Iterable[Sample]) -> list[Sample]:
    """The first one, which lasts for half of a soak."""
    return lives(samples)[0]


def quarter(life: Sequence[Sample], number: int) -> list[Sample]:
    """Those of a life's first, second, third or fourth quarter, from 1."""
    length = life[-1].age / 4
    last = number == 4
    return [
        each
        for each in life
        if (number - 1) * length <= each.age and (last or each.age < number * length)
    ]


def growth_of(quantity: Quantity, samples: Sequence[Sample]) -> Growth | None:
    """In the long life; None if it was too short to judge."""
    life = long_life(samples)
    if life[-1].age < SHORTEST:
        return None
    third, fourth = (
        median(quantity.of(each) for each in quarter(life, number)) for number in (3, 4)
    )
    return Growth(third, fourth, life[-1].age / 4)
