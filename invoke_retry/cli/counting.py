"""`counts`: how many invocations are in each state, in all and by service."""

from __future__ import annotations

import typer
from rich.text import Text

from invoke_retry.backends import Backend
from invoke_retry.cli.commands import LOOKING, command
from invoke_retry.cli.options import JsonOption, StoreOption
from invoke_retry.cli.output import STATE_STYLES, Column, Output
from invoke_retry.cli.stores import opened
from invoke_retry.errors import BackendError

Tally = dict[str, dict[str, int]]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "counts", LOOKING)
    async def counts(store: StoreOption = None, as_json: JsonOption = False) -> None:
        """How many invocations are in each state, in all and by service.

        All: also those that were pruned after their retention. By service: what is kept.
        """
        out = Output("counts", as_json=as_json)
        async with opened(store) as look:
            total = await look.counts()
            kept, why_not = await look_at_tally(look.backend)
            paused = sorted(await look.paused())
        if as_json:
            out.json({"counts": total, "services": kept, "paused": paused})
            return
        out.table(*counts_table(out, total, kept or {}, paused))
        if why_not is not None:
            out.note(f"not by service: {out.plain(why_not)}")


async def tally(backend: Backend) -> Tally | None:
    """What is kept by service and state; None where the engine cannot tell."""
    return (await look_at_tally(backend))[0]


async def look_at_tally(backend: Backend) -> tuple[Tally | None, str | None]:
    """The same, and why it cannot."""
    try:
        found = await backend.tally()
    except BackendError as error:
        return None, str(error)
    by_name = {
        name: {str(state): n for state, n in states.items()} for name, states in found.items()
    }
    return by_name, None


def counts_table(
    out: Output, total: dict[str, int], kept: Tally, paused: list[str]
) -> tuple[list[Column], list[list[Text | str]]]:
    """Columns and rows: all first, then each service, the paused ones marked."""
    rows: list[list[Text | str]] = [["all", *(_number(name, n) for name, n in total.items())]]
    for name in sorted({*kept, *paused}):
        label = out.text(name)
        if name in paused:
            label.append(" (paused)", "bold yellow")
        states = kept.get(name, {})
        rows.append([label, *(_number(state, states.get(state, 0)) for state in total)])
    return [Column("service", least=8), *map(Column, total)], rows


def _number(state: str, number: int) -> Text:
    return Text(f"{number:,}", STATE_STYLES.get(state, "") if number else "dim")
