"""What a command prints: a table or a story on a terminal, plain text in a pipe, JSON if asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from invoke_retry.cli.errors import KINDS, CommandError
from invoke_retry.cli.safe import clean, masked, masked_text

STATE_STYLES: Final = {
    "waiting": "yellow",
    "running": "cyan",
    "notifying": "blue",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "dead": "bold red",
    "parked": "bold magenta",
}


_GAP = 2
_NARROWEST = 3


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        least: How many characters of it are shown, however narrow the terminal is.
        most: How many are shown at most.
        from_width: In a narrower terminal it is left out.
    """

    name: str
    least: int | None = None
    most: int | None = None
    from_width: int = 0


class Output:
    """Where one command prints.

    Args:
        command: Its name.
        as_json: Print one JSON object instead.
        reveal: Show the values of fields that are named like secrets.
        console: Where to print; default: standard output.
    """

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        reveal: bool = False,
        console: Console | None = None,
    ) -> None:
        self.command = command
        self.as_json = as_json
        self.reveal = reveal
        self.console = console or console_on(sys.stdout)

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at it."""
        return self.console.is_terminal

    # Text that others have written.

    def text(self, text: str | None, style: str = "", *, lines: bool = False) -> Text:
        """Stored text as it may be shown."""
        return Text(self.plain(text, lines=lines), style)

    def plain(self, text: str | None, *, lines: bool = False) -> str:
        """The same as a str; the empty one for None."""
        if text is None:
            return ""
        return clean(text if self.reveal else masked_text(text), lines=lines)

    def value(self, value: Any) -> Any:
        """A stored JSON value, its secrets masked unless they may be shown."""
        return value if self.reveal else masked(value)

    # What is printed.

    def json(self, data: Any) -> None:
        """Print the one JSON object of a command: `{"command", "ok": true, "data"}`."""
        _print_json({"command": self.command, "ok": True, "data": data})

    def print(self, *parts: RenderableType) -> None:
        """Print for people."""
        for part in parts:
            self.console.print(part, soft_wrap=not self.is_terminal)

    def note(self, text: str) -> None:
        """Say something that is no part of the answer: to standard error, so that pipes miss it."""
        if not self.as_json:
            console_on(sys.stderr).print(Text(text, "dim"), soft_wrap=True)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> None:
        """A table on a terminal; in a pipe a line for each row, with tabs between the columns."""
        if not self.is_terminal:
            for row in ([column.name for column in columns], *rows):
                self.console.file.write("\t".join(str(cell) for cell in row) + "\n")
            return
        self.console.print(self.grid(columns, rows))

    def grid(self, columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> Table:
        """A table that fits the terminal as it is now: the last column is cut first."""
        shown = [n for n, column in enumerate(columns) if column.from_width <= self.console.width]
        cells = [[row[n] for n in shown] for row in rows]
        kept = [columns[n] for n in shown]
        widths = _fitting(kept, [list(map(str, row)) for row in cells], self.console.width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column, width in zip(kept, widths, strict=True):
            table.add_column(column.name, no_wrap=True, overflow="ellipsis", width=width)
        for row in cells:
            table.add_row(*row)
        return table

    def progress(self) -> Progress:
        """A bar for long work, on standard error; nothing where nobody looks."""
        console = console_on(sys.stderr)
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self.as_json or not console.is_terminal,
        )


def console_on(stream: TextIO) -> Console:
    """What prints to a standard stream; FORCE_COLOR makes no terminal of a pipe."""
    return Console(
        file=stream,
        force_terminal=stream.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
    )


def _fitting(columns: Sequence[Column], rows: list[list[str]], room: int) -> list[int]:
    """How wide the columns are: as wide as what is in them, or less where there is no room."""
    widths = [
        max(map(cell_len, [column.name, *(row[n] for row in rows)]))
        for n, column in enumerate(columns)
    ]
    widths = [
        width if column.most is None else min(width, column.most)
        for width, column in zip(widths, columns, strict=True)
    ]
    too_wide = sum(widths) + _GAP * (len(widths) - 1) - room
    # those that say how much of them is enough come first, the last one before all others
    by_need = sorted(range(len(columns)), key=lambda n: (columns[n].least is None, -n))
    for n in by_need:
        least = columns[n].least or _NARROWEST
        cut = max(0, min(too_wide, widths[n] - least))
        widths[n] -= cut
        too_wide -= cut
    return widths


def invocations(number: int) -> str:
    """A number of them."""
    return "1 invocation" if number == 1 else f"{number:,} invocations"


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(clean(state), STATE_STYLES.get(state, ""))


def print_error(command: str, error: CommandError, *, as_json: bool) -> None:
    """Print why a command ends: for people on standard error, or as its JSON object."""
    if as_json:
        told = {"kind": KINDS.get(error.code, "error"), "message": clean(str(error))}
        _print_json({"command": command, "ok": False, "error": told})
    else:
        console = console_on(sys.stderr)
        line = Text.assemble(("invoke-retry: ", "bold red"), clean(str(error), lines=True))
        console.print(line, soft_wrap=True)


def _print_json(told: dict[str, Any]) -> None:
    # ASCII only: what would act on a terminal is escaped by JSON itself
    sys.stdout.write(json.dumps(told, ensure_ascii=True) + "\n")
    sys.stdout.flush()
