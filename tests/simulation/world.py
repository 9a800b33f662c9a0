"""One run: processes that come, go and die; people who call, decide and change the clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import copy_context
from random import Random
from typing import Any, NamedTuple

from invoke_retry import Invocation, InvokeRetry, ServiceRegistry
from invoke_retry.backends import Backend, MemoryBackend

from .calls import CALLER, Calls
from .journal import Journal
from .loop import PROCESS, Process, SeededLoop
from .plan import CALLBACKS, TARGETS, Job, Order, draw_job, draw_shape
from .services import Services
from .store import Disk, SimulatedSQLite, bury

NAMES = (*TARGETS, *CALLBACKS)
_GAPS = (0, 0, 0, 0.01, 0.3, 1, 2.5)
_FOR_EVER = 1e9
_DRAIN_SECONDS = 3_000
_POLL_SECONDS = 0.05
UNFINISHED = ("waiting", "running", "notifying", "parked")


class Life:
    """A process, and its coordinator."""

    def __init__(self, world: World, process: Process, names: tuple[str, ...]) -> None:
        self._world = world
        self.process = process
        self.context = copy_context()
        self.context.run(PROCESS.set, process)
        self.callers: set[asyncio.Task[None]] = set()
        self.services = ServiceRegistry()
        self.add_services(names)
        shape = world.shape
        self.retry = InvokeRetry(
            self.services,
            backend=world.backend(),
            max_running=shape.max_running,
            callback_policy=shape.told,
            grace=shape.grace,
            random=Random(world.chance.random()),
            hooks=[self._hear] if shape.is_observed else (),
        )
        world.own_cids.add(self.retry.own_caller.cid)

    def add_services(self, names: tuple[str, ...]) -> None:
        self._world.services.register(self.services, names)

    def _hear(self, event: Any) -> None:
        reason = getattr(event, "reason", "")
        self._world.write("hook", event.cid, text=f"{type(event).__name__} {reason}")

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in this process."""
        task: asyncio.Task[Any] = self._world.loop.create_task(
            coroutine, context=self.context.copy()
        )
        return task

    async def over(self, task: asyncio.Task[Any]) -> bool:
        """Wait for something in this process; False if it died before."""
        while not task.done() and not self.process.is_dead:  # noqa: ASYNC110  (it may be dropped)
            await asyncio.sleep(_POLL_SECONDS)
        if self.process.is_dead:
            return False
        task.result()
        return True

    async def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What comes of something in this process, which is not to die meanwhile."""
        task = self.spawn(coroutine)
        assert await self.over(task)
        return task.result()

    async def leave(self) -> None:
        write = self._world.write
        write("leaving")
        await self.retry.__aexit__(None, None, None)
        write("left")


class Epoch(NamedTuple):
    """A store that has come to its end.

    Attributes:
        process: The number of the last one that had it.
        at: When it was looked at.
    """

    records: list[Invocation]
    counts: dict[str, int]
    process: int
    at: float


class World:
    """What a seed stands for.

    Attributes:
        own_cids: What coordinators give as `orig_cid` outside any service.
        logged: How many lines they have logged.
        epochs: Of each store that has come to its end.
        problems: What was seen to be wrong while it ran.
    """

    def __init__(self, loop: SeededLoop, seed: int, disk: Disk | None) -> None:
        self.loop = loop
        self.chance = Random(f"{seed} world")
        self.shape = draw_shape(self.chance, Random(f"{seed} special"))
        if disk is not None:
            self.shape = self.shape._replace(retention=None)
        self.disk = disk
        self.journal = Journal()
        self.jobs: list[Job] = []
        self.by_cid: dict[str, Job] = {}
        self.known: list[str] = []
        self.lives: list[Life] = []
        self.dead: list[Life] = []
        self.services = Services(self)
        self.calls = Calls(self)
        self.epochs: list[Epoch] = []
        self.problems: list[str] = []
        self.left_cids: set[str] = set()
        self.own_cids: set[str] = set()
        self.logged = 0
        self._processes = 0
        self._is_over = False
        Order.is_refused = False

    def write(
        self, kind: str, cid: str = "", number: int = 0, text: str = "", caller: int = 0,
        detail: str = "",
    ) -> None:  # fmt: skip
        """Write a line into the journal, unless whoever does is dead."""
        process = PROCESS.get()
        if not self._is_over and (process is None or not process.is_dead):
            at, by = self.loop.time(), process.number if process else 0
            self.journal.write(at, by, kind, str(cid), number, text, caller, detail)

    def backend(self) -> Backend:
        """Where the next life keeps what it accepts."""
        shape = self.shape
        if self.disk is None:
            return MemoryBackend(
                max_waiting=shape.max_waiting, park_for=shape.park_for,
                retention=shape.retention or _FOR_EVER,
                dead_retention=2 * (shape.retention or _FOR_EVER),
            )  # fmt: skip
        return SimulatedSQLite(
            self.disk.path, synchronous="normal", max_waiting=shape.max_waiting,
            park_for=shape.park_for, retention=_FOR_EVER, dead_retention=_FOR_EVER,
        )  # fmt: skip

    def new_job(self, *, is_child: bool = False) -> Job:
        job = draw_job(self.chance, len(self.jobs), is_child=is_child)
        if self.shape.retention is not None:
            job.key = None  # it would be another invocation after the first one is pruned
        self.jobs.append(job)
        return job

    def accepted(self, job: Job, cid: str, how: str) -> None:
        """Somebody has got an id."""
        self.write("accepted", cid, job.n, how, CALLER.get())
        job.cids.append(cid)
        if cid not in self.by_cid:
            self.by_cid[cid] = job
            self.known.append(cid)

    # The whole run.

    async def run(self) -> None:
        await self._start(NAMES)
        for _ in range(self.shape.actions):
            await asyncio.sleep(self.chance.choice(_GAPS) * self.shape.hurry)
            await self._act()
        await self._drain()

    async def _act(self) -> None:
        chance, shape = self.chance, self.shape
        if not self.lives:
            await asyncio.sleep(chance.choice((0, 1, 20)))
            await self._start_some()
        elif chance.random() < shape.odds_of_restart:
            await self._end(chance.choice(self.lives))
            return
        elif self.disk is not None and len(self.lives) < shape.most_processes:
            await self._start_some()
        if not self.lives:  # killed while it opened the store
            return
        life = chance.choice(self.lives)
        draw = chance.random()
        if draw < shape.odds_of_call or not self.known:
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                mode = chance.choice(("async", "async", "fallback", "fallback", "inline"))
                self.calls.submit(life, self.new_job(), mode)
        else:
            self._act_on_known(life, chance.choice(self.known))

    def _act_on_known(self, life: Life, cid: str) -> None:
        chance, calls, job = self.chance, self.calls, self.by_cid[cid]
        match chance.choice((
            "cancel", "cancel", "run_now", "run_now", "redeliver", "resubmit", "wait", "wait",
            "again", "conflict", "step", "spoil", "pause", "pause",
        )):  # fmt: skip
            case "cancel" | "run_now" | "redeliver" as what:
                calls.decide(life, what, cid)
            case "resubmit":
                calls.resubmit(life, job, cid)
            case "wait":
                calls.wait(life, cid, chance.choice((0.5, 3, None)))
            case "again" if job.key == cid:
                calls.submit(life, job, chance.choice(("async", "fallback")))
            case "conflict" if job.key == cid:
                calls.conflict(life, job)
            case "step":
                seconds = chance.choice((-86_400, -3, 7, 86_400))
                self.write("step", text=str(seconds))
                self.loop.clock.step(seconds)
            case "spoil":
                Order.is_refused = not Order.is_refused
                self.write("spoil", text=str(Order.is_refused))
            case "pause" if self.shape.has_pauses:
                calls.set_paused(life, chance.choice(NAMES), paused=chance.random() < 0.6)
            case _:
                pass

    # Processes.

    async def _start_some(self) -> None:
        absent = self.chance.choice(("", "", "", "c", "told.plain"))
        await self._start(tuple(name for name in NAMES if name != absent), mortal=True)

    async def _start(self, names: tuple[str, ...], *, mortal: bool = False) -> None:
        self._processes += 1
        seed = self.chance.random()
        process = Process(self._processes, Random(seed), self.shape.look_seconds)
        is_mortal = (mortal or self.chance.random() < 0.5) and self.disk is not None
        if is_mortal and self.chance.random() < 0.7:
            process.writes_left = self.chance.choice((3, 20, 40, 80, 150))
        life = Life(self, process, names)
        process.on_death.append(lambda: self._on_death(life))
        self.lives.append(life)
        self.write("start", number=process.number, text=" ".join(names))
        await life.over(life.spawn(life.retry.__aenter__()))

    def _on_death(self, life: Life) -> None:
        self.lives.remove(life)
        self.dead.append(life)
        at = self.loop.time()
        self.journal.write(at, life.process.number, "killed")
        if self.disk is not None and not self.lives:
            self.disk.keep_image()
        bury(life.process)

    async def _end(self, life: Life) -> None:
        if self.disk is not None and self.chance.random() < 0.5:
            life.process.die()
            return
        if await life.over(life.spawn(life.leave())):
            self.lives.remove(life)
            self.dead.append(life)
            if self.disk is None:
                await self._close_books(life)
                self.known.clear()

    async def _drain(self) -> None:
        """Let all come to its end: everything is there, nothing is paused, nobody dies."""
        Order.is_refused = False
        for life in self.lives:
            life.process.writes_left = float("inf")
        if not self.lives:
            await self._start(NAMES)
            for life in self.lives:
                life.process.writes_left = float("inf")
        if not self.lives:
            await self._start(NAMES)
        life = self.lives[0]
        life.process.writes_left = float("inf")
        self.write("drain")
        for each in self.lives:
            each.add_services(NAMES)
        began = self.loop.time()
        while True:
            callers = any(
                each.callers for each in self.lives + self.dead if not each.process.is_dead
            )
            for name in sorted(await life.do(life.retry.paused())):
                await life.do(life.retry.resume(name))
            parked = await life.do(life.retry.search(state="parked"))
            for found in parked:
                self.write("run_now?", found.call_cid)
                await life.do(life.retry.run_now(found.call_cid))
            counts = await life.do(life.retry.counts())
            runs = sum(each.retry.health().running for each in self.lives)
            if not callers and not runs and not any(counts[state] for state in UNFINISHED):
                break
            passed = self.loop.time() - began
            if passed > _DRAIN_SECONDS:
                self.problems.append(f"it does not come to its end: {counts}, {runs=}, {callers=}")
                break
            await asyncio.sleep(max(1, passed / 10))
        for each in self.lives:
            if (health := each.retry.health()).running or not health.ok:
                self.problems.append(f"nothing is left, but health says {health}")
        if self.disk is not None:
            await self._close_books(life)
        elif self.shape.retention is not None:
            await self._close_books(life)
            await self._forget(life, self.shape.retention)
        for each in tuple(self.lives):
            if await each.over(each.spawn(each.leave())):
                self.dead.append(each)
                if self.disk is None:
                    await self._close_books(each)
        self.lives.clear()

    async def _forget(self, life: Life, retention: float) -> None:
        """Let the retention of all pass."""
        await asyncio.sleep(2 * retention + 1)
        if kept := await life.do(life.retry.search(limit=100_000)):
            self.problems.append(f"I8: all are over, and {kept} are kept until now")

    async def _close_books(self, life: Life) -> None:
        records = await life.do(life.retry.search(limit=100_000))
        counts, at = await life.do(life.retry.counts()), self.loop.time()
        self.epochs.append(Epoch(records, counts, life.process.number, at))

    def hear(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What went wrong where nobody waited for it; nobody does in a process that died."""
        text = context["message"]
        if not ("never retrieved" in text and any(each.process.is_dead for each in self.dead)):
            self.problems.append(f"the loop: {text} {context.get('exception')!r}")

    def end(self) -> None:
        """Clear away what dead processes have left in memory."""
        self._is_over = True
        for task in asyncio.all_tasks(self.loop) - {asyncio.current_task()}:
            setattr(task, "_log_destroy_pending", False)
            coroutine = task.get_coro()
            for _ in range(5):  # those that wait once more when they are closed
                with suppress(BaseException):
                    assert coroutine is not None
                    coroutine.close()
                    break


class Ears(logging.Handler):
    """Hears what the coordinator says of itself."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.logged += 1
        if record.levelno >= logging.ERROR:
            text = record.getMessage()
            if text.startswith("left with "):
                self._world.left_cids.update(text.split(": ", 1)[1].split())
            else:
                self._world.problems.append(f"logged: {text} {record.exc_info}")
