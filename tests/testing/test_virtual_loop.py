"""VirtualLoop: when its time moves, and when it does not."""

import asyncio
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invoke_retry.testing import VirtualLoop

if TYPE_CHECKING:
    from invoke_retry.clock import Clock

T = TypeVar("T")
REAL = 0.05  # seconds of real time, where a test has to let some pass
HOUR = 3600.0
YEAR = 365 * 86400.0


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))


@pytest.fixture(autouse=True)
def no_unexpected_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs what goes wrong in callbacks, and nothing else at this level."""
    with caplog.at_level(logging.WARNING):
        yield
    assert not caplog.records


async def check_real_time_passes(loop: VirtualLoop) -> None:
    """Sleep, exactly, in real time."""
    started, at = time.monotonic(), loop.time()
    await asyncio.sleep(REAL)
    assert loop.time() == at + REAL
    assert time.monotonic() - started >= REAL * 0.99  # clocks of different grain


async def check_time_jumps(loop: VirtualLoop) -> None:
    """Sleep longer than any test may take."""
    at = loop.time()
    await asyncio.sleep(YEAR)
    assert loop.time() == at + YEAR


# Jumps


@pytest.mark.parametrize("seconds", [1e-9, 0.1, 1.0, HOUR, YEAR, 100 * YEAR, 1e18, 1e300])
def test_sleep_is_exact(seconds: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        for _ in range(3):
            at = loop.time()
            await asyncio.sleep(seconds)
            assert loop.time() == at + seconds
            await asyncio.sleep(0)
            assert loop.time() == at + seconds

    run(main)


@given(
    start=st.floats(0, 1e12),
    delays=st.lists(st.floats(0, 1e10) | st.floats(0, 1e-6), max_size=20),
)
def test_timers_run_in_order_and_exactly(start: float, delays: list[float]) -> None:
    async def main(loop: VirtualLoop) -> None:
        await asyncio.sleep(start)
        ran: list[tuple[float, float]] = []
        for delay in delays:
            loop.call_at(start + delay, lambda when: ran.append((loop.time(), when)), start + delay)
        await asyncio.sleep(1e11)
        whens = sorted(start + delay for delay in delays)
        assert ran == [(when, when) for when in whens]

    run(main)


def test_a_cancelled_timer_is_not_jumped_to() -> None:
    async def main(loop: VirtualLoop) -> float:
        for _ in range(300):  # enough for asyncio to sweep its heap
            loop.call_later(1, print).cancel()
        await asyncio.sleep(10)
        return loop.time()

    assert run(main) == 10.0


def test_timeouts_and_tasks_share_the_time() -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        assert loop.time() == 5.0
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(HOUR))
            group.create_task(asyncio.sleep(2 * HOUR))
        assert loop.time() == 5.0 + 2 * HOUR

    run(main)


def test_polling_freezes_time() -> None:
    async def main(loop: VirtualLoop) -> None:
        sleeper = asyncio.create_task(asyncio.sleep(1e-9))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not sleeper.done()
        assert loop.time() == 0.0
        await sleeper

    run(main)


def test_debug_mode() -> None:
    with asyncio.Runner(loop_factory=VirtualLoop, debug=True) as runner:
        runner.run(asyncio.sleep(YEAR))


# The clock


def test_clock_moves_with_the_loop() -> None:
    async def main(loop: VirtualLoop) -> None:
        clock: Clock = loop.clock
        assert clock.monotonic() == loop.time() == 0.0
        assert before <= clock.utc() <= time.time()
        at = clock.utc()
        await asyncio.sleep(HOUR)
        assert clock.monotonic() == HOUR
        assert clock.utc() == pytest.approx(at + HOUR, abs=1e-3)

    before = time.time()
    run(main)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_step_moves_the_wall_clock_alone(seconds: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        at = loop.clock.utc()
        loop.clock.step(seconds)
        assert loop.clock.utc() == pytest.approx(at + seconds, abs=1e-3)
        assert loop.clock.monotonic() == loop.time() == 0.0

    run(main)


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan])
def test_step_refuses_what_is_not_finite(seconds: float) -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(ValueError, match="finite"):
            loop.clock.step(seconds)

    run(main)


# Real things under way


def test_held_section() -> None:
    async def main(loop: VirtualLoop) -> None:
        with loop.hold():
            with loop.hold():
                await check_real_time_passes(loop)
            await check_real_time_passes(loop)
        await check_time_jumps(loop)

    run(main)


def test_held_section_waits_for_a_thread() -> None:
    async def main(loop: VirtualLoop) -> str:
        with loop.hold():
            return await anyio.to_thread.run_sync(lambda: "from a thread")

    assert run(main) == "from a thread"


def test_executor_job() -> None:
    async def main(loop: VirtualLoop) -> None:
        end = threading.Event()
        job = loop.run_in_executor(None, end.wait)
        await check_real_time_passes(loop)
        end.set()
        assert await job
        assert await asyncio.to_thread(lambda: 42) == 42
        await check_time_jumps(loop)

    run(main)


def test_many_executor_jobs_never_jump() -> None:
    async def main(loop: VirtualLoop) -> float:
        timer = loop.call_later(HOUR, print)
        for _ in range(500):
            await loop.run_in_executor(None, int)
        timer.cancel()
        return loop.time()

    assert run(main) < HOUR


def test_executor_of_ones_own() -> None:
    async def main(loop: VirtualLoop) -> None:
        end = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            job = loop.run_in_executor(pool, end.wait)
            waiting = loop.run_in_executor(pool, int)
            waiting.cancel()
            await check_real_time_passes(loop)
            end.set()
            await job
        await check_time_jumps(loop)

    run(main)


def test_abandoned_executor_job() -> None:
    async def main(loop: VirtualLoop) -> None:
        end = threading.Event()
        begun = asyncio.Event()

        def job() -> None:
            loop.call_soon_threadsafe(begun.set)
            end.wait()

        future = loop.run_in_executor(None, job)
        await begun.wait()
        future.cancel()
        await check_real_time_passes(loop)
        end.set()
        await check_time_jumps(loop)

    run(main)


def test_failing_executor_job() -> None:
    async def main(loop: VirtualLoop) -> None:
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        await check_time_jumps(loop)

    run(main)


def test_abandoned_executor_job_outlives_the_loop() -> None:
    async def main(loop: VirtualLoop) -> None:
        begun = asyncio.Event()

        def job() -> None:
            loop.call_soon_threadsafe(begun.set)
            end.wait()

        _ = loop.run_in_executor(pool, job)
        await begun.wait()

    end = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        run(main)
        end.set()


def test_shutdown_of_the_default_executor() -> None:
    async def main(loop: VirtualLoop) -> None:
        end = threading.Event()
        job = loop.run_in_executor(None, end.wait)
        shutdown = asyncio.create_task(loop.shutdown_default_executor())
        await check_real_time_passes(loop)
        assert not shutdown.done()
        end.set()
        await job
        await shutdown
        await check_time_jumps(loop)
        with pytest.raises(RuntimeError, match="shutdown"):
            _ = loop.run_in_executor(None, int)

    run(main)


def test_foreign_file_descriptor() -> None:
    async def main(loop: VirtualLoop) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            received = asyncio.create_task(loop.sock_recv(ours, 5))
            await check_real_time_passes(loop)
            theirs.send(b"hello")
            assert await received == b"hello"
            await check_time_jumps(loop)

    run(main)


def test_streams() -> None:
    async def main(loop: VirtualLoop) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            async with asyncio.timeout(HOUR):  # a jump would end it
                assert await reader.read() == b"hello\n"
            writer.close()
            await writer.wait_closed()
        await check_time_jumps(loop)

    run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="a selector loop has no subprocesses there")
@pytest.mark.parametrize("pipe", [None, subprocess.PIPE])
def test_subprocess(pipe: int | None) -> None:
    async def main(loop: VirtualLoop) -> None:
        process = await asyncio.create_subprocess_exec("sleep", "0.05", stdout=pipe)
        async with asyncio.timeout(HOUR):  # a jump would end it
            assert await process.wait() == 0
        shell = await asyncio.create_subprocess_shell("exit 3", stdout=pipe)
        async with asyncio.timeout(HOUR):
            await shell.communicate()
        assert shell.returncode == 3
        await check_time_jumps(loop)

    run(main)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")
def test_keyboard_interrupt_while_waiting_for_real() -> None:
    async def main(loop: VirtualLoop) -> None:
        with loop.hold():
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        run(main)


# A loop that can never wake


def test_standstill_raises_and_the_runner_closes() -> None:
    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(True)

    cleaned_up: list[bool] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        with pytest.raises(RuntimeError, match="can never wake") as caught:
            runner.run(main())
        runner.run(asyncio.sleep(1))
    message = str(caught.value)
    assert "loop.hold()" in message
    assert "Pending tasks: 1\n" in message
    assert "test_standstill_raises" in message
    assert cleaned_up == [True]


def test_standstill_lists_some_of_many_tasks() -> None:
    async def main(_: VirtualLoop) -> None:
        never = asyncio.Event()
        await asyncio.gather(*(never.wait() for _ in range(999)))

    with pytest.raises(RuntimeError, match="and 990 more") as caught:
        run(main)
    assert "Pending tasks: 1000\n" in str(caught.value)
    assert len(str(caught.value)) < 4000


def test_standstill_without_tasks() -> None:
    loop = VirtualLoop()
    with pytest.raises(RuntimeError, match="Pending tasks: none"):
        loop.run_forever()
    loop.close()


def test_a_timer_at_infinity_never_wakes() -> None:
    async def main(_: VirtualLoop) -> None:
        await asyncio.sleep(math.inf)

    with pytest.raises(RuntimeError, match="can never wake"):
        run(main)


def test_standstill_after_all_that_was_real() -> None:
    async def main(loop: VirtualLoop) -> None:
        with loop.hold():
            await asyncio.sleep(0)
        await asyncio.to_thread(int)
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="can never wake"):
        run(main)
