"""What a person does at three in the morning, with nothing but the help."""

from __future__ import annotations

from pathlib import Path

from cli_help import ask, multiply, run, told, varied


def test_a_failed_delivery_is_found_understood_and_run_again(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    varied(path)
    ask(path, "UPDATE invocation SET state = 'succeeded' WHERE state = 'cancelled'")
    multiply(path, 10_000)
    help_text = " ".join(run("--help").out.replace("│", " ").split())
    assert "list --state failed" in help_text
    assert "resubmit CID" in help_text

    listed = run("list", "--state", "failed", store=path)
    cid = listed.out.splitlines()[1].split("\t")[0]
    shown = run("show", cid, store=path)
    assert "the CRM is down" in shown.out
    assert f"invoke-retry resubmit {cid}" in shown.err
    again = run("resubmit", cid, store=path).out.split()[-1]

    new = told("show", again, store=path)
    assert (new["state"], new["resubmit_of"], new["target"]) == ("waiting", cid, "fail")
