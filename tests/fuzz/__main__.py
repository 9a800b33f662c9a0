"""Throw at it what strangers might: seeded rounds of several kinds, each of which can be replayed.

    python -m tests.fuzz --rounds 200 [--seed N] [--only payloads,contexts]
    python -m tests.fuzz --minutes 30

The promises: only documented errors; what is accepted is read back equal; nothing that is stored
vanishes; memory stays flat. It ends with 1 if one is broken, and says how to see that again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from .arguments import Arguments
from .called import Cids, Names
from .kind import Kind
from .memory import Memory
from .messages import Messages
from .passed import Contexts, Payloads
from .rows import Rows

KINDS: Mapping[str, type[Kind]] = {
    "payloads": Payloads, "contexts": Contexts, "names": Names, "cids": Cids, "rows": Rows,
    "messages": Messages, "arguments": Arguments,
}  # fmt: skip
MOST_SHOWN = 5


async def fuzz(name: str, seed: int, rounds: Iterator[int], until: float) -> int:
    """Rounds of one kind, and what came of them.

    Args:
        rounds: Their numbers.
        until: When to stop, on the monotonic clock.

    Returns:
        How many have failed.
    """
    failed, done, memory, began = 0, 0, Memory(), time.monotonic()
    with TemporaryDirectory(prefix="fuzz-") as folder:
        kind = KINDS[name](Path(folder))
        async with kind.entered():
            for number in rounds:
                if time.monotonic() > until:
                    break
                try:
                    await kind.round(random.Random(f"{name} {seed} {number}"))
                except Exception as error:
                    failed += 1
                    print(f"{name}, round {number}: {error!r:.2000}")
                    if failed <= MOST_SHOWN:
                        traceback.print_exception(error, file=sys.stdout)
                    print(f"again: python -m tests.fuzz --only {name} --seed {seed} "
                          f"--start {number} --rounds 1", flush=True)  # fmt: skip
                done += 1
                memory.look(done)
    print(f"{name}: {done} rounds, {failed} failed, {time.monotonic() - began:.0f} s")
    for what, times in sorted(kind.seen.items()):
        print(f"    {what:40}{times:>8}")
    print(f"    {memory.shown()}", flush=True)
    return failed + (not memory.is_flat)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Throw at it what strangers might.")
    parser.add_argument("--rounds", type=int, help="of each kind; 100, if --minutes is not given")
    parser.add_argument("--minutes", type=float, help="for all kinds together")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas")
    parser.add_argument("--start", type=int, default=0, help="the first round")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args(arguments)
    kinds: list[str] = options.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kind is named {', '.join(unknown)}; there are {', '.join(KINDS)}")
    print(f"seed {options.seed}", flush=True)
    rounds: int | None = options.rounds or (None if options.minutes else 100)
    failed = 0
    for name in kinds:
        seconds = options.minutes * 60 / len(kinds) if options.minutes else float("inf")
        end = options.start + rounds if rounds else None
        numbers = iter(range(options.start, end)) if end else count(options.start)
        failed += asyncio.run(fuzz(name, options.seed, numbers, time.monotonic() + seconds))
    print("sound" if not failed else f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    logging.disable()  # what is parked is logged, again and again
    sys.exit(main(sys.argv[1:]))
