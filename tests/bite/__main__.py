"""Plant each fault in a copy of the sources, and say which test catches it.

python -m tests.bite [--only A1,D7] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from arguments import names, whole

from .plants import PLANTS, Plant
from .witness import Seen

ROOT = Path(__file__).parents[2]
_PARTS = ("invoke_retry", "tests", "pyproject.toml")
_LONGEST = 180.0


def run(tests: tuple[str, ...], plant: Plant | None = None) -> Seen:
    """Run tests on a copy of the sources, with a fault in it or without."""
    with tempfile.TemporaryDirectory(prefix="bite-") as name:
        copy = Path(name)
        for part in _PARTS:
            _copy(ROOT / part, copy / part)
        if plant is not None:
            plant.put_into(copy / "invoke_retry")
        return _witness(copy, tests)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _witness(copy: Path, tests: tuple[str, ...]) -> Seen:
    report, log, temporary = copy / "report.json", copy / "log", copy / "tmp"
    temporary.mkdir()
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "tests.bite.witness", str(report), *tests],
            cwd=copy, env={**os.environ, "PYTHONPATH": str(copy), "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            running.wait(_LONGEST)
        except subprocess.TimeoutExpired:
            return Seen(why=f"it is not over after {_LONGEST:.0f} s")
        finally:
            _end(running)
    if not report.exists():
        return Seen(why=f"there is no report of it: {log.read_text()[-1_000:]}")
    return Seen(**json.loads(report.read_text()))


def _end(running: subprocess.Popen[bytes]) -> None:
    """Kill what runs, and the processes that its tests have started."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def judge(plant: Plant, planted: Seen, clean: Seen) -> tuple[bool, str]:
    """Whether the fault was caught, and what to say of that."""
    if clean.test is not None or clean.passed == 0:
        return False, f"not even clean: {clean.test} {clean.why}"
    if planted.test is None:
        return False, f"NOT CAUGHT by {' '.join(plant.tests)} {planted.why}"
    if planted.is_slip:
        return False, f"the plant is broken: {planted.test}\n     {planted.why}"
    return True, f"caught by {planted.test} in {planted.seconds:.1f} s\n     {planted.why}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bite", description="Plant faults: the suite must catch each."
    )
    cases = [plant.case for plant in PLANTS]
    parser.add_argument(
        "--only", type=names("plant", cases), default=cases, metavar="CASES",
        help="which faults, by commas, such as A1,D7 (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(), default=2, metavar="N",
        help="how many are tried at a time (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    plants = [plant for plant in PLANTS if plant.case in options.only]
    began, caught = time.perf_counter(), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        planted = [pool.submit(run, plant.tests, plant) for plant in plants]
        clean: dict[tuple[str, ...], Future[Seen]] = {}
        for plant in plants:
            if plant.tests not in clean:
                clean[plant.tests] = pool.submit(run, plant.tests)
        for plant, found in zip(plants, planted, strict=True):
            is_caught, text = judge(plant, found.result(), clean[plant.tests].result())
            caught += is_caught
            print(f"{plant.case:4} {plant.story}\n     {text}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{caught} of {len(plants)} caught, in {seconds:.0f} s")
    return 0 if caught == len(plants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
