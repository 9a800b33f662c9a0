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
from .trend import rss_trend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "memory"])
def test_some_seconds_with_a_restart(backend: str, tmp_path: Path) -> None:
    picture = tmp_path / "soak.png"
    words = f"--minutes 0.3 --lives 3 --seed 1 --backend {backend}".split()
    if backend == "sqlite":
        pytest.importorskip("matplotlib")
        words += ["--png", str(picture)]
    done = subprocess.run(
        [sys.executable, "-m", soak.__name__.removesuffix(".__main__"), *words],
        capture_output=True, text=True, timeout=300, check=False,
        env=environment() | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: sound" in done.stdout
    assert (
        f"ended by SIGTERM, SIGKILL{'':7}{'2, 1' if backend == 'sqlite' else '3, 0'}" in done.stdout
    )
    assert picture.exists() is (backend == "sqlite")
    assert not [*tmp_path.glob("soak-*")]


def samples(rss: list[float], *, wal: int = 0, fds: int = 10, threads: int = 3) -> list[Sample]:
    """A life of two hours with so many MiB, at even distances."""
    step = 7_200 / len(rss)
    return [
        Sample(n * step, 0, n * step, round(each * MIB), wal, 0, fds, threads, {}, 0)
        for n, each in enumerate(rss)
    ]


def test_a_slope_is_one_for_all_lives() -> None:
    first = samples([50 + n / 10 for n in range(100)])
    second = [each._replace(life=1, rss=each.rss + 9 * MIB) for each in first]
    slope, error = rss_trend([*first, *second])
    assert slope * 3_600 / MIB == pytest.approx(5, rel=1e-3)
    assert error < slope / 100


def test_what_has_grown_is_told() -> None:
    steady = samples([50.0] * 99)
    assert growth(steady) == []
    assert growth(samples([50 + n / 10 for n in range(100)])) == ["memory grows by 5.0 MiB an hour"]
    assert growth(samples([50.0] * 99, wal=65 * MIB)) == ["the log of the store was 65.0 MiB long"]
    later = [each._replace(life=1, fds=99, threads=9) for each in steady]
    assert growth([*steady, *later]) == [
        "fds: 99, and 10 in the first life",
        "threads: 9, and 3 in the first life",
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
