"""Every command on 100,000 invocations: all of them, and without reading all into memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_help import ask, multiply, run_outside, told, varied

NUMBER = 100_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of so many waiting ones, and one of each other state beneath them."""
    path = tmp_path_factory.mktemp("many") / "retries.db"
    varied(path)
    ask(path, "UPDATE invocation SET state = 'waiting', due = 1e9, reason = NULL, "
              "outcome_at = NULL WHERE state = 'cancelled'")  # fmt: skip
    multiply(path, NUMBER)
    return path


def test_looking(path: Path) -> None:
    assert told("counts", store=path)["counts"]["waiting"] == NUMBER + 2
    assert told("counts", store=path)["services"]["hold"] == {"waiting": NUMBER + 1}
    page = told("list", store=path)
    assert (len(page["invocations"]), page["next"] is not None) == (20, True)
    (failed,) = told("list", "--state", "failed", store=path)["invocations"]
    (found,) = told("list", "--error-type", "ConnectionError", "--state", "failed", store=path)[
        "invocations"
    ]
    assert found == failed
    assert told("show", failed["call_cid"][:14], store=path)["state"] == "failed"
    assert told("list", "--older", "1d", store=path)["invocations"] == []
    assert told("show", "K0zzzz", store=path, code=4)["kind"] == "not_found"


def test_as_processes(path: Path) -> None:
    for arguments in (["list"], ["counts"], ["list", "--target", "hold", "-n", "500"]):
        assert run_outside(*arguments, store=path).code == 0


def test_the_number_is_shown_before_anything_is_done(path: Path) -> None:
    done = run_outside("cancel", "--target", "hold", store=path)
    assert done.code == 2
    assert f"cancel {NUMBER + 1:,} invocations?" in done.err
    assert told("counts", store=path)["counts"]["cancelled"] == 0
