"""Seeds that have found something once: the suite runs them for ever.

A seed stands for the same run as long as `plan.py`, `world.py` and the coordinator draw the same
numbers in the same order.
"""

from typing import Final

KEPT: Final[tuple[tuple[str, int], ...]] = (
    ("sqlite", 6),  # a lost claim, told late, let go of the new one: told at the same time for ever
    ("sqlite", 56),  # cancelled when it was taken and not begun: begun after its outcome
    ("sqlite", 1065),  # taken over from a dead process by one that left: not counted any more
    ("sqlite", 1480),  # delivered while its coordinator was left: not written down
)
