"""Standard streams that are closed, full, or that nobody reads any longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_help import COMMAND, ask, environment, varied

COMMANDS = [["list"], ["counts"], ["counts", "--json"], ["doctor"], ["watch", "--looks", "1"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one invocation of each state at rest."""
    path = tmp_path / "retries.db"
    varied(path)
    return path


def in_a_shell(
    arguments: list[str], redirection: str, path: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command with its streams as a shell makes them."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=environment(path),
    )  # fmt: skip


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_closed_streams_are_no_reason_to_fail(
    path: Path, arguments: list[str], redirection: str
) -> None:
    done = in_a_shell(arguments, redirection, path)
    assert done.returncode == (1 if arguments == ["doctor"] else 0)  # there is a dead letter
    assert "Traceback" not in done.stderr
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


def test_what_is_decided_is_done_with_closed_streams(path: Path) -> None:
    done = in_a_shell(["resubmit", "--state", "failed", "--yes"], ">&- 2>&- <&-", path)
    assert done.returncode == 0
    assert ask(path, "SELECT count(*) FROM invocation WHERE resubmit_of IS NOT NULL") == [(1,)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [*COMMANDS, ["--help"]], ids=" ".join)
def test_a_full_disk_behind_the_output(path: Path, arguments: list[str]) -> None:
    done = in_a_shell(arguments, ">/dev/full", path)
    assert done.returncode == 74
    assert done.stderr == "invoke-retry: [Errno 28] No space left on device\n"


def test_no_folder_for_the_tour(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    done = subprocess.run(
        [sys.executable, "-c", f"import tempfile; tempfile.tempdir = {str(nowhere)!r}\n"
         "from invoke_retry.cli import main; main()", "demo", "--fast"],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr.startswith("invoke-retry: [Errno ")
    assert done.stderr.count("\n") == 1
