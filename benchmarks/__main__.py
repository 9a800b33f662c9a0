"""Print every figure beside its budget; nothing fails if one is missed.

python -m benchmarks [--full] [--only inline,background,sqlite,nats,size,import] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path

from benchmarks.background import background
from benchmarks.imports import imports
from benchmarks.inline import failures, success
from benchmarks.nats import nats
from benchmarks.report import Row, as_json, machine, print_machine, print_rows
from benchmarks.size import size
from benchmarks.sqlite import sqlite

SECTIONS = ("inline", "background", "sqlite", "nats", "size", "import")


def measure(section: str, *, rounds: int, number: int) -> list[Row]:
    if section == "inline":
        return [*asyncio.run(success(rounds)), *asyncio.run(failures(rounds))]
    if section == "background":
        return asyncio.run(background(max(5, rounds // 4)))
    if section == "sqlite":
        return sqlite(max(3, rounds // 16), number)
    if section == "nats":
        return nats(max(3, rounds // 16), number)
    if section == "size":
        return size(number)
    return asyncio.run(imports(max(5, rounds // 4)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the costs of invoke_retry in one run."
    )
    parser.add_argument("--full", action="store_true", help="1,000,000 invocations, not 100,000")
    parser.add_argument("--rounds", type=int, default=81, help="of the inline cases")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no section is named {', '.join(unknown)}; there are {', '.join(SECTIONS)}")

    logging.disable(logging.CRITICAL)
    facts = machine()
    print_machine(facts)
    figures: dict[str, list[Row]] = {}
    for section in sections:
        figures[section] = measure(
            section, rounds=arguments.rounds, number=1_000_000 if arguments.full else 100_000
        )
        print_rows(section, figures[section])
    if arguments.json is not None:
        content = {**facts, **{name: [*map(as_json, rows)] for name, rows in figures.items()}}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
