"""Which store is meant, and opening it to look or to change."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from heapq import nlargest
from operator import eq
from urllib.parse import quote

from invoke_retry.backends import Backend, Query, backend_from
from invoke_retry.cli.errors import CommandError, ExitCode
from invoke_retry.coordinator import InvokeRetry
from invoke_retry.correlation import CorrelationId
from invoke_retry.errors import InvocationNotFound
from invoke_retry.models import Invocation
from invoke_retry.registry import ServiceRegistry

ENVIRONMENT = "INVOKE_RETRY_STORE"
# in a URL; a path has them in names
_MEANS_SOMETHING = re.compile(r"[%#\t\n\r]")
_EXAMPLE = "sqlite:///retries.db"
_SHORTEST = 5
_CLOSE = 3
_TYPOS = 4


class Store(InvokeRetry):
    """A coordinator that runs nothing, and what it looks at."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(ServiceRegistry(), backend=backend, name="invoke-retry", work=False)

    async def found(self, query: Query) -> list[Invocation]:
        """Invocations that fit, newest first."""
        return [self._view(record) for record in await self.backend.search(query)]

    async def cid(self, text: str) -> str:
        """The cid that is meant: all of it, or a beginning that only one has.

        Raises:
            CommandError: None or several are meant; it names close ones.
        """
        wanted = text.strip().upper()
        with suppress(ValueError, InvocationNotFound):
            return (await self.backend.get(CorrelationId(wanted))).cid
        return chosen(text, wanted, await self.backend.cids(Query()))


def chosen(text: str, wanted: str, known: Sequence[str]) -> str:
    """The only one of the known cids that begins so.

    Raises:
        CommandError: There is none, or more than one.
    """
    if len(wanted) < _SHORTEST:
        raise CommandError(
            f"{text!r} is too short for a cid: give its first {_SHORTEST} characters at least",
            ExitCode.NOT_FOUND,
        )
    begin_so = [cid for cid in known if cid.startswith(wanted)]
    if len(begin_so) == 1:
        return begin_so[0]
    if begin_so:
        raise CommandError(
            f"{len(begin_so)} invocations have a cid that begins with {text}: "
            f"{', '.join(begin_so[:_CLOSE])}{' ...' if len(begin_so) > _CLOSE else ''}",
            ExitCode.NOT_FOUND,
        )
    close = _close(wanted, known)
    raise CommandError(
        f"no invocation has the cid {text[:60]}; it never was accepted in this store, or was "
        "pruned after its retention"
        + (f". Close to it: {', '.join(close)}" if close else ". 'invoke-retry list' shows all"),
        ExitCode.NOT_FOUND,
    )


def _close(wanted: str, known: Sequence[str]) -> list[str]:
    """The cids that share most characters with what was typed, if they share nearly all."""
    scored = ((sum(map(eq, wanted, cid)), cid) for cid in known)
    return [cid for score, cid in nlargest(_CLOSE, scored) if score >= len(cid) - _TYPOS]


@asynccontextmanager
async def opened(url: str | None, *, to_change: bool = False) -> AsyncGenerator[Store]:
    """Open the store that a URL, or a path, names.

    Args:
        to_change: Else it is opened for looking only, which holds nobody up.

    Raises:
        CommandError: No store is named, or not one that can be opened from here.
        BackendError: It cannot be opened.
    """
    named = _named(url)
    async with Store(_backend(named, to_change=False)) as store:
        if not to_change:
            yield store
            return
    # it is there and it is ours: opening it to change makes no new store, and spoils no other file
    async with Store(_backend(named, to_change=True)) as store:
        yield store


def _named(url: str | None) -> str:
    if not url:
        raise CommandError(
            f"no store is named: pass --store {_EXAMPLE} (the URL that your program gives to "
            f"InvokeRetry), or set {ENVIRONMENT}"
        )
    if "://" in url:
        return url
    path, mark, query = url.partition("?")
    return f"sqlite:///{_MEANS_SOMETHING.sub(lambda found: quote(found[0]), path)}{mark}{query}"


def _backend(url: str, *, to_change: bool) -> Backend:
    scheme = url.partition("://")[0].lower()
    if scheme == "memory":
        raise CommandError(
            "memory:// lives in its process, and nobody can see into it from outside; name a "
            f"store: --store {_EXAMPLE}"
        )
    try:
        named = backend_from(url)
    except ValueError as error:
        raise CommandError(str(error)) from None
    except ImportError as error:
        raise CommandError(str(error), ExitCode.STORE) from None
    if not to_change and "read_only=" not in url:
        named.read_only = True
    return named
