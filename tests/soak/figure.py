"""The picture of a soak: memory, files, descriptors, and what became of the invocations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .process import MIB, Sample
from .supervisor import Restart
from .trend import MEMORY, OBJECTS, Quantity, growth_of, lives, long_life, quarter

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2563a8", "#d97706", "#2f855a", "#c53030", "#8a94a3"


def pyplot() -> Any:
    """matplotlib, which draws without a screen; it says what to install if it is not there."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        raise SystemExit("--png needs matplotlib: pip install 'invoke-retry[bench]'") from None
    matplotlib.use("Agg")
    return import_module("matplotlib.pyplot")


def draw(path: Path, title: str, samples: Sequence[Sample], restarts: Iterable[Restart]) -> None:
    """Write the picture as a PNG."""
    plt = pyplot()
    style: dict[str, Any] = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": _GREY, "axes.grid": True, "grid.color": "#e6e9ee", "axes.axisbelow": True,
        "axes.titlelocation": "left", "axes.titlesize": 11, "legend.frameon": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, panels = plt.subplots(
            5, 1, figsize=(11, 14), sharex=True, layout="constrained",
            gridspec_kw={"height_ratios": [1.3, 1, 1, 1, 1.3]},
        )  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        unit, name = (3_600, "hours") if samples[-1].at > 7_200 else (60, "minutes")
        parts = [_Part(life, unit) for life in lives(samples)]
        _judged(panels[0], MEMORY, parts, samples)
        _judged(panels[1], OBJECTS, parts, samples)
        _files(panels[2], parts)
        _descriptors(panels[3], parts)
        _invocations(panels[4], parts)
        for panel in panels[2:]:
            panel.set_ylim(bottom=0)
        for panel in panels:
            _legend(panel)
            panel.set_xlim(0, samples[-1].at / unit)
            for restart in restarts:
                is_kill = restart.signal == "SIGKILL"
                panel.axvline(
                    restart.at / unit, color=_RED if is_kill else _GREY, lw=0.9, zorder=0,
                    ls="-" if is_kill else "--",
                )  # fmt: skip
        panels[-1].set_xlabel(
            f"{name}     (red line: SIGKILL, dashed: SIGTERM, then a new process)"
        )
        figure.savefig(path, dpi=110)
        plt.close(figure)


class _Part:
    """One life, ready to be drawn."""

    def __init__(self, samples: list[Sample], unit: int) -> None:
        self.samples = samples
        self.unit = unit

    def line(
        self, panel: Any, values: Sequence[float], color: str, label: str, **more: Any
    ) -> None:
        x = [each.at / self.unit for each in self.samples]
        panel.plot(x, values, color=color, lw=1.6, label=label, **more)


def _legend(panel: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))  # each life has drawn its own
    panel.legend(
        once.values(), once.keys(), ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0.1
    )


def _judged(panel: Any, quantity: Quantity, parts: list[_Part], samples: Sequence[Sample]) -> None:
    """What must not grow, and the quarters of the long life by which that is judged."""
    grown = growth_of(quantity, samples)
    words = quantity.shown(grown) if grown else "too short to judge"
    panel.set_title(f"{quantity.name[0].upper()}{quantity.name[1:]}: {words}")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    for part in parts:
        part.line(panel, [quantity.of(each) for each in part.samples], _BLUE, "_")
    for number, middle in ((3, grown.third), (4, grown.fourth)) if grown else ():
        judged = quarter(long_life(samples), number)
        panel.plot(
            [judged[0].at / parts[0].unit, judged[-1].at / parts[0].unit], [middle, middle],
            color=_ORANGE, lw=2.4, label="compared",
        )  # fmt: skip
    figures = [quantity.of(each) for each in samples]
    panel.set_ylim(min(figures) * 0.95, max(figures) * 1.05)


def _files(panel: Any, parts: list[_Part]) -> None:
    panel.set_title("Store and its write-ahead log, MiB")
    for part in parts:
        part.line(panel, [each.store / MIB for each in part.samples], _GREEN, "store")
        part.line(panel, [each.wal / MIB for each in part.samples], _ORANGE, "WAL")


def _descriptors(panel: Any, parts: list[_Part]) -> None:
    panel.set_title("Open files and threads")
    for part in parts:
        part.line(panel, [each.fds for each in part.samples], _BLUE, "open files")
        part.line(panel, [each.threads for each in part.samples], _ORANGE, "threads")


def _invocations(panel: Any, parts: list[_Part]) -> None:
    panel.set_title("Invocations in the background")
    panel.yaxis.set_major_formatter("{x:,.0f}")
    for part in parts:
        counts = [each.counts for each in part.samples]
        ended = [
            sum(each.get(s, 0) for s in ("succeeded", "failed", "cancelled")) for each in counts
        ]
        part.line(panel, [sum(each.values()) for each in counts], _GREY, "accepted", alpha=0.8)
        part.line(panel, ended, _GREEN, "delivered")
        part.line(panel, [each.get("dead", 0) for each in counts], _RED, "dead")
