"""`demo`: a tour of 20 seconds on a temporary store, with a real worker and real commands."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import anyio
import typer
from rich.text import Text

from invoke_retry.cli import shop
from invoke_retry.cli.commands import WORKING, command
from invoke_retry.cli.errors import CommandError, ExitCode
from invoke_retry.cli.options import JsonOption
from invoke_retry.cli.output import Output
from invoke_retry.cli.signals import cancelled_by_signals
from invoke_retry.cli.stores import ENVIRONMENT
from invoke_retry.coordinator import InvokeRetry

_STORE = "retries.db"
_PATIENCE = 20.0
_END_SECONDS = 5.0
_READING_SECONDS = 0.9
_ORDERS = 12
_TYPED = 7  # characters of a cid that a person types
_WIDEST = 100


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "demo", WORKING)
    async def demo(
        fast: Annotated[bool, typer.Option("--fast", help="Without pauses to read.")] = False,
        as_json: JsonOption = False,
    ) -> int:
        """A tour of 20 seconds: services that fail, a worker that is killed, and these commands.

        It needs nothing, runs on a temporary store, and leaves nothing behind.
        """
        out = Output("demo", as_json=as_json)
        with (
            cancelled_by_signals() as told,
            TemporaryDirectory(prefix="invoke-retry-demo-") as folder,
        ):
            await _tour(Stage(out, Path(folder), is_slow=out.is_terminal and not fast))
        return 128 + told[0] if told else ExitCode.DONE


class Stage:
    """A folder with the shop in it, and what is said, typed and seen there.

    Args:
        is_slow: Give time to read.
    """

    def __init__(self, out: Output, folder: Path, *, is_slow: bool) -> None:
        self.out = out
        self.folder = folder
        self._pause = _READING_SECONDS if is_slow else 0.0
        self._acts: list[dict[str, Any]] = []
        source = Path(shop.__file__).read_text("utf-8")
        (folder / "shop.py").write_text(source, "utf-8")
        package = str(Path(shop.__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._environment = {
            **os.environ, ENVIRONMENT: f"sqlite:///{_STORE}", "PYTHONPATH": path,
        }  # fmt: skip

    # What is said.

    def act(self, title: str, text: str) -> None:
        """Begin a part of the tour."""
        self._acts.append({"title": title, "commands": []})
        if self.out.as_json:
            return
        number = len(self._acts)
        self.out.print("", Text.assemble((f" {number} ", "bold reverse"), " ", (title, "bold")))
        self.say(text)

    def say(self, text: str) -> None:
        """Say something to the reader."""
        if not self.out.as_json:
            width = min(_WIDEST, self.out.console.width) if self.out.is_terminal else None
            self.out.console.print(Text(text, "dim"), width=width, soft_wrap=width is None)

    def code(self, text: str, prompt: str = ">>>") -> None:
        """Show what the program does."""
        if not self.out.as_json:
            self.out.print(Text(f"{prompt} {text}", "cyan"))

    def answer(self, cid: str) -> None:
        """Show what it was given."""
        if not self.out.as_json:
            self.out.print(Text(f"'{cid}'", "cyan"))

    def typed(self, line: str) -> None:
        """Show what a person would type."""
        if not self.out.as_json:
            self.out.print(Text(f"$ {line}", "bold green"))

    def end(self) -> None:
        """Print the whole tour as JSON, if it was asked for."""
        if self.out.as_json:
            self.out.json({"acts": self._acts})

    async def pause(self, times: float = 1) -> None:
        """Give the reader time."""
        await anyio.sleep(self._pause * times)

    # What is done.

    async def run(self, *arguments: str, pauses: float = 1) -> None:
        """Run one of the commands, as a person would, and give time to read."""
        line = shlex.join(["invoke-retry", *arguments])
        self.typed(line)
        sys.stdout.flush()
        as_json = self.out.as_json
        done = await anyio.run_process(
            [*_COMMAND, *arguments, *(["--json"] if as_json else [])],
            cwd=self.folder, env=self._environment, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if as_json else None, stderr=None,
            start_new_session=True,  # Ctrl-C is for the tour, which ends it then
        )  # fmt: skip
        if done.returncode:
            raise _gone_wrong(f"'{line}' ended with {done.returncode}")
        if as_json:
            told = json.loads(done.stdout)
            self._acts[-1]["commands"].append({"command": line, "data": told["data"]})
        await self.pause(pauses)

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[int]:
        """A worker, which is told to leave at the end, unless it is dead by then; its pid."""
        self.typed("invoke-retry worker shop:retry &")
        log = self.folder / "worker.log"
        with log.open("w") as file:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 (it takes no time, and is this very program)
                [*_COMMAND, "worker", "shop:retry"],
                cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file,
            )  # fmt: skip
        try:

            async def has_begun() -> bool:
                if process.poll() is not None:
                    raise _gone_wrong(f"the worker has not begun: {log.read_text()}")
                return "runs" in log.read_text()

            await self.until(has_begun, "the worker starts")
            self.say(f"[{process.pid}] runs {', '.join(sorted(shop.services))}")
            yield process.pid
        finally:
            _end(process)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until something is so.

        Raises:
            CommandError: It takes too long.
        """
        with self._status(what):
            try:
                with anyio.fail_after(_PATIENCE):
                    while not await condition():  # noqa: ASYNC110 (nothing tells when)
                        await anyio.sleep(0.02)
            except TimeoutError:
                raise _gone_wrong(f"not so within {_PATIENCE:g} s: {what}") from None

    async def until_state(self, retry: InvokeRetry, cid: str, state: str) -> None:
        """Wait until an invocation is in that state."""

        async def is_so() -> bool:
            return (await retry.get(cid)).state == state

        await self.until(is_so, f"{cid[:_TYPED]} becomes {state}")

    def _status(self, what: str) -> AbstractContextManager[object]:
        if self.out.as_json or not self.out.is_terminal:
            return nullcontext()
        return self.out.console.status(Text(what, "dim"), spinner="line")


_COMMAND = [sys.executable, "-m", "invoke_retry"]


def _gone_wrong(why: str) -> CommandError:
    return CommandError(f"the tour has gone wrong: {why}", ExitCode.NO)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _tour(stage: Stage) -> None:
    if not stage.out.as_json:
        stage.out.print(Text("invoke-retry: what fails is repeated, and nothing is lost", "bold"))
    stage.say(
        "A shop calls services that fail. This process only submits; a worker runs what is due. "
        "Both share a SQLite file."
    )
    store = f"sqlite:///{stage.folder / _STORE}"
    (stage.folder / "partner-is-down").touch()
    # its lines would stand between those of the tour
    logging.getLogger("invoke_retry").addHandler(logging.NullHandler())
    async with InvokeRetry(shop.services, backend=store, name="shop", work=False) as retry:
        async with stage.worker() as pid:
            await stage.pause()
            await _comes_back(stage, retry)
            await _first_attempt(stage, retry)
            cids = await _is_killed(stage, retry, pid)
        async with stage.worker():
            await _nothing_is_lost(stage, retry, cids)
            await _dead_letter(stage, retry)
            _go_on(stage)
    stage.end()


async def _comes_back(stage: Stage, retry: InvokeRetry) -> None:
    stage.act("A service is down, and comes back", "The caller does not wait. It gets an id.")
    order = {"number": 1, "customer": "Ada"}
    call = f'retry.invoke_async("crm.update", {json.dumps(order)}, repeats=5, seconds=0.5)'
    stage.code(f"await {call}")
    cid = await retry.invoke_async("crm.update", order, repeats=5, seconds=0.5)
    stage.answer(cid)
    await stage.until_state(retry, cid, "succeeded")
    await stage.run("show", cid[:_TYPED], pauses=3)


async def _first_attempt(stage: Stage, retry: InvokeRetry) -> None:
    stage.act(
        "The first attempt while the caller waits, the rest without it",
        "The mail provider says: come again in an hour. You need not wait that long.",
    )
    order = {"number": 2, "customer": "Grace"}
    code = f'await retry.invoke("mail.send", {json.dumps(order)}, repeats=5, seconds=1, '
    stage.code(f"{code}async_fallback=True)")
    cid = str(await retry.invoke("mail.send", order, repeats=5, seconds=1, async_fallback=True))
    stage.answer(cid)
    await stage.run("list", "--state", "waiting")
    await stage.run("run-now", cid[:_TYPED], pauses=0)
    await stage.until_state(retry, cid, "succeeded")
    stage.say("It ran, and succeeded in its second attempt.")
    await stage.pause()


async def _is_killed(stage: Stage, retry: InvokeRetry, pid: int) -> list[str]:
    stage.act(
        f"{_ORDERS} orders, and the worker is killed in the middle of them",
        "No clean end, no warning. What it had begun still stands there as running.",
    )
    stage.code("for order in orders:")
    line = '    await retry.invoke_async("stock.reserve", order, repeats=5, seconds=0.2)'
    stage.code(line, "...")
    cids: list[str] = [
        await retry.invoke_async(
            "stock.reserve", {"number": n, "customer": "Linus"}, repeats=5, seconds=0.2
        )
        for n in range(10, 10 + _ORDERS)
    ]

    async def is_in_the_middle() -> bool:
        states = [(await retry.get(cid)).state for cid in cids]
        return "running" in states and states.count("succeeded") >= _ORDERS // 4

    async def is_stopped_in_the_middle() -> bool:
        if not await is_in_the_middle():
            return False
        os.kill(pid, signal.SIGSTOP)  # else it may be through by the time that it is killed
        if await is_in_the_middle():
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    await stage.until(is_stopped_in_the_middle, "some are reserved")
    stage.typed(f"kill -9 {pid}")
    os.kill(pid, signal.SIGKILL)
    await stage.run("list", "--target", "stock.reserve", "--state", "running")
    return cids


async def _nothing_is_lost(stage: Stage, retry: InvokeRetry, cids: list[str]) -> None:
    for cid in cids:
        await stage.until_state(retry, cid, "succeeded")
    killed = [
        cid
        for cid in cids
        if any(each.error is not None for each in (await retry.get(cid)).history)
    ]
    stage.say(
        f"Another worker went on: all {len(cids)} are done. {len(killed)} had died with the first "
        "one, and were tried again."
    )
    await stage.run("counts")


async def _dead_letter(stage: Stage, retry: InvokeRetry) -> None:
    stage.act(
        "The work was done, but nobody could be told",
        "A partner is called back with the outcome, and is down. The outcome is kept: a dead "
        "letter.",
    )
    order = {"number": 3, "customer": "Barbara"}
    order_text = json.dumps(order)
    code = f'await retry.invoke_async("stock.reserve", {order_text}, repeats=5, seconds=1, '
    stage.code(f'{code}callback="partner.told")')
    cid = await retry.invoke_async(
        "stock.reserve", order, repeats=5, seconds=1, callback="partner.told"
    )
    stage.answer(cid)
    await stage.until_state(retry, cid, "dead")
    await stage.run("list", "--state", "dead")
    (stage.folder / "partner-is-down").unlink()
    stage.say("The partner is up again:")
    await stage.run("redeliver", cid[:_TYPED], pauses=0)
    await stage.until_state(retry, cid, "succeeded")
    stage.say("It was told. The reservation was not made a second time.")
    await stage.pause()


def _go_on(stage: Stage) -> None:
    stage.act(
        "Go on from here",
        "The store of this tour was a temporary one, and is gone now. For one of your own:",
    )
    if stage.out.as_json:
        return
    steps = {
        'InvokeRetry(services, backend="sqlite:///retries.db")': "in your program",
        f"export {ENVIRONMENT}=sqlite:///retries.db": "in your shell; then",
        "invoke-retry watch": "what happens, live",
        "invoke-retry list --state failed": "what went wrong",
        "invoke-retry doctor": "whether all is well",
        "invoke-retry --help": "and the rest",
    }
    widest = max(map(len, steps))
    for step, why in steps.items():
        line = Text.assemble("  ", (step.ljust(widest), "green"), "  ", (why, "dim"))
        stage.out.print(line)
    stage.say(f"The shop of this tour: {shop.__file__}")
