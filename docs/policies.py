"""Draws `policies.svg`: when the attempts of a hopeless invocation are made, policy by policy.

python docs/policies.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

from invoke_retry import RetryPolicy
from invoke_retry.policy import decide

FIXED = RetryPolicy(repeats=8, seconds=30)
DOUBLING = RetryPolicy(repeats=8, seconds=1, backoff="exponential")
CAPPED = RetryPolicy(repeats=8, seconds=1, backoff="exponential", max_seconds=30)
JITTERED = RetryPolicy(repeats=8, seconds=1, backoff="exponential", max_seconds=30, jitter="full")
CALLERS = 12

LEFT, TOP, WIDTH, LAST_SECOND, STEP = 20, 34, 760, 270, 30
INK, LINE, DOT = "#24292f", "#d0d7de", "#0969da"


def schedule(policy: RetryPolicy) -> list[float]:
    """When each attempt begins, in seconds from the first, if attempts take no time."""
    return [0, *accumulate(policy.delays())]


def drawn(policy: RetryPolicy, random: Random) -> list[float]:
    """The same with its jitter drawn, by the decision that the package itself makes."""
    error = ConnectionError()
    waits = (decide(policy, n, 0, error, random) for n in range(1, policy.repeats + 1))
    return [0, *accumulate(wait for wait in waits if not isinstance(wait, str))]


def x_of(second: float) -> float:
    """Where a second lies in the picture."""
    return LEFT + second * WIDTH / LAST_SECOND


def row(y: float, title: str, *schedules: Sequence[float]) -> Iterator[str]:
    """A title, and a line of dots for each schedule."""
    yield f'<text x="{LEFT}" y="{y - 10}" fill="{INK}">{title}</text>'
    for times in schedules:
        yield f'<path d="M{LEFT} {y}h{WIDTH}" stroke="{LINE}"/>'
        yield from (f'<circle cx="{x_of(t):.1f}" cy="{y}" r="3.5" fill="{DOT}"/>' for t in times)
        y += 11


def picture() -> str:
    """The whole picture as SVG."""
    random = Random(4)
    crowd = [drawn(JITTERED, random) for _ in range(CALLERS)]
    rows = [
        *row(TOP, "fixed: seconds=30", schedule(FIXED)),
        *row(TOP + 50, 'backoff="exponential", seconds=1', schedule(DOUBLING)),
        *row(TOP + 100, "the same with max_seconds=30", schedule(CAPPED)),
        *row(
            TOP + 150,
            f'the same with jitter="full": {CALLERS} invocations that failed together',
            *crowd,
        ),
    ]
    bottom = TOP + 160 + 11 * CALLERS
    for second in range(0, LAST_SECOND + 1, STEP):
        rows.append(f'<path d="M{x_of(second):.1f} {bottom - 8}v6" stroke="{INK}"/>')
        rows.append(
            f'<text x="{x_of(second):.1f}" y="{bottom + 14}" fill="{INK}" '
            f'text-anchor="middle">{second}</text>'
        )
    size = f"{2 * LEFT + WIDTH} {bottom + 40}"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img"',
            '  font-family="sans-serif" font-size="13">',
            "<title>When the 9 attempts of repeats=8 are made, by policy</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            *rows,
            f'<text x="{LEFT}" y="{bottom + 32}" fill="{INK}">'
            "seconds after the first attempt; each dot is an attempt, repeats=8</text>",
            "</svg>\n",
        )
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
