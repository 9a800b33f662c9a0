"""Whether all that was accepted is accounted for, and whether nothing has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from .process import MIB, Sample
from .server import Flaky
from .trend import QUANTITIES, growth_of, long_life, quarter
from .worker import CALLERS, MAX_RUNNING, UNFINISHED

MOST_WAL = 64 * MIB
# more than in the first half of the long life. A call has a connection, and 20 idle ones are kept
MOST_FDS, MOST_THREADS = CALLERS + MAX_RUNNING + 20, 2


@dataclass
class Books:
    """Counts of invocations, and what is wrong with them."""

    accepted: int
    delivered: int
    dead: int
    parked: int
    waiting: int
    told: int
    repeated: int
    problems: list[str] = field(default_factory=list[str])

    def check(self, fact: bool, problem: str) -> None:
        if not fact:
            self.problems.append(problem)


def unfinished(counts: Mapping[str, int]) -> int:
    """How many have no outcome yet, or have not told it."""
    return sum(counts.get(state, 0) for state in UNFINISHED)


def balance(
    accepted: set[str], counts: Mapping[str, int], server: Flaky, *, most_repeated: int
) -> Books:
    """Hold what callers, store and server say against each other.

    Args:
        accepted: The cids, as the callers know them.
        counts: By state, as the store says.
        most_repeated: How many callbacks may have been cut off by a kill, and be repeated.
    """
    delivered = sum(counts.get(state, 0) for state in ("succeeded", "failed", "cancelled"))
    waiting = unfinished(counts)
    times = {cid: outcomes.total() for cid, outcomes in server.told.items()}
    books = Books(
        len(accepted), delivered, counts.get("dead", 0), counts.get("parked", 0), waiting,
        len(times), sum(times.values()) - len(times),
    )  # fmt: skip
    total = books.delivered + books.dead + books.parked + books.waiting
    books.check(books.accepted == total, f"{books.accepted} were accepted, {total} are known")
    books.check(waiting == 0, f"{waiting} are not finished: {dict(counts)}")
    books.check(
        books.delivered == books.told,
        f"{books.delivered} were delivered, and the server was told of {books.told}",
    )
    books.check(
        books.dead == len(server.refused),
        f"{books.dead} are dead, and the server has refused {len(server.refused)}",
    )
    heard = times.keys() | server.refused.keys()
    books.check(accepted <= heard, f"{len(accepted - heard)} were lost")
    books.check(heard <= accepted, f"{len(heard - accepted)} were told, and never accepted")
    flipped = [cid for cid, outcomes in server.told.items() if len(outcomes) > 1]
    books.check(not flipped, f"{len(flipped)} were told with two outcomes, e.g. {flipped[:1]}")
    books.check(
        books.repeated <= most_repeated,
        f"{books.repeated} callbacks were repeated, more than the {most_repeated} that a kill "
        "may have cut off",
    )
    return books


def growth(samples: Sequence[Sample]) -> list[str]:
    """What has grown that should not have; of memory nothing if that was too short to judge."""
    problems: list[str] = []
    life = long_life(samples)
    for quantity in QUANTITIES:
        grown = growth_of(quantity, samples)
        if grown and grown.is_wrong:
            third, fourth = (
                median(unfinished(each.counts) for each in quarter(life, number))
                for number in (3, 4)
            )
            problems.append(
                f"{quantity.name}: {quantity.shown(grown)}; unfinished: {third:,.0f}, {fourth:,.0f}"
            )
    if (wal := max(each.wal for each in samples)) > MOST_WAL:
        problems.append(f"the log of the store was {wal / MIB:.1f} MiB long")
    early = life[: len(life) // 2 + 1]
    for name, limit in (("fds", MOST_FDS), ("threads", MOST_THREADS)):
        before = max(getattr(each, name) for each in early)
        after = max(getattr(each, name) for each in samples)
        if after > before + limit:
            problems.append(f"{name}: {after}, and {before} in the first half of the long life")
    return problems
