"""What type checkers say of the public API: it is right, and each of the wrong lines is an error.

The lines are set into a function at the end of that file, so that they share its names.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import invoke_retry

HERE = Path(__file__).parent
ROOT = HERE.parent
SOURCES = Path(invoke_retry.__file__).parent.parent

WRONG = [
    # the payload
    "await retry.invoke(update, 5, repeats=3, seconds=1)",
    "await retry.invoke(update, {'id': 1})",
    "await retry.invoke(update, None)",
    "await retry.invoke(update, 'order', async_fallback=True)",
    "await retry.invoke_async(update, 'order')",
    "await retry.invoke_async(update, Receipt(order=1))",
    "await update(5)",
    "await update({'id': 1})",
    # the target
    "await retry.invoke(plain, order)",
    "await retry.invoke(5, order)",
    "await retry.invoke_async(plain, order)",
    "await retry.invoke()",
    # what comes back
    "whole: Receipt = await retry.invoke(update, order, async_fallback=True)",
    "maybe: Receipt = await retry.invoke(update, order, async_fallback=bool(order))",
    "number: str = await retry.invoke(ping)",
    "direct: int = await update(order)",
    "text: Receipt = await retry.invoke_async(update, order)",
    "done: CallbackPayload = await retry.get(cid)",
    # only the background has callbacks
    "await retry.invoke(update, order, callback=told)",
    "await retry.invoke(update, order, context={'a': 1})",
    # keywords of a call
    "await retry.invoke(update, order, repeats='3')",
    "await retry.invoke(update, order, repeats=3.5)",
    "await retry.invoke(update, order, seconds='1')",
    "await retry.invoke(update, order, minutes=[1])",
    "await retry.invoke(update, order, policy={'repeats': 3})",
    "await retry.invoke(update, order, cid=5)",
    "await retry.invoke(update, order, async_fallback='yes')",
    "await retry.invoke(update, order, async_fallback=True, callback=5)",
    "await retry.invoke(update, order, async_fallback=True, callback=plain)",
    "await retry.invoke(update, order, 3)",
    "await retry.invoke(update, order, retries=3)",
    "await retry.invoke('ping', repeats='3')",
    "await retry.invoke_async(update, order, seconds='1')",
    "await retry.invoke_async(update, order, callback=plain)",
    "await retry.invoke_async(update, order, async_fallback=True)",
    # asking
    "await retry.wait(cid, timeout='5')",
    "await retry.get(5)",
    "await retry.search(state='done')",
    "await retry.search('dead')",
    "await retry.search(limit='5')",
    # making
    "InvokeRetry('services')",
    "InvokeRetry(services, backend=5)",
    "InvokeRetry(services, grace='30')",
    "InvokeRetry(services, hooks=print)",
    "InvokeRetry(services, callback_policy=None)",
    "InvokeRetry(services, 'memory://')",
    "RetryPolicy(repeats='3', seconds=1)",
    "RetryPolicy(3, 1, backoff='linear')",
    # registering
    "services.register('sync', lambda: 5)",
    "services.register('sync', print)",
    "services.register('two', tagged)",
    "services.register(plain)",
    "services.register('plain', plain, retry_on='ValueError')",
    "services.register('plain', plain, policy={'repeats': 3})",
    "services.service()(len)",
    "services['plain'] = update",
    "services.include({})",
]

LEAD = """

async def wrong(retry: InvokeRetry, cid: CorrelationId) -> None:
"""


def mypy(path: Path) -> list[tuple[int, str]]:
    environment = dict(os.environ)
    if "site-packages" not in SOURCES.parts:
        environment["MYPYPATH"] = str(SOURCES)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "-O", "json"]
    ended = subprocess.run(
        [*command, str(path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    found: list[dict[str, Any]] = [
        json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")
    ]
    return [(each["line"], each["message"]) for each in found if each["severity"] == "error"]


def pyright(path: Path) -> list[tuple[int, str]]:
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, path],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYTHONPATH": str(SOURCES)},
    )  # fmt: skip
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)["generalDiagnostics"]
    return [
        (each["range"]["start"]["line"] + 1, each["message"])
        for each in found
        if each["severity"] == "error"
    ]


Checker = Callable[[Path], list[tuple[int, str]]]
checkers = pytest.mark.parametrize("checker", [mypy, pyright])


def check(checker: Checker, folder: Path, wrong: list[str]) -> None:
    if find_spec(checker.__name__) is None:
        pytest.skip(f"{checker.__name__} is not installed; it is in the extra 'lint'")
    path = folder / "wrong_calls.py"
    right = (HERE / "typing" / "api.py").read_text() + LEAD
    path.write_text(right + "".join(f"    {line}\n" for line in wrong))
    lines = path.read_text().splitlines()
    errors = checker(path)
    beside = [(lines[line - 1], text) for line, text in errors if line <= len(right.splitlines())]
    assert beside == []
    accepted = Counter(wrong) - Counter(lines[line - 1].strip() for line, _ in errors)
    assert sorted(accepted) == []


@checkers
def test_exactly_the_wrong_lines_are_errors(checker: Checker, tmp_path: Path) -> None:
    check(checker, tmp_path, WRONG)


@checkers
def test_a_payload_with_a_default_keeps_its_type(checker: Checker, tmp_path: Path) -> None:
    check(checker, tmp_path, ["await retry.invoke(repeat, 'twice', repeats=0, seconds=0)"])
