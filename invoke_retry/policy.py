"""How often and how soon a failed attempt is repeated: pure data and a pure decision.

No I/O and no clock: elapsed time and randomness come from the caller, so that the decision is the
same inline, in the background, on every backend and in a simulation.

Full jitter, and why the draw lies inside the cap: Marc Brooker, "Exponential Backoff And Jitter",
AWS Architecture Blog, 2015. Jitter that is added first and clipped after makes everybody wait
exactly the cap.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from invoke_retry.durations import LONGEST, Duration, as_wait, seconds_of, shown
from invoke_retry.errors import InvalidPolicy, RetryAfter, group_members

MAX_REPEATS = 2**31 - 1
_HINT_CAP = 3_600.0

Backoff = Literal["fixed", "exponential"]
Jitter = Literal["none", "full"]
Stop = Literal["exhausted", "deadline"]
Limit = Literal["timeout", "deadline"]
ErrorTypes = type[Exception] | tuple[type[Exception], ...]


class RetryPolicy(BaseModel):
    """How a failed attempt is repeated. Immutable, and stored with the invocation.

    All attempts of a hopeless invocation number `1 + repeats`, in every mode. Every time is in
    seconds, or a timedelta, from 0 to 100 years.

    Attributes:
        repeats: How many attempts may follow the first one, 0 to 2**31 - 1.
        seconds: The interval: what is waited between two attempts, never before the first and
            never after the last. `minutes=` is added to it; an int stays an int.
        backoff: `fixed`: every wait is the interval. `exponential`: wait n is
            `seconds * factor ** (n - 1)`.
        factor: What each wait is of the one before, 1 or more. Default 2.
        max_seconds: The longest wait. Default None: 100 years.
        jitter: `none`, or `full`: each wait is drawn evenly from 0 to what it would have been.
        timeout: Cuts one attempt, which then fails with `TimeoutError`. Default None: no limit.
        deadline: Cuts the whole invocation, counted from accept or, where the first attempt is
            inline, from its start. A running attempt is cut, and no wait is begun that would
            pass it. Default None: no limit.

    Raises:
        InvalidPolicy: Something is missing or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    repeats: int
    seconds: int | float
    backoff: Backoff = "fixed"
    factor: float = 2.0
    max_seconds: int | float | None = Field(default=None)
    jitter: Jitter = "none"
    timeout: int | float | None = None
    deadline: int | float | None = None

    def __init__(
        self,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        backoff: Backoff = "fixed",
        factor: float = 2.0,
        max_seconds: Duration | None = None,
        jitter: Jitter = "none",
        timeout: Duration | None = None,
        deadline: Duration | None = None,
    ) -> None:
        super().__init__(
            repeats=_repeats(repeats),
            seconds=_interval(seconds, minutes),
            backoff=_one_of("backoff", backoff, ("fixed", "exponential")),
            factor=_factor(factor),
            max_seconds=_time("max_seconds", max_seconds),
            jitter=_one_of("jitter", jitter, ("none", "full")),
            timeout=_time("timeout", timeout, positive=True),
            deadline=_time("deadline", deadline, positive=True),
        )

    def replace(
        self,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
    ) -> RetryPolicy:
        """This policy with other repeats or another interval.

        Either of *seconds* and *minutes* replaces the whole interval; None keeps what is.

        Raises:
            InvalidPolicy: A value is out of range.
        """
        changes: dict[str, Any] = {}
        if repeats is not None:
            changes["repeats"] = repeats
        if seconds is not None or minutes is not None:
            changes["seconds"] = _interval(seconds, minutes)
        return RetryPolicy(**{**dict(self), **changes})

    def interval(self, attempt: int) -> float:
        """Seconds to wait after the failed attempt number *attempt*, before any jitter."""
        wait, cap = self.seconds, self.max_seconds
        if self.backoff == "exponential" and wait:
            try:
                wait = min(wait * self.factor ** (attempt - 1), LONGEST)
            except OverflowError:
                wait = LONGEST
        return wait if cap is None else min(wait, cap)

    def delays(self) -> Iterator[float]:
        """The undrawn schedule: `repeats` waits in seconds, to look at."""
        return (self.interval(attempt) for attempt in range(1, self.repeats + 1))


def decide(
    policy: RetryPolicy, attempt: int, elapsed: float, error: BaseException, random: Random
) -> float | Stop:
    """What follows a failed, retryable attempt: the seconds to wait, or why to stop.

    Args:
        attempt: The number of the attempt that failed, from 1.
        elapsed: Seconds since the invocation's deadline began to count.
        error: The failure; it may ask for another wait, see `RetryAfter`.
        random: Where jitter is drawn from.
    """
    deadline = policy.deadline
    if deadline is not None and elapsed >= deadline:
        return "deadline"
    if attempt > policy.repeats:
        return "exhausted"
    asked = asked_wait(error)
    if asked is not None:
        cap = max(_HINT_CAP, policy.seconds) if policy.max_seconds is None else policy.max_seconds
        wait = min(asked, cap)
    elif policy.jitter == "full":
        wait = policy.interval(attempt) * random.random()
    else:
        wait = policy.interval(attempt)
    if deadline is not None and elapsed + wait >= deadline:
        return "deadline"
    return wait


def steady_wait(policy: RetryPolicy) -> float | None:
    """What `decide` says each time, while repeats are left and no error asks for another wait.

    None if it depends on the attempt, on time or on chance.
    """
    if policy.backoff == "fixed" and policy.jitter == "none" and policy.deadline is None:
        return policy.interval(1)
    return None


def time_limit(policy: RetryPolicy, began: float, now: float) -> tuple[float | None, Limit]:
    """What cuts an attempt that begins now: after how many seconds (None: never), and which limit.

    Args:
        began: When the deadline began to count, on the same clock as *now*.
    """
    timeout, deadline = policy.timeout, policy.deadline
    if deadline is not None:
        left = max(0.0, began + deadline - now)
        if timeout is None or left <= timeout:
            return left, "deadline"
    return timeout, "timeout"


def cut_error(policy: RetryPolicy, attempt: int, limit: Limit) -> TimeoutError:
    """What an attempt fails with that a limit has cut."""
    if limit == "deadline":
        return TimeoutError(
            f"cut off in attempt {attempt} by the deadline of {policy.deadline:g} s"
        )
    return TimeoutError(f"attempt {attempt} took longer than its timeout of {policy.timeout:g} s")


def is_retryable(error: BaseException, retry_on: ErrorTypes, give_up_on: ErrorTypes) -> bool:
    """Whether the error may pass: a group may if all its leaves may."""
    if group_members(error) is not None:
        return not isinstance(error, give_up_on) and all(
            is_retryable(leaf, retry_on, give_up_on) for leaf in _leaves(error)
        )
    if isinstance(error, RetryAfter):
        return True
    return isinstance(error, retry_on) and not isinstance(error, give_up_on)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, each once, however often groups share them."""
    pending, seen = [error], {id(error)}
    while pending:
        error = pending.pop()
        members = group_members(error)
        if members is None:
            yield error
            continue
        for member in members:
            if id(member) not in seen:
                seen.add(id(member))
                pending.append(member)


def asked_wait(error: BaseException) -> float | None:
    """The longest sensible wait that the error, or a leaf of the group, asks for, in seconds."""
    if isinstance(error, BaseExceptionGroup):
        leaves = _leaves(error)  # pyright: ignore[reportUnknownArgumentType]
        waits = [wait for leaf in leaves if (wait := asked_wait(leaf)) is not None]
        return max(waits, default=None)
    try:
        asked = getattr(error, "retry_after", None)
    except Exception:  # a property of somebody else's error class
        return None
    return None if asked is None else as_wait(asked)


def _repeats(value: object) -> int:
    if value is None:
        raise InvalidPolicy(
            "the policy says no repeats; pass repeats= (0 or more) in the call, in policy=, "
            "or give the target a policy of its own"
        )
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_REPEATS:
        raise InvalidPolicy(
            f"repeats is {shown(value)}, but must be an int from 0 to {MAX_REPEATS:,}: "
            "how many attempts may follow the first one"
        )
    return int(value)


def _interval(seconds: object, minutes: object) -> float:
    if seconds is None and minutes is None:
        raise InvalidPolicy(
            "the policy says no interval; pass seconds= or minutes= (0 or more) in the call, "
            "in policy=, or give the target a policy of its own"
        )
    total: float = 0
    if seconds is not None:
        total += _checked("seconds", seconds)
    if minutes is not None:
        # a timedelta is a length of time whatever the keyword says
        factor = 60 if isinstance(minutes, int | float) else 1
        total += _checked("minutes", minutes) * factor
    if total > LONGEST:
        raise InvalidPolicy(
            f"the interval is {total:g} seconds, but must be at most 100 years; "
            "seconds and minutes are added up"
        )
    return total


def _time(name: str, value: object, *, positive: bool = False) -> float | None:
    return None if value is None else _checked(name, value, positive=positive)


def _checked(name: str, value: object, *, positive: bool = False) -> float:
    try:
        return seconds_of(name, value, positive=positive)
    except ValueError as error:
        raise InvalidPolicy(str(error)) from None


def _factor(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if 1 <= (factor := float(value)) < float("inf"):
                return factor
        except OverflowError:
            pass
    raise InvalidPolicy(
        f"factor is {shown(value)}, but must be a finite number of at least 1: "
        "what each wait is of the one before"
    )


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise InvalidPolicy(f"{name} is {shown(value)}, but must be one of {', '.join(allowed)}")
    return value
