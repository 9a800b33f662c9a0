"""Streams that cannot show every character."""

from __future__ import annotations

from pathlib import Path

from cli_help import ask, run_outside, terminal, told, varied


def test_what_the_encoding_lacks_is_shown_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    cids = varied(path)
    ask(path, "UPDATE invocation SET error_message = 'склад закрыт' WHERE state = 'failed'")
    for arguments in (["show", cids["failed"]], ["list"], ["counts"], ["watch", "--looks", "2"]):
        done = run_outside(*arguments, store=path, PYTHONIOENCODING="ascii")
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
    shown = run_outside("show", cids["failed"], store=path, PYTHONIOENCODING="ascii").out
    assert "\\u0441\\u043a\\u043b\\u0430\\u0434" in shown  # no letter is lost
    assert "#" in shown  # a bar
    done = run_outside("show", "Жук", store=path, PYTHONIOENCODING="ascii")
    assert done.code == 4
    assert "Traceback" not in done.err


def test_a_terminal_that_cannot_draw(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    varied(path)
    for arguments in (
        ["watch", "--looks", "2", "-i", "0.1"],
        ["policy", "--repeats", "3", "--seconds", "1"],
    ):
        with terminal(*arguments, store=path, PYTHONIOENCODING="ascii") as screen:
            done = screen.ended()
        assert done.code == 0
        assert done.out.isascii()
        assert "Traceback" not in done.out
    assert told("counts", store=path)["counts"]["dead"] == 1
