"""`prune`: what is deleted, what stays, and that nobody is surprised or held up."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from cli_help import ask, coordinator, make_varied, multiply, reaches, run, terminal, told, varied

MANY = 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one invocation of each state at rest; all that has an outcome is a day old."""
    path = tmp_path / "retries.db"
    varied(path)
    ask(path, "UPDATE invocation SET outcome_at = outcome_at - 86400")
    return path


def states(path: Path) -> set[str]:
    return {state for (state,) in ask(path, "SELECT state FROM invocation")}


def test_only_what_is_finished_and_old_enough(path: Path) -> None:
    before = told("counts", store=path)["counts"]
    assert told("prune", "--older", "2d", "--yes", store=path) == {"pruned": 0}
    assert told("prune", "--older", "23h", "--yes", store=path) == {"pruned": 3}
    assert states(path) == {"dead", "waiting"}
    assert told("prune", "--older", "23h", "--yes", store=path) == {"pruned": 0}
    assert told("prune", "--older", "23h", "--dead", "--yes", store=path) == {"pruned": 1}
    assert states(path) == {"waiting"}
    assert told("counts", store=path)["counts"] == before


def test_people_are_told(path: Path) -> None:
    done = run("prune", "--older", "2d", store=path)
    assert (done.code, done.out, done.err) == (0, "", "nothing was finished more than 2 d ago\n")
    done = run("prune", "--older", "1h", store=path)
    assert (done.code, done.out) == (2, "")
    assert "delete 3 invocations finished more than 1 h ago?" in done.err
    assert "--yes" in done.err
    assert len(states(path)) == 5
    done = run("prune", "--older", "1h", "--dead", store=path)
    assert "delete 4 invocations finished more than 1 h ago, dead letters among them?" in done.err
    done = run("prune", "--older", "1h", "-y", store=path)
    assert (done.code, done.out, done.err) == (0, "3 invocations deleted\n", "")
    assert run("prune", "--older", "1h", "--dead", "-y", store=path).out == "1 invocation deleted\n"


@pytest.mark.parametrize(("answer", "code", "kept"), [("y\n", 0, 2), ("n\n", 1, 5), ("\n", 1, 5)])
def test_it_asks(path: Path, answer: str, code: int, kept: int) -> None:
    with terminal("prune", "--older", "1h", store=path) as screen:
        screen.until("delete 3 invocations")
        screen.type(answer)
        done = screen.ended()
    assert done.code == code
    assert len(states(path)) == kept


@pytest.mark.parametrize("age", ["", "7", "soon", "-1d", "1h; DROP TABLE invocation", "nan"])
def test_a_mistyped_age(path: Path, age: str) -> None:
    done = run("prune", f"--older={age}", "--yes", store=path)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert len(states(path)) == 5


def test_the_age_must_be_given(path: Path) -> None:
    assert run("prune", "--yes", store=path).code == 2
    assert len(states(path)) == 5


def test_an_endless_age(path: Path) -> None:
    assert told("prune", "--older", "9" * 400 + "d", "--yes", store=path) == {"pruned": 0}


def test_a_store_that_is_empty_missing_or_read_only(path: Path, tmp_path: Path) -> None:
    async def make() -> None:
        async with coordinator(tmp_path / "empty.db"):
            pass

    asyncio.run(make())
    assert told("prune", "--older", "0s", store=tmp_path / "empty.db") == {"pruned": 0}
    missing = tmp_path / "missing.db"
    assert told("prune", "--older", "0s", "-y", store=missing, code=3)["kind"] == "store"
    assert not missing.exists()
    looking = f"sqlite:///{path}?read_only=true"
    error = told("prune", "--older", "0s", "-y", store=looking, code=3)
    assert "read_only" in error["message"]
    assert len(states(path)) == 5


@pytest.mark.slow
def test_many_go_a_little_at_a_time(path: Path) -> None:
    multiply(path, MANY)
    number = ask(path, "SELECT count(*) FROM invocation WHERE outcome_at IS NOT NULL")[0][0] - 1
    assert number > MANY
    assert f"delete {number:,} invocations" in run("prune", "--older", "1h", store=path).err
    assert told("prune", "--older", "1h", "--yes", store=path) == {"pruned": number}
    assert states(path) == {"dead", "waiting"}


@pytest.mark.slow
def test_a_bar_shows_how_far_it_is_and_ctrl_c_stops_it(path: Path) -> None:
    multiply(path, MANY)
    with terminal("prune", "--older", "1h", "--yes", store=path) as screen:
        screen.until("/100003")
        screen.signal(signal.SIGINT)
        done = screen.ended()
    assert done.code == 130
    assert "Traceback" not in done.out
    left = ask(path, "SELECT count(*) FROM invocation")[0][0]
    for table in ("request", "response", "attempt"):
        orphans = f"SELECT count(*) FROM {table} WHERE id NOT IN (SELECT id FROM invocation)"
        assert ask(path, orphans) == [(0,)]
    assert told("prune", "--older", "1h", "--yes", store=path) == {"pruned": left - 2}


async def test_others_work_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    await make_varied(path)
    ask(path, "UPDATE invocation SET outcome_at = outcome_at - 86400")
    multiply(path, 20_000)
    async with coordinator(path) as retry:
        pruning = asyncio.ensure_future(
            asyncio.to_thread(told, "prune", "--older", "1h", "--yes", store=path)
        )
        begun = 0
        while not pruning.done():
            cid = await retry.invoke_async("echo", begun, repeats=0, seconds=0)
            await reaches(retry, cid, "succeeded")
            begun += 1
        assert (await pruning)["pruned"] > 20_000
    assert begun >= 3
    assert ask(path, "SELECT count(*) FROM invocation WHERE state = 'succeeded'") == [(begun,)]


@pytest.mark.parametrize("spoil", ["text", b"\xff\xfe", None, float("inf"), "\x1b[2J"])
@pytest.mark.parametrize("column", ["outcome_at", "state", "cid", "target", "policy"])
def test_what_somebody_has_spoilt_is_left_or_goes(path: Path, column: str, spoil: object) -> None:
    ask(path, f"UPDATE OR IGNORE invocation SET {column} = ? WHERE state = 'failed'", spoil)
    done = run("prune", "--older", "1h", "--dead", "--yes", store=path)
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    left = ask(path, "SELECT count(*) FROM invocation")[0][0]
    is_kept = column in ("outcome_at", "state") and not (column == "state" and spoil is None)
    assert left == (2 if is_kept else 1)  # what waits, and what nobody can tell the age of
