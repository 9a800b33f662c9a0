"""Policies: what they accept, and the pure decision that follows from them."""

import copy
import math
import pickle  # noqa: TID251  (that a policy survives it, not that anything stored is)
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import islice, pairwise
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from invoke_retry import InvalidPolicy, InvokeRetryError, RetryAfter, RetryPolicy
from invoke_retry.durations import LONGEST, as_wait, seconds_of, shown
from invoke_retry.policy import (
    MAX_REPEATS,
    Limit,
    cut_error,
    decide,
    is_retryable,
    steady_wait,
    time_limit,
)

HUGE = 10**400
ERROR = ValueError("no")

seconds = st.floats(0, LONGEST) | st.integers(0, int(LONGEST))
factors = st.floats(1, 1e300)
policies = st.builds(
    RetryPolicy,
    repeats=st.integers(0, MAX_REPEATS),
    seconds=seconds,
    backoff=st.sampled_from(["fixed", "exponential"]),
    factor=factors,
    max_seconds=st.none() | seconds,
    jitter=st.sampled_from(["none", "full"]),
    deadline=st.none() | st.floats(1e-9, LONGEST),
)
attempts = st.integers(1, 10**6) | st.integers(1, 2**31)


class Asks(Exception):
    def __init__(self, retry_after: object) -> None:
        self.retry_after = retry_after


class AsksBadly(Exception):
    @property
    def retry_after(self) -> float:
        raise RuntimeError("broken")


def wait_of(policy: RetryPolicy, attempt: int = 1, error: BaseException = ERROR) -> float:
    wait = decide(policy, attempt, 0.0, error, Random(1))
    assert not isinstance(wait, str)
    return wait


class TestWhatAPolicyIs:
    def test_defaults(self) -> None:
        policy = RetryPolicy(3, 5)
        assert policy.model_dump() == {
            "repeats": 3,
            "seconds": 5,
            "backoff": "fixed",
            "factor": 2.0,
            "max_seconds": None,
            "jitter": "none",
            "timeout": None,
            "deadline": None,
        }

    @pytest.mark.parametrize("policy", [
        RetryPolicy(0, 0),
        RetryPolicy(3, 1.5, backoff="exponential", factor=3, max_seconds=9, jitter="full"),
        RetryPolicy(MAX_REPEATS, LONGEST, timeout=1, deadline=timedelta(days=1)),
    ])  # fmt: skip
    def test_stored_and_read_back(self, policy: RetryPolicy) -> None:
        assert RetryPolicy.model_validate_json(policy.model_dump_json()) == policy
        assert RetryPolicy.model_validate(policy.model_dump()) == policy
        assert copy.deepcopy(policy) == policy == pickle.loads(pickle.dumps(policy))
        assert hash(policy) == hash(copy.copy(policy))

    @given(policies)
    def test_any_is_stored_and_read_back(self, policy: RetryPolicy) -> None:
        assert RetryPolicy.model_validate_json(policy.model_dump_json()) == policy

    def test_frozen(self) -> None:
        policy = RetryPolicy(3, 5)
        with pytest.raises(ValidationError, match="frozen"):
            policy.repeats = 4  # type: ignore[misc]
        assert policy.repeats == 3

    @pytest.mark.parametrize(("given", "interval"), [
        ({"seconds": 5}, 5),
        ({"seconds": 5.0}, 5.0),
        ({"seconds": 0}, 0),
        ({"minutes": 2}, 120),
        ({"minutes": 0.5}, 30.0),
        ({"seconds": 5, "minutes": 1}, 65),
        ({"seconds": timedelta(seconds=5)}, 5.0),
        ({"seconds": timedelta(hours=1)}, 3600.0),
        ({"minutes": timedelta(minutes=2)}, 120.0),
        ({"seconds": timedelta(seconds=1), "minutes": timedelta(seconds=1)}, 2.0),
        ({"seconds": Decimal("0.5")}, 0.5),
        ({"seconds": Fraction(1, 4)}, 0.25),
        ({"seconds": LONGEST}, LONGEST),
        ({"minutes": LONGEST / 60}, LONGEST),
    ])  # fmt: skip
    def test_interval(self, given: dict[str, Any], interval: float) -> None:
        policy = RetryPolicy(1, **given)
        assert policy.seconds == interval
        assert type(policy.seconds) is type(interval)

    @pytest.mark.parametrize(("wrong", "words"), [
        ({}, ["repeats", "policy="]),
        ({"repeats": 1}, ["interval", "seconds=", "minutes=", "policy="]),
        ({"seconds": 1}, ["repeats", "policy="]),
        ({"repeats": -1, "seconds": 1}, ["repeats", "-1", "0 to 2,147,483,647"]),
        ({"repeats": 2**31, "seconds": 1}, ["repeats", "2147483648", "0 to"]),
        ({"repeats": True, "seconds": 1}, ["repeats", "True (bool)", "int"]),
        ({"repeats": 1.0, "seconds": 1}, ["repeats", "1.0 (float)", "int"]),
        ({"repeats": "3", "seconds": 1}, ["repeats", "'3' (str)", "int"]),
        ({"repeats": 10**5000, "seconds": 1}, ["repeats", "int"]),
        ({"repeats": 1, "seconds": -1}, ["seconds", "-1", "100 years"]),
        ({"repeats": 1, "seconds": -1e-9}, ["seconds", "-1e-09"]),
        ({"repeats": 1, "seconds": math.nan}, ["seconds", "nan"]),
        ({"repeats": 1, "seconds": math.inf}, ["seconds", "inf"]),
        ({"repeats": 1, "seconds": -math.inf}, ["seconds", "-inf"]),
        ({"repeats": 1, "seconds": True}, ["seconds", "True (bool)"]),
        ({"repeats": 1, "seconds": "1"}, ["seconds", "'1' (str)"]),
        ({"repeats": 1, "seconds": HUGE}, ["seconds", "100 years"]),
        ({"repeats": 1, "seconds": Decimal("NaN")}, ["seconds", "NaN"]),
        ({"repeats": 1, "seconds": Decimal("sNaN")}, ["seconds", "sNaN"]),
        ({"repeats": 1, "seconds": Decimal("1e999")}, ["seconds", "1E+999"]),
        ({"repeats": 1, "seconds": Fraction(HUGE)}, ["seconds", "100 years"]),
        ({"repeats": 1, "seconds": timedelta(seconds=-1)}, ["seconds", "timedelta"]),
        ({"repeats": 1, "seconds": timedelta.max}, ["seconds", "timedelta"]),
        ({"repeats": 1, "seconds": LONGEST * 1.01}, ["seconds", "100 years"]),
        ({"repeats": 1, "minutes": -1}, ["minutes", "-1"]),
        ({"repeats": 1, "minutes": math.nan}, ["minutes", "nan"]),
        ({"repeats": 1, "minutes": LONGEST}, ["interval", "100 years"]),
        ({"repeats": 1, "seconds": LONGEST, "minutes": 1}, ["interval", "added up", "100 years"]),
        ({"repeats": 1, "seconds": 5, "minutes": -0.01}, ["minutes"]),
        ({"repeats": 1, "seconds": 1, "backoff": "linear"}, ["backoff", "'linear'", "fixed"]),
        ({"repeats": 1, "seconds": 1, "backoff": None}, ["backoff", "None", "exponential"]),
        ({"repeats": 1, "seconds": 1, "backoff": []}, ["backoff", "[] (list)", "exponential"]),
        ({"repeats": 1, "seconds": 1, "jitter": "equal"}, ["jitter", "'equal'", "none, full"]),
        ({"repeats": 1, "seconds": 1, "jitter": True}, ["jitter", "True (bool)"]),
        ({"repeats": 1, "seconds": 1, "factor": 0.5}, ["factor", "0.5", "at least 1"]),
        ({"repeats": 1, "seconds": 1, "factor": 0}, ["factor", "0 (int)"]),
        ({"repeats": 1, "seconds": 1, "factor": -2}, ["factor", "-2"]),
        ({"repeats": 1, "seconds": 1, "factor": math.nan}, ["factor", "nan", "finite"]),
        ({"repeats": 1, "seconds": 1, "factor": math.inf}, ["factor", "inf", "finite"]),
        ({"repeats": 1, "seconds": 1, "factor": True}, ["factor", "True (bool)"]),
        ({"repeats": 1, "seconds": 1, "factor": HUGE}, ["factor", "finite"]),
        ({"repeats": 1, "seconds": 1, "factor": "2"}, ["factor", "'2' (str)"]),
        ({"repeats": 1, "seconds": 1, "factor": None}, ["factor", "None"]),
        ({"repeats": 1, "seconds": 1, "max_seconds": -1}, ["max_seconds", "-1"]),
        ({"repeats": 1, "seconds": 1, "max_seconds": math.inf}, ["max_seconds", "inf"]),
        ({"repeats": 1, "seconds": 1, "timeout": 0}, ["timeout", "more than 0"]),
        ({"repeats": 1, "seconds": 1, "timeout": -0.0}, ["timeout", "more than 0"]),
        ({"repeats": 1, "seconds": 1, "timeout": math.nan}, ["timeout", "nan"]),
        ({"repeats": 1, "seconds": 1, "timeout": "1"}, ["timeout", "'1' (str)"]),
        ({"repeats": 1, "seconds": 1, "deadline": 0}, ["deadline", "more than 0"]),
        ({"repeats": 1, "seconds": 1, "deadline": timedelta(0)}, ["deadline", "more than 0"]),
        ({"repeats": 1, "seconds": 1, "deadline": -5}, ["deadline", "-5"]),
    ])  # fmt: skip
    def test_refused(self, wrong: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(InvalidPolicy) as caught:
            RetryPolicy(**wrong)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, InvokeRetryError)
        for word in words:
            assert word in str(caught.value)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(("wrong", "text"), [
        ({"repeats": None}, "the policy says no repeats; pass repeats= (0 or more) in the call, "
            "in policy=, or give the target a policy of its own"),
        ({"repeats": -1}, "repeats is -1 (int), but must be an int from 0 to 2,147,483,647: "
            "how many attempts may follow the first one"),
        ({"seconds": None}, "the policy says no interval; pass seconds= or minutes= (0 or more) "
            "in the call, in policy=, or give the target a policy of its own"),
        ({"seconds": 3e9, "minutes": 1e8}, "the interval is 9e+09 seconds, but must be at most "
            "100 years; seconds and minutes are added up"),
        ({"backoff": "linear"}, "backoff is 'linear' (str), but must be one of fixed, exponential"),
        ({"jitter": "some"}, "jitter is 'some' (str), but must be one of none, full"),
        ({"factor": 0}, "factor is 0 (int), but must be a finite number of at least 1: "
            "what each wait is of the one before"),
    ])  # fmt: skip
    def test_what_a_refusal_says(self, wrong: dict[str, Any], text: str) -> None:
        given: dict[str, Any] = {"repeats": 1, "seconds": 1, **wrong}
        with pytest.raises(InvalidPolicy) as caught:
            RetryPolicy(**given)
        assert str(caught.value) == text

    @pytest.mark.parametrize("name", ["seconds", "minutes", "max_seconds", "timeout", "deadline"])
    def test_a_refused_time_is_named(self, name: str) -> None:
        wrong: dict[str, Any] = {"repeats": 1, "seconds": 1, name: -1}
        with pytest.raises(InvalidPolicy, match=rf"^{name} is -1 \(int\), .* {name}=5$"):
            RetryPolicy(**wrong)

    @pytest.mark.parametrize("stored", [
        {"repeats": -1, "seconds": 1},
        {"repeats": 1},
        {"repeats": 1, "seconds": -1},
        {"repeats": True, "seconds": 1},
        {"repeats": 1, "seconds": 1, "factor": 0},
    ])  # fmt: skip
    def test_nothing_bad_is_read_from_a_store(self, stored: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            RetryPolicy.model_validate(stored)

    def test_unknown_keyword(self) -> None:
        with pytest.raises(TypeError, match="retries"):
            cast("Any", RetryPolicy)(repeats=1, seconds=1, retries=3)


class TestReplace:
    base = RetryPolicy(
        3, 5, backoff="exponential", factor=3, max_seconds=60, jitter="full", timeout=2, deadline=90
    )

    def test_nothing(self) -> None:
        assert self.base.replace() == self.base

    def test_repeats(self) -> None:
        assert self.base.replace(repeats=0) == self.base.model_copy(update={"repeats": 0})

    @pytest.mark.parametrize(("given", "interval"), [
        ({"seconds": 0}, 0), ({"minutes": 1}, 60), ({"seconds": 1, "minutes": 1}, 61),
    ])  # fmt: skip
    def test_interval_as_a_whole(self, given: dict[str, Any], interval: float) -> None:
        assert self.base.replace(**given) == self.base.model_copy(update={"seconds": interval})

    @pytest.mark.parametrize("wrong", [
        {"repeats": True}, {"repeats": -1}, {"seconds": -1}, {"minutes": math.inf},
        {"seconds": LONGEST, "minutes": 1},
    ])  # fmt: skip
    def test_checked(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidPolicy):
            self.base.replace(**wrong)


class TestInterval:
    def test_fixed(self) -> None:
        assert list(RetryPolicy(4, 5).delays()) == [5, 5, 5, 5]

    def test_exponential(self) -> None:
        assert list(RetryPolicy(4, 5, backoff="exponential").delays()) == [5, 10, 20, 40]

    def test_exponential_by_another_factor(self) -> None:
        policy = RetryPolicy(4, 1, backoff="exponential", factor=10)
        assert list(policy.delays()) == [1, 10, 100, 1000]

    def test_capped(self) -> None:
        policy = RetryPolicy(5, 5, backoff="exponential", max_seconds=12)
        assert list(policy.delays()) == [5, 10, 12, 12, 12]
        assert list(RetryPolicy(2, 5, max_seconds=3).delays()) == [3, 3]
        assert list(RetryPolicy(2, 5, max_seconds=0).delays()) == [0, 0]

    def test_zero_stays_zero(self) -> None:
        policy = RetryPolicy(MAX_REPEATS, 0, backoff="exponential", factor=1e300)
        assert policy.interval(MAX_REPEATS) == 0

    def test_delays_are_lazy_undrawn_and_as_many_as_repeats(self) -> None:
        assert list(RetryPolicy(0, 5).delays()) == []
        policy = RetryPolicy(MAX_REPEATS, 5, jitter="full")
        assert list(islice(policy.delays(), 3)) == [5, 5, 5]

    @pytest.mark.parametrize("factor", [1.0001, 2, 10, 1e6])
    @pytest.mark.parametrize("jitter", ["none", "full"])
    def test_many_attempts_overflow_nothing(self, factor: float, jitter: Any) -> None:
        count = 100_000
        policy = RetryPolicy(
            count, 1e-3, backoff="exponential", factor=factor, max_seconds=1, jitter=jitter
        )
        waits = list(policy.delays())
        assert len(waits) == count
        assert all(0 < wait <= 1 for wait in waits)
        assert all(a <= b for a, b in pairwise(waits))
        assert waits[-1] == 1
        random = Random(1)
        for attempt in range(1, count + 1):
            wait = decide(policy, attempt, 0.0, ERROR, random)
            assert not isinstance(wait, str)
            assert 0 <= wait <= waits[attempt - 1]
        assert decide(policy, count + 1, 0.0, ERROR, random) == "exhausted"

    @given(policies, attempts)
    def test_finite_within_the_cap_and_never_shrinking(
        self, policy: RetryPolicy, attempt: int
    ) -> None:
        cap = LONGEST if policy.max_seconds is None else policy.max_seconds
        wait = policy.interval(attempt)
        assert math.isfinite(wait)
        assert 0 <= wait <= cap
        assert wait <= policy.interval(attempt + 1) <= policy.interval(attempt * 2 + 1) <= cap

    @given(policies, st.integers(0, 5))
    def test_delays_are_the_intervals(self, policy: RetryPolicy, repeats: int) -> None:
        policy = policy.replace(repeats=repeats)
        assert list(policy.delays()) == [policy.interval(n) for n in range(1, repeats + 1)]


class TestDecide:
    @pytest.mark.parametrize("repeats", range(4))
    def test_one_attempt_and_the_repeats(self, repeats: int) -> None:
        policy = RetryPolicy(repeats, 5)
        verdicts = [decide(policy, n, 0.0, ERROR, Random(1)) for n in range(1, repeats + 3)]
        assert verdicts == [5] * repeats + ["exhausted"] * 2

    def test_full_jitter_is_drawn_evenly_inside_the_cap(self) -> None:
        policy = RetryPolicy(9, 100, backoff="exponential", max_seconds=50, jitter="full")
        random = Random(1)
        waits = [cast("float", decide(policy, 5, 0.0, ERROR, random)) for _ in range(4_000)]
        assert all(0 <= wait <= 50 for wait in waits)
        for low in range(0, 50, 10):  # 800 expected, give or take 5 sigma
            assert 670 < sum(low <= wait < low + 10 for wait in waits) < 930

    def test_no_jitter_draws_nothing(self) -> None:
        random = Random(1)
        before = random.getstate()
        decide(RetryPolicy(3, 5), 1, 0.0, ERROR, random)
        assert random.getstate() == before

    @given(
        policies,
        attempts,
        st.floats(0, LONGEST),
        st.none() | st.floats() | st.integers() | st.timedeltas() | st.text() | st.decimals(),
        st.integers(),
    )
    def test_every_wait_is_sane(
        self, policy: RetryPolicy, attempt: int, elapsed: float, asked: object, seed: int
    ) -> None:
        verdict = decide(policy, attempt, elapsed, Asks(asked), Random(seed))
        if isinstance(verdict, str):
            assert verdict == ("exhausted" if attempt > policy.repeats else "deadline") or (
                verdict == "deadline" and policy.deadline is not None
            )
            return
        assert attempt <= policy.repeats
        assert math.isfinite(verdict)
        cap = policy.max_seconds
        most = max(3_600.0, policy.interval(attempt)) if cap is None else cap
        assert 0 <= verdict <= most
        if policy.deadline is not None:
            assert elapsed + verdict < policy.deadline

    @given(policies, st.integers(0, 2**32))
    def test_same_seed_same_wait(self, policy: RetryPolicy, seed: int) -> None:
        first, second = (decide(policy, 1, 0.0, ERROR, Random(seed)) for _ in range(2))
        assert first == second


class TestDeadline:
    policy = RetryPolicy(2, 10, deadline=25)

    @pytest.mark.parametrize(("elapsed", "verdict"), [
        (0, 10), (14.9, 10), (15, "deadline"), (20, "deadline"), (25, "deadline"),
        (1e9, "deadline"),
    ])  # fmt: skip
    def test_no_wait_is_begun_that_would_pass_it(self, elapsed: float, verdict: object) -> None:
        assert decide(self.policy, 1, elapsed, ERROR, Random(1)) == verdict

    def test_no_repeats_left_in_time(self) -> None:
        assert decide(self.policy, 3, 5, ERROR, Random(1)) == "exhausted"

    def test_no_repeats_left_and_no_time_left(self) -> None:
        assert decide(self.policy, 3, 25, ERROR, Random(1)) == "deadline"

    def test_a_hint_counts_too(self) -> None:
        assert decide(self.policy, 1, 0, RetryAfter(24), Random(1)) == 24
        assert decide(self.policy, 1, 0, RetryAfter(26), Random(1)) == "deadline"

    def test_at_zero_interval(self) -> None:
        policy = RetryPolicy(2, 0, deadline=1)
        assert decide(policy, 1, 0.999, ERROR, Random(1)) == 0
        assert decide(policy, 1, 1, ERROR, Random(1)) == "deadline"


class TestTimeLimit:
    @pytest.mark.parametrize(("timeout", "deadline", "passed", "seconds", "limit"), [
        (None, None, 2, None, "timeout"),
        (3, None, 2, 3, "timeout"),
        (None, 5, 2, 3, "deadline"),
        (2, 5, 2, 2, "timeout"),
        (3, 5, 2, 3, "deadline"),
        (4, 5, 2, 3, "deadline"),
        (4, 5, 4.5, 0.5, "deadline"),
        (None, 5, 5, 0, "deadline"),
        (None, 5, 9, 0, "deadline"),
        (4, 5, 9, 0, "deadline"),
    ])  # fmt: skip
    def test_the_sooner_one_cuts(
        self, timeout: float | None, deadline: float | None, passed: float,
        seconds: float | None, limit: Limit,
    ) -> None:  # fmt: skip
        policy = RetryPolicy(1, 1, timeout=timeout, deadline=deadline)
        assert time_limit(policy, 100.0, 100.0 + passed) == (seconds, limit)

    @pytest.mark.parametrize(("limit", "text"), [
        ("timeout", "attempt 3 took longer than its timeout of 0.5 s"),
        ("deadline", "cut off in attempt 3 by the deadline of 20 s"),
    ])  # fmt: skip
    def test_what_the_error_says(self, limit: Limit, text: str) -> None:
        error = cut_error(RetryPolicy(1, 1, timeout=0.5, deadline=20), 3, limit)
        assert isinstance(error, TimeoutError)
        assert str(error) == text


class TestRetryAfter:
    @pytest.mark.parametrize(("asked", "wait"), [
        (7, 7.0), (0, 0.0), (0.25, 0.25), (timedelta(minutes=1), 60.0), (Decimal("1.5"), 1.5),
        (Fraction(1, 2), 0.5),
    ])  # fmt: skip
    @pytest.mark.parametrize("jitter", ["none", "full"])
    def test_replaces_the_wait(self, asked: Any, wait: float, jitter: Any) -> None:
        policy = RetryPolicy(3, 5, jitter=jitter)
        assert wait_of(policy, error=RetryAfter(asked)) == wait
        assert wait_of(policy, error=Asks(asked)) == wait

    @pytest.mark.parametrize("asked", [
        -1, -1e-9, math.nan, math.inf, -math.inf, HUGE, "5", "soon", True, False, None, [], b"5",
        timedelta(seconds=-1), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"),
        Fraction(HUGE), 1j, object(),
    ])  # fmt: skip
    def test_nonsense_is_ignored(self, asked: Any) -> None:
        assert wait_of(RetryPolicy(3, 5), error=Asks(asked)) == 5
        assert wait_of(RetryPolicy(3, 5), error=RetryAfter(asked)) == 5

    def test_broken_attribute(self) -> None:
        assert wait_of(RetryPolicy(3, 5), error=AsksBadly()) == 5

    @pytest.mark.parametrize(("policy", "wait"), [
        (RetryPolicy(3, 5), 3_600),
        (RetryPolicy(3, 7_200), 7_200),
        (RetryPolicy(3, 5, max_seconds=60), 60),
        (RetryPolicy(3, 5, max_seconds=100_000), 100_000),
        (RetryPolicy(3, 7_200, max_seconds=0), 0),
    ])  # fmt: skip
    def test_capped(self, policy: RetryPolicy, wait: float) -> None:
        assert wait_of(policy, error=RetryAfter(1e9)) == wait

    def test_cannot_add_repeats(self) -> None:
        assert decide(RetryPolicy(1, 5), 2, 0.0, RetryAfter(1), Random(1)) == "exhausted"

    def test_longest_sensible_one_of_a_group(self) -> None:
        group = ExceptionGroup(
            "g", [RetryAfter(3), ExceptionGroup("h", [Asks(8), Asks(math.inf), ERROR])]
        )
        assert wait_of(RetryPolicy(3, 5), error=group) == 8

    def test_group_that_asks_for_nothing(self) -> None:
        assert wait_of(RetryPolicy(3, 5), error=ExceptionGroup("g", [ERROR, Asks("x")])) == 5

    def test_text(self) -> None:
        assert str(RetryAfter(5)) == "retry after 5 s"
        assert str(RetryAfter(5, "too busy")) == "retry after 5 s: too busy"


class TestSteadyWait:
    @given(policies, attempts, st.floats(0, LONGEST), st.integers())
    def test_is_what_is_decided_each_time(
        self, policy: RetryPolicy, attempt: int, elapsed: float, seed: int
    ) -> None:
        steady = steady_wait(policy)
        if steady is not None and attempt <= policy.repeats:
            assert decide(policy, attempt, elapsed, ERROR, Random(seed)) == steady

    @pytest.mark.parametrize(("policy", "wait"), [
        (RetryPolicy(3, 5), 5),
        (RetryPolicy(0, 0, timeout=1), 0),
        (RetryPolicy(3, 5, max_seconds=2), 2),
        (RetryPolicy(3, 5, backoff="exponential"), None),
        (RetryPolicy(3, 5, jitter="full"), None),
        (RetryPolicy(3, 5, deadline=60), None),
    ])  # fmt: skip
    def test_where_nothing_else_matters(self, policy: RetryPolicy, wait: float | None) -> None:
        assert steady_wait(policy) == wait


class TestIsRetryable:
    @pytest.mark.parametrize(("error", "retry_on", "give_up_on", "verdict"), [
        (ValueError(), Exception, (), True),
        (ValueError(), ValueError, (), True),
        (UnicodeError(), ValueError, (), True),
        (KeyError(), ValueError, (), False),
        (KeyError(), (ValueError, KeyError), (), True),
        (ValueError(), (), (), False),
        (ValueError(), Exception, ValueError, False),
        (UnicodeError(), Exception, ValueError, False),
        (KeyError(), Exception, (ValueError, OSError), True),
        (RetryAfter(1), ValueError, (), True),
        (RetryAfter(1), Exception, Exception, True),
        (RetryAfter(1), (), RetryAfter, True),
        (KeyboardInterrupt(), Exception, (), False),
    ])  # fmt: skip
    def test_plain(
        self, error: BaseException, retry_on: Any, give_up_on: Any, verdict: bool
    ) -> None:
        assert is_retryable(error, retry_on, give_up_on) is verdict

    @pytest.mark.parametrize(("leaves", "verdict"), [
        ([ValueError()], True),
        ([ValueError(), UnicodeError()], True),
        ([ValueError(), KeyError()], False),
        ([ValueError(), RetryAfter(1)], True),
        ([ExceptionGroup[Exception]("h", [ValueError(), ExceptionGroup("i", [ValueError()])])],
         True),
        ([ValueError(), ExceptionGroup("h", [ExceptionGroup("i", [KeyError()])])], False),
    ])  # fmt: skip
    def test_group_by_all_its_leaves(self, leaves: list[Exception], verdict: bool) -> None:
        assert is_retryable(ExceptionGroup("g", leaves), ValueError, ()) is verdict
        assert is_retryable(ExceptionGroup("g", leaves), Exception, KeyError) is verdict

    def test_group_with_a_leaf_that_is_no_exception(self) -> None:
        group = BaseExceptionGroup("g", [ValueError(), KeyboardInterrupt()])
        assert not is_retryable(group, Exception, ())

    def test_group_class_given_up_on(self) -> None:
        group = ExceptionGroup("g", [ValueError()])
        assert not is_retryable(group, Exception, ExceptionGroup)

    def test_groups_that_share_members_are_looked_at_once(self) -> None:
        asked: list[float] = []

        class Counted(Exception):
            @property
            def retry_after(self) -> float:
                asked.append(7)
                return 7

        group: Any = Counted()
        for _ in range(100):  # 8 ** 100 leaves, if each were looked at wherever it stands
            group = ExceptionGroup("g", [group] * 8)
        assert is_retryable(group, Counted, ())
        assert not is_retryable(group, ValueError, ())
        assert wait_of(RetryPolicy(3, 5), error=group) == 7
        assert asked == [7]

    def test_deep_group(self) -> None:
        group = ExceptionGroup[Exception]("g", [ValueError()])
        for _ in range(10_000):
            group = ExceptionGroup("g", [group])
        assert is_retryable(group, Exception, ())
        assert wait_of(RetryPolicy(3, 5), error=group) == 5
        while True:  # taken apart by hand: the interpreter's own way is recursive
            member = group.exceptions[0]
            if not isinstance(member, ExceptionGroup):
                break
            group = cast("ExceptionGroup[Exception]", member)


class TestDurations:
    def test_int_stays_an_int(self) -> None:
        assert type(seconds_of("x", 5)) is int
        assert type(seconds_of("x", 5.0)) is float

    @pytest.mark.parametrize("value", [0, 0.0, timedelta(0), Decimal(0), Fraction(0)])
    def test_zero(self, value: object) -> None:
        assert seconds_of("x", value) == 0
        with pytest.raises(ValueError, match=r"^x is .*more than 0 to 100 years; .*x=5"):
            seconds_of("x", value, positive=True)

    @given(st.floats() | st.integers() | st.timedeltas() | st.decimals() | st.fractions())
    def test_in_range_or_refused(self, value: Any) -> None:
        try:
            number = seconds_of("x", value)
        except ValueError as error:
            refusal = str(error)
        else:
            assert 0 <= number <= LONGEST
            return
        assert refusal.startswith("x is ")

    @given(st.floats() | st.integers() | st.timedeltas() | st.decimals() | st.fractions()
           | st.text() | st.booleans() | st.none())  # fmt: skip
    def test_a_wait_makes_sense_or_is_none(self, value: object) -> None:
        wait = as_wait(value)
        assert wait is None or (math.isfinite(wait) and wait >= 0)

    def test_shown(self) -> None:
        class Broken:
            def __repr__(self) -> str:
                raise RuntimeError

        assert shown(5) == "5 (int)"
        assert shown("x" * 1000) == f"'{'x' * 79}... (str)"
        assert shown(Broken()) == "a value that cannot be shown (Broken)"
        assert shown(10**5000) == "a value that cannot be shown (int)"
