"""Figures beside their budgets, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.rows import Row, Section, in_digits


def print_machine(facts: dict[str, Any]) -> None:
    print(f"{facts['python']}, {facts['system']}, {facts['cpu']} ({facts['cpus']} cpus)")
    print(f"{facts['date']}, load {facts['load_before']}")
    versions = {name: number or "not installed" for name, number in facts["versions"].items()}
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")


def print_section(section: Section) -> None:
    print(f"{section.name}: {section.title}")
    for row in section.rows:
        _print_row("  " + row.what, row)
        for other in row.beside:
            _print_row("      " + other.what, other)
    print(flush=True)


def _print_row(what: str, row: Row) -> None:
    figure = "-" if row.figure is None else in_digits(row.figure)
    spread = "-".join(map(in_digits, row.quartiles)) if row.quartiles else ""
    budget = str(row.budget or "")
    line = f"{what:54} {figure:>8} {row.unit:3} {spread:13} {budget:>9}  "
    print(f"{line}{row.verdict or '':12} {row.note}".rstrip())


def as_json(section: Section) -> dict[str, Any]:
    return {"title": section.title, "rows": [_row_as_json(row) for row in section.rows]}


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "what": row.what,
        "figure": row.figure,
        "unit": row.unit,
        "budget": asdict(row.budget) if row.budget else None,
        "verdict": row.verdict,
        "quartiles": row.quartiles,
        "samples": row.samples,
        "note": row.note,
        "beside": [_row_as_json(other) for other in row.beside],
    }
