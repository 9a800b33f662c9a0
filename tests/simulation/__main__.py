"""Run seeds: `python -m tests.simulation --seeds 10000 --start 0 --backend memory`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from .run import simulate, summary

sys.path.append(str(Path(__file__).parents[1]))  # where modules are looked for when tests are run
from arguments import whole

_SHOWN = 5
_CHUNK = 100


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Run seeds, and balance the books of each."
    )
    parser.add_argument(
        "--seeds", type=whole(), default=10_000, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--start",
        type=whole(0),
        default=0,
        metavar="N",
        help="the first seed (default: %(default)s)",
    )
    parser.add_argument(
        "--backend", choices=("memory", "sqlite"), default="memory",
        help="what is simulated (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=whole(), default=2, metavar="N",
        help="of this machine, which share the seeds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--trace", action="store_true", help="print first what happens in each seed"
    )
    options = parser.parse_args(arguments)
    end = options.start + options.seeds
    if options.trace:
        for seed in range(options.start, end):
            print(simulate(options.backend, seed).shown())
    began, seconds = time.perf_counter(), 0.0
    failed, figures = list[tuple[int, str]](), Counter[str]()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(summary, options.backend, start, min(end, start + _CHUNK))
            for start in range(options.start, end, _CHUNK)
        ]
        for job in as_completed(jobs):
            wrong, found, took = job.result()
            failed += wrong
            figures += found
            seconds += took
            for seed, text in wrong[:_SHOWN]:
                print(f"seed {seed}\n{text}\n", flush=True)
    passed = time.perf_counter() - began
    rows: dict[str, object] = {
        f"seeds, {options.backend}": options.seeds,
        "seconds": round(passed, 1),
        "seeds/s": round(options.seeds / passed),
        "seeds/s of one processor": round(options.seeds / seconds),
        "virtual seconds": figures["virtual seconds"],
        "processes": figures["start"],
        "  left": figures["left"],
        "  killed": figures["killed"],
        "accepted": figures["accepted"],
        "attempts": figures["begin"],
        "callbacks": figures["told"],
        "callers cut off": figures["limit"],
        "failed": " ".join(str(seed) for seed, _ in sorted(failed)) or 0,
    }
    for name, value in rows.items():
        print(f"{name:32}{value:>10}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
