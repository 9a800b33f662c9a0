"""An event loop in virtual time, for tests that wait for hours and take milliseconds.

asyncio blocks in one place only: the selector's `select`, and there only when no callback is
ready. So that is where time moves, in one of three ways:

- something real is under way (see `VirtualLoop`): wait for it, and count the seconds waited;
- otherwise a timer is set: jump to its own time, without waiting;
- otherwise nothing can ever happen again: raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import time
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["VirtualClock", "VirtualLoop"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_TASKS_SHOWN = 10  # of at most _TASK_WIDTH characters each
_TASK_WIDTH = 300


class VirtualClock:
    """The clock of a `VirtualLoop`, which satisfies `invoke_retry.clock.Clock`.

    Both its times move with the loop's; the wall clock can also be stepped alone.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        """Make the clock of *loop*, whose `utc` is the real one now."""
        self._loop = loop
        self._utc_at_zero = time.time() - loop.time()

    def monotonic(self) -> float:
        """Return the loop's time, in virtual seconds since the loop was made."""
        return self._loop.time()

    def utc(self) -> float:
        """Return seconds since the Unix epoch.

        That is the real UTC when the loop was made, plus the virtual seconds passed since, plus
        all steps.
        """
        return self._utc_at_zero + self._loop.time()

    def step(self, seconds: float) -> None:
        """Step the wall clock, as an administrator or NTP might; `monotonic` does not notice.

        Args:
            seconds: Seconds to add to `utc`; negative ones step it back.

        Raises:
            ValueError: *seconds* is infinite or not a number.
        """
        if not math.isfinite(seconds):
            raise ValueError(f"a clock steps by a finite number of seconds, not {seconds}")
        self._utc_at_zero += seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to its next timer when nothing else can run.

    For `asyncio.Runner(loop_factory=VirtualLoop)`. Time starts at 0.0 seconds. It moves only
    while the loop has nothing to run: the seconds that callbacks take do not count. Timers run
    in order and exactly: after `await asyncio.sleep(x)` at time t, `time()` is `t + x`.

    The loop does not jump while something real is under way: an executor job (even an abandoned
    one, whose future was cancelled while its thread goes on), a subprocess, a file descriptor
    (sockets, pipes, `add_reader`), or a section held by `hold`. Then it waits as any loop does,
    and time passes second for second, so that timers still run.

    A loop that nothing can wake any more raises RuntimeError out of `run_until_complete`, hence
    out of `Runner.run`, and lists the tasks that wait. It knows nothing of threads other than
    executor jobs, nor of signals: hold it (`hold`) while it waits for them, for instance round
    `await anyio.to_thread.run_sync(...)`.

    Polling freezes time: a loop that always has a callback ready (`while ...: await sleep(0)`,
    or a callback that calls `call_soon` for ever) is never idle. Wait for an event, or sleep
    for more than 0 seconds, instead.

    Attributes:
        clock: The loop's clock, whose wall clock moves along with `time`.
    """

    # What asyncio keeps private and this class needs:
    _scheduled: list[asyncio.TimerHandle]  # the heap of timers: its head has the exact next time
    _clock_resolution: float  # how early timers may run: see _move_to
    _default_executor: ThreadPoolExecutor | None  # to watch the jobs that go to it
    _check_default_executor: Callable[[], None]  # raises if that has been shut down

    def __init__(self) -> None:
        """Make a loop at time 0.0, which is now in UTC."""
        self._now = 0.0
        self._holds = 0
        self._processes = weakref.WeakSet[asyncio.SubprocessTransport]()
        self._idle_selector = _IdleSelector(self._jump, self._pass_real_time)
        super().__init__(self._idle_selector)
        self._own_fds = len(self._idle_selector.get_map())  # the pipe to wake itself
        self._move_to(0.0)
        self.clock = VirtualClock(self)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._now

    @contextlib.contextmanager
    def hold(self) -> Generator[None]:
        """Let time pass as real time does while the `with` block is open.

        For waits on what the loop cannot see: threads other than executor jobs, signals. Blocks
        may nest and overlap. Enter and leave them in the loop's own thread, in async code or not.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Run *func* in an executor, as asyncio does; time does not jump until it has ended."""
        if executor is None:
            self._check_default_executor()
            executor = self._default_executor
            if executor is None:
                executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
                self.set_default_executor(executor)
        watched = _WatchedExecutor(executor)
        future = super().run_in_executor(watched, func, *args)
        # Two holds: the future may be cancelled long before the job ends, and a job ends just
        # before the future has its outcome.
        self._holds += 2
        future.add_done_callback(self._release)
        watched.job.add_done_callback(self._release_threadsafe)
        return future

    def _release(self, _: object) -> None:
        self._holds -= 1

    def _release_threadsafe(self, _: object) -> None:
        with contextlib.suppress(RuntimeError):  # an abandoned job may outlive the loop
            self.call_soon_threadsafe(self._release, None)

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Shut the default executor down, as asyncio does, in real time."""
        with self.hold():  # asyncio waits here for a thread of its own
            await super().shutdown_default_executor(*args, **kwargs)

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        """Start a subprocess, as asyncio does; time does not jump until it has ended."""
        return await self._watch_process(super().subprocess_exec(*args, **kwargs))

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:
        """Start a shell command, as asyncio does; time does not jump until it has ended."""
        return await self._watch_process(super().subprocess_shell(*args, **kwargs))

    async def _watch_process(self, start: Awaitable[tuple[asyncio.SubprocessTransport, _T]]) -> Any:
        with self.hold():
            transport, protocol = await start
        self._processes.add(transport)
        return transport, protocol

    def _must_wait(self) -> bool:  # for something real under way, which could wake the loop
        return (
            self._holds > 0
            or len(self._idle_selector.get_map()) > self._own_fds
            # Where a thread waits for the process no file descriptor tells of it.
            or any(process.get_returncode() is None for process in self._processes)
        )

    def _next_timer(self) -> float:
        return self._scheduled[0].when() if self._scheduled else math.inf

    def _move_to(self, now: float) -> None:
        self._now = now
        # asyncio runs the timers before now + resolution. The distance to the next float makes
        # that "up to now", however large now is: none runs early, none is missed for ever.
        self._clock_resolution = math.ulp(now)

    def _jump(self) -> bool:  # says whether it did
        if self._must_wait():
            return False
        when = self._next_timer()
        if when == math.inf:
            raise RuntimeError(self._describe_standstill())
        self._move_to(when)
        return True

    def _pass_real_time(self, seconds: float) -> None:
        # At most to the next timer, so that it finds exactly its own time.
        self._move_to(min(self._now + seconds, self._next_timer()))

    def _describe_standstill(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=asyncio.Task[Any].get_name)
        lines = [
            "VirtualLoop can never wake: no callback is ready, no timer is set, and no executor "
            "job, subprocess, file descriptor or held section is open. If another thread or a "
            "signal is to wake it, wait inside `with loop.hold():`. "
            f"Pending tasks: {len(tasks) or 'none'}",
            *(f"  {repr(task)[:_TASK_WIDTH]}" for task in tasks[:_TASKS_SHOWN]),
        ]
        if len(tasks) > _TASKS_SHOWN:
            lines.append(f"  and {len(tasks) - _TASKS_SHOWN} more")
        return "\n".join(lines)


class _IdleSelector(selectors.DefaultSelector):
    """A selector that lets its loop jump where it would block."""

    def __init__(self, jump: Callable[[], bool], pass_real_time: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump
        self._pass_real_time = pass_real_time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0) or self._jump():
            return ready
        start = time.monotonic()
        ready = super().select(timeout)
        self._pass_real_time(time.monotonic() - start)
        return ready


class _WatchedExecutor(Executor):
    """Passes one job on to an executor and keeps it."""

    job: Future[Any]

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        job = self.job = self._executor.submit(fn, *args, **kwargs)
        return job
