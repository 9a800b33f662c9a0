"""A section as a chart: our figure, others beside it, and the budget as a line.

Each row with a budget has a panel of its own. Dots are medians, whiskers go from the first quartile
to the third, and the side of the line where our dot belongs is tinted.
"""

from __future__ import annotations

import math
import textwrap
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.rows import Budget, Row, Section, in_digits

# Okabe and Ito's: people who do not see all colours tell them apart
OURS, BUDGET = "#0072B2", "#D55E00"
OTHERS, QUIET, GUIDE = "#4d4d4d", "#767676", "#e3e3e3"
SIZES = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 8}
WIDTH, LINE, AROUND_PANEL, AROUND_ALL = 7.2, 0.25, 0.68, 0.75  # inches
FIGURES = 52  # points from the panel to where the column of figures ends
WIDE = 20  # if the largest is more times the smallest than this, the scale is logarithmic
AXES = {
    "x": "times",
    "/s": "a second",
    "B": "bytes",
    "%": "percent",
    "s": "seconds",
    "MB": "megabytes",
}
VERDICTS = {"pass": "met", "MISS": "missed", "not measured": "not measured"}


def draw(section: Section, facts: dict[str, Any], file: Path) -> None:
    # by name: it need not be installed where no charts are drawn, and its types leave much unknown
    matplotlib: Any = import_module("matplotlib")
    figures: Any = import_module("matplotlib.figure")
    rows = [row for row in section.rows if row.budget]
    lines = [1 + len(row.beside) for row in rows]
    height = AROUND_ALL + AROUND_PANEL * len(rows) + LINE * sum(lines)
    with matplotlib.rc_context(SIZES):
        figure = figures.Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(len(rows), height_ratios=lines, squeeze=False)
        figure.suptitle(section.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel(caption(section, facts), x=0.01, ha="left", fontsize=7, color=QUIET)
        for row, panel in zip(rows, panels.flat, strict=True):
            draw_row(row, panel)
        figure.savefig(file, dpi=150)


def caption(section: Section, facts: dict[str, Any]) -> str:
    """How it was measured, with what, where and when."""
    rounds = max(len(line.samples) for row in section.rows for line in (row, *row.beside))
    how = f"Medians of {rounds} rounds, with quartiles" if rounds > 1 else "One round"
    versions = {name: facts["versions"].get(name) for name in section.packages}
    what = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    where = (
        f"{facts['python']}, {facts['system'].split()[0]}, {facts['cpu']} ({facts['cpus']} cpus)"
    )
    when = f"load {facts['load_before']} to {facts['load_after']}, {facts['date'][:10]}"
    return textwrap.fill(f"{how}. {what}. {where}, {when}.", 130)


def draw_row(row: Row, axes: Any) -> None:
    assert row.budget is not None
    lines = [row, *row.beside]
    kind = scale(axes, [row.budget.limit, *chain.from_iterable(map(extent, lines))])
    for place, line in enumerate(lines):
        draw_line(axes, place, line, OURS if line is row else OTHERS)
    draw_budget(axes, row.budget, VERDICTS[row.verdict or "not measured"])
    axes.set_title(row.what, loc="left")
    axes.set_xlabel((row.axis or AXES[row.unit]) + kind)
    axes.set_yticks(range(len(lines)), ["invoke_retry", *(line.what for line in row.beside)])
    axes.get_yticklabels()[0].set(color=OURS, fontweight="bold")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)


def extent(line: Row) -> tuple[float, ...]:
    """What its dot and whiskers cover."""
    return line.quartiles or tuple(line.samples)


def scale(axes: Any, figures: list[float]) -> str:
    """From zero, or logarithmic from a power of ten; what its label says of that."""
    low, high = min(figures), max(figures)
    axes.xaxis.set_major_formatter("{x:,g}")
    if low <= 0 or high <= WIDE * low:
        axes.set_xlim(min(0, low), 1.1 * high)
        return ""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlim(0.8 * 10 ** math.floor(math.log10(low)), 2 * high)
    return " (logarithmic)"


def draw_line(axes: Any, place: int, line: Row, colour: str) -> None:
    """A dot with whiskers, and the same in digits at the right."""
    if line.figure is None:
        where = axes.get_yaxis_transform()
        axes.text(
            0.01, place, line.note, transform=where, va="center_baseline", color=QUIET, fontsize=8
        )
        return
    axes.axhline(place, color=GUIDE, linewidth=0.8, zorder=0)
    if line.quartiles:
        axes.plot(line.quartiles, (place, place), color=colour, linewidth=2, alpha=0.5)
    axes.plot(line.figure, place, "o", color=colour, clip_on=False, zorder=3)
    unit = "×" if line.unit == "x" else f" {line.unit}"  # noqa: RUF001
    beside(axes, place, in_digits(line.figure) + unit, FIGURES, color=colour, ha="right")
    beside(axes, place, line.note, FIGURES + 8, color=QUIET, fontsize=8)


def draw_budget(axes: Any, budget: Budget, verdict: str) -> None:
    left, right = axes.get_xlim()
    good = (left, budget.limit) if budget.sign == "<=" else (budget.limit, right)
    axes.axvspan(*good, color=OURS, alpha=0.07, linewidth=0, zorder=-1)
    axes.axvline(budget.limit, color=BUDGET, linewidth=1.2, linestyle="--")
    text = f"budget {'≤' if budget.sign == '<=' else '≥'} {budget.limit:,.4g}: {verdict}"
    axes.annotate(
        text, (1, 1), (FIGURES, 6), xycoords="axes fraction", textcoords="offset points",
        color=BUDGET, ha="right",
    )  # fmt: skip


def beside(axes: Any, place: int, text: str, points: float, **look: Any) -> None:
    """Text at the height of a line, so far from the panel's right edge."""
    axes.annotate(
        text, (1, place), (points, 0), xycoords=axes.get_yaxis_transform(),
        textcoords="offset points", va="center_baseline", **look,
    )  # fmt: skip
