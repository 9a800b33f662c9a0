"""What each kind of fuzz is: rounds that depend on nothing but their number and the seed."""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Self

from invoke_retry import (
    CallbackPayload,
    InvokeRetry,
    InvokeRetryError,
    ServiceRegistry,
    current_call,
)
from invoke_retry.backends import MemoryBackend, SQLiteBackend

MAX_BYTES = 4_096
PATIENCE = 30.0


class Fault(AssertionError):
    """A promise that a round has found broken."""


class Kind(ABC):
    """Rounds of one kind; made once, and entered for all of its rounds.

    Args:
        folder: Its own, for its files.

    Attributes:
        seen: How often what was drawn was accepted, and refused by which error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = Counter[str]()

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[Self]:
        """What its rounds share."""
        yield self

    @abstractmethod
    async def round(self, chance: Random) -> None:
        """One round.

        Raises:
            Exception: A promise is broken.
        """


class Answer(NamedTuple):
    """What came of an attempt to do something."""

    result: Any
    error: Exception | None

    @property
    def verdict(self) -> str:
        return "accepted" if self.error is None else f"refused: {type(self.error).__name__}"


async def tried(documented: tuple[type[Exception], ...], ask: Callable[[], Any]) -> Answer:
    """Do it; an error that is not documented is the fault of the round."""
    try:
        result = ask()
        return Answer(await result if isinstance(result, Awaitable) else result, None)
    except documented as error:
        str(error).encode()  # whoever logs it can
        if len(str(error)) > 3_000:
            raise Fault(f"its text has {len(str(error)):,} characters") from error
        return Answer(None, error)


def expect(fact: bool, problem: str) -> None:
    """Find a broken promise."""
    if not fact:
        raise Fault(problem[:2_000])


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until it is so."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = condition()
                if await found if isinstance(found, Awaitable) else found:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise Fault(f"not within {PATIENCE:g} s: {what}") from None


class Told:
    """The callback `tell`, which keeps what it was told until somebody takes it."""

    def __init__(self) -> None:
        self._told: dict[str, CallbackPayload] = {}

    async def tell(self, outcome: CallbackPayload) -> None:
        self._told[current_call().cid] = outcome

    async def take(self, cid: str) -> CallbackPayload:
        await until(lambda: cid in self._told, f"the callback of {cid}")
        return self._told.pop(cid)


async def echo(payload: Any = None) -> Any:
    return payload


async def fail(payload: Any = None) -> None:
    raise ValueError(f"no use: {payload}")


def plain_services() -> ServiceRegistry:
    """`echo`, `fail`, and the callback `tell`."""
    services = ServiceRegistry()
    services.register("echo", echo)
    services.register("fail", fail)
    services.register("tell", Told().tell)
    return services


class Pair:
    """Two coordinators of the same services: one in memory, one on a SQLite file."""

    def __init__(self, register: Callable[[ServiceRegistry, Told], None], folder: Path) -> None:
        self.told: list[Told] = []
        self.retries: list[InvokeRetry] = []
        file = SQLiteBackend(
            folder / "retries.db", max_bytes=MAX_BYTES, synchronous="normal", retention=5
        )
        for backend in (MemoryBackend(max_bytes=MAX_BYTES, keep=500), file):
            services, told = ServiceRegistry(), Told()
            services.register("tell", told.tell)
            register(services, told)
            self.told.append(told)
            self.retries.append(InvokeRetry(services, backend=backend, name="fuzz", grace=1))

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as stack:
            for retry in self.retries:
                await stack.enter_async_context(retry)
            yield self

    async def both(
        self, documented: tuple[type[Exception], ...], ask: Callable[[InvokeRetry], Any]
    ) -> list[Answer]:
        """Ask both; they must answer alike, and stay well."""
        answers = [await tried(documented, lambda: ask(retry)) for retry in self.retries]
        memory, file = answers
        expect(
            memory.verdict == file.verdict and str(memory.error) == str(file.error),
            f"in memory {memory.verdict}: {memory.error}; on SQLite {file.verdict}: {file.error}",
        )
        for retry in self.retries:
            expect(retry.health().ok, f"{retry.health()}")
        return answers


class Paired(Kind):
    """A kind whose rounds ask both of a pair."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pair = Pair(self._register, folder)

    @abstractmethod
    def _register(self, services: ServiceRegistry, told: Told) -> None:
        """Add the services of the kind; the callback `tell` is there."""

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[Self]:
        async with self._pair.entered():
            yield self


async def decide_over(retry: InvokeRetry, cids: list[str]) -> None:
    """Whatever can be decided: it is done, or refused with an error of ours."""
    for ask in (retry.run_now, retry.redeliver, retry.resubmit, retry.cancel):
        for cid in cids:
            await tried((InvokeRetryError,), lambda: ask(cid))


def copied(prepared: Path, store: Path) -> Path:
    """A store that is as it was prepared, in place of the one of the round before."""
    for each in store.parent.glob(f"{store.name}*"):
        each.unlink()
    shutil.copy(prepared, store)
    return store
