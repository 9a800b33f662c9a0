"""Faults to plant: one for each promise that the books hold the library to.

Each says which words name it, and from which seed on it is found soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from invoke_retry import RetryPolicy, inline, judge, machine, work
from invoke_retry.acceptance import Acceptance
from invoke_retry.asking import Asking
from invoke_retry.backends.memory import MemoryBackend
from invoke_retry.backends.sqlite import claims
from invoke_retry.background import Background
from invoke_retry.inline import Inline
from invoke_retry.judge import Judge
from invoke_retry.logs import Log, logger
from invoke_retry.slots import Slots

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


class Fault(NamedTuple):
    """What is planted, and what the books must say then.

    Attributes:
        start: The first seed to try.
    """

    plant: Plant
    backend: str
    words: tuple[str, ...]
    start: int


FAULTS: dict[str, Fault] = {}


def _fault(*words: str, start: int = 0, backend: str = "memory") -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = Fault(plant, backend, words, start)
        return plant

    return add


def _around(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Have *change* called instead, with the original as its first argument."""
    original = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        return change(original, *args, **kwargs)

    patch.setattr(owner, name, changed)


# Inline.


@_fault("(inline): waits")
def inline_waits_are_left_out(patch: Patch) -> None:
    def hurry(judge: Any, self: Any, error: Any, *, hands_over: bool = False) -> Any:
        wait = judge(self, error, hands_over=hands_over)
        return wait if wait is None or hands_over else 0.0

    _around(patch, Inline, "judge", hurry)


@_fault("(inline): its target said")
def inline_values_are_lost(patch: Patch) -> None:
    async def lose(repeat: Any, self: Any, wait: float) -> None:
        await repeat(self, wait)

    _around(patch, Inline, "repeat", lose)


@_fault("(inline): has given up after attempt")
def inline_gives_up_early(patch: Patch) -> None:
    def stop(decide: Any, self: Any, error: Any) -> Any:
        then = decide(self, error)
        return then if isinstance(then, str) else "exhausted"

    _around(patch, Inline, "_decide", stop)


@_fault("(inline): 2 attempts are made", "(inline): I6: is repeated too often")
def inline_repeats_once_more(patch: Patch) -> None:
    def again(judge: Any, self: Any, error: Any, *, hands_over: bool = False) -> Any:
        if not hands_over and self._call.attempt == self._plan.repeats + 1:
            return 0.0
        return judge(self, error, hands_over=hands_over)

    _around(patch, Inline, "judge", again)


@_fault("its target raised")
def inline_repeats_permanent_errors(patch: Patch) -> None:
    def again(decide: Any, self: Any, error: Any) -> Any:
        then = decide(self, error)
        is_left = self._call.attempt <= self._plan.repeats
        return 0.0 if then == "permanent" and is_left else then

    _around(patch, Inline, "_decide", again)


# Reasons and numbers.


@_fault("is abandoned")
def what_is_exhausted_is_called_abandoned(patch: Patch) -> None:
    def end(finish: Any, record: Any, due: float, reason: str, *args: Any, **more: Any) -> None:
        finish(record, due, "abandoned" if reason == "exhausted" else reason, *args, **more)

    _around(patch, machine, "finish", end)


@_fault("ended for its deadline")
def a_deadline_ends_it_after_one_attempt(patch: Patch) -> None:
    def stop(then: Any, self: Any, record: Any, error: Any, *, is_last: bool) -> Any:
        if record.outcome is None and record.policy.deadline is not None:
            return "deadline"
        return then(self, record, error, is_last=is_last)

    _around(patch, Judge, "_next", stop)


@_fault("was parked for", start=50)
def what_is_parked_is_given_up_at_once(patch: Patch) -> None:
    def soon(retire: Any, self: Any, record: Any) -> None:
        park_for, self.park_for = self.park_for, 0.001
        retire(self, record)
        self.park_for = park_for

    _around(patch, MemoryBackend, "_retire", soon)


@_fault("attempt 2 follows attempt 0")
def attempts_are_numbered_from_2(patch: Patch) -> None:
    def begin(start: Any, record: Any, utc: float) -> None:
        start(record, utc)
        if record.attempts == 1 and record.policy.repeats:
            record.attempts = 2

    _around(patch, machine, "start", begin)


@_fault("follows attempt", backend="sqlite", start=90)
def leaving_uses_up_an_attempt(patch: Patch) -> None:
    def keep(release: Any, record: Any, due: float) -> None:
        attempts = record.attempts
        release(record, due)
        record.attempts = attempts

    _around(patch, machine, "release", keep)


@_fault("cut after")
def timeouts_are_halved(patch: Patch) -> None:
    def halve(limit: Any, *args: Any) -> Any:
        seconds, cut = limit(*args)
        return (seconds / 2, cut) if cut == "timeout" and seconds else (seconds, cut)

    _around(patch, work, "time_limit", halve)


@_fault("cut after")
def deadlines_are_halved(patch: Patch) -> None:
    def halve(limit: Any, *args: Any) -> Any:
        seconds, cut = limit(*args)
        return (seconds / 2, cut) if cut == "deadline" else (seconds, cut)

    _around(patch, work, "time_limit", halve)


# Lateness.


@_fault("its first attempt began")
def first_attempts_are_late(patch: Patch) -> None:
    async def delay(accept: Any, self: Any, record: Any) -> Any:
        record.due += 0 if record.attempts else 5
        return await accept(self, record)

    _around(patch, MemoryBackend, "accept", delay)


@_fault("its first attempt began", backend="sqlite")
def stored_first_attempts_are_late(patch: Patch) -> None:
    def delay(accept: Any, store: Any, record: Any) -> Any:
        if record.due is not None:
            record.due += 30
        return accept(store, record)

    _around(patch, claims, "accept", delay)


@_fault("s late", backend="sqlite")
def stored_repeats_are_late(patch: Patch) -> None:
    def delay(retry: Any, record: Any, due: float, *args: Any) -> None:
        retry(record, due + 30, *args)

    _around(patch, machine, "retry", delay)


@_fault("s late")
def drawn_waits_are_too_long(patch: Patch) -> None:
    def lengthen(decide: Any, policy: RetryPolicy, *args: Any) -> Any:
        then = decide(policy, *args)
        return then if isinstance(then, str) or policy.jitter == "none" else then + 20

    _around(patch, judge, "decide", lengthen)
    _around(patch, inline, "decide", lengthen)


@_fault("is told", "told again")
def callbacks_are_late(patch: Patch) -> None:
    def move_on(_: Any, self: Any, claim: Any) -> bool:
        self.slots.give(claim.slot)
        claim.slot = None
        return False

    def delay(record_outcome: Any, record: Any, due: float, outcome: Any) -> None:
        record_outcome(record, due + 5, outcome)

    _around(patch, work.Work, "_move_on", move_on)
    _around(patch, machine, "_record_outcome", delay)


@_fault("after its deadline", start=110)
def deadlines_pass_unseen_while_it_waits(patch: Patch) -> None:
    def ignore(_: Any, *args: Any) -> None: ...

    _around(patch, MemoryBackend, "_pass_deadline", ignore)


# Callbacks, and what they are told.


@_fault("is dead after 1 deliveries")
def it_is_dead_after_one_delivery(patch: Patch) -> None:
    def stop(failed: Any, self: Any, run: Any, service: Any, *, is_last: bool = False) -> Any:
        is_told = run.claim.record.outcome is not None
        return failed(self, run, service, is_last=is_last or is_told)

    _around(patch, Judge, "failed_run", stop)


@_fault("its target said")
def responses_are_lost(patch: Patch) -> None:
    def lose(finish: Any, *args: Any, response: Any = None, **more: Any) -> None:
        finish(*args, **more)

    _around(patch, machine, "finish", lose)


@_fault("its target raised")
def errors_are_lost(patch: Patch) -> None:
    def lose(finish: Any, *args: Any, failure: Any = None, **more: Any) -> None:
        finish(*args, **more)

    _around(patch, machine, "finish", lose)


@_fault("its target said", start=15)
def what_cannot_be_stored_is_not_spoken_of(patch: Patch) -> None:
    def lose(finish: Any, *args: Any, response_omitted: Any = None, **more: Any) -> None:
        finish(*args, **more)

    _around(patch, machine, "finish", lose)


@_fault("its history says")
def the_history_is_lost(patch: Patch) -> None:
    def lose(_: Any, record: Any, *args: Any) -> None:
        record.attempt_at = None

    _around(patch, machine, "_close_attempt", lose)


@_fault("not from a coordinator")
def the_source_is_lost(patch: Patch) -> None:
    def lose(make: Any, self: Any, *args: Any) -> Any:
        record = make(self, *args)
        record.source = "nobody"
        return record

    _around(patch, Acceptance, "record", lose)


@_fault("its context is")
def contexts_are_changed(patch: Patch) -> None:
    def change(make: Any, self: Any, *args: Any) -> Any:
        *others, context, cid = args
        return make(self, *others, context and {**context, "of": None}, cid)

    _around(patch, Acceptance, "record", change)


# One call is one invocation.


@_fault("nobody has asked for")
def it_is_accepted_twice(patch: Patch) -> None:
    async def twice(accept: Any, self: Any, record: Any, wait: float | None = None) -> Any:
        twin = record.copy()
        twin.cid = self._environment.new_cid()
        await accept(self, twin, wait)
        return await accept(self, record, wait)

    _around(patch, Acceptance, "accept", twice)


@_fault("is another request")
def conflicts_are_not_seen(patch: Patch) -> None:
    def ignore(_: Any, *args: Any) -> None: ...

    _around(patch, Acceptance, "_check_same", ignore)


@_fault("follows attempt", start=35)
def a_known_fallback_runs_again(patch: Patch) -> None:
    async def never(_: Any, *args: Any) -> bool:
        return False

    _around(patch, Acceptance, "is_known", never)


@_fault("its retry_repeats is", start=20)
def a_resubmitted_one_has_another_policy(patch: Patch) -> None:
    async def change(accept: Any, self: Any, record: Any, wait: float | None = None) -> Any:
        if record.resubmit_of is not None:
            record.policy = RetryPolicy(repeats=7, seconds=0)
        return await accept(self, record, wait)

    _around(patch, Acceptance, "accept", change)


# Leaving.


def _leave_after(patch: Patch, seconds: Callable[[float], float]) -> None:
    def leave(original: Any, self: Any, grace: float) -> None:
        original(self, seconds(grace))

    _around(patch, Background, "leave", leave)


@_fault("I7: is abandoned")
def the_grace_is_left_out(patch: Patch) -> None:
    _leave_after(patch, lambda _: 0)


@_fault("nobody knows why", backend="sqlite", start=10)
def the_grace_is_left_out_over_a_store(patch: Patch) -> None:
    _leave_after(patch, lambda _: 0)


@_fault("took too long to leave")
def the_grace_is_exceeded(patch: Patch) -> None:
    _leave_after(patch, lambda grace: grace + 20)


# Limits.


@_fault("run in process")
def max_running_is_ignored(patch: Patch) -> None:
    def room(_: Any, self: Any) -> int:
        return 1_000

    def room_for(_: Any, self: Any, name: str) -> int:
        return 0 if name in self.paused else 1_000

    _around(patch, Slots, "room", room)
    _around(patch, Slots, "room_for", room_for)


@_fault("of b run in process", start=20)
def max_running_of_a_service_is_ignored(patch: Patch) -> None:
    def room_for(_: Any, self: Any, name: str) -> int:
        return 0 if name in self.paused else max(0, self.limit - self.total)

    _around(patch, Slots, "room_for", room_for)


@_fault("is paused at")
def pauses_are_ignored(patch: Patch) -> None:
    def ignore(_: Any, *args: Any) -> None: ...

    _around(patch, Background, "hold_back", ignore)


@_fault("I8", start=10)
def max_waiting_is_ignored(patch: Patch) -> None:
    def none(_: Any, self: Any) -> int:
        return 0

    _around(patch, MemoryBackend, "_unfinished_count", none)


@_fault("lines are logged")
def the_log_is_flooded(patch: Patch) -> None:
    def flood(attempt_failed: Any, *args: Any) -> None:
        for _ in range(50):
            logger.warning("flood")
        attempt_failed(*args)

    _around(patch, Log, "attempt_failed", flood)


@_fault("and kept until", "are kept until now")
def nothing_is_forgotten(patch: Patch) -> None:
    def ignore(_: Any, *args: Any) -> None: ...

    _around(patch, MemoryBackend, "_forget", ignore)


@_fault("is lost")
def finished_ones_are_forgotten_at_once(patch: Patch) -> None:
    def forget(retire: Any, self: Any, record: Any) -> None:
        retire(self, record)
        if record.state != "parked":
            self._forget(record)

    _around(patch, MemoryBackend, "_retire", forget)


# Decisions.


@_fault("was waited for", start=50)
def waits_time_out_late(patch: Patch) -> None:
    async def longer(wait: Any, self: Any, cid: str, timeout: float | None = None) -> Any:
        return await wait(self, cid, timeout and timeout + 5)

    _around(patch, Asking, "wait", longer)


@_fault("and was told of it")
def waits_are_answered_late(patch: Patch) -> None:
    async def later(wait: Any, self: Any, cid: str, timeout: float | None = None) -> Any:
        outcome = await wait(self, cid, timeout)
        await asyncio.sleep(5)
        return outcome

    _around(patch, Asking, "wait", later)


@_fault("was cancelled, and", start=35)
def cancelled_attempts_go_on(patch: Patch) -> None:
    def only_tell(_: Any, self: Any, record: Any) -> None:
        self._work.tell_outcome(record)
        self._tell_change()

    _around(patch, Background, "ended", only_tell)


def _does_nothing(patch: Patch, name: str, *, says: bool) -> None:
    async def ask(_: Any, self: Any, cid: str) -> bool:
        await self.get(cid)
        return says

    _around(patch, Asking, name, ask)


@_fault("was not cancelled, and")
def cancel_does_nothing(patch: Patch) -> None:
    _does_nothing(patch, "cancel", says=False)


@_fault("was to run at once")
def run_now_does_nothing(patch: Patch) -> None:
    async def ask(run_now: Any, self: Any, cid: str) -> bool:
        is_parked = (await self.get(cid)).state == "parked"
        return await run_now(self, cid) if is_parked else True

    _around(patch, Asking, "run_now", ask)


@_fault("was to be told again", start=10)
def redeliver_does_nothing(patch: Patch) -> None:
    _does_nothing(patch, "redeliver", says=True)
