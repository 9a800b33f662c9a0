"""How an async function becomes a command: its errors become a line, a kind and an exit code."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

import typer
from rich.prompt import Confirm

from invoke_retry.cli.errors import CommandError, ExitCode, command_error
from invoke_retry.cli.output import console_on, print_error
from invoke_retry.cli.streams import discard_output

P = ParamSpec("P")

LOOKING = "Look"
DECIDING = "Decide"
WORKING = "Run and keep in order"


def command(
    app: typer.Typer, name: str, panel: str
) -> Callable[[Callable[P, Coroutine[Any, Any, int | None]]], Callable[P, None]]:
    """Add an async function to the commands; what it returns is the exit code, None for 0.

    Args:
        panel: Under which head of the help it stands.
    """

    def register(function: Callable[P, Coroutine[Any, Any, int | None]]) -> Callable[P, None]:
        @app.command(name, rich_help_panel=panel)
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            raise typer.Exit(_run(name, function(*args, **kwargs), kwargs.get("as_json") is True))

        return run

    return register


def _run(name: str, work: Coroutine[Any, Any, int | None], as_json: bool) -> int:
    try:
        code = asyncio.run(work)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough: `invoke-retry list | head`
        discard_output()
        return ExitCode.BROKEN_PIPE
    except Exception as error:
        known = command_error(error)
        if known is None:
            raise
        print_error(name, known, as_json=as_json)
        return known.code
    return code or ExitCode.DONE


def confirmed(question: str, *, yes: bool) -> None:
    """Go on if somebody says so, or has said so before.

    Raises:
        CommandError: The answer is no, or there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question} Nobody is there to ask: pass --yes to do it")
    # the loop would not hear Ctrl-C while the question waits for its answer
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        is_yes = Confirm.ask(question, console=console_on(sys.stderr), default=False)
    except EOFError:
        is_yes = False
    finally:
        signal.signal(signal.SIGINT, before)
    if not is_yes:
        raise CommandError("nothing was done", ExitCode.NO)
