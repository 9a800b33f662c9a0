"""Print every figure beside its budget, and keep them as JSON and charts; no missed budget fails.

python -m benchmarks [--full] [--only success,sqlite] [--output FOLDER] [--no-charts]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from benchmarks.background import background
from benchmarks.charts import draw
from benchmarks.imports import imports
from benchmarks.inline import failures, success
from benchmarks.machine import load, machine, missing
from benchmarks.nats import nats
from benchmarks.report import as_json, print_machine, print_section
from benchmarks.rows import FULL, Section
from benchmarks.size import measured_finished, measured_waiting
from benchmarks.sqlite import sqlite

SECTIONS = (
    "success", "failures", "background", "waiting", "finished", "sqlite", "nats", "import",
)  # fmt: skip


def measure(section: str, *, rounds: int, number: int) -> Section:
    match section:
        case "success":
            return asyncio.run(success(rounds))
        case "failures":
            return asyncio.run(failures(rounds))
        case "background":
            return asyncio.run(background(max(5, rounds // 4)))
        case "waiting":
            return measured_waiting(number)
        case "finished":
            return measured_finished(number)
        case "sqlite":
            return sqlite(max(3, rounds // 16), number)
        case "nats":
            return nats(max(3, rounds // 16), number)
        case _:
            return asyncio.run(imports(max(5, rounds // 4)))


def write(folder: Path, facts: dict[str, Any], sections: list[Section], *, charts: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "sections": {each.name: as_json(each) for each in sections}}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    if charts:
        for section in sections:
            draw(section, facts, folder / f"{section.name}.png")
    print(f"written to {folder}")


def rounds(text: str) -> int:
    """How many: as the type of an argument."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too little: it must be 1 or more")
    return number


def sections_named(text: str) -> list[str]:
    """Names with commas, each once: as the type of an argument."""
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(
            f"no section is named {', '.join(name or repr(name) for name in unknown)}; "
            f"there are {', '.join(SECTIONS)}"
        )
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the costs of invoke_retry in one run."
    )
    parser.add_argument(
        "--full", action="store_true",
        help="1,000,000 invocations that wait, are finished or stored, not 100,000; "
        "for nats a quarter of that",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=rounds, default=81, metavar="N",
        help="of success and failures (default: %(default)s). It is divided for slow sections: by "
        "4 for background and import (5 at least), by 16 for sqlite and nats (3 at least); others "
        "have one",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=sections_named, default=list(SECTIONS), metavar="SECTIONS",
        help=f"by commas (default: all of {', '.join(SECTIONS)})",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), metavar="FOLDER",
        help="where results.json and a chart for each section go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-charts", action="store_true", help="write results.json only")
    arguments = parser.parse_args()
    if not arguments.no_charts and (absent := missing("matplotlib")):
        parser.error(f"{absent}, or leave the charts out: --no-charts")

    logging.disable(logging.CRITICAL)
    number = FULL if arguments.full else 100_000
    facts = {**machine(), "rounds": arguments.rounds, "number": number}
    print_machine(facts)
    sections: list[Section] = []
    for name in arguments.only:
        sections.append(measure(name, rounds=arguments.rounds, number=number))
        print_section(sections[-1])
    facts["load_after"] = load()
    print(f"load {facts['load_after']}")
    write(arguments.output, facts, sections, charts=not arguments.no_charts)


if __name__ == "__main__":
    main()
