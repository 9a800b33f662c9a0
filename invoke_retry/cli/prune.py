"""`prune`: deleting what was finished long ago, before its retention is over."""

from __future__ import annotations

from typing import Annotated

import typer

from invoke_retry.cli.commands import WORKING, command, confirmed
from invoke_retry.cli.options import FinishedOption, JsonOption, StoreOption, YesOption
from invoke_retry.cli.output import Output, invocations
from invoke_retry.cli.stores import Store, opened
from invoke_retry.cli.times import duration


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "prune", WORKING)
    async def prune(
        older: FinishedOption,
        dead: Annotated[
            bool,
            typer.Option("--dead", help="Dead letters, too: nobody is told of their outcome then."),
        ] = False,
        yes: YesOption = False,
        store: StoreOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Delete what was finished long ago, before its retention is over.

        Their number is shown first. It goes a little at a time, so that nobody is held up, and can
        be stopped at any moment. 'counts' still counts them; the file keeps its size, and the room
        is used again.
        """
        out = Output("prune", as_json=as_json)
        async with opened(store) as look:
            before = look.clock.utc() - older
            number = await look.backend.prunable(before, dead=dead)
        pruned = 0
        if number:
            what = invocations(number)
            too = ", dead letters among them" if dead else ""
            confirmed(f"delete {what} finished more than {duration(older)} ago{too}?", yes=yes)
            async with opened(store, to_change=True) as change:
                pruned = await _prune(change, out, before, dead=dead, number=number)
        if as_json:
            out.json({"pruned": pruned})
        elif pruned:
            out.print(f"{invocations(pruned)} deleted")
        else:
            out.note(f"nothing was finished more than {duration(older)} ago")


async def _prune(store: Store, out: Output, before: float, *, dead: bool, number: int) -> int:
    pruned = 0
    with out.progress() as progress:
        task = progress.add_task("prune", total=number)
        while deleted := await store.backend.prune(before, dead=dead):
            pruned += deleted
            progress.advance(task, deleted)
    return pruned
