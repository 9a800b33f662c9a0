"""What the fault tests share: a mailbox for outcomes, a coordinator that must balance, scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import invoke_retry
from invoke_retry import CallbackPayload, InvokeRetry, ServiceRegistry

PACKAGE = Path(invoke_retry.__file__).parent
UNFINISHED = ("waiting", "running", "notifying")


class Mailbox:
    """A callback that keeps what it is told; register its `take`."""

    def __init__(self) -> None:
        self.told: list[CallbackPayload] = []

    async def take(self, outcome: CallbackPayload) -> None:
        self.told.append(outcome)

    @property
    def only(self) -> CallbackPayload:
        assert len(self.told) == 1, self.told
        return self.told[0]


class Failing:
    """A target that always fails and counts its calls; register its `call`."""

    def __init__(self, error: Callable[[], BaseException] = lambda: ValueError("no")) -> None:
        self.calls = 0
        self._error = error

    async def call(self) -> None:
        self.calls += 1
        raise self._error()


def registry(**functions: Callable[..., Awaitable[Any]]) -> tuple[ServiceRegistry, Mailbox]:
    """Services of these names, and a mailbox as the service `told`."""
    services, mailbox = ServiceRegistry(), Mailbox()
    services.register("told", mailbox.take)
    for name, function in functions.items():
        services.register(name, function)
    return services, mailbox


@asynccontextmanager
async def running(services: ServiceRegistry, **options: Any) -> AsyncGenerator[InvokeRetry]:
    """A coordinator, entered; afterwards no slot is held and nothing is left without an outcome."""
    async with InvokeRetry(services, **options) as retry:
        yield retry
    assert retry.health().running == 0
    counts = await retry.counts()
    assert not any(counts[state] for state in UNFINISHED), counts


def run_script(
    source: str, *arguments: str, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own, which must end within *timeout* seconds."""
    return subprocess.run(
        script(source, *arguments),
        capture_output=True, text=True, timeout=timeout, check=False, env=environment(),
    )  # fmt: skip


def script(source: str, *arguments: str) -> list[str]:
    """The command line that runs Python source."""
    return [sys.executable, "-c", textwrap.dedent(source), *arguments]


def environment() -> dict[str, str]:
    """Variables with which a process imports this very package."""
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
