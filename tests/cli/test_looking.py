"""`list`, `show`, `counts`: through JSON and through a pipe."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from cli_help import SECRET, ask, make_varied, multiply, run, run_outside, told, varied

from invoke_retry.models import Invocation, State

STATES = get_args(State)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store is, or is to be."""
    return tmp_path / "retries.db"


@pytest.fixture
def cids(path: Path) -> dict[str, str]:
    """A store with one invocation of each state at rest."""
    return varied(path)


def found(path: Path, *filters: object) -> list[str]:
    """The cids that `list` gives."""
    return [each["call_cid"] for each in told("list", *filters, store=path)["invocations"]]


def test_list_is_newest_first(path: Path, cids: dict[str, str]) -> None:
    assert found(path) == [*reversed(cids.values())]


def test_list_in_a_pipe_is_a_line_each_with_tabs(path: Path, cids: dict[str, str]) -> None:
    head, *lines = run("list", store=path).out.splitlines()
    assert head.split("\t") == ["cid", "state", "target", "attempts", "accepted", "next", "error"]
    rows = {row[1]: row for row in (line.split("\t") for line in lines)}
    assert {state: row[0] for state, row in rows.items()} == cids
    assert rows["failed"][2:4] == ["fail", "3/3"]
    assert rows["failed"][6] == "ConnectionError: the CRM is down, token=***"
    assert rows["dead"][6] == "TimeoutError: nobody listens"
    assert re.match(r"in (1 h|\d\d min)", rows["waiting"][5])


@pytest.mark.parametrize(
    ("filters", "states"),
    [
        (["--state", "failed"], {"failed"}),
        (["--target", "echo"], {"succeeded", "dead"}),
        (["--source", "shop"], {"succeeded", "failed", "dead", "waiting", "cancelled"}),
        (["--source", "nobody"], set[str]()),
        (["--error-type", "ConnectionError"], {"failed", "waiting"}),
        (["--newer", "1h"], {"succeeded", "failed", "dead", "waiting", "cancelled"}),
        (["--older", "1h"], set[str]()),
        (["--target", "echo", "--state", "dead"], {"dead"}),
    ],
)
def test_filters(path: Path, cids: dict[str, str], filters: list[str], states: set[str]) -> None:
    assert set(found(path, *filters)) == {cids[state] for state in states}


def test_ages_are_those_of_acceptance(path: Path, cids: dict[str, str]) -> None:
    ask(path, "UPDATE invocation SET created_at = created_at - 7200 WHERE state = 'failed'")
    assert found(path, "--older", "1h") == [cids["failed"]]
    assert found(path, "--older", "1h", "--newer", "3h") == [cids["failed"]]
    assert cids["failed"] not in found(path, "--newer", "90m")


def test_pages(path: Path, cids: dict[str, str]) -> None:
    seen: list[str] = []
    after: list[str] = []
    page: dict[str, Any] = {}
    for _ in range(3):
        page = told("list", "--limit", 2, *after, store=path)
        seen += [each["call_cid"] for each in page["invocations"]]
        after = ["--after", page["next"]]
    assert page["next"] is None
    assert seen == [*reversed(cids.values())]
    assert f"more: --after {cids['waiting']}" in run("list", "-n", 2, store=path).err


def test_what_was_mistyped_is_named(path: Path, cids: dict[str, str]) -> None:
    done = run("list", "--target", "ecko", store=path)
    assert (done.code, done.out) == (0, "")
    assert "no invocation has the target 'ecko'; there are: echo" in done.err
    assert run("list", "--state", "faild", store=path).code == 2
    assert "expected one of" in run("list", "--state", "x", store=path).err
    assert run("list", "--older", "soon", store=path).code == 2
    assert run("list", "--limit", "0", store=path).code == 2


def test_an_empty_store(path: Path) -> None:
    varied(path)
    for table in ("invocation", "request", "response", "attempt", "total"):
        ask(path, f"DELETE FROM {table}")
    assert told("list", store=path) == {"invocations": [], "next": None}
    assert "the store is empty" in run("list", store=path).err
    assert told("counts", store=path) == {
        "counts": dict.fromkeys(STATES, 0), "services": {}, "paused": [],
    }  # fmt: skip
    assert told("show", "K0123", store=path, code=4)["kind"] == "not_found"


def test_show_tells_the_whole_story(path: Path, cids: dict[str, str]) -> None:
    done = run("show", cids["failed"], store=path)
    assert done.code == 0
    for text in (
        cids["failed"], "failed (exhausted)", "target          fail", "callback        tell",
        "shop (K0",
        "3 of 3, interval 0 ms", "ConnectionError: the CRM is down", '"order": 7', "timeline",
        "attempts", "exhausted", '"password": "***"',
    ):  # fmt: skip
        assert text in done.out, text
    assert "Traceback" not in done.out
    assert f"invoke-retry resubmit {cids['failed']}" in done.err
    shown = run("show", cids["failed"], "--traceback", store=path).out
    assert shown.count("Traceback (most recent call last)") == 3


def test_show_as_json_is_the_invocation(path: Path, cids: dict[str, str]) -> None:
    shown = told("show", cids["failed"], "--reveal", store=path)
    invocation = Invocation.model_validate(shown)
    assert invocation.state == "failed"
    assert len(invocation.history) == 3
    assert shown["payload"]["order"] == 7


def test_the_beginning_of_a_cid_is_enough(path: Path, cids: dict[str, str]) -> None:
    cid = cids["dead"]
    assert told("show", cid[:12], store=path)["call_cid"] == cid
    assert told("show", cid.lower(), store=path)["call_cid"] == cid


def test_an_unknown_cid_names_close_ones(path: Path, cids: dict[str, str]) -> None:
    cid = cids["dead"]
    mistyped = f"{cid[:10]}{'0' if cid[10] != '0' else '1'}{cid[11:]}"
    error = told("show", mistyped, store=path, code=4)
    assert error["kind"] == "not_found"
    assert cid in error["message"]
    assert "begins with K0" not in error["message"]
    assert told("show", "nonsense", store=path, code=4)["kind"] == "not_found"


def test_a_beginning_that_several_have(path: Path, cids: dict[str, str]) -> None:
    multiply(path, 10)
    error = told("show", "K0000000", store=path, code=4)
    assert "10 invocations have a cid that begins with K0000000" in error["message"]


@pytest.mark.parametrize("command", [["list"], ["show", "{failed}"], ["show", "{succeeded}"]])
def test_secrets_are_masked_unless_revealed(
    path: Path, cids: dict[str, str], command: list[str]
) -> None:
    arguments = [each.format(**cids) for each in command]
    for more in ([], ["--json"], *([["--traceback"]] if command[0] == "show" else [])):
        done = run(*arguments, *more, store=path)
        assert SECRET not in done.out + done.err
        assert "***" in done.out
    assert SECRET in run(*arguments, "--reveal", store=path).out


def test_counts(path: Path, cids: dict[str, str]) -> None:
    data = told("counts", store=path)
    assert {state: n for state, n in data["counts"].items() if n} == dict.fromkeys(cids, 1)
    assert data["services"]["echo"] == {"succeeded": 1, "dead": 1}
    assert run("pause", "fail", store=path).code == 0
    assert told("counts", store=path)["paused"] == ["fail"]
    head, *lines = run("counts", store=path).out.splitlines()
    assert head.split("\t") == ["service", *STATES]
    assert [line.split("\t")[0] for line in lines] == ["all", "echo", "fail (paused)", "hold"]


def test_looking_leaves_the_file_alone(path: Path, cids: dict[str, str]) -> None:
    before = path.read_bytes()
    for arguments in (["list"], ["show", cids["dead"]], ["counts"]):
        assert run(*arguments, store=path).code == 0
    assert path.read_bytes() == before


def test_stores_can_be_named_in_three_ways(
    path: Path, cids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    for name in (path, path.name, f"sqlite:///{path}", f"sqlite:///{path.name}?lease=10"):
        assert len(json.loads(run("list", "--json", "--store", name).out)["data"]["invocations"])
    assert len(found(path)) == 5


BAD_STORES: list[tuple[str, int, str]] = [
    ("", 2, "no store is named"),
    ("memory://", 2, "memory:// lives in its process"),
    ("nothing/here.db", 3, "there is no store"),
    ("sqlite:///nothing/here.db", 3, "there is no store"),
    ("sqlite://host/x", 2, "expected sqlite:///name.db"),
    ("redis://host", 2, "is not known"),
    ("sqlite:///{here}/retries.db?colour=red", 2, "has no option 'colour'"),
    ("{here}/foreign.db", 3, "is a SQLite file of something else"),
    ("{here}/text.db", 3, "cannot be used"),
    ("{here}", 3, "is not a regular file"),
]


@pytest.mark.parametrize(("store", "code", "text"), BAD_STORES)
@pytest.mark.parametrize("command", [["list"], ["counts"], ["pause", "x"], ["cancel", "K01234"]])
def test_bad_stores_are_errors_for_people(
    path: Path, cids: dict[str, str], command: list[str], store: str, code: int, text: str
) -> None:
    ask(path.parent / "foreign.db", "CREATE TABLE theirs (x)")
    (path.parent / "text.db").write_text("this is no database" * 100)
    before = sorted(path.parent.iterdir())
    store = store.format(here=path.parent)
    done = run(*command, store=store)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert "Traceback" not in done.err
    assert sorted(path.parent.iterdir()) == before
    if store:
        error = told(*command, store=store, code=code)
        assert text in error["message"]


def test_as_a_process(path: Path, cids: dict[str, str]) -> None:
    done = run_outside("list", store=path)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 6
    assert "\x1b" not in done.out
    assert run_outside("nonsense").code == 2
    assert run_outside("list", store=path.parent / "none.db").code == 3


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.code == 0
    for name in ("list", "show", "counts", "run-now", "cancel", "redeliver", "resubmit", "pause"):
        assert f" {name} " in done.out
    assert "INVOKE_RETRY_STORE" in done.out


def test_the_shell_completes_commands_and_states() -> None:
    def completed(words: str, number: int) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(number)}
        done = run_outside(**asked, _INVOKE_RETRY_COMPLETE="complete_bash")
        assert (done.code, done.err) == (0, "")
        return done.out.split()

    assert completed("invoke-retry re", 1) == ["redeliver", "resubmit", "resume"]
    assert completed("invoke-retry list --state wait", 3) == ["waiting"]


@pytest.mark.slow
async def test_looking_at_a_store_on_which_a_process_works(path: Path) -> None:
    import asyncio

    from cli_help import coordinator

    await make_varied(path)
    async with coordinator(path) as retry:
        working = True

        async def work() -> int:
            done = 0
            while working:
                cid = await retry.invoke_async("echo", done, repeats=0, seconds=0, callback="tell")
                await retry.wait(cid, timeout=20)
                done += 1
            return done

        worker = asyncio.ensure_future(work())
        seen: list[Any] = []
        for _ in range(5):
            listed, counted = [
                await asyncio.to_thread(run_outside, command, "--json", store=path)
                for command in ("list", "counts")
            ]
            assert (listed.code, counted.code, listed.err + counted.err) == (0, 0, "")
            seen.append(json.loads(counted.out)["data"]["counts"]["succeeded"])
        working = False
        assert await worker > 5
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


@pytest.mark.parametrize("name", ["50%25.db", "a#b.db", "two words.db", "line\nend.db"])
def test_a_path_is_no_url(tmp_path: Path, name: str) -> None:
    varied(tmp_path / "retries.db")
    (tmp_path / "retries.db").rename(tmp_path / name)
    assert told("counts", store=tmp_path / name)["counts"]["failed"] == 1
    assert told("counts", store=f"{tmp_path / name}?retention=60")["counts"]["failed"] == 1


def test_errors_name_the_store_as_it_was_typed(tmp_path: Path) -> None:
    for url in ("http://[bad", "sqlite:///", "sqlite:///x.db?nonsense=1"):
        for command in (["list"], ["cancel", "K00000"]):
            error = told(*command, store=url, code=2)
            assert error["kind"] == "usage"
            assert f"backend {url!r}" in error["message"]


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith("invoke_retry.backends.nats")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "nats", None)
    error = told("list", store="nats://127.0.0.1:1/x", code=3)
    assert error["kind"] == "store"
    assert "pip install 'invoke-retry[nats]'" in error["message"]


def test_a_beginning_that_is_too_short(path: Path, cids: dict[str, str]) -> None:
    error = told("show", cids["failed"][:4], store=path, code=4)
    assert error["kind"] == "not_found"
    assert "too short" in error["message"]
    assert "5 characters" in error["message"]
