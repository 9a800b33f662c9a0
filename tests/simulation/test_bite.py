"""Faults that are planted on purpose: the simulation must find each of them within some seeds."""

from __future__ import annotations

from typing import Any

import pytest

from invoke_retry import machine
from invoke_retry.background import Background
from invoke_retry.inline import Inline
from invoke_retry.record import Record
from invoke_retry.run import Run
from invoke_retry.slots import Slots
from invoke_retry.testing.virtual_loop import VirtualClock

from .faults import FAULTS, Fault
from .run import simulate

pytestmark = pytest.mark.slow

Patch = pytest.MonkeyPatch


def found(backend: str, *words: str, seeds: int = 150, start: int = 0) -> bool:
    """Whether some seed names a promise that is broken."""
    for seed in range(start, start + seeds):
        problems = simulate(backend, seed).problems
        if any(word in problem for problem in problems for word in words):
            return True
    return False


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault(monkeypatch: Patch, fault: Fault) -> None:
    fault.plant(monkeypatch)
    assert found(fault.backend, *fault.words, seeds=30, start=fault.start)


def test_an_attempt_that_is_not_counted_before_it_runs(monkeypatch: Patch) -> None:
    take_over = machine.take_over

    def forget(record: Record) -> None:  # as if it had been counted when it was over
        take_over(record)
        if record.outcome is None and record.attempts > 1:
            record.attempts -= 1

    monkeypatch.setattr(machine, "take_over", forget)
    assert found("sqlite", "follows attempt", "more", start=70)


def test_a_lost_callback(monkeypatch: Patch) -> None:
    finish = machine.finish

    def end(record: Record, *args: Any, **kwargs: Any) -> None:
        finish(record, *args, **kwargs)
        if record.state == "notifying" and record.attempts == 2:
            machine.settle(record)

    monkeypatch.setattr(machine, "finish", end)
    assert found("memory", "callback was lost")


def test_an_outcome_that_flips(monkeypatch: Patch) -> None:
    deliver = machine.deliver

    def flip(record: Record) -> None:
        if record.deliveries == 1 and record.outcome is not None:
            record.outcome = record.outcome._replace(reason="cancelled")
        deliver(record)

    monkeypatch.setattr(machine, "deliver", flip)
    assert found("memory", "told differently")


def test_an_attempt_that_begins_early(monkeypatch: Patch) -> None:
    retry = machine.retry

    def hurry(record: Record, due: float, *args: Any) -> None:
        retry(record, due - 0.25, *args)

    monkeypatch.setattr(machine, "retry", hurry)
    assert found("memory", "early")


def test_a_cancellation_that_is_swallowed(monkeypatch: Patch) -> None:
    def never(_: Inline) -> bool:
        return False

    monkeypatch.setattr(Inline, "is_cancelled", never)
    assert found("memory", "I5", seeds=600)


def test_a_run_that_is_not_waited_for_when_it_is_cut(monkeypatch: Patch) -> None:
    cut_off = Run.cut_off

    def forsake(self: Run, cut: Any) -> None:
        cut_off(self, cut)
        if cut == "timeout" and self.error is None:
            self.error = ConnectionError()
            getattr(self, "_end")()

    monkeypatch.setattr(Run, "cut_off", forsake)
    assert found("memory", "overlap", seeds=600)


def test_a_clock_that_steps(monkeypatch: Patch) -> None:
    def monotonic(clock: VirtualClock) -> float:
        return clock.utc() - 1_700_000_000

    monkeypatch.setattr(VirtualClock, "monotonic", monotonic)
    assert found("memory", "early", "late", "end", seeds=400)


def test_a_slot_that_is_never_given_back(monkeypatch: Patch) -> None:
    give = Slots.give

    def keep(self: Slots, service: str) -> None:
        if service != "told":
            give(self, service)

    monkeypatch.setattr(Slots, "give", keep)
    assert found("memory", "does not come to its end")


def test_a_claim_that_is_lost_before_it_was_begun(monkeypatch: Patch) -> None:
    def lose(self: Background, cid: str, token: float) -> None:
        if (run := self._work.runs.get(cid)) is not None:  # pyright: ignore[reportPrivateUsage]
            run.cut_off("lost")

    monkeypatch.setattr(Background, "_lost", lose)
    assert found("sqlite", "after its outcome", start=50)
