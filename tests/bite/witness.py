"""Runs tests until one fails, and writes down which, and why: `witness REPORT.json TESTS...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

_SLIPS = (ImportError, SyntaxError, NameError, AttributeError)


@dataclass
class Seen:
    """What a run of tests has come to.

    Attributes:
        passed: How many have.
        test: The one that has failed, and how many seconds that took.
        why: Its error in a line.
        is_slip: It fails as code does that is not even run elsewhere: an import, a name.
    """

    passed: int = 0
    test: str | None = None
    seconds: float = 0.0
    why: str = ""
    is_slip: bool = False


class Witness:
    """Looks on, as a plugin of pytest."""

    def __init__(self) -> None:
        self.seen = Seen()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.seen = Seen(0, report.nodeid, 0.0, report.longreprtext, is_slip=True)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            error = call.excinfo.value if call.excinfo is not None else None
            why = f"{report.when}: {report.longreprtext}" if error is None else _line(error)
            self.seen.test, self.seen.seconds = item.nodeid, call.duration
            self.seen.why, self.seen.is_slip = why, _is_slip(error)
        elif report.when == "call":
            self.seen.passed += report.passed
        return report


def _line(error: BaseException) -> str:
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{told[:157]}..." if len(told) > 160 else told


def _is_slip(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return any(map(_is_slip, members))
    return isinstance(error, _SLIPS)


def main(report: str, *tests: str) -> None:
    witness = Witness()
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1"]
    pytest.main([*options, *tests], [witness])
    Path(report).write_text(json.dumps(asdict(witness.seen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
