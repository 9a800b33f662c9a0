"""`watch`: the counts live, with rates and the newest failures."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from invoke_retry.cli.commands import LOOKING, command
from invoke_retry.cli.counting import counts_table
from invoke_retry.cli.looks import RATES, Look, Rate, Rates, pause_after, take_look
from invoke_retry.cli.options import JsonOption, RevealOption, StoreOption
from invoke_retry.cli.output import STATE_STYLES, Column, Output, state_text
from invoke_retry.cli.signals import cancelled_by_signals
from invoke_retry.cli.stores import opened
from invoke_retry.cli.times import ago
from invoke_retry.models import time_text

_TOLD = 10
_ALWAYS = ("waiting", "running", "succeeded", "failed", "dead")
_WIDE = 100
_RATES_LINES = len(RATES) + 2
_SPARKS = "▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "watch", LOOKING)
    async def watch(
        interval: Annotated[
            float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two looks.")
        ] = 1.0,
        looks: Annotated[
            int | None, typer.Option("--looks", min=1, help="End after so many looks.")
        ] = None,
        store: StoreOption = None,
        as_json: JsonOption = False,
        reveal: RevealOption = False,
    ) -> int:
        """The counts live, with rates and the newest failures, until Ctrl-C.

        It looks more seldom where a look takes long: a tenth of the time at most. In a pipe, and
        with --json, it prints a line for each look.
        """
        out = Output("watch", as_json=as_json, reveal=reveal)
        with cancelled_by_signals() as told:
            await _watch(out, store, interval, looks)
        return 128 + told[0] if told else 0


async def _watch(out: Output, url: str | None, interval: float, looks: int | None) -> None:
    rates = Rates()
    async with opened(url) as store:
        with _view(out, str(store.backend), rates) as view:
            while True:
                begin = store.clock.monotonic()
                look = await take_look(store)
                end = store.clock.monotonic()
                view.show(look, rates.add(begin, look.counts))
                if looks is not None:
                    looks -= 1
                    if not looks:
                        return
                await asyncio.sleep(pause_after(interval, end - begin))


class _View(Protocol):
    def show(self, look: Look, rates: dict[str, Rate]) -> None: ...


@contextmanager
def _view(out: Output, where: str, rates: Rates) -> Generator[_View]:
    if out.as_json:
        yield _Objects(out)
    elif out.is_terminal and not out.console.is_dumb_terminal:
        screen = Screen(out, where, rates)
        with screen.live, _kept_right(screen.live):
            yield screen
    else:
        yield _Lines(out)


class _Objects:
    """One JSON object a look."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def show(self, look: Look, rates: dict[str, Rate]) -> None:
        self._out.json(
            {
                "at": time_text(look.at),
                "counts": look.counts,
                "services": look.services,
                "paused": look.paused,
                "rates": {name: rate._asdict() for name, rate in rates.items()},
                "failures": [
                    {
                        "at": time_text(failure.at),
                        "cid": failure.invocation.call_cid,
                        "state": failure.invocation.state,
                        "target": failure.invocation.target,
                        "error": self._out.value(failure.error.model_dump()),
                    }
                    for failure in look.failures[:_TOLD]
                ],
            }
        )


class _Lines:
    """One line a look, with tabs between the columns."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._is_begun = False

    def show(self, look: Look, rates: dict[str, Rate]) -> None:
        if not self._is_begun:
            self._print(["at", *look.counts, *(f"{name}/s" for name in rates)])
            self._is_begun = True
        at = time_text(look.at)[:19]
        self._print([at, *map(str, look.counts.values()), *(_shown(r.now) for r in rates.values())])

    def _print(self, cells: Sequence[str]) -> None:
        file = self._out.console.file
        file.write("\t".join(cells) + "\n")
        file.flush()


class Screen:
    """The whole terminal, drawn anew at every look and whenever its size changes.

    Attributes:
        live: What holds the terminal; leaving it gives the terminal back as it was.
    """

    def __init__(self, out: Output, where: str, rates: Rates) -> None:
        self._out = out
        self._where = where
        self._trend = rates.trend
        self._look: Look | None = None
        self._rates: dict[str, Rate] = {}
        self.live = Live(
            console=out.console, screen=True, auto_refresh=False, get_renderable=self.draw
        )

    def show(self, look: Look, rates: dict[str, Rate]) -> None:
        """Draw what was seen."""
        self.take(look, rates)
        self.live.refresh()

    def take(self, look: Look, rates: dict[str, Rate]) -> None:
        """Draw that from now on."""
        self._look, self._rates = look, rates

    def draw(self) -> RenderableType:
        """What is seen, as much of it as the terminal has room for."""
        look, lines = self._look, self._out.console.height
        if look is None:
            return Text("")
        services = look.services or {}
        lines -= 4  # the head, and the counts of all
        number = min(len({*services, *look.paused}), max(0, lines // 2))
        lines -= number
        parts = [self._head(look), Text(""), self._counts(look, number)]
        if lines >= _RATES_LINES:
            parts += [Text(""), self._drawn_rates()]
            lines -= _RATES_LINES
        if look.failures and lines > 2:
            parts += [Text(""), self._failures(look, lines - 2)]
        return Group(*parts)

    def _head(self, look: Look) -> Text:
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append("invoke-retry", "bold")
        head.append(f"  {self._out.plain(self._where)}")
        head.append(f"  {look.at:%H:%M:%S}Z  Ctrl-C ends it", "dim")
        return head

    def _counts(self, look: Look, number: int) -> RenderableType:
        columns, rows = counts_table(self._out, look.counts, look.services or {}, look.paused)
        shown = rows[: 1 + number]
        if number < len(rows) - 1 and number:
            shown[-1] = [Text(f"and {len(rows) - number} more", "dim"), *[""] * len(look.counts)]
        kept = list(range(len(columns)))
        if self._out.console.width < _WIDE:
            kept = [
                n for n, column in enumerate(columns)
                if n == 0 or column.name in _ALWAYS or look.counts.get(column.name)
            ]  # fmt: skip
        return self._out.grid([columns[n] for n in kept], [[row[n] for n in kept] for row in shown])

    def _drawn_rates(self) -> RenderableType:
        columns = [Column(name) for name in ("per second", "now", "last minute", "")]
        width = max(10, min(60, self._out.console.width - 40))
        rows: list[list[Text | str]] = []
        for name, rate in self._rates.items():
            style = STATE_STYLES.get(name, "bold")
            number = style if rate.minute else "dim"
            rows.append(
                [
                    Text(name, style if rate.minute else ""),
                    Text(_shown(rate.now), number),
                    Text(_shown(rate.minute), number),
                    Text(sparks(list(self._trend[name])[-width:]), style),
                ]
            )
        return self._out.grid(columns, rows)

    def _failures(self, look: Look, number: int) -> RenderableType:
        columns = [
            Column("newest failures", least=10),
            Column("cid", least=28),
            Column("state", from_width=70),
            Column("service", most=24, from_width=60),
            Column("error", least=5),
        ]
        rows: list[list[Text | str]] = [
            [
                ago(at, look.at),
                str(each.call_cid),
                state_text(each.state),
                self._out.text(each.target),
                self._out.text(f"{error.type}: {error.message}"),
            ]
            for at, each, error in look.failures[:number]
        ]
        return self._out.grid(columns, rows)


@contextmanager
def _kept_right(live: Live) -> Generator[None]:
    """Have what is drawn follow the terminal's size, and give it back while we are stopped."""
    loop = asyncio.get_running_loop()
    handlers: dict[Any, Any] = {}
    if hasattr(signal, "SIGWINCH"):
        handlers = {signal.SIGWINCH: live.refresh, signal.SIGTSTP: lambda: _stop(live)}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _stop(live: Live) -> None:
    live.stop()
    os.kill(os.getpid(), signal.SIGSTOP)
    live.start(refresh=True)


def sparks(numbers: Sequence[float]) -> str:
    """Numbers as a line of small bars, the highest as high as a line."""
    most = max(numbers, default=0)
    if not most:
        return _SPARKS[0] * len(numbers)
    return "".join(_SPARKS[round(number / most * (len(_SPARKS) - 1))] for number in numbers)


def _shown(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.2g}"
