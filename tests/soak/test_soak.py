"""The script runs, its books balance, and what it looks for is found."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from chaos.children import environment

from . import __main__ as soak
from .books import balance, growth
from .process import MIB, Sample
from .server import Flaky

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "memory"])
def test_some_seconds_with_a_restart(backend: str, tmp_path: Path) -> None:
    picture = tmp_path / "soak.png"
    words = f"--minutes 0.3 --seed 1 --backend {backend}".split()
    if backend == "sqlite":
        pytest.importorskip("matplotlib")
        words += ["--png", str(picture)]
    done = subprocess.run(
        [sys.executable, "-m", soak.__name__.removesuffix(".__main__"), *words],
        capture_output=True, text=True, timeout=300, check=False,
        env=environment() | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: sound; memory: too short to judge" in done.stdout
    assert (
        f"ended by SIGTERM, SIGKILL{'':7}{'2, 1' if backend == 'sqlite' else '3, 0'}" in done.stdout
    )
    assert picture.exists() is (backend == "sqlite")
    assert not [*tmp_path.glob("soak-*")]


def samples(
    rss: list[float], *, seconds: float = 7_200, wal: int = 0, fds: int = 10, threads: int = 3,
    objects: list[int] | None = None,
) -> list[Sample]:  # fmt: skip
    """A life with so many MiB, at even distances."""
    step = seconds / (len(rss) - 1)
    known = objects or [80_000] * len(rss)
    return [
        Sample(n * step, 0, n * step, round(each * MIB), wal, 0, fds, threads, known[n],
               {"waiting": n}, 0)
        for n, each in enumerate(rss)
    ]  # fmt: skip


def test_what_has_grown_is_told() -> None:
    steady = samples([50.0] * 101)
    assert growth(steady) == []
    assert growth(samples([50 + n / 10 for n in range(101)])) == []  # 4.4 % in half an hour
    assert growth(samples([50 + n / 5 for n in range(101)])) == [
        "memory, MiB: 62.4, 67.5: +8.2%, +10.2 an hour (wrong above +6.2); unfinished: 62, 88"
    ]
    assert growth(samples([50.0] * 99, wal=65 * MIB)) == ["the log of the store was 65.0 MiB long"]
    later = [each._replace(life=1, fds=99, threads=9) for each in steady]
    assert growth([*steady, *later]) == [
        "fds: 99, and 10 in the first half of the long life",
        "threads: 9, and 3 in the first half of the long life",
    ]


def test_a_leak_of_90_mib_an_hour_is_seen_in_ten_minutes() -> None:
    (problem,) = growth(samples([58 + n * 90 / 3_600 * 5 for n in range(119)], seconds=590))
    assert problem.startswith("memory, MiB: 67.")


def test_steps_at_which_a_healthy_process_rises_are_no_leak() -> None:
    # as it was once measured: 75 minutes, of which a life had 12.5
    rss = [50.5] + [55.3] * 20 + [57.3] * 60 + [58.1] * 40 + [59.0] * 40
    assert growth(samples(rss, seconds=845)) == []


def test_a_peak_is_no_leak() -> None:
    assert growth(samples([50.0] * 90 + [99.0] * 10)) == []


def test_objects_that_memory_hides() -> None:
    objects = [80_000 + 300 * n for n in range(101)]
    (problem,) = growth(samples([50.0] * 101, objects=objects))
    assert problem.startswith("Python objects: 98,600, 106,250: +7.8%, +15,300 an hour")


def test_a_short_life_says_nothing_of_memory() -> None:
    short = samples([50 + n for n in range(101)], seconds=500)
    assert growth(short) == []
    assert growth(short[:1]) == []
    told = soak.judged(short)
    assert told == {"memory": "too short to judge: a life of 8.3 minutes, 10 are needed"}


def test_the_long_life_is_judged_alone() -> None:
    steady = samples([50.0] * 101)
    later = [each._replace(life=1, rss=9 * each.rss) for each in steady]
    assert growth([*steady, *later]) == []
    assert [*soak.judged([*steady, *later]).values()] == [
        "120.0 minutes",
        "50.0, 50.0: +0.0%, +0.0 an hour (wrong above +5.0)",
        "80,000, 80,000: +0.0%, +0 an hour (wrong above +8,000)",
    ]


def test_books_that_do_not_balance() -> None:
    server = Flaky()
    server.told["a"] = Counter({b"1": 1})
    server.refused["b"] = 3
    counts = {"succeeded": 1, "dead": 1}
    assert balance({"a", "b"}, counts, server, most_repeated=0).problems == []
    wrong = balance({"a", "b", "c"}, counts, server, most_repeated=0).problems
    assert wrong == ["3 were accepted, 2 are known", "1 were lost"]
    server.told["a"] = Counter({b"1": 1, b"2": 1})
    wrong = balance({"a", "b"}, counts, server, most_repeated=0).problems
    assert [each.split(",")[0] for each in wrong] == [
        "1 were told with two outcomes", "1 callbacks were repeated",
    ]  # fmt: skip
