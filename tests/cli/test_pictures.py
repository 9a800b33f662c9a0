"""The pictures of the documentation: the script makes them, alike every time, and small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cli_help import PACKAGE, environment

DOCS = PACKAGE.parent / "docs"
NAMES = ("list", "show", "watch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders in which the script was told to draw."""
    folders = [tmp_path_factory.mktemp("pictures") for _ in range(2)]
    for folder in folders:
        subprocess.run(
            [sys.executable, str(DOCS / "pictures.py"), str(folder)], env=environment(), check=True
        )
    return folders


def text_of(picture: Path) -> str:
    """What can be read in it."""
    texts = ET.fromstring(picture.read_text("utf-8")).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join(text.text or "" for text in texts).replace("\xa0", " ")


def test_they_come_out_alike(folders: list[Path]) -> None:
    first, second = folders
    assert {path.name for path in first.iterdir()} == {f"{name}.svg" for name in NAMES}
    for name in NAMES:
        assert (first / f"{name}.svg").read_bytes() == (second / f"{name}.svg").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("list", ["invoke-retry list", "dead", "crm.update", "the CRM is down"]),
        ("show", ["invoke-retry show K0", "timeline", "█", "of 5", "exhausted", '"***"']),
        ("watch", ["succeeded", "last minute", "newest failures", "the CRM is down"]),
    ],
)
def test_the_ones_in_the_documentation(folders: list[Path], name: str, words: list[str]) -> None:
    for folder in (folders[0], DOCS):
        picture = folder / f"{name}.svg"
        assert picture.stat().st_size < 50_000
        assert "url(" not in picture.read_text("utf-8").replace(f"url(#{name}-", "")
        for word in words:
            assert word in text_of(picture)
