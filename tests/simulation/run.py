"""From a seed to a verdict."""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from invoke_retry import failure
from invoke_retry.logs import logger

from .books import audit
from .journal import Journal
from .loop import SeededLoop
from .store import Disk, bury, mortal_connections
from .world import Ears, World


def _no_text(_: BaseException) -> str:
    return ""


@contextmanager
def _without_tracebacks() -> Generator[None]:
    """Nobody looks at the text of tracebacks here, and to make it takes half of the time."""
    render = failure.render_traceback
    setattr(failure, "render_traceback", _no_text)
    try:
        yield
    finally:
        setattr(failure, "render_traceback", render)


@dataclass
class Result:
    """What became of a run."""

    backend: str
    seed: int
    problems: list[str]
    journal: Journal
    figures: Counter[str] = field(default_factory=Counter[str])

    def shown(self) -> str:
        """The trace, and what is wrong."""
        command = f"python -m tests.simulation --backend {self.backend} --start {self.seed}"
        return "\n".join((self.journal.shown(), f"{command} --seeds 1", *self.problems))


def simulate(backend: str, seed: int) -> Result:
    """Run one seed.

    Args:
        backend: `memory` or `sqlite`.
    """
    disk = Disk() if backend == "sqlite" else None
    loop = SeededLoop(Random(f"{seed} loop"))
    world = World(loop, seed, disk)
    loop.set_exception_handler(world.hear)
    ears, propagates = Ears(world), logger.propagate
    logger.addHandler(ears)
    logger.propagate = False
    try:
        with mortal_connections(), _without_tracebacks():
            try:
                loop.run_until_complete(world.run())
            except Exception as error:
                world.problems.append(f"the run itself: {error!r} {traceback.format_exc()}")
            finally:
                loop.run_until_complete(_end(world))
                loop.close()
        problems = world.problems + audit(world)
        if disk is not None:
            problems += disk.check()
    finally:
        logger.removeHandler(ears)
        logger.propagate = propagates
        for life in world.dead:
            bury(life.process)
        if disk is not None:
            disk.remove()
    figures = Counter(line.kind for line in world.journal.lines)
    figures["virtual seconds"] = int(loop.time())
    return Result(backend, seed, problems, world.journal, figures)


async def _end(world: World) -> None:
    world.end()


def simulate_all(backend: str, seeds: range) -> tuple[list[Result], Counter[str], float]:
    """Run many; those that failed, the sum of the figures, and the processor's seconds."""
    began, failed, figures = time.process_time(), list[Result](), Counter[str]()
    simulate(backend, seeds.start)  # what is made once is not collected again and again
    gc.collect()
    gc.freeze()
    for seed in seeds:
        result = simulate(backend, seed)
        figures += result.figures
        if result.problems:
            failed.append(result)
    gc.unfreeze()
    return failed, figures, time.process_time() - began


def summary(
    backend: str, start: int, end: int
) -> tuple[list[tuple[int, str]], Counter[str], float]:
    """The same, for another process: of those that failed their seeds and traces."""
    failed, figures, seconds = simulate_all(backend, range(start, end))
    return [(each.seed, each.shown()) for each in failed], figures, seconds
