"""Kill processes that work on one store, again and again, and see what the books say.

    python -m tests.chaos.kill_rounds --rounds 1000 [--processes N] [--seed N]

It ends with 1 if a promise was broken, and then leaves the store and its journal where they are.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from .books import Books, audit
from .journal import Journal
from .lifeline import end_with_parent
from .points import POINTS
from .tasks import REPEATS
from .worker import Worker

LEASE = 5.0
ROUNDS_PER_STORE = 25
LONGEST_LIFE = 1.0  # seconds that a point may take to be reached; then it is a kill like others
DRAIN_SECONDS = 120.0


class Member(NamedTuple):
    """A process, and when to kill it if it does not do so itself."""

    pid: int
    kill_at: float
    point: str


class Arena:
    """One store, and the processes on it."""

    def __init__(self, folder: Path, chance: random.Random, processes: int) -> None:
        self._folder = folder
        self._path = folder / "retries.db"
        self._journal = Journal(folder / "journal")
        self._chance = chance
        self._processes = processes
        self._members: list[Member] = []
        self.kills: Counter[str] = Counter()
        self.damage: list[str] = []

    def rounds(self, number: int) -> Books:
        """So many deaths; then what is left is finished, and the books are looked at."""
        try:
            for _ in range(number):
                while len(self._members) < self._processes:
                    self._members.append(self._start())
                self._end(self._next())
                self._check_integrity()
        finally:
            for member in tuple(self._members):
                self._end(member)
        self._drain()
        self._check_integrity()
        books = audit(self._journal.lines(), REPEATS)
        self._journal.close()
        books.problems["integrity"] += self.damage
        return books

    def _start(self) -> Member:
        seed = self._chance.randrange(2**32)
        if self._chance.random() < 0.6:
            point, passes = self._chance.choice(POINTS), self._chance.choice((1, 2, 5, 10, 20))
            life = LONGEST_LIFE * self._processes
        else:
            point, passes, life = "", 1, self._chance.uniform(0, 0.2)

        def work() -> None:
            Worker(self._folder, lease=LEASE, seed=seed).run(point, passes)

        return Member(_fork(work), time.monotonic() + life, point)

    def _next(self) -> Member:
        """Who dies first."""
        while True:
            for member in self._members:
                if _has_died(member.pid) or time.monotonic() >= member.kill_at:
                    return member
            time.sleep(0.001)

    def _end(self, member: Member) -> None:
        self._members.remove(member)
        is_own_death = _has_died(member.pid)
        if not is_own_death:
            self._journal.write("killed", number=member.pid, text="from outside")
            os.kill(member.pid, signal.SIGKILL)
        _, status = os.waitpid(member.pid, 0)
        if not os.WIFSIGNALED(status):
            self._journal.write("error", text=f"{member} ended with {status}")
        self.kills[member.point if is_own_death else "at any time"] += 1

    def _check_integrity(self) -> None:
        if not self._path.exists() or not self._path.stat().st_size:
            return
        # read-only, so that it is the next process that finds the log as the dead one left it
        db = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            found = db.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.Error as error:
            found = [(repr(error),)]
        finally:
            db.close()
        if found != [("ok",)]:
            self.damage.append(f"{found}")

    def _drain(self) -> None:
        pid = _fork(Worker(self._folder, lease=LEASE, seed=0).drain)
        until = time.monotonic() + DRAIN_SECONDS
        try:
            while not _has_died(pid) and time.monotonic() < until:
                time.sleep(0.005)
            if not _has_died(pid):
                self._journal.write("error", text="what was left did not come to an end")
        finally:
            if not _has_died(pid):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _has_died(pid: int) -> bool:
    """Whether the child is over; it stays to be waited for, so its pid is nobody else's."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _fork(run: Callable[[], None]) -> int:
    """Run something in a child, which has imported all that it needs already."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_child(parent, run)
    return pid


def _be_child(parent: int, run: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        end_with_parent(parent, DRAIN_SECONDS)
        run()
        code = 0
    finally:  # whatever was raised is in the journal
        os._exit(code)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Kill processes that work on one store.")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1, help="at the same time on one store")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args(arguments)
    chance, books, kills = random.Random(options.seed), Books(), Counter[str]()
    began, left = time.monotonic(), options.rounds
    print(f"seed {options.seed}", flush=True)
    while left > 0 and books.is_sound:
        folder = Path(tempfile.mkdtemp(prefix="kill-rounds-"))
        arena = Arena(folder, chance, options.processes)
        number = min(left, ROUNDS_PER_STORE * options.processes)
        left -= number
        books.add(arena.rounds(number))
        kills += arena.kills
        if books.is_sound:
            shutil.rmtree(folder)
        else:
            print(f"kept: {folder}", flush=True)
    _print(books, kills, time.monotonic() - began)
    return 0 if books.is_sound else 1


def _print(books: Books, kills: Counter[str], seconds: float) -> None:
    rows: dict[str, object] = {
        "rounds": sum(kills.values()),
        **{f"  killed {point}": kills[point] for point in ("at any time", *POINTS)},
        "seconds": round(seconds, 1),
        "accepted": books.accepted,
        "attempts": books.attempts,
        "callbacks": books.callbacks,
        "repeated": books.repeated,
        "lost": books.number("lost"),
        "flipped": books.number("flipped", "other content"),
        "integrity": "ok" if not books.number("integrity") else books.number("integrity"),
        "all problems": sum(map(len, books.problems.values())),
    }
    for name, value in rows.items():
        print(f"{name:32}{value:>10}")
    if not books.is_sound:
        print(books.shown())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
