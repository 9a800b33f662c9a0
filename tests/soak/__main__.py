"""A worker under a steady load, restarted in between, and a real HTTP server that has bad days.

    python -m tests.soak --minutes 60 [--backend sqlite|memory|nats] [--png FILE] [--seed N]

All three modes are invoked all the time. The worker is ended by SIGKILL and by SIGTERM in turn (in
memory by SIGTERM alone), and started again; what it uses is printed every few seconds. Its first
life takes half of the time, and if that is 10 minutes or more memory is judged by it: by how much
the median of its fourth quarter is above that of its third. It ends with 1 if the books do not
balance or something has grown, and then leaves the store where it is.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from arguments import above_zero, whole

from invoke_retry.testing.nats_server import NatsServer

from .books import Books, balance, growth, unfinished
from .figure import draw, pyplot
from .process import MIB, Sample, check_system
from .server import Flaky, serving
from .supervisor import Store, Supervisor
from .trend import QUANTITIES, SHORTEST, growth_of, long_life
from .worker import MAX_RUNNING

TOO_SHORT = "too short to judge"
KEEP = "retention=60&dead_retention=60"  # so that what is finished goes, too, while somebody looks
COLUMNS = (
    "seconds", "life", "RSS MiB", "WAL KiB", "store KiB", "files", "threads", "objects",
    "unfinished", "delivered", "dead", "inline",
)  # fmt: skip


@contextmanager
def store_in(folder: Path, backend: str) -> Generator[Store]:
    """Where the worker's invocations wait."""
    if backend == "memory":
        yield Store(f"memory://?{KEEP}", can_be_killed=False)
    elif backend == "sqlite":
        yield Store(f"sqlite:///{folder / 'retries.db'}?{KEEP}", folder / "retries.db")
    else:
        with NatsServer(folder / "server") as server:
            yield Store(f"{server.url_of('soak')}?{KEEP}", folder / "server")


def print_row(cells: Sequence[object]) -> None:
    print(*(f"{cell:>{max(9, len(name))}}" for cell, name in zip(cells, COLUMNS, strict=True)),
          flush=True)  # fmt: skip


def print_sample(each: Sample) -> None:
    counts = each.counts
    print_row((
        f"{each.at:.0f}", each.life, f"{each.rss / MIB:.1f}", each.wal // 1_024,
        each.store // 1_024, each.fds, each.threads, each.objects, unfinished(counts),
        sum(counts.get(state, 0) for state in ("succeeded", "failed", "cancelled")),
        counts.get("dead", 0), each.inline,
    ))  # fmt: skip


def judged(samples: Sequence[Sample]) -> dict[str, object]:
    """What the long life says of memory."""
    minutes = long_life(samples)[-1].age / 60
    found = {quantity: growth_of(quantity, samples) for quantity in QUANTITIES}
    if None in found.values():
        return {"memory": f"{TOO_SHORT}: a life of {minutes:.1f} minutes, 10 are needed"}
    return {
        "of a life, 3rd and 4th quarter": f"{minutes:.1f} minutes",
        **{f"  {quantity.name}": quantity.shown(each) for quantity, each in found.items() if each},
    }


def summary(supervisor: Supervisor, books: Books) -> dict[str, object]:
    """What is printed at the end."""
    samples = supervisor.samples
    kinds = [each.signal for each in supervisor.restarts]
    return {
        "ended by SIGTERM, SIGKILL": f"{kinds.count('SIGTERM')}, {kinds.count('SIGKILL')}",
        **judged(samples),
        "WAL at most": f"{max(each.wal for each in samples) / MIB:.1f} MiB",
        "store at most": f"{max(each.store for each in samples) / MIB:.1f} MiB",
        "open files, threads at most": f"{max(each.fds for each in samples)}, "
        f"{max(each.threads for each in samples)}",
        "inline": dict(sorted(supervisor.inline.items())),
        "accepted": books.accepted,
        "  delivered": books.delivered,
        "  dead": books.dead,
        "  parked": books.parked,
        "  waiting": books.waiting,
        "told, as the server knows": books.told,
        "  repeated after a kill": books.repeated,
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="A steady load for minutes to hours."
    )
    parser.add_argument(
        "--minutes", type=above_zero, default=20, metavar="M",
        help="how long (default: %(default)s, the least by which memory is judged)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=("sqlite", "memory", "nats"), default="sqlite",
        help="where invocations wait (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=above_zero, default=30, metavar="R",
        help="invocations a second (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--lives", type=whole(2), metavar="N",
        help="processes, one after the other, the first for half of the time (default: one "
        "for each 5 minutes and one more, from 3 to 13)",
    )  # fmt: skip
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="where to draw it (default: nowhere)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=random.randrange(2**32), metavar="N",
        help="of the times of restarts (default: another one each time)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    check_system()
    if options.png:
        pyplot()  # that it is missing is said before the hours, not after them
    seconds = options.minutes * 60
    number = options.lives or max(2, min(round(seconds / 300), 12)) + 1
    folder, app = Path(tempfile.mkdtemp(prefix="soak-")), Flaky()
    print(f"seed {options.seed}, {options.minutes:g} minutes, {number} lives, {options.backend}, "
          f"{options.rate:g} invocations a second")  # fmt: skip
    print_row(COLUMNS)
    with serving(app) as url, store_in(folder, options.backend) as store:
        supervisor = Supervisor(
            folder, server=url, store=store, rate=options.rate,
            every=min(5.0, max(0.5, seconds / 200)), chance=random.Random(options.seed),
            told=print_sample,
        )  # fmt: skip
        supervisor.soak(seconds, number)
    if not supervisor.samples:
        print(f"nothing was seen in so short a time: let it run for longer; kept: {folder}")
        return 1
    kills = sum(each.signal == "SIGKILL" for each in supervisor.restarts)
    books = balance(supervisor.accepted, supervisor.counts, app, most_repeated=kills * MAX_RUNNING)
    problems = [*supervisor.problems, *books.problems, *growth(supervisor.samples)]
    for name, value in summary(supervisor, books).items():
        print(f"{name:32}{value}")
    for problem in problems:
        print(f"wrong: {problem}")
    verdict = "something is wrong" if problems else "sound"
    if long_life(supervisor.samples)[-1].age < SHORTEST:
        verdict += f"; memory: {TOO_SHORT}"
    print(f"verdict: {verdict}")
    if options.png:
        title = (
            f"{options.minutes:g} minutes on {options.backend}, {options.rate:g} invocations a "
            f"second, {number} processes: {verdict}\n"
            f"accepted {books.accepted:,} = delivered {books.delivered:,} + dead {books.dead:,} + "
            f"parked {books.parked:,} + waiting {books.waiting:,}"
        )
        draw(options.png, title, supervisor.samples, supervisor.restarts)
        print(f"drawn: {options.png}")
    if problems:
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
