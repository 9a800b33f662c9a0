"""Whether memory stays flat over many rounds."""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path

MIB = 1_048_576
MOST_RSS = 24 * MIB  # that it may grow by after the warm-up: what an allocator keeps is no leak
MOST_BLOCKS = 40_000  # of Python's own; pydantic keeps up to 16,384 texts that it has read
WARM_UP = 30  # rounds
_STATM = Path("/proc/self/statm")


class Memory:
    """Looks at this process after each round."""

    def __init__(self) -> None:
        self._first: tuple[int, int] | None = None
        self._last = (0, 0)

    def look(self, rounds: int) -> None:
        """After so many rounds."""
        if rounds % WARM_UP == 0:
            gc.collect()
            self._last = resident(), sys.getallocatedblocks()
            self._first = self._first or self._last

    @property
    def _growth(self) -> tuple[int, int]:
        first = self._first or self._last
        return self._last[0] - first[0], self._last[1] - first[1]

    @property
    def is_flat(self) -> bool:
        """Whether it has grown by less than is allowed; True if there was no time to grow."""
        rss, blocks = self._growth
        return rss <= MOST_RSS and blocks <= MOST_BLOCKS

    def shown(self) -> str:
        """What has grown, and what might."""
        rss, blocks = self._growth
        if self._first is None or self._first is self._last:
            return f"memory: no figure for less than {2 * WARM_UP} rounds"
        return (
            f"memory after {WARM_UP} rounds: {self._first[0] / MIB:.0f} MiB {rss / MIB:+.1f} MiB "
            f"(at most +{MOST_RSS // MIB}), {blocks:+,} blocks (at most +{MOST_BLOCKS:,})"
            f"{'' if self.is_flat else ': NOT FLAT'}"
        )


def resident() -> int:
    """Bytes of this process in memory; where the system does not tell, its largest size so far."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1_024
