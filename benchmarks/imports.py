"""Import: a fresh process that imports the package, beside one that imports what it stands on.

Both from bytecode, as installed packages have it; the rounds that warm up write it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from benchmarks.rows import Budget, Section
from benchmarks.timing import Case, race

OURS, PARTS, NOTHING = "invoke_retry", "asyncio, anyio and pydantic", "the interpreter alone"
BASE = "import asyncio, anyio; from pydantic import BaseModel, TypeAdapter"


def imported(statement: str, bytecode: str) -> Case:
    settings = {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}

    async def sample(calls: int) -> None:
        for _ in range(calls):
            subprocess.run(  # noqa: ASYNC221
                [sys.executable, "-c", statement], check=True, env=os.environ | settings
            )

    return sample


async def imports(rounds: int) -> Section:
    statements = {OURS: "import invoke_retry", PARTS: BASE, NOTHING: "pass"}
    with TemporaryDirectory() as bytecode:
        cases = {name: imported(text, bytecode) for name, text in statements.items()}
        times = await race(cases, calls=1, rounds=rounds)
    return Section(
        "import",
        "Import, in a fresh process",
        ("invoke-retry", "anyio", "pydantic"),
        [
            times.row(
                "import invoke_retry / its parts",
                OURS,
                PARTS,
                Budget("<=", 1.3),
                beside=[PARTS, NOTHING],
            )
        ],
    )
