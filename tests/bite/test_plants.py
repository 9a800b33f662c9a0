"""Every plant fits today's sources; whether it is caught is said by `python -m tests.bite`."""

import ast
import shutil
from pathlib import Path

import pytest

import invoke_retry

from .plants import PLANTS, Edit, Plant

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
