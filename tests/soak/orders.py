"""What is invoked: each order has a number, and the number says all of what it will meet."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from invoke_retry import CorrelationId, RetryPolicy

Kind = Literal["good", "flaky", "busy", "slow", "down", "gone", "deaf"]
Mode = Literal["inline", "fallback", "background"]
MODES: tuple[Mode, ...] = ("inline", "fallback", "background")
_KINDS: tuple[Kind, ...] = (
    "good", "flaky", "good", "busy", "good", "flaky", "good", "down", "good", "slow", "good",
    "gone", "good", "flaky", "good", "deaf",
)  # fmt: skip

POLICY = RetryPolicy(repeats=3, seconds=0.2, backoff="exponential", jitter="full", timeout=2)
CALLBACK_POLICY = RetryPolicy(repeats=2, seconds=0.3)


class Order(BaseModel):
    """What the server is asked to take."""

    number: int
    kind: Kind
    text: str = "x" * 500


def order(number: int) -> Order:
    """The order of that number."""
    return Order(number=number, kind=_KINDS[number // len(MODES) % len(_KINDS)])


def mode(number: int) -> Mode:
    """In which mode it is invoked."""
    return MODES[number % len(MODES)]


def cid(number: int) -> CorrelationId:
    """Its id: who invokes it again after a crash invokes the same."""
    return CorrelationId.from_key(f"order {number}")
