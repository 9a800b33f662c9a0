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

from arguments import above_zero, names, whole

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
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Throw at it what strangers might."
    )
    parser.add_argument(
        "--rounds", type=whole(), metavar="N",
        help="how many of each kind (default: 100, or without end if --minutes is given)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=above_zero, metavar="M",
        help="how long at most, all kinds together (default: until the rounds are done)",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=names("kind", KINDS), default=list(KINDS), metavar="KINDS",
        help=f"by commas (default: all of {', '.join(KINDS)})",
    )  # fmt: skip
    parser.add_argument(
        "--start", type=whole(0), default=0, metavar="N",
        help="the number of the first round (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0), default=random.randrange(2**32), metavar="N",
        help="of all that is random, with the number of the round (default: another one each time)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    kinds: list[str] = options.only
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
