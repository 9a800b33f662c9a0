"""The life of a background invocation: every transition, allowed or not."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvalidState,
    InvokeRetry,
    RetryPolicy,
    ServiceRegistry,
    machine,
)
from invoke_retry.backends import MemoryBackend
from invoke_retry.failure import Failure
from invoke_retry.machine import IllegalTransition
from invoke_retry.models import Reason, State
from invoke_retry.record import FINAL, HISTORY_LIMIT, Outcome, PastAttempt, Record

STATES: tuple[State, ...] = get_args(State)
REASONS: tuple[Reason, ...] = get_args(Reason)
FAILURE = Failure("ValueError", "no", "a traceback")
CID = CorrelationId.from_key("one")

Transition = Callable[[Record], None]

# each function of the module under the event's name that the table has for it
TRANSITIONS: dict[str, tuple[str, Transition]] = {
    "start": ("start", lambda r: machine.start(r, 100.0)),
    "retry": ("retry", lambda r: machine.retry(r, 7.0, 101.0, FAILURE)),
    "release": ("release", lambda r: machine.release(r, 7.0)),
    "finish": ("end", lambda r: machine.finish(r, 7.0, "succeeded", 101.0)),
    "finish and deliver": (
        "end", lambda r: machine.finish(r, 7.0, "succeeded", 101.0, deliver_at_once=True)
    ),
    "end": ("end", lambda r: machine.end(r, 7.0, "cancelled", 101.0)),
    "park": ("park", lambda r: machine.park(r, "unknown service")),
    "unpark": ("unpark", lambda r: machine.unpark(r, 7.0)),
    "hasten": ("hasten", lambda r: machine.hasten(r, 7.0)),
    "deliver": ("deliver", machine.deliver),
    "take over": ("take_over", machine.take_over),
    "settle": ("settle", machine.settle),
    "postpone": ("postpone", lambda r: machine.postpone(r, 7.0, FAILURE)),
    "bury": ("bury", lambda r: machine.bury(r, FAILURE)),
    "redeliver": ("redeliver", lambda r: machine.redeliver(r, 7.0)),
}  # fmt: skip


def fresh(callback: str | None = "callback") -> Record:
    return Record(
        CID, "target", callback, "main", "orig", b"1", None, RetryPolicy(3, 5), 1.0, 2.0, 2.0
    )


def past(*steps: str, callback: str | None = "callback") -> Record:
    record = fresh(callback)
    for step in steps:
        TRANSITIONS[step][1](record)
    return record


# ways to reach each state; whether somebody holds it there
PATHS: dict[str, tuple[State, tuple[str, ...], str | None]] = {
    "new": ("waiting", (), "callback"),
    "waiting again": ("waiting", ("start", "retry"), "callback"),
    "released": ("waiting", ("start", "release"), "callback"),
    "running": ("running", ("start",), "callback"),
    "running again": ("running", ("start", "retry", "start"), "callback"),
    "notifying": ("notifying", ("start", "finish"), "callback"),
    "delivering": ("notifying", ("start", "finish and deliver"), "callback"),
    "postponed": ("notifying", ("start", "finish", "deliver", "postpone"), "callback"),
    "cancelled early": ("notifying", ("end",), "callback"),
    "redelivered": ("notifying", ("start", "finish", "deliver", "bury", "redeliver"), "callback"),
    "parked": ("parked", ("park",), "callback"),
    "parked after an attempt": ("parked", ("start", "retry", "park"), "callback"),
    "parked with an outcome": ("parked", ("start", "finish", "park"), "callback"),
    "dead": ("dead", ("start", "finish", "deliver", "bury"), "callback"),
    "succeeded": ("succeeded", ("start", "finish", "deliver", "settle"), "callback"),
    "succeeded, nobody told": ("succeeded", ("start", "finish"), None),
    "cancelled": ("cancelled", ("end", "deliver", "settle"), "callback"),
    "cancelled, nobody told": ("cancelled", ("start", "end"), None),
}


def everything(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Record.__slots__}


def past_attempt(number: int, start: float, end: float, failure: Failure | None) -> PastAttempt:
    return PastAttempt(number, start, end, failure)


class TestTable:
    def test_is_whole(self) -> None:
        assert set(machine.TABLE) == set(STATES)
        for moves in machine.TABLE.values():
            for targets in moves.values():
                assert targets
                assert set(targets) <= set(STATES)

    def test_every_event_has_a_function(self) -> None:
        events = {event for moves in machine.TABLE.values() for event in moves}
        assert events == {event for event, _ in TRANSITIONS.values()}

    def test_final_states_stay(self) -> None:
        for state in FINAL:
            assert machine.TABLE[state] == {}

    def test_every_state_is_reached(self) -> None:
        reached = {"waiting"} | {
            state for moves in machine.TABLE.values() for targets in moves.values()
            for state in targets
        }  # fmt: skip
        assert reached == set(STATES)

    def test_paths_lead_where_they_say(self) -> None:
        for state, steps, callback in PATHS.values():
            assert past(*steps, callback=callback).state == state
        # failed is reached by its reasons only
        assert {state for state, _, _ in PATHS.values()} == set(STATES) - {"failed"}

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("name", TRANSITIONS)
    def test_each_transition_from_each_state(self, path: str, name: str) -> None:
        state, steps, callback = PATHS[path]
        record = past(*steps, callback=callback)
        event, transition = TRANSITIONS[name]
        before = everything(record)
        moves = machine.TABLE[state]
        if event == "hasten" and state == "parked":
            event = "unpark"
        targets = moves.get(event, ())
        if event == "end" and record.outcome is not None:
            # the table allows it of what is parked, but an outcome is never replaced
            targets = ()
        elif event == "hasten" and record.due is None:
            targets = ()
        elif event in ("release", "take_over") and record.due is not None:
            targets = ()  # nobody holds it
        elif event == "bury" and record.outcome is None:
            targets = ()  # a dead letter is an outcome that nobody took
        elif event in ("release", "unpark"):
            wanted = "notifying" if record.outcome else "waiting"
            targets = tuple(t for t in targets if t == wanted)
        if not targets:
            with pytest.raises(IllegalTransition):
                transition(record)
            assert everything(record) == before
            return
        transition(record)
        if event == "end" and callback is None:
            assert record.state in FINAL
        else:
            assert record.state in targets
        assert record.token >= before["token"]
        assert record.attempts >= 0
        assert record.deliveries >= 0
        if record.state in ("notifying", "dead", *FINAL):
            assert record.outcome is not None
        if before["outcome"] is not None:
            assert record.outcome is before["outcome"]

    def test_an_illegal_one_says_so(self) -> None:
        record = past("start", "finish", "deliver", "settle")
        with pytest.raises(InvalidState) as caught:
            machine.start(record, 1.0)
        for word in (CID, "succeeded", "start"):
            assert word in str(caught.value)

    @pytest.mark.parametrize(("name", "text"), [
        ("settle", "notifying, and cannot settle to failed"),
        ("bury", "notifying, and cannot bury to dead"),
    ])  # fmt: skip
    def test_without_an_outcome_nothing_is_told(self, name: str, text: str) -> None:
        """No way leads there, but a backend may have written nonsense."""
        record = fresh()
        record.state = "notifying"
        before = everything(record)
        with pytest.raises(IllegalTransition) as caught:
            TRANSITIONS[name][1](record)
        assert str(caught.value) == f"{CID} is {text}"
        assert everything(record) == before

    @pytest.mark.parametrize("name", ["release", "take over"])
    def test_what_nobody_holds(self, name: str) -> None:
        with pytest.raises(IllegalTransition) as caught:
            TRANSITIONS[name][1](fresh())
        assert str(caught.value) == f"{CID} is waiting and held by nobody"

    @pytest.mark.parametrize("reason", REASONS)
    def test_where_each_reason_settles(self, reason: Reason) -> None:
        state = reason if reason in ("succeeded", "cancelled") else "failed"
        record = past("start")
        machine.finish(record, 7.0, reason, 101.0)
        machine.deliver(record)
        machine.settle(record)
        assert record.state == state
        nobody = past("start", callback=None)
        machine.finish(nobody, 7.0, reason, 101.0, deliver_at_once=True)
        assert (nobody.state, nobody.due, nobody.deliveries) == (state, None, 0)


class TestAttempts:
    def test_start(self) -> None:
        record = fresh()
        machine.start(record, 100.0)
        assert (record.state, record.attempts, record.token) == ("running", 1, 1)
        assert (record.due, record.attempt_at, record.first_at) == (None, 100.0, 100.0)

    def test_retry(self) -> None:
        record = past("start", "retry")
        assert (record.state, record.attempts, record.due) == ("waiting", 1, 7.0)
        assert record.history == (past_attempt(1, 100.0, 101.0, FAILURE),)
        assert (record.attempt_at, record.error, record.outcome) == (None, FAILURE, None)

    def test_first_at_is_that_of_the_first(self) -> None:
        record = past("start", "retry")
        machine.start(record, 200.0)
        assert (record.first_at, record.attempt_at, record.attempts) == (100.0, 200.0, 2)

    def test_release_of_the_first_gives_back_everything(self) -> None:
        record = fresh()
        before = everything(record)
        TRANSITIONS["start"][1](record)
        TRANSITIONS["release"][1](record)
        assert everything(record) == before | {"token": 1, "due": 7.0}

    def test_release_of_the_second_gives_back_one(self) -> None:
        record = past("start", "retry", "start", "release")
        assert (record.attempts, record.first_at, record.attempt_at) == (1, 100.0, None)
        assert len(record.history) == 1

    def test_taken_over_from_a_dead_holder(self) -> None:
        record = past("start")
        machine.take_over(record)
        assert (record.state, record.attempts, record.token) == ("running", 1, 2)
        machine.retry(record, 7.0, 201.0, FAILURE)
        assert record.history == (PastAttempt(1, 100.0, 201.0, FAILURE),)

    def test_a_callback_taken_over_from_a_dead_holder(self) -> None:
        record = past("start", "finish", "deliver")
        machine.take_over(record)
        assert (record.state, record.deliveries, record.token) == ("notifying", 1, 3)

    def test_what_nobody_holds_is_not_taken_over(self) -> None:
        for record in (fresh(), past("start", "finish")):
            with pytest.raises(IllegalTransition):
                machine.take_over(record)

    def test_history_is_bounded(self) -> None:
        record = fresh()
        for i in range(HISTORY_LIMIT + 50):
            machine.start(record, float(i))
            machine.retry(record, 7.0, i + 0.5, FAILURE)
        numbers = [attempt.number for attempt in record.history]
        assert numbers == list(range(51, HISTORY_LIMIT + 51))

    def test_a_wall_clock_set_back_shows_no_negative_time(self) -> None:
        record = past("start")
        machine.retry(record, 7.0, 50.0, FAILURE)
        assert record.history == (past_attempt(1, 100.0, 100.0, FAILURE),)


class TestOutcomes:
    def test_finish(self) -> None:
        record = past("start")
        machine.finish(record, 7.0, "succeeded", 101.0, response=b"5")
        assert record.outcome == Outcome("succeeded", 101.0, b"5")
        assert (record.state, record.due, record.began, record.token) == ("notifying", 7.0, 7.0, 1)
        assert record.history == (past_attempt(1, 100.0, 101.0, None),)
        assert record.service == "callback"

    def test_finish_with_an_error(self) -> None:
        record = past("start")
        machine.finish(record, 7.0, "exhausted", 101.0, failure=FAILURE)
        assert record.outcome == Outcome("exhausted", 101.0, error=FAILURE)
        assert record.error == FAILURE
        assert record.history == (past_attempt(1, 100.0, 101.0, FAILURE),)

    def test_finish_and_deliver(self) -> None:
        record = past("start", "finish and deliver")
        assert (record.state, record.due, record.deliveries) == ("notifying", None, 1)
        assert record.token == 2

    def test_omitted_response(self) -> None:
        record = past("start")
        machine.finish(record, 7.0, "succeeded", 101.0, response_omitted="too large")
        assert record.outcome == Outcome("succeeded", 101.0, None, "too large")

    def test_end_of_what_waits(self) -> None:
        record = past("start", "retry", "end")
        assert record.outcome == Outcome("cancelled", 101.0, error=FAILURE)
        assert (record.attempts, record.token) == (1, 2)
        assert record.history == (past_attempt(1, 100.0, 101.0, FAILURE),)

    @pytest.mark.parametrize(("reason", "name"), [
        ("cancelled", "asyncio.exceptions.CancelledError"),
        ("abandoned", "asyncio.exceptions.CancelledError"),
        ("deadline", "TimeoutError"),
    ])  # fmt: skip
    def test_end_of_what_runs(self, reason: Reason, name: str) -> None:
        record = past("start")
        machine.end(record, 7.0, reason, 101.0)
        assert (record.attempts, record.attempt_at, record.token) == (1, None, 2)
        assert record.history == (past_attempt(1, 100.0, 101.0, Failure(name, "cut off")),)

    def test_end_with_an_error(self) -> None:
        record = past("start")
        machine.end(record, 7.0, "abandoned", 101.0, FAILURE)
        assert record.outcome == Outcome("abandoned", 101.0, error=FAILURE)

    def test_end_of_an_attempt_that_was_not_made(self) -> None:
        record = past("start")
        machine.end(record, 7.0, "deadline", 101.0, unstarted=True)
        assert (record.attempts, record.first_at, record.history) == (0, None, ())

    def test_end_of_what_is_parked(self) -> None:
        record = past("park", "end")
        assert (record.state, record.parked_because) == ("notifying", None)

    @pytest.mark.parametrize("path", PATHS)
    def test_never_changes(self, path: str) -> None:
        _, steps, callback = PATHS[path]
        record = past(*steps, callback=callback)
        outcome = record.outcome
        if outcome is None:
            return
        for _, transition in TRANSITIONS.values():
            with suppress(IllegalTransition):
                transition(record)
            assert record.outcome is outcome


class TestThroughABackend:
    @pytest.mark.virtual_time
    async def test_cancelling_what_is_parked_with_an_outcome(self) -> None:
        """A success whose callback is unknown here stays a success, whoever cancels it."""
        services = ServiceRegistry()

        async def target() -> int:
            return 5

        async def callback(outcome: CallbackPayload) -> None:
            raise ValueError("not now")

        services.register("target", target)
        services.register("callback", callback)
        backend = MemoryBackend()
        async with InvokeRetry(services, backend=backend, grace=0) as retry:
            cid = await retry.invoke_async("target", repeats=0, seconds=1, callback="callback")
            outcome = await retry.wait(cid)
            await backend.amend(cid, machine.park, "unknown service")
            assert await retry.cancel(cid) is False
            assert await retry.wait(cid) == outcome
            assert outcome.ok


class TestDeliveries:
    def test_postpone(self) -> None:
        record = past("start", "finish", "deliver", "postpone")
        assert (record.deliveries, record.due, record.delivery_error) == (1, 7.0, FAILURE)

    def test_release_gives_the_delivery_back_and_not_the_attempt(self) -> None:
        record = past("start", "finish", "deliver", "release")
        assert (record.state, record.deliveries, record.attempts) == ("notifying", 0, 1)
        assert (record.first_at, record.due) == (100.0, 7.0)

    def test_settle_forgets_the_error(self) -> None:
        record = past("start", "finish", "deliver", "postpone", "deliver", "settle")
        assert (record.delivery_error, record.due, record.deliveries) == (None, None, 2)

    def test_bury_keeps_the_latest_error(self) -> None:
        record = past("start", "finish", "deliver", "postpone")
        machine.bury(record, None)
        assert (record.state, record.delivery_error, record.due) == ("dead", FAILURE, None)

    def test_redeliver_begins_anew(self) -> None:
        record = past("start", "finish", "deliver", "bury", "redeliver")
        assert (record.state, record.deliveries, record.due) == ("notifying", 0, 7.0)
        assert record.token == 3


class TestParking:
    def test_of_what_waits(self) -> None:
        record = past("park")
        assert (record.attempts, record.token, record.due) == (0, 1, None)
        assert record.parked_because == "unknown service"

    def test_of_what_was_taken_gives_the_attempt_back(self) -> None:
        record = past("start", "park")
        assert (record.attempts, record.first_at, record.token) == (0, None, 2)

    def test_of_a_second_attempt_gives_only_that_back(self) -> None:
        record = past("start", "retry", "start", "park")
        assert (record.attempts, record.first_at) == (1, 100.0)

    def test_of_a_delivery(self) -> None:
        record = past("start", "finish", "deliver", "park")
        assert (record.attempts, record.deliveries) == (1, 0)

    def test_of_a_delivery_that_waits(self) -> None:
        record = past("start", "finish", "deliver", "postpone", "park")
        assert record.deliveries == 1

    @pytest.mark.parametrize("event", ["unpark", "hasten"])
    @pytest.mark.parametrize(("steps", "state"), [
        (["park"], "waiting"), (["start", "finish", "park"], "notifying"),
    ])  # fmt: skip
    def test_unpark(self, event: str, steps: list[str], state: State) -> None:
        record = past(*steps)
        token = record.token
        TRANSITIONS[event][1](record)
        assert (record.state, record.due, record.parked_because) == (state, 7.0, None)
        assert record.token == token + 1

    def test_bury(self) -> None:
        record = past("start", "finish", "park", "bury")
        assert (record.state, record.parked_because) == ("dead", None)

    def test_hasten_what_is_under_way(self) -> None:
        with pytest.raises(IllegalTransition, match="under way"):
            machine.hasten(past("start", "finish", "deliver"), 7.0)


class Life(RuleBasedStateMachine):
    """Random transitions: whatever is tried, the record stays sound.

    Tries only what its callers do: one that the table refuses, or a transition of a holder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.record = fresh()
        self.outcome: Outcome | None = None
        self.token = 0
        self.utc = 1_000.0

    @initialize(callback=st.sampled_from([None, "callback", "callback"]))
    def begin(self, callback: str | None) -> None:
        self.record = fresh(callback)

    @precondition(lambda self: self.record.state in FINAL)
    @rule(callback=st.sampled_from([None, "callback", "callback"]))
    def begin_another(self, callback: str | None) -> None:
        for _, transition in TRANSITIONS.values():
            self.attempt(transition)  # each of them is refused
        self.record, self.outcome, self.token = fresh(callback), None, 0

    def attempt(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        before = everything(self.record)
        try:
            function(self.record, *args, **kwargs)
        except IllegalTransition:
            assert everything(self.record) == before
            return
        assert before["state"] not in FINAL
        if before["state"] == "dead":
            assert function is machine.redeliver

    @rule(step=st.floats(-100, 100))
    def pass_time(self, step: float) -> None:
        self.utc = max(1.0, self.utc + step)

    @rule()
    def start(self) -> None:
        self.attempt(machine.start, self.utc)

    @rule(due=st.floats(0, 1e9))
    def retry(self, due: float) -> None:
        self.attempt(machine.retry, due, self.utc, FAILURE)

    @rule(
        reason=st.sampled_from(REASONS), at_once=st.booleans(), failure=st.none() | st.just(FAILURE)
    )
    def finish(self, reason: Reason, at_once: bool, failure: Failure | None) -> None:
        if self.record.state == "running":  # only a holder finishes
            self.attempt(
                machine.finish, 7.0, reason, self.utc, failure=failure, deliver_at_once=at_once
            )

    @rule(reason=st.sampled_from(REASONS), unstarted=st.booleans())
    def end(self, reason: Reason, unstarted: bool) -> None:
        unstarted = unstarted and self.record.state == "running"
        self.attempt(machine.end, 7.0, reason, self.utc, None, unstarted=unstarted)

    @rule()
    def deliver(self) -> None:
        if self.record.due is not None:
            self.attempt(machine.deliver)

    @rule()
    def settle(self) -> None:
        if self.record.outcome is not None:
            self.attempt(machine.settle)

    @rule(due=st.floats(0, 1e9))
    def postpone(self, due: float) -> None:
        self.attempt(machine.postpone, due, FAILURE)

    @rule(error=st.none() | st.just(FAILURE))
    def bury(self, error: Failure | None) -> None:
        if self.record.outcome is not None:
            self.attempt(machine.bury, error)

    @rule(due=st.floats(0, 1e9))
    def release(self, due: float) -> None:
        if self.record.due is None:  # only a holder gives back
            self.attempt(machine.release, due)

    @rule()
    def park(self) -> None:
        self.attempt(machine.park, "unknown service")

    @rule(due=st.floats(0, 1e9))
    def unpark(self, due: float) -> None:
        self.attempt(machine.unpark, due)

    @rule(due=st.floats(0, 1e9))
    def hasten(self, due: float) -> None:
        self.attempt(machine.hasten, due)

    @rule(due=st.floats(0, 1e9))
    def redeliver(self, due: float) -> None:
        self.attempt(machine.redeliver, due)

    @invariant()
    def state_is_one_of_eight(self) -> None:
        assert self.record.state in STATES

    @invariant()
    def outcome_never_changes(self) -> None:
        if self.outcome is not None:
            assert self.record.outcome is self.outcome
        self.outcome = self.record.outcome

    @invariant()
    def outcome_fits_the_state(self) -> None:
        record = self.record
        if record.state in ("waiting", "running"):
            assert record.outcome is None
        elif record.state != "parked":
            assert record.outcome is not None

    @invariant()
    def token_never_shrinks(self) -> None:
        assert self.record.token >= self.token
        self.token = self.record.token

    @invariant()
    def counts_are_sane(self) -> None:
        record = self.record
        assert record.attempts >= 0
        assert record.deliveries >= 0
        assert (record.first_at is None) == (record.attempts == 0)
        for attempt in record.history:
            assert attempt.ended_at >= attempt.started_at

    @invariant()
    def held_or_due(self) -> None:
        record = self.record
        if record.state == "waiting":
            assert record.due is not None
        if record.state in ("running", "parked", "dead", *FINAL):
            assert record.due is None
        assert (record.attempt_at is not None) == (record.state == "running")
        assert (record.parked_because is not None) == (record.state == "parked")


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
