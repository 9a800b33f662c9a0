"""The policy of a call, put together from its keywords, its `policy=`, and the target's own."""

from __future__ import annotations

from invoke_retry.durations import Duration, shown
from invoke_retry.policy import RetryPolicy, steady_wait

_KEPT_LIMIT = 64
_NOTHING = object()
_NO_POLICY = RetryPolicy.model_construct(repeats=0, seconds=0)  # quick: nothing is validated


class Plan:
    """A policy as a call has put it together, with what the call said.

    Compared by identity: equal is not enough, since `True == 1 == 1.0`.

    Attributes:
        steady: What is waited each time; None if that is to be decided anew.
    """

    __slots__ = ("is_limited", "policy", "repeats", "repeats_asked", "seconds_asked", "steady")

    def __init__(self, repeats: object, seconds: object, policy: RetryPolicy) -> None:
        self.repeats_asked = repeats
        self.seconds_asked = seconds
        self.policy = policy
        self.repeats = policy.repeats
        self.steady = steady_wait(policy)
        self.is_limited = policy.timeout is not None or policy.deadline is not None


class Plans:
    """The plans of one service; what recent calls of it have asked for is kept.

    Args:
        own: The policy of a call that gives none.

    Attributes:
        latest: The plan of the latest call that gave neither `minutes=` nor `policy=`.
    """

    __slots__ = ("_kept", "_own", "latest")

    def __init__(self, own: RetryPolicy | None) -> None:
        self._own = own
        self._kept: dict[tuple[object, ...], Plan] = {}
        self.latest = Plan(_NOTHING, _NOTHING, own or _NO_POLICY)

    def find(
        self,
        repeats: int | None,
        seconds: Duration | None,
        minutes: Duration | None,
        policy: RetryPolicy | None,
    ) -> Plan:
        """The plan of a call.

        Raises:
            InvalidPolicy: Something is missing or out of range.
            TypeError: *policy* is none.
        """
        if policy is not None:
            if not isinstance(policy, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"policy is {shown(policy)}, but must be a RetryPolicy")
            return Plan(repeats, seconds, _joined(policy, repeats, seconds, minutes))
        asked = (
            repeats.__class__, repeats, seconds.__class__, seconds, minutes.__class__, minutes
        )  # fmt: skip
        try:
            plan = self._kept.get(asked)
        except TypeError:  # unhashable, hence wrong: it is refused below
            plan = None
        if plan is None:
            plan = Plan(repeats, seconds, _joined(self._own, repeats, seconds, minutes))
            if len(self._kept) >= _KEPT_LIMIT:
                self._kept.clear()
            self._kept[asked] = plan
        if minutes is None:
            self.latest = plan
        return plan


def _joined(
    base: RetryPolicy | None,
    repeats: int | None,
    seconds: Duration | None,
    minutes: Duration | None,
) -> RetryPolicy:
    if base is None:
        return RetryPolicy(repeats, seconds, minutes)
    if repeats is None and seconds is None and minutes is None:
        return base
    return base.replace(repeats, seconds, minutes)
