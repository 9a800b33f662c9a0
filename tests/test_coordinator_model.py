"""A coordinator under random use, held against a model of what must always be true of it.

More examples than usual: `HYPOTHESIS_MAX_EXAMPLES=5000 python -m pytest <this file>`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from os import environ
from random import Random
from typing import Any, Literal, NamedTuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation.plan import Order

from invoke_retry import (
    BackendError,
    BackendFull,
    Call,
    CallbackPayload,
    CidConflict,
    CorrelationId,
    InvalidPayload,
    InvalidState,
    Invocation,
    InvokeRetry,
    NotRunning,
    RetriesExhausted,
    RetryAfter,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)
from invoke_retry.backends import MemoryBackend
from invoke_retry.testing import VirtualLoop

T = TypeVar("T")

UNFINISHED = ("waiting", "running", "notifying", "parked")
FINAL = ("succeeded", "failed", "cancelled")
FOR_EVER = 1e9
TOLD = RetryPolicy(repeats=2, seconds=5, timeout=10)
"""How callbacks are repeated."""

Kind = Literal[
    "ok", "fail", "permanent", "after", "hang", "cancelled", "exit", "base", "stubborn", "group"
]
PERMANENT: tuple[Kind, ...] = ("permanent", "exit", "base")

is_caller: ContextVar[bool] = ContextVar("is_caller", default=False)
"""Set in the tasks that call; an attempt in the background never sees it."""


class Step(NamedTuple):
    """What a service does in one attempt, after some seconds."""

    kind: Kind
    seconds: float


class Script(NamedTuple):
    """What the target does in each attempt and the callback in each delivery; the last repeats."""

    target: list[Step]
    callback: list[Step]


class PermanentError(Exception):
    pass


class OddError(BaseException):
    pass


@dataclass
class Job:
    """What is known of an invocation that was accepted."""

    n: int
    target: str
    callback: str | None
    policy: RetryPolicy
    began: float
    not_before: float
    is_exact: bool = True
    calls: int = 0
    is_inside: bool = False
    is_over: bool = False
    expected: str | None = None
    outcome: str | None = None
    deliveries: int = 0
    round: int = 0
    """Deliveries since the outcome, or since redelivery."""
    is_delivering: bool = False
    delivered: int = 0
    delivered_at: float = 0
    deliver_not_before: float = 0
    told: set[str] = field(default_factory=set[str])


def steps(*more: Kind) -> st.SearchStrategy[list[Step]]:
    usual: tuple[Kind, ...] = ("fail", "ok", "hang", "cancelled", "exit", "after")
    step = st.builds(Step, st.sampled_from([*usual, *more]), st.sampled_from([0, 0.5, 1, 7]))
    return st.lists(step, min_size=1, max_size=4)


scripts = st.builds(
    Script, steps("permanent", "base", "stubborn", "stubborn", "group"), steps("base")
)
policies = st.builds(
    RetryPolicy,
    repeats=st.integers(0, 3),
    seconds=st.sampled_from([0, 1, 10]),
    backoff=st.sampled_from(["fixed", "exponential"]),
    jitter=st.sampled_from(["none", "none", "full"]),
    timeout=st.sampled_from([None, 2, 5]),
    deadline=st.sampled_from([None, None, 3, 30]),
)
picks = st.integers(0, 7)


class Use(RuleBasedStateMachine):
    """Rules act through the public API only, in virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.loop = self.runner.get_loop()
        self.jobs: dict[str, Job] = {}
        self.scripts: list[Script] = []
        self.calls: set[asyncio.Task[None]] = set()
        self.faults: list[str] = []
        self.left = _Left()
        self.is_leaving = False
        self.grace: float | None = 0
        logging.getLogger("invoke_retry").addHandler(self.left)
        Order.is_refused = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def now(self) -> float:
        return self.loop.time()

    def fault(self, condition: bool, *text: object) -> None:
        """Note a fault that is seen inside a service, where an error would mean something else."""
        if condition:
            self.faults.append(" ".join(map(str, text)))

    @initialize(
        max_running=st.sampled_from([1, 2, 4, 100]),
        max_waiting=st.sampled_from([None, None, 3, 6]),
        max_running_of_b=st.sampled_from([None, 1]),
        park_for=st.sampled_from([FOR_EVER, 60]),
        grace=st.sampled_from([0, 5, 100, None]),
    )
    def enter(
        self,
        max_running: int,
        max_waiting: int | None,
        max_running_of_b: int | None,
        park_for: float,
        grace: float | None,
    ) -> None:
        services = ServiceRegistry()
        services.register("a", self.serve, give_up_on=PermanentError)
        services.register("b", self.serve, give_up_on=PermanentError, max_running=max_running_of_b)
        services.register("told", self.be_told)
        self.max_waiting, self.max_running, self.grace = max_waiting, max_running, grace
        self.retry = InvokeRetry(
            services,
            backend=MemoryBackend(
                max_waiting=max_waiting,
                retention=FOR_EVER,
                dead_retention=FOR_EVER,
                park_for=park_for,
            ),
            max_running=max_running,
            callback_policy=TOLD,
            grace=grace,
            random=Random(0),
        )
        self.run(self.retry.__aenter__())

    # The services.

    async def serve(self, order: Order) -> int:
        call = current_call()
        script = self.scripts[order.n].target
        step = script[min(call.attempt, len(script)) - 1]
        if is_caller.get():
            return await play(step)
        job = self.jobs[call.cid]
        await self._check_start(call, job)
        job.calls += 1
        job.is_inside = True
        result = "failed"
        try:
            value = await play(step)
            result = "succeeded"
            return value
        except (PermanentError, SystemExit, OddError):
            result = "permanent"
            raise
        finally:
            job.is_inside = False
            self._attempt_over(job, call, step, result)

    async def _check_start(self, call: Call, job: Job) -> None:
        now, found = self.now(), await self.retry.get(call.cid)
        self.fault(job.is_inside, call.cid, "overlaps with itself")
        self.fault(job.is_over, call.cid, "starts after it was over")
        self.fault(now < job.not_before - 1e-9, call.cid, "starts at", now, job)
        self.fault(found.state != "running" or found.reason is not None, call.cid, "starts", found)
        self.fault(call.attempt != found.attempts, call.cid, "counts wrongly", found)
        self.fault(call.attempt > 1 + job.policy.repeats, call.cid, "is repeated too often", job)
        deadline = job.policy.deadline
        self.fault(
            deadline is not None and now >= job.began + deadline, call.cid, "starts too late", job
        )

    def _attempt_over(self, job: Job, call: Call, step: Step, result: str) -> None:
        if result == "failed":
            job.not_before, job.is_exact = self._due(job.policy, call.attempt, step)
            if call.attempt == 1 + job.policy.repeats:
                result = "exhausted"
        if result != "failed":
            job.is_over = True
            if job.expected is None and not self.is_leaving:
                job.expected = result

    def _due(self, policy: RetryPolicy, attempt: int, step: Step) -> tuple[float, bool]:
        """When the next attempt is due at the earliest, and whether that is certain."""
        if attempt > policy.repeats:
            return self.now(), False
        waits = list(policy.delays())
        if step.kind == "after":  # perhaps it was cut off before it could ask for that
            return self.now() + (
                min(3.0, waits[attempt - 1]) if policy.jitter == "none" else 0
            ), False
        if policy.jitter == "full":
            return self.now(), False
        return self.now() + waits[attempt - 1], True

    async def be_told(self, outcome: CallbackPayload) -> None:
        call = current_call()
        job, now = self.jobs[call.cid], self.now()
        found = await self.retry.get(call.cid)
        job.deliveries += 1
        job.round += 1
        self.fault(found.state != "notifying", call.cid, "is told", found)
        self.fault(job.is_delivering, call.cid, "is told twice at a time")
        self.fault(job.delivered > 0, call.cid, "is told again after it was told")
        is_early = now < job.deliver_not_before - 1e-9 and not self.is_leaving
        self.fault(is_early, call.cid, "is told early", now, job)
        self.fault(job.round > 1 + TOLD.repeats, call.cid, "is told too often")
        self.fault(call.attempt != job.round, call.cid, "is told for time", call.attempt, job)
        self.fault(outcome.call_cid != call.cid or outcome.context != job.n, "mixed up", outcome)
        job.told.add(outcome.model_dump_json())
        script = self.scripts[job.n].callback
        step = script[min(job.deliveries, len(script)) - 1]
        job.is_delivering = True
        try:
            await play(step)
            job.delivered += 1
            job.delivered_at = self.now()
        finally:
            job.is_delivering = False
            if step.kind == "after":
                job.deliver_not_before = self.now() + 3
            elif job.round <= TOLD.repeats:
                job.deliver_not_before = self.now() + TOLD.seconds

    # What callers do.

    @rule(
        script=scripts,
        policy=policies,
        service=st.sampled_from(["a", "b"]),
        callback=st.sampled_from(["told", "told", None]),
        fallback=st.booleans(),
        copies=st.sampled_from([1, 1, 1, 2]),
        jobs=st.sampled_from([1, 1, 3]),
    )
    def submit(
        self,
        script: Script,
        policy: RetryPolicy,
        service: str,
        callback: str | None,
        fallback: bool,
        copies: int,
        jobs: int,
    ) -> None:
        submit = self._begin_fallback if fallback else self._invoke_async
        for _ in range(jobs):
            n = len(self.scripts)
            self.scripts.append(script)
            cid = CorrelationId.from_key(str(n))
            for _ in range(copies):
                self.run(submit(cid, n, policy, service, callback, n))

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, policy=policies, fallback=st.booleans(), is_same=st.booleans())
    def submit_again(self, pick: int, policy: RetryPolicy, fallback: bool, is_same: bool) -> None:
        cid, job = self.pick(pick)
        context = job.n if is_same else -1
        submit = self._begin_fallback if fallback else self._invoke_async
        self.run(submit(cid, job.n, policy, job.target, job.callback, context))

    async def _invoke_async(
        self,
        cid: str,
        n: int,
        policy: RetryPolicy,
        target: str,
        callback: str | None,
        context: int,
    ) -> None:
        async def call() -> str:
            return await self.retry.invoke_async(
                target, {"n": n}, policy=policy, callback=callback, context=context, cid=cid
            )

        is_full = await self.is_full()
        if Order.is_refused:
            with pytest.raises(InvalidPayload):
                await call()
        elif (known := self.jobs.get(cid)) is not None:
            if context == known.n:
                assert await call() == cid
            else:
                with pytest.raises(CidConflict):
                    await call()
        elif is_full:
            with pytest.raises(BackendFull):
                await call()
        else:
            assert await call() == cid
            now = self.now()
            self.jobs[cid] = Job(n, target, callback, policy, now, now)

    async def _begin_fallback(self, *args: Any) -> None:
        task = asyncio.create_task(self._fall_back(*args))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        await asyncio.sleep(0)

    async def _fall_back(
        self,
        cid: str,
        n: int,
        policy: RetryPolicy,
        target: str,
        callback: str | None,
        context: int,
    ) -> None:
        is_caller.set(True)
        began, step = self.now(), self.scripts[n].target[0]
        known = self.jobs.get(cid)
        refused = Order.is_refused
        problem: object = None
        try:
            got = await self.retry.invoke(
                target, {"n": n}, policy=policy, callback=callback, context=context, cid=cid,
                async_fallback=True,
            )  # fmt: skip
        except BaseException as error:  # SystemExit in a task would stop the loop
            fine: type[BaseException] | tuple[type[BaseException], ...]
            if refused:
                fine = InvalidPayload
            elif known is not None or context != n:
                fine = CidConflict
                problem = context == n
            else:
                fine = (
                    RetriesExhausted, PermanentError, SystemExit, OddError, BackendFull,
                    asyncio.CancelledError,
                )  # fmt: skip
                if self.is_leaving:
                    fine = (*fine, NotRunning, BackendError)
                problem = step.kind == "ok" and policy.timeout is None and policy.deadline is None
            self.fault(not isinstance(error, fine) or bool(problem), cid, "raised", repr(error))
            return
        if got == cid and cid not in self.jobs:
            due, is_exact = self._due(policy, 1, step)
            self.jobs[cid] = Job(n, target, callback, policy, began, due, is_exact, calls=1)
        elif got != cid:
            self.fault(
                known is not None or refused or step.kind not in ("ok", "hang", "stubborn"),
                cid,
                "got",
                got,
            )

    async def is_full(self) -> bool:
        counts = await self.retry.counts()
        unfinished = sum(counts[state] for state in UNFINISHED)
        return self.max_waiting is not None and unfinished >= self.max_waiting

    # What people do.

    def pick(self, number: int) -> tuple[str, Job]:
        """One of the latest."""
        cids = list(self.jobs)[-8:]
        cid = cids[number % len(cids)]
        return cid, self.jobs[cid]

    @precondition(lambda self: self.jobs)
    @rule(
        pick=picks,
        what=st.sampled_from(["cancel", "cancel", "run_now", "redeliver", "resubmit"]),
    )
    def decide(self, pick: int, what: str) -> None:
        decisions = {
            "cancel": self._cancel,
            "run_now": self._run_now,
            "redeliver": self._redeliver,
            "resubmit": self._resubmit,
        }
        self.run(decisions[what](*self.pick(pick)))

    async def _cancel(self, cid: str, job: Job) -> None:
        before = await self.retry.get(cid)
        assert await self.retry.cancel(cid) == (before.reason is None)
        if before.reason is None:
            job.expected, job.is_over = "cancelled", True
            after = await self.retry.get(cid)
            assert (after.reason, after.attempts) == ("cancelled", before.attempts)

    async def _run_now(self, cid: str, job: Job) -> None:
        before = await self.retry.get(cid)
        waits = before.next_attempt_at is not None or before.state == "parked"
        if waits:
            job.not_before = job.deliver_not_before = self.now()
        assert await self.retry.run_now(cid) == waits

    async def _redeliver(self, cid: str, job: Job) -> None:
        is_dead = (await self.retry.get(cid)).state == "dead"
        if is_dead:
            job.round, job.deliver_not_before = 0, self.now()
        assert await self.retry.redeliver(cid) == is_dead

    async def _resubmit(self, cid: str, job: Job) -> None:
        old = await self.retry.get(cid)
        if old.ok is not False:
            with pytest.raises(InvalidState):
                await self.retry.resubmit(cid)
        elif await self.is_full():
            with pytest.raises(BackendFull):
                await self.retry.resubmit(cid)
        else:
            new = await self.retry.resubmit(cid)
            assert new not in self.jobs
            now = self.now()
            self.jobs[new] = Job(job.n, job.target, job.callback, job.policy, now, now)
            found = await self.retry.get(new)
            assert found.resubmit_of == cid
            assert (found.source, found.orig_cid) == (old.source, old.orig_cid)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, timeout=st.sampled_from([0, 1, 20]))
    def wait(self, pick: int, timeout: float) -> None:
        cid, _ = self.pick(pick)
        self.run(self._wait(cid, timeout))

    async def _wait(self, cid: str, timeout: float) -> None:
        until = self.now() + timeout
        try:
            outcome = await self.retry.wait(cid, timeout)
        except TimeoutError:
            assert self.now() == until
            return
        assert self.now() <= until
        assert outcome.reason == (await self.retry.get(cid)).reason

    @rule(
        state=st.sampled_from([None, None, *UNFINISHED, *FINAL, "dead"]),
        service=st.sampled_from([None, "a", "b"]),
        error_type=st.sampled_from([None, None, "ValueError", "TimeoutError"]),
        limit=st.sampled_from([1, 3, 1_000]),
        after=st.none() | picks,
    )
    def search(self, after: int | None, service: str | None, **query: Any) -> None:
        self.run(self._search(after, {**query, "target": service}))

    async def _search(self, after: int | None, query: dict[str, Any]) -> None:
        cids = list(reversed(self.jobs))
        if after is not None and cids:
            cid, _ = self.pick(after)
            cids = cids[cids.index(cid) + 1 :]
            query["after"] = cid
        state, target, error_type = query["state"], query["target"], query["error_type"]
        expected = [
            found
            for found in [await self.retry.get(cid) for cid in cids]
            if (state is None or found.state == state)
            and (target is None or found.target == target)
            and (error_type is None or (found.error and found.error.type == error_type))
        ]
        assert await self.retry.search(**query) == expected[: query["limit"]]

    @rule(seconds=st.sampled_from([0, 0, 0.5, 1, 1, 5, 20, 100, 2e4]))
    def pass_time(self, seconds: float) -> None:
        self.run(self._pass_time(seconds))

    async def _pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for _ in range(30):
            await asyncio.sleep(0)
        if self.retry.health().running == 0:  # then nothing may wait that is due
            for cid in self.jobs:
                found = await self.retry.get(cid)
                due = found.next_attempt_at
                assert due is None or due.timestamp() > self.retry.clock.utc() - 1e-3, found

    @rule(is_refused=st.sampled_from([False, False, True]))
    def change_the_model(self, is_refused: bool) -> None:
        Order.is_refused = is_refused

    # What always holds.

    @invariant()
    def all_is_well(self) -> None:
        assert not self.faults, self.faults
        if hasattr(self, "retry"):
            self.run(self._check())

    async def _check(self) -> None:
        health, counts = self.retry.health(), await self.retry.counts()
        assert health.ok or self.is_leaving
        assert 0 <= health.running <= self.max_running
        states = [await self._check_one(cid, job) for cid, job in self.jobs.items()]
        assert counts == {state: states.count(state) for state in counts}
        assert [found.call_cid for found in await self.retry.search(limit=10_000)] == list(
            reversed(self.jobs)
        )

    async def _check_one(self, cid: str, job: Job) -> str:
        found = await self.retry.get(cid)
        assert found.attempts <= 1 + job.policy.repeats
        assert job.calls <= found.attempts <= job.calls + 1  # one may be about to begin
        assert found.deliveries <= 1 + TOLD.repeats
        assert (found.state == "running") >= job.is_inside or found.reason is not None
        due = found.next_attempt_at
        if found.state == "waiting" and job.is_exact and found.attempts and due is not None:
            utc = self.retry.clock.utc() + job.not_before - self.now()
            assert abs(due.timestamp() - utc) < 1e-3, job
        if found.state in FINAL and job.callback is not None:
            assert job.delivered == 1
        if found.state == "dead":
            assert job.delivered == 0
        if found.reason is None:
            assert found.state in UNFINISHED
            assert job.outcome is None
            return found.state
        outcome = (await self.retry.wait(cid)).model_dump_json()
        assert job.outcome in (None, outcome)  # never changes
        job.outcome = outcome
        assert job.told <= {outcome}
        self._check_reason(found, job)
        return found.state

    def _check_reason(self, found: Invocation, job: Job) -> None:
        if job.expected is not None:
            possible = {job.expected}
            if job.policy.deadline is not None and job.expected != "cancelled":
                possible.add("deadline")
        elif self.is_leaving:
            possible = {"abandoned", "succeeded", "permanent", "exhausted", "deadline", "parked"}
        else:
            possible = {"deadline", "parked"}
        assert found.reason in possible
        assert found.ok == (found.reason == "succeeded")
        if found.reason == "exhausted":
            assert found.attempts == 1 + job.policy.repeats
        if found.reason == "deadline":
            assert job.policy.deadline is not None

    # Leaving.

    def teardown(self) -> None:
        try:
            if hasattr(self, "retry"):
                self.run(self._leave())
        finally:
            Order.is_refused = False
            logging.getLogger("invoke_retry").removeHandler(self.left)
            self.runner.close()

    async def _leave(self) -> None:
        self.is_leaving = True
        began = self.now()
        await self.retry.__aexit__(None, None, None)
        ended = self.now()
        if self.grace is not None:
            assert ended <= began + self.grace + 5
        if self.calls:
            await asyncio.wait(self.calls)
        await asyncio.sleep(100)  # what ignored its cancellation ends
        assert not self.faults, self.faults
        await self._check()
        delivered = left = without = dead = ties = 0
        for cid, job in self.jobs.items():
            found = await self.retry.get(cid)
            assert found.reason is not None
            assert found.state in ("notifying", "dead", *FINAL)
            if job.callback is None:
                without += 1
            elif found.state in FINAL:
                delivered += 1
            elif found.state == "dead":
                dead += 1
            else:
                left += 1
                assert cid in self.left.cids
            if cid in self.left.cids and job.delivered:  # in the very moment of the end
                assert (found.state, job.delivered_at) == ("notifying", ended)
                ties += 1
        assert delivered + without + dead + left == len(self.jobs)
        assert delivered + ties == sum(job.delivered for job in self.jobs.values())
        assert self.retry.health().running == 0


class _Left(logging.Handler):
    """Keeps the ids of which leaving says that nobody was told."""

    def __init__(self) -> None:
        super().__init__()
        self.cids: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("left with"):
            self.cids.update(message.split(": ", 1)[1].split())


async def play(step: Step) -> int:
    if step.kind == "hang":
        await asyncio.sleep(1e4)
    try:
        await asyncio.sleep(step.seconds)
    except asyncio.CancelledError:
        if step.kind != "stubborn":
            raise
        await asyncio.sleep(3)
    match step.kind:
        case "fail":
            raise ValueError("no")
        case "group":
            raise ExceptionGroup("no", [ValueError("no"), KeyError("no")])
        case "permanent":
            raise PermanentError
        case "after":
            raise RetryAfter(3)
        case "cancelled":
            raise asyncio.CancelledError
        case "exit":
            raise SystemExit(3)
        case "base":
            raise OddError
        case _:
            return 7


TestUse = Use.TestCase
TestUse.settings = settings(
    max_examples=int(environ.get("HYPOTHESIS_MAX_EXAMPLES", "120")),
    stateful_step_count=40,
    report_multiple_bugs=False,
    deadline=None,
)
