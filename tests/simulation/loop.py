"""An event loop in which chance decides who runs next, and in which a process can die.

Everything that a process of the simulation does runs in contexts that carry it (`PROCESS`): its
tasks, its timers and its callbacks inherit that from each other. When it dies nothing of it runs
any more, as after `kill -9`: no `finally`, no `except`, no callback.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import TYPE_CHECKING, Any, cast

from invoke_retry.testing import VirtualLoop

EPOCH = 1_800_000_000.0
_GC_ODDS = 0.02

PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)

if TYPE_CHECKING:
    Handles = deque[asyncio.Handle]
else:
    Handles = deque


class Process:
    """What lives and dies as one.

    Attributes:
        is_dead: Nothing of it runs any more.
        writes_left: At the end of so many writes to its store it is killed.
        on_death: What else has to happen at once when it dies.
        connections: What it has open.
        look_seconds: How often it looks for what others have written.
    """

    def __init__(self, number: int, chance: Random, look_seconds: float) -> None:
        self.look_seconds = look_seconds
        self.connections: list[sqlite3.Connection] = []
        self.number = number
        self.chance = chance
        self.is_dead = False
        self.writes_left = math.inf
        self.on_death: list[Callable[[], None]] = []

    def die(self) -> None:
        """As `kill -9` has it."""
        if not self.is_dead:
            self.is_dead = True
            for each in self.on_death:
                each()


class SeededLoop(VirtualLoop):
    """Virtual time, and a seeded choice among what is ready.

    What is ready at the same time runs in any order, as far as it belongs to different tasks;
    plain callbacks keep theirs, which asyncio promises. Nothing overtakes what was ready in an
    earlier round: a task that yields (`sleep(0)`) lets all others run. In between garbage is
    collected, so that a task which nobody holds is lost for certain.

    The choice does not hang on addresses or hashes: tasks are numbered.
    """

    _ready: Handles  # asyncio's own queue

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self._tasks_made = 0
        self._ready = _Mixed(chance)
        setattr(self.clock, "_utc_at_zero", EPOCH)  # exactly, whatever time it really is

    def create_task(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Make a task, and number it."""
        self._tasks_made += 1
        task = cast("Any", super().create_task(coro, **kwargs))
        task.seeded_number = self._tasks_made
        context: Context | None = kwargs.get("context")
        task.process = PROCESS.get() if context is None else context.get(PROCESS)
        return task


MOST_STEPS = 300_000  # some hundred times what a usual run takes


class _Mixed(Handles):
    """Hands out a round of what is ready in an order of chance."""

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self._chance = chance
        self._left = 0
        self._handed = 0

    def popleft(self) -> asyncio.Handle:
        self._handed += 1
        if self._handed == MOST_STEPS:
            raise RuntimeError(f"the run has not ended after {MOST_STEPS:,} steps")
        if self._left == 0:
            self._left = len(self)
            if self._left > 1:
                self._mix()
            if self._chance.random() < _GC_ODDS:
                gc.collect()
        self._left -= 1
        handle = super().popleft()
        process = cast("Context", getattr(handle, "_context")).get(PROCESS)
        if process is not None and process.is_dead:
            handle.cancel()
        return handle

    def _mix(self) -> None:
        steps: list[tuple[int, asyncio.Handle]] = []
        plain: list[asyncio.Handle] = []
        for handle in self:
            owner = getattr(getattr(handle, "_callback", None), "__self__", None)
            number = getattr(owner, "seeded_number", 0)
            if number:
                steps.append((number, handle))
            else:
                plain.append(handle)
        if not steps:
            return
        # sorted first, so that the order does not hang on that of a set
        steps.sort(key=lambda step: step[0])
        tasks = [handle for _, handle in steps]
        self._chance.shuffle(tasks)
        self.clear()
        while tasks and plain:
            from_tasks = self._chance.random() * (len(tasks) + len(plain)) < len(tasks)
            self.append((tasks if from_tasks else plain).pop(0))
        self.extend(tasks or plain)
