"""The README's code does what it says."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from invoke_retry import InvokeRetry

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROGRAM, *SNIPPETS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_the_program_runs_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "program.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for line in (
        "inline: order=1",
        "fallback: goes on as K0",
        "background: exhausted after 4 attempts",
        "callback: {'order': 3} succeeded {'order': 3}",
        "callback: {'order': 4} exhausted type='ConnectionError' message='the CRM is down'",
    ):
        assert line in result.stdout


@pytest.mark.virtual_time
async def test_the_snippets_go_on_from_it() -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(PROGRAM, names)
    async with InvokeRetry(names["services"]) as names["retry"]:
        for snippet in SNIPPETS:
            code = compile(snippet, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            if inspect.isawaitable(running):
                await running
        for name, test in list(names.items()):
            if name.startswith("test_"):
                await test()
