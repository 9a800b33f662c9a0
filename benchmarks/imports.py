"""Import: a fresh process that imports the package, beside one that imports what it stands on.

Both from bytecode, as installed packages have it; the rounds that warm up write it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from benchmarks.report import Budget, Row
from benchmarks.timing import Case, race

BASE = "import asyncio, anyio; from pydantic import BaseModel, TypeAdapter"
OURS = "import invoke_retry"


def imported(statement: str, bytecode: str) -> Case:
    settings = {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}

    async def sample(calls: int) -> None:
        for _ in range(calls):
            subprocess.run(  # noqa: ASYNC221
                [sys.executable, "-c", statement], check=True, env=os.environ | settings
            )

    return sample


async def imports(rounds: int) -> list[Row]:
    statements = {"ours": OURS, "base": BASE, "nothing": "pass"}
    with TemporaryDirectory() as bytecode:
        cases = {name: imported(text, bytecode) for name, text in statements.items()}
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
