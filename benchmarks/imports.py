"""Import: a fresh process that imports the package, beside one that imports what it stands on."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.report import Budget, Row
from benchmarks.timing import Case, race

BASE = "import asyncio, anyio; from pydantic import BaseModel, TypeAdapter"
OURS = "import invoke_retry"


def imported(statement: str) -> Case:
    async def sample(calls: int) -> None:
        for _ in range(calls):
            subprocess.run([sys.executable, "-c", statement], check=True)  # noqa: ASYNC221

    return sample


async def imports(rounds: int) -> list[Row]:
    cases = {"ours": imported(OURS), "base": imported(BASE), "nothing": imported("pass")}
    times = await race(cases, calls=1, rounds=rounds)
    return [
        Row(
            f"{OURS} / its parts",
            times.ratio("ours", "base"),
            "x",
            Budget("<=", 1.3),
            f"{times.median('ours') / 1e6:,.0f} ms / {times.median('base') / 1e6:,.0f} ms, "
            f"of which the interpreter {times.median('nothing') / 1e6:,.0f} ms",
        )
    ]
