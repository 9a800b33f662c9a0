"""What the benchmarks make of their figures; no figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import charts, machine, size, sqlite
from benchmarks.inline import success
from benchmarks.nats import nats
from benchmarks.report import as_json, print_machine, print_section
from benchmarks.rows import Budget, Row, Section
from benchmarks.timing import Rounds

ROOT = Path(__file__).parents[1]
ABSENT = "tenacity is not installed: pip install 'invoke-retry[bench]'"
SECTION = Section(
    "speed",
    "Speed of everything",
    ("invoke-retry", "tenacity"),
    [
        Row(
            "ours / theirs",
            "x",
            [3.0, 1.0, 2.0],
            Budget("<=", 2),
            "20 ns",
            "times theirs",
            beside=[Row("slow", "x", [900.0]), Row("tenacity", "x", (), note=ABSENT)],
        ),
        Row("accepted", "/s", [10.0], Budget(">=", 2_000)),
        Row("growth", "%", [0.0], Budget("<=", 5)),
        Row("tenacity's", "x", (), Budget(">=", 20), ABSENT),
        Row("a detail", "MiB", [12.0]),
    ],
)


def facts() -> dict[str, Any]:
    return {**machine.machine(), "load_after": 0.5}


@pytest.fixture
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version_of(package: str) -> None:
        return None

    monkeypatch.setattr(machine, "version_of", version_of)


def test_rows_know_their_spread_and_verdict() -> None:
    ours, accepted, growth, absent, detail = SECTION.rows
    assert (ours.figure, ours.quartiles, ours.verdict) == (2, (1.5, 2.5), "pass")
    assert (accepted.quartiles, accepted.verdict) == (None, "MISS")
    assert growth.verdict == "pass"
    assert (absent.figure, absent.verdict) == (None, "not measured")
    assert detail.verdict is None


def test_each_row_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_machine(facts())
    print_section(SECTION)
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "ours / theirs 2.00 x 1.50-2.50 <= 2 pass 20 ns" in lines
    assert f"tenacity - x {ABSENT}" in lines
    assert "accepted 10.0 /s >= 2,000 MISS" in lines
    assert "a detail 12.0 MiB" in lines


def test_all_is_kept_as_json(tmp_path: Path) -> None:
    command.write(tmp_path, facts(), [SECTION], charts=False)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert {"date", "python", "system", "cpu", "cpus", "load_before", "load_after"} < set(kept)
    assert {"invoke-retry", "tenacity", "SQLite"} < set(kept["versions"])
    assert kept["sections"] == {"speed": json.loads(json.dumps(as_json(SECTION)))}
    ours, *_, absent, _ = kept["sections"]["speed"]["rows"]
    assert ours["samples"] == [3, 1, 2]
    assert ours["budget"] == {"sign": "<=", "limit": 2}
    assert [other["what"] for other in ours["beside"]] == ["slow", "tenacity"]
    assert (absent["figure"], absent["verdict"], absent["note"]) == (None, "not measured", ABSENT)


def test_a_section_becomes_a_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command.write(tmp_path, facts(), [SECTION], charts=True)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_caption_names_what_is_installed() -> None:
    versions = {"invoke-retry": "1.2", "tenacity": None}
    caption = charts.caption(SECTION, {**facts(), "versions": versions})
    assert caption.startswith("Medians of 3 rounds, with quartiles. invoke-retry 1.2. ")


@pytest.mark.usefixtures("_nothing_installed")
async def test_a_library_that_is_not_installed_is_a_row_that_says_so() -> None:
    section = await success(1)
    ours, beside_tenacity = section.rows
    assert ours.figure is not None
    assert [row.note for row in ours.beside if row.what == "tenacity"] == [ABSENT]
    assert (beside_tenacity.verdict, beside_tenacity.note) == ("not measured", ABSENT)


def test_a_budget_for_a_million_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(what: str, number: int) -> float:
        return 9.0

    def started(number: int) -> tuple[float, float]:
        return 9.0, 9.0

    async def rates(cases: object, rounds: int) -> Rounds:
        return Rounds({}, "/s")

    monkeypatch.setattr(size, "measured", measured)
    for name, stub in (("started", started), ("rates", rates), ("together", float)):
        monkeypatch.setattr(sqlite, name, stub)
    for number, note in (
        (100_000, "at 100,000; the budget is for 1,000,000: --full"), (1_000_000, ""),
    ):  # fmt: skip
        sections = (
            size.measured_waiting(number), size.measured_finished(number), sqlite.sqlite(3, number),
        )  # fmt: skip
        judged = [row for section in sections for row in section.rows if row.budget and row.samples]
        assert [row.note for row in judged] == [note] * 5


@pytest.mark.usefixtures("_nothing_installed")
def test_a_server_that_is_not_installed_is_rows_that_say_so() -> None:
    rows = nats(1, 1).rows
    assert {row.verdict for row in rows} == {"not measured"}
    assert all("pip install 'invoke-retry[bench]'" in row.note for row in rows)


@pytest.mark.usefixtures("_nothing_installed")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "matplotlib is not installed: pip install 'invoke-retry[bench]'"),
        (["--only", "speed"], "no section is named speed; there are success, failures"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    arguments: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    options = ["--only", "success", "--rounds", "2", "--no-charts", "--output", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", *options], cwd=ROOT, check=True)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["rounds"] == 2
    assert list(kept["sections"]) == ["success"]
