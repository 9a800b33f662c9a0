"""Every plant fits today's sources; whether it is caught is said by `python -m tests.bite`."""

import ast
import shutil
from pathlib import Path

import pytest

import invoke_retry

from .__main__ import judge
from .plants import PLANTS, Edit, Plant
from .witness import Seen

PACKAGE = Path(invoke_retry.__file__).parent


def test_there_are_twenty_and_each_is_another() -> None:
    assert len({plant.case for plant in PLANTS}) == len(PLANTS) == 20


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.case)
def test_it_fits_and_changes_what_is_done(plant: Plant, tmp_path: Path) -> None:
    files = {edit.file for edit in plant.edits}
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / file, tmp_path / file)
    plant.put_into(tmp_path)
    for file in files:
        before, after = ((folder / file).read_text() for folder in (PACKAGE, tmp_path))
        assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(after))


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.case)
def test_its_tests_exist(plant: Plant) -> None:
    for test in plant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}" in (Path(__file__).parents[2] / file).read_text()


@pytest.mark.parametrize("source", ["a = 2\n", "a = 1\na = 1\n"])
def test_one_that_does_not_fit_says_so(source: str) -> None:
    with pytest.raises(ValueError, match="not once"):
        Edit("a.py", "a = 1", "a = 3").made_in(source)


@pytest.mark.parametrize(
    ("planted", "clean", "is_caught", "says"),
    [
        (Seen(3, "a.py::b", 0.5, "AssertionError: no"), Seen(9), True, "caught by a.py::b"),
        (Seen(9), Seen(9), False, "NOT CAUGHT"),
        (Seen(why="it is not over after 180 s"), Seen(9), False, "not over"),
        (Seen(0, "a.py", 0, "SyntaxError", is_slip=True), Seen(9), False, "the plant is broken"),
        (Seen(3, "a.py::b"), Seen(3, "a.py::b"), False, "not even clean"),
        (Seen(3, "a.py::b"), Seen(0), False, "not even clean"),
    ],
)
def test_what_counts_as_caught(planted: Seen, clean: Seen, is_caught: bool, says: str) -> None:
    found, text = judge(PLANTS[0], planted, clean)
    assert found is is_caught
    assert says in text
