"""A few hundred seeds, those that have found something once, and that a seed is the same run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from .kept import KEPT
from .run import simulate

ROOT = Path(__file__).parents[2]
DIGEST = """
from tests.simulation.run import simulate
for backend, seed in (("memory", 7), ("memory", 40), ("sqlite", 4), ("sqlite", 2)):
    print(simulate(backend, seed).journal.digest())
"""


@pytest.fixture(autouse=True)
def lean_heap() -> Generator[None]:
    """A run collects garbage all the time: what the whole suite has made is left out of that."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_the_books_of_a_run_in_memory_balance(start: int) -> None:
    for seed in range(start, start + 50):
        result = simulate("memory", seed)
        assert not result.problems, result.shown()


@pytest.mark.parametrize("start", range(0, 60, 10))
def test_the_books_of_a_run_over_a_store_balance(start: int) -> None:
    for seed in range(start, start + 10):
        result = simulate("sqlite", seed)
        assert not result.problems, result.shown()


@pytest.mark.parametrize(("backend", "seed"), KEPT)
def test_a_seed_that_has_found_something_finds_nothing_any_more(backend: str, seed: int) -> None:
    result = simulate(backend, seed)
    assert not result.problems, result.shown()


def test_a_seed_has_the_same_trace_in_every_process_whatever_its_hashes() -> None:
    traces = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("0", "1", "4711")
    }
    assert len(traces) == 1
    assert len(set(traces.pop().split())) == 4


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_a_seed_has_the_same_trace_twice_and_another_one_has_another(backend: str) -> None:
    first = simulate(backend, 11).journal
    assert first.shown() == simulate(backend, 11).journal.shown()
    assert first.digest() != simulate(backend, 12).journal.digest()
