"""`run-now`, `cancel`, `redeliver`, `resubmit`, `pause`, `resume`."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_help import ask, coordinator, multiply, reaches, run, told, varied

DECISIONS = ("run-now", "cancel", "redeliver", "resubmit")
ALLOWED = {
    "run-now": {"waiting"}, "cancel": {"waiting"}, "redeliver": {"dead"},
    "resubmit": {"failed", "cancelled"},
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "retries.db"


@pytest.fixture
def cids(path: Path) -> dict[str, str]:
    """A store with one invocation of each state at rest."""
    return varied(path)


@pytest.mark.parametrize("state", ["succeeded", "failed", "dead", "waiting", "cancelled"])
@pytest.mark.parametrize("decision", DECISIONS)
def test_one_cid(path: Path, cids: dict[str, str], decision: str, state: str) -> None:
    cid = cids[state]
    if state in ALLOWED[decision]:
        data = told(decision, cid, store=path)
        assert [each["cid"] for each in data["done"]] == [cid]
        assert data["refused"] == []
    else:
        data = told(decision, cid, store=path, code=1)
        assert data["done"] == []
        assert state in data["refused"][0]["why"]
        assert told("show", cid, store=path)["state"] == state


async def test_what_was_decided_is_done_by_whoever_works(path: Path) -> None:
    from cli_help import make_varied

    cids = await make_varied(path)
    import asyncio

    def decide() -> str:
        assert run("run-now", cids["waiting"], store=path).code == 0
        assert run("redeliver", cids["dead"], store=path).code == 0
        return str(told("resubmit", cids["failed"], store=path)["done"][0]["new_cid"])

    again = await asyncio.to_thread(decide)
    async with coordinator(path) as retry:
        await reaches(retry, again, "failed")
        new = await retry.get(again)
        assert (new.resubmit_of, new.payload["order"], new.source) == (cids["failed"], 7, "shop")
        await reaches(retry, cids["dead"], "dead")
        await reaches(retry, cids["waiting"], "waiting")
        assert (await retry.get(cids["waiting"])).attempts == 2


def test_people_are_told_what_was_done(path: Path, cids: dict[str, str]) -> None:
    assert run("run-now", cids["waiting"], store=path).out == f"{cids['waiting']} will run now\n"
    done = run("redeliver", cids["failed"], store=path)
    assert (done.code, done.out) == (1, "")
    assert f"{cids['failed']} is failed, and was left as it is" in done.err
    done = run("resubmit", cids["failed"], cids["cancelled"], store=path)
    assert (done.code, done.out.count(" resubmitted as K0")) == (0, 2)


def test_unknown_cids_decide_nothing(path: Path, cids: dict[str, str]) -> None:
    done = run("cancel", cids["waiting"], "K0123456789ABCDEFGHJKMNPQRST", store=path)
    assert done.code == 4
    assert told("show", cids["waiting"], store=path)["state"] == "waiting"


def test_filters_ask_first(path: Path, cids: dict[str, str]) -> None:
    multiply(path, 40)  # cancelled ones
    done = run("resubmit", "--target", "hold", store=path)
    assert done.code == 2
    assert "resubmit 41 invocations?" in done.err
    assert "--yes" in done.err
    assert told("counts", store=path)["counts"]["waiting"] == 1
    done = run("resubmit", "--target", "hold", "--yes", store=path)
    assert (done.code, done.out) == (0, "41 invocations resubmitted\n")
    assert told("counts", store=path)["counts"]["waiting"] == 42
    # it may have been interrupted: the same command again makes no second copies
    done = run("resubmit", "--target", "hold", "--yes", store=path)
    assert (done.code, done.out) == (1, "")
    assert done.err.count(" was resubmitted before, as K0") == 10
    assert "and 31 more were left as they are" in done.err
    assert told("counts", store=path)["counts"]["waiting"] == 42


def test_filters_look_only_at_what_can_be_decided_over(path: Path, cids: dict[str, str]) -> None:
    for decision in DECISIONS:
        data = told(decision, "--source", "shop", "--yes", store=path)
        assert {each["cid"] for each in data["done"]} >= (
            {cids[state] for state in ALLOWED[decision]} if decision != "cancel" else set()
        )
        assert data["refused"] == []


def test_a_state_that_cannot_be_is_left_alone(path: Path, cids: dict[str, str]) -> None:
    data = told("redeliver", "--state", "failed", "--yes", store=path, code=1)
    assert (len(data["done"]), len(data["refused"])) == (0, 1)


def test_nothing_fits(path: Path, cids: dict[str, str]) -> None:
    done = run("cancel", "--target", "nobody", "--yes", store=path)
    assert (done.code, done.out) == (1, "")
    assert "no invocation fits" in done.err


@pytest.mark.parametrize("decision", DECISIONS)
def test_neither_or_both_is_an_error(path: Path, cids: dict[str, str], decision: str) -> None:
    for arguments in ([], [cids["dead"], "--state", "dead"]):
        done = run(decision, *arguments, "--yes", store=path)
        assert done.code == 2
        assert "say which ones" in done.err


def test_pausing(path: Path, cids: dict[str, str]) -> None:
    assert told("pause", "echo", store=path) == {"changed": True, "paused": ["echo"]}
    assert told("pause", "echo", store=path, code=1) == {"changed": False, "paused": ["echo"]}
    assert run("resume", "echo", store=path).out == "echo goes on\n"
    assert run("resume", "echo", store=path).code == 1
    assert "echo was not paused" in run("resume", "echo", store=path).err
    for name in ("", "x\x00y", "\ud800", "x" * 100_000):
        assert run("pause", name, store=path).code == 2
    assert ask(path, "SELECT count(*) FROM paused") == [(0,)]
