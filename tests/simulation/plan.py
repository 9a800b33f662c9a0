"""What chance may ask for: how services behave, policies, limits, and who is cut off."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, field_validator

from invoke_retry import CorrelationId, RetryPolicy

Kind = Literal[
    "ok", "nothing", "odd", "fail", "permanent", "after", "hang", "cancelled", "exit", "base",
    "group", "swallow", "keep", "stubborn", "nest",
]  # fmt: skip
Cut = Literal["", "cancel", "timeout", "scope"]

LINGER = 0.2
"""Seconds for which a stubborn service ignores that it was cancelled."""
HANG, LONG_HANG = 6.0, 100.0
RETENTION = 15.0
TARGETS = ("a", "b", "c")
CALLBACKS = ("told", "told.plain")


class Step(NamedTuple):
    """What a service does in one attempt, after some seconds."""

    kind: Kind
    seconds: float


class Order(BaseModel):
    """A payload that stops to fit while *is_refused*: what needs it is parked then."""

    n: int
    is_refused: ClassVar[bool] = False

    @field_validator("n")
    @classmethod
    def _fits(cls, n: int) -> int:
        if Order.is_refused:
            raise ValueError("the model has changed")
        return n


@dataclass
class Job:
    """What somebody wants to have done; resubmitted, more than one invocation is made for it.

    Attributes:
        steps: What the target does in each attempt; the last one repeats.
        told: What the callback does in each delivery; the last one repeats.
        orig: The cid of the invocation that asked for it; empty outside any.
        cids: What it was accepted as.
    """

    n: int
    target: str
    callback: str | None
    policy: RetryPolicy
    steps: list[Step]
    told: list[Step]
    key: CorrelationId | None = None
    orig: str = ""
    cids: list[str] = field(default_factory=list[str])

    @property
    def context(self) -> Any:
        return {"n": self.n, "of": ["a", None, 1.5]}


class Shape(NamedTuple):
    """What holds for a whole run.

    Attributes:
        hang: Seconds that a service takes that hangs; longer than any grace and all that follows.
        retention: Of finished ones, in memory; dead ones are kept twice as long. None: for ever.
        odds_of_call: That somebody calls, and does not decide over what is known.
    """

    actions: int
    hurry: float
    max_running: int
    max_running_of_b: int | None
    max_waiting: int | None
    grace: float
    park_for: float
    told: RetryPolicy
    is_observed: bool
    has_pauses: bool
    odds_of_restart: float
    look_seconds: float
    most_processes: int
    hang: float
    retention: float | None
    odds_of_call: float

    @property
    def has_limits(self) -> bool:
        """Whether something may have to wait until something else is over."""
        return self.max_running < 100 or self.max_running_of_b is not None


def draw_shape(chance: Random, more: Random) -> Shape:
    """Draw what holds for a run.

    Args:
        more: For what is drawn since the seeds of `kept.py` were found.
    """
    pick = chance.choice
    shape = Shape(
        actions=chance.randint(3, 12),
        hurry=pick((0.1, 1, 1, 1)),
        max_running=pick((1, 2, 3, 100, 100, 100)),
        max_running_of_b=pick((1, None, None)),
        max_waiting=pick((None, None, None, 3, 6)),
        grace=pick((0, 0.5, 5, 60)),
        park_for=pick((10, 100_000)),
        told=RetryPolicy(
            repeats=pick((0, 1, 2)), seconds=pick((0, 1, 5)), timeout=pick((1, 2, 2, None))
        ),
        is_observed=chance.random() < 0.4,
        has_pauses=chance.random() < 0.3,
        odds_of_restart=pick((0, 0, 0.05, 0.15)),
        look_seconds=pick((0.05, 0.5, 0.5)),
        most_processes=pick((1, 1, 2)),
        hang=HANG,
        retention=None,
        odds_of_call=0.6,
    )
    hangs, prunes, is_decided_over = (more.random() < odds for odds in (0.3, 0.15, 0.2))
    return shape._replace(
        hang=LONG_HANG if hangs and not shape.has_limits else HANG,
        retention=RETENTION if prunes else None,
        odds_of_call=0.3 if is_decided_over else 0.6,
        has_pauses=shape.has_pauses or is_decided_over,
    )


_SECONDS = (0, 0, 0, 0.01, 0.5, 1, 3)
_USUAL: tuple[Kind, ...] = ("fail", "fail", "ok", "hang", "cancelled", "exit", "after", "stubborn")
_OF_TARGETS: tuple[Kind, ...] = (
    *_USUAL, "permanent", "base", "group", "swallow", "swallow", "keep", "nothing", "odd", "nest",
)  # fmt: skip
_OF_CALLBACKS: tuple[Kind, ...] = (*_USUAL, "base")


def draw_steps(chance: Random, kinds: tuple[Kind, ...]) -> list[Step]:
    steps = [
        Step(chance.choice(kinds), chance.choice(_SECONDS))
        for _ in range(chance.choice((0, 1, 2, 3)))
    ]
    if not steps or chance.random() < 0.6:
        steps.append(Step("ok", 0))
    return steps


def draw_policy(chance: Random) -> RetryPolicy:
    pick = chance.choice
    return RetryPolicy(
        repeats=pick((0, 1, 2, 3)),
        seconds=pick((0, 0, 0.5, 1, 2)),
        backoff=pick(("fixed", "exponential")),
        jitter=pick(("none", "none", "none", "full")),
        timeout=pick((None, 1, 2)),
        deadline=pick((None, None, None, 2, 10)),
    )


def draw_job(chance: Random, n: int, *, is_child: bool = False) -> Job:
    if is_child:
        policy = RetryPolicy(repeats=1, seconds=chance.choice((0, 1)))
        steps = [Step(chance.choice(("ok", "fail")), 0), Step("ok", 0)]
        return Job(n, "a", None, policy, steps, [])
    return Job(
        n,
        chance.choice(TARGETS),
        chance.choice((*CALLBACKS, "told", None)),
        draw_policy(chance),
        draw_steps(chance, _OF_TARGETS),
        draw_steps(chance, _OF_CALLBACKS),
        CorrelationId.from_key(f"job {n}") if chance.random() < 0.4 else None,
    )


def draw_cut(chance: Random) -> tuple[Cut, float]:
    """Whether and when a caller is cut off, at a time at which nothing else happens."""
    if chance.random() < 0.7:
        return "", 0
    kinds: tuple[Cut, ...] = ("cancel", "timeout", "scope")
    return chance.choice(kinds), chance.choice((0, 0.01, 0.5, 1.2)) + 0.0037
