"""A section as a chart: our figure, others beside it, and the budget as a line.

Each row with a budget has a panel of its own. Dots are medians, whiskers go from the first quartile
to the third.
"""

from __future__ import annotations

import math
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, Section, in_digits

# Okabe and Ito's colours, which people tell apart whose eyes miss one of the three kinds of cones.
OURS, BUDGET, OTHERS, QUIET = "#0072B2", "#D55E00", "#4d4d4d", "#8c8c8c"
WIDTH, LINE, AROUND_PANEL = 7.2, 0.27, 0.8  # inches
WIDE = 20  # from where on the largest figure hides the smallest unless the scale is logarithmic
AXES = {"/s": "a second", "B": "bytes", "%": "per cent", "s": "seconds", "MB": "megabytes"}
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": QUIET}


def draw(section: Section, facts: dict[str, Any], file: Path) -> None:
    rows = [row for row in section.rows if row.budget]
    # matplotlib is not there everywhere, and its types leave much unknown
    pyplot: Any = import_module("matplotlib.pyplot")
    heights = [AROUND_PANEL + LINE * (1 + len(row.beside)) for row in rows]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            len(rows), squeeze=False, figsize=(WIDTH, 0.75 + sum(heights)), height_ratios=heights,
            layout="constrained",
        )  # fmt: skip
        figure.suptitle(section.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for row, panel in zip(rows, axes[:, 0], strict=True):
            _draw(row, panel)
        figure.supxlabel(
            caption(section, facts), x=0.01, ha="left", fontsize=7, color=OTHERS, linespacing=1.4
        )
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def caption(section: Section, facts: dict[str, Any]) -> str:
    """What it was measured with, where and when."""
    versions = facts["versions"]
    python = next(iter(versions))
    parts = [f"{name} {versions[name]}" for name in (*section.packages, python) if versions[name]]
    most = max(len(line.samples) for row in section.rows for line in (row, *row.beside))
    rounds = f"Medians of {most} rounds, with quartiles." if most > 1 else "One round."
    where = f"{facts['cpus']} x {facts['cpu']}, {facts['system'].split()[0]}"
    load = f"load {facts['load_before']} to {facts['load_after']}"
    text = f"{rounds} {', '.join(parts)}. {where}, {load}, {facts['date'][:10]}."
    return textwrap.fill(text, 118)


def _draw(row: Row, axes: Any) -> None:
    lines = [row, *row.beside]
    figures = [line.figure for line in lines if line.figure is not None]
    assert row.budget is not None
    known = [*figures, row.budget.limit]
    logarithmic = min(known) > 0 and max(known) / min(known) > WIDE
    _scale(axes, known, logarithmic=logarithmic)
    for place, line in enumerate(lines):
        _line(axes, place, line, OURS if line is row else OTHERS)
    _limit(axes, row)
    axes.set_title(row.what, loc="left", fontsize=9)
    axes.set_xlabel(
        (row.axis or AXES[row.unit]) + (", log scale" if logarithmic else ""), fontsize=8
    )
    axes.set_yticks(range(len(lines)), ["invoke_retry", *(line.what for line in row.beside)])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.get_yticklabels()[0].set(color=OURS, fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _scale(axes: Any, known: list[float], *, logarithmic: bool) -> None:
    """From zero, or over whole powers of ten; with room for what is written beside the dots."""
    if logarithmic:
        axes.set_xscale("log")
        first = math.floor(math.log10(min(known)))
        axes.set_xlim(10**first * 0.8, max(known) * (max(known) / 10**first) ** 0.3)
        axes.xaxis.set_major_formatter("{x:,g}")
    else:
        axes.set_xlim(min(0, *known), max(known) * 1.35)


def _line(axes: Any, place: int, line: Row, colour: str) -> None:
    axes.axhline(place, color="#e6e6e6", linewidth=0.8, zorder=0)
    if line.figure is None:
        axes.annotate(
            line.note, (0, place), xycoords=axes.get_yaxis_transform(), va="center", color=QUIET
        )
        return
    if line.quartiles:
        axes.plot(line.quartiles, (place, place), color=colour, linewidth=1.8, alpha=0.5)
    axes.plot(line.figure, place, "o", color=colour, markersize=6)
    right = max(line.quartiles or (line.figure,))
    unit = "" if line.unit == "x" else " " + line.unit
    text = f"{in_digits(line.figure)}{unit}"
    if line.note and line.unit == "x":
        text += f"  ({line.note})"
    axes.annotate(
        text, (right, place), (8, 0), textcoords="offset points", va="center", color=colour
    )


def _limit(axes: Any, row: Row) -> None:
    assert row.budget is not None
    limit = row.budget.limit
    left, right = axes.get_xlim()
    good = (left, limit) if row.budget.sign == "<=" else (limit, right)
    axes.axvspan(*good, color=BUDGET, alpha=0.06, linewidth=0, zorder=-1)
    axes.axvline(limit, color=BUDGET, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
