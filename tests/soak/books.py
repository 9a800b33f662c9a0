"""Whether all that was accepted is accounted for, and whether nothing has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .process import MIB, Sample
from .server import Flaky
from .trend import lives, rss_trend, warm

MOST_GROWTH = 0.05  # of the resident set, in the longest life and after its warm-up
SHORTEST = 60.0  # seconds after the warm-up; less says nothing of hours
MOST_WAL = 64 * MIB
MOST_FDS, MOST_THREADS = 32, 2  # more than the first life had


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
    waiting = sum(counts.get(state, 0) for state in ("waiting", "running", "notifying"))
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
    """What has grown that should not have."""
    problems: list[str] = []
    kept = [warm(life) for life in lives(samples)]
    slope, error = rss_trend(samples)
    longest = max(life[-1].age - life[0].age for life in kept)
    rss = sum(each.rss for each in samples) / len(samples)
    is_growth = slope > 2 * error and slope * longest > MOST_GROWTH * rss
    if is_growth and longest >= SHORTEST:
        problems.append(f"memory grows by {slope * 3_600 / MIB:.1f} MiB an hour")
    if (wal := max(each.wal for each in samples)) > MOST_WAL:
        problems.append(f"the log of the store was {wal / MIB:.1f} MiB long")
    first, rest = kept[0], [each for life in kept[1:] for each in life]
    for name, limit in (("fds", MOST_FDS), ("threads", MOST_THREADS)):
        before = max(getattr(each, name) for each in first)
        after = max((getattr(each, name) for each in rest), default=before)
        if after > before + limit:
            problems.append(f"{name}: {after}, and {before} in the first life")
    return problems
