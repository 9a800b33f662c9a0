"""`doctor`: whether all is well with a store, and what to do where it is not."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from invoke_retry.backends import Finding
from invoke_retry.cli.commands import WORKING, command
from invoke_retry.cli.errors import ExitCode
from invoke_retry.cli.options import JsonOption, StoreOption
from invoke_retry.cli.output import Column, Output, console_on
from invoke_retry.cli.stores import opened

_STYLES: Final = {"ok": "green", "warning": "yellow", "bad": "bold red"}
_COLUMNS: Final = (Column("level"), Column("what"), Column("text"))


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "doctor", WORKING)
    async def doctor(
        deep: Annotated[
            bool,
            typer.Option(
                "--deep", help="Have the whole store checked; takes as long as reading it."
            ),
        ] = False,
        store: StoreOption = None,
        as_json: JsonOption = False,
    ) -> ExitCode:
        """Whether all is well: the file or the server, processes, overdue and stuck work.

        Ends with 0 if all is well, with 1 if something is bad or a person should look at it.
        It only looks: nothing is changed, and nobody is held up.
        """
        out = Output("doctor", as_json=as_json)
        async with opened(store) as look:
            with _waiting(out, is_long=deep):
                findings = await look.backend.examine(deep=deep)
        is_well = all(each.level == "ok" for each in findings)
        if as_json:
            out.json({"ok": is_well, "findings": [out.value(each._asdict()) for each in findings]})
        else:
            _print(out, findings)
        return ExitCode.DONE if is_well else ExitCode.NO


@contextmanager
def _waiting(out: Output, *, is_long: bool) -> Generator[None]:
    """Show that something goes on, where somebody looks."""
    console = console_on(sys.stderr)
    if out.as_json or not is_long or not console.is_terminal:
        yield
        return
    with console.status("reading the whole file"):
        yield


def _print(out: Output, findings: Sequence[Finding]) -> None:
    rows = [
        (Text(each.level, _STYLES[each.level]), out.text(each.what), out.text(each.text))
        for each in findings
    ]
    if not out.is_terminal:
        out.table(_COLUMNS, rows)
    else:
        out.print(_table(rows))
    out.note(_summary(findings))


def _table(rows: Sequence[tuple[Text, Text, Text]]) -> Table:
    """All of each text, on as many lines as it takes: what to do stands at its end."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, _, _, _ in _COLUMNS[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(_COLUMNS[-1].name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _summary(findings: Sequence[Finding]) -> str:
    levels = Counter(each.level for each in findings)
    parts = [f"{levels['bad']} bad"] if levels["bad"] else []
    if levels["warning"]:
        parts.append(f"{levels['warning']} to look at")
    return ", ".join(parts) or "all is well"
