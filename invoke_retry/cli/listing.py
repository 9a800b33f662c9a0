"""`list`: which invocations there are, newest first, a page at a time."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from typing import Annotated

import typer
from rich.text import Text

from invoke_retry.cli.commands import LOOKING, command
from invoke_retry.cli.options import (
    ErrorTypeOption,
    Filters,
    JsonOption,
    NewerOption,
    OlderOption,
    RevealOption,
    SourceOption,
    StateOption,
    StoreOption,
    TargetOption,
)
from invoke_retry.cli.output import Column, Output, state_text
from invoke_retry.cli.stores import Store, opened
from invoke_retry.cli.times import ago
from invoke_retry.errors import BackendError
from invoke_retry.models import Invocation, utc_time

_COLUMNS = (
    Column("cid", least=28),
    Column("state", least=9),
    Column("target", least=6, most=30),
    Column("attempts", from_width=80),
    Column("accepted", from_width=100),
    Column("next", from_width=120),
    Column("error", least=5),
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "list", LOOKING)
    async def list_(
        state: StateOption = None,
        target: TargetOption = None,
        source: SourceOption = None,
        error_type: ErrorTypeOption = None,
        newer: NewerOption = None,
        older: OlderOption = None,
        limit: Annotated[
            int, typer.Option("--limit", "-n", min=1, help="How many at most: a page.")
        ] = 20,
        after: Annotated[
            str | None,
            typer.Option("--after", metavar="CID", help="The next page: the last cid of this one."),
        ] = None,
        store: StoreOption = None,
        as_json: JsonOption = False,
        reveal: RevealOption = False,
    ) -> None:
        """Which invocations there are, newest first, a page at a time.

        An attempt of "3/4" is the third of four at most. Give the cid, or its beginning, to 'show'.
        """
        out = Output("list", as_json=as_json, reveal=reveal)
        filters = Filters(state, target, source, error_type, newer, older)
        async with opened(store) as look:
            now = look.clock.utc()
            query = filters.query(now)._replace(limit=limit + 1)
            if after is not None:
                query = query._replace(after=await look.cid(after))
            found = await look.found(query)
            page, is_more = found[:limit], len(found) > limit
            print_page(out, page, utc_time(now), is_more=is_more)
            if not page:
                out.note(await _why_none(look, filters))


def print_page(out: Output, page: list[Invocation], now: datetime, *, is_more: bool) -> None:
    """Print one page of what was found."""
    if out.as_json:
        shown = [
            out.value(
                each.model_dump(mode="json", exclude={"history", "payload", "context", "response"})
            )
            for each in page
        ]
        out.json({"invocations": shown, "next": page[-1].call_cid if is_more else None})
        return
    if page:
        out.table(_COLUMNS, (_row(out, each, now) for each in page))
    if is_more:
        out.note(f"more: --after {page[-1].call_cid}")


def _row(out: Output, each: Invocation, now: datetime) -> list[Text | str]:
    error = each.delivery_error if each.state in ("dead", "notifying") else each.error
    why = each.parked_because or (error and f"{error.type}: {error.message}") or ""
    return [
        str(each.call_cid),
        state_text(each.state),
        out.text(each.target),
        f"{each.attempts}/{1 + each.retry_repeats}",
        ago(each.created_at, now),
        "" if each.next_attempt_at is None else ago(each.next_attempt_at, now),
        out.text(why),
    ]


async def _why_none(look: Store, filters: Filters) -> str:
    """What a person may have mistyped, where nothing was found."""
    if not filters.is_given:
        return "the store is empty: nothing was accepted, or all was pruned after its retention"
    try:
        known = list(await look.backend.tally())
    except BackendError:
        return "no invocation fits"
    if filters.target is None or filters.target in known:
        return "no invocation fits"
    close = get_close_matches(filters.target, known, 3) or sorted(known)[:3]
    return f"no invocation has the target {filters.target!r}; there are: {', '.join(close)}"
