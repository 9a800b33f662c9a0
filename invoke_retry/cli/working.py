"""`worker`: a process that runs the background work of a coordinator, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Annotated

import anyio
import typer

from invoke_retry.cli.commands import WORKING, command
from invoke_retry.cli.errors import CommandError, ExitCode
from invoke_retry.cli.importing import coordinator_at
from invoke_retry.cli.options import JsonOption
from invoke_retry.cli.output import Output
from invoke_retry.cli.safe import clean
from invoke_retry.cli.signals import caught, end_within
from invoke_retry.coordinator import InvokeRetry
from invoke_retry.errors import InvalidState, group_members
from invoke_retry.failure import type_name

_LOG_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NAMED = 10
_AT_ONCE_SECONDS = 2.0
_THREADS_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "worker", WORKING)
    async def worker(
        place: Annotated[
            str,
            typer.Argument(
                metavar="MODULE:NAME",
                help="A coordinator that was not entered, or a function that returns one.",
            ),
        ],
        as_json: JsonOption = False,
    ) -> int:
        """Run the background work of a coordinator as a process of its own.

        SIGTERM or Ctrl-C ends it: what runs may go on for the coordinator's grace, the rest is
        given back. A second one cuts that off. The exit code says which: 0, or 128 and the number
        of the second signal; 1 if a fault has stopped it.
        """
        out = Output("worker", as_json=as_json)
        retry = await coordinator_at(place)
        # only where the module has not said itself where its log goes
        logging.basicConfig(format=_LOG_LINE)
        _check(place, retry)
        try:
            code = await _Worker(retry, out).run()
        except InvalidState as error:
            raise CommandError(f"{place}: {error}") from None
        # a thread of some service may hang: it must not hold up the end
        end_within(_THREADS_SECONDS, code)
        return code


def _check(place: str, retry: InvokeRetry) -> None:
    if not retry.works:
        raise CommandError(
            f"{place} was made with work=False: it submits and asks, but runs nothing; make one "
            "without for the worker"
        )
    if not retry.is_durable:
        raise CommandError(
            f"{place} waits in memory, where no other process can leave it any work; make it with "
            "a store, e.g. backend='sqlite:///retries.db'"
        )


class _Worker:
    """One run of a coordinator, and the signals that came meanwhile."""

    def __init__(self, retry: InvokeRetry, out: Output) -> None:
        self._retry = retry
        self._out = out
        self._told = anyio.Event()
        self._signals: list[signal.Signals] = []
        self._is_entered = False
        self._task: asyncio.Task[object] | None = None

    async def run(self) -> int:
        self._task = asyncio.current_task()
        fault: BaseException | None = None
        with caught(self._note, patience=_AT_ONCE_SECONDS):
            try:
                async with self._retry:
                    self._is_entered = True
                    self._say_begun()
                    await self._until_told()
            except asyncio.CancelledError:
                if not self._signals:  # it is somebody else's
                    raise
            except Exception as error:
                if not self._is_entered:
                    raise
                fault = _leaf(error)
        return self._end(fault)

    def _note(self, number: signal.Signals) -> None:
        self._signals.append(number)
        self._told.set()
        if self._task is not None and (len(self._signals) > 1 or not self._is_entered):
            self._task.cancel()  # leaving waits no longer

    async def _until_told(self) -> None:
        """Until a signal, or until the background has stopped by a fault."""
        ended = asyncio.create_task(self._retry.ended())
        told = asyncio.create_task(self._told.wait())
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            told.cancel()

    def _say_begun(self) -> None:
        names = sorted(self._retry.services)
        if self._out.as_json:
            self._out.json(
                {
                    "event": "begun",
                    "pid": os.getpid(),
                    "store": str(self._retry.backend),
                    "services": names,
                }
            )
            return
        shown = ", ".join(names[:_NAMED]) or "no services"
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        self._say(self._out.plain(f"runs {shown}{more} on {self._retry.backend}"))

    def _end(self, fault: BaseException | None) -> int:
        code, why = self._outcome(fault)
        if self._out.as_json:
            self._out.json({"event": "ended", "pid": os.getpid(), "code": code, "why": why})
        else:
            self._say(clean(why, lines=True))
        return code

    def _outcome(self, fault: BaseException | None) -> tuple[int, str]:
        signals = self._signals
        if fault is not None or not signals:
            told = "" if fault is None else f": {type_name(fault)}: {fault}"
            return ExitCode.NO, f"the background has stopped by a fault{told}"
        if len(signals) == 1:
            return ExitCode.DONE, f"ended after {signals[0].name}"
        return 128 + signals[1], f"cut off by a second signal, {signals[1].name}"

    def _say(self, text: str) -> None:
        self._out.note(f"invoke-retry worker {os.getpid()}: {text}")


def _leaf(error: BaseException) -> BaseException:
    """What a group of a single error is about."""
    while (members := group_members(error)) is not None and len(members) == 1:
        error = members[0]
    return error
