"""The pages in `docs/`: their code runs, their links lead somewhere, their picture is up to date.

All ```python blocks of a page are one program, which may use `await`. Blocks with more words behind
`python` (```python before: another library's) are only parsed. A page that defines tests is run by
pytest, with its ```toml blocks as the configuration.
"""

import ast
import asyncio
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from invoke_retry.testing import VirtualLoop

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def code_of(page: Path, fence: str = "```python") -> str:
    """The blocks that begin with *fence*, each line where it stands in the page."""
    lines: list[str] = []
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        is_fence = line.startswith("```")
        inside = line == fence if is_fence else inside
        lines.append(line if inside and not is_fence else "")
    return "\n".join(lines)


@each_page
def test_its_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = code_of(page)
    monkeypatch.chdir(tmp_path)
    if tests := re.findall(r"^ *(?:async )?def test_", code, re.MULTILINE):
        (tmp_path / "test_page.py").write_text(code, encoding="utf-8")
        (tmp_path / "pyproject.toml").write_text(code_of(page, "```toml"), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-W", "error"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        passed = re.search(r"(\d+) passed", result.stdout)
        assert result.returncode == 0, result.stdout
        assert passed is not None
        assert int(passed[1]) >= len(tests)
        return

    async def run() -> None:
        names: dict[str, Any] = {"__name__": page.stem}
        program = compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        running = eval(program, names)
        if inspect.isawaitable(running):
            await running

    # virtual time does not wait for the thread of a store, nor for a server
    loop_factory = None if re.search("SQLite|NATS", code) else VirtualLoop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


@each_page
def test_what_it_shows_of_others_is_python(page: Path) -> None:
    for kind in sorted(set(re.findall(r"^(```python .+)$", page.read_text("utf-8"), re.MULTILINE))):
        compile(code_of(page, kind), str(page), "exec")


@each_page
def test_its_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_each_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    tests = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", text)))
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *tests]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(tests) > 50
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_picture_of_schedules_is_what_policies_give() -> None:
    script = ROOT / "docs" / "policies.py"
    picture = runpy.run_path(str(script))["picture"]()
    assert picture == script.with_suffix(".svg").read_text("utf-8"), f"run python {script}"
