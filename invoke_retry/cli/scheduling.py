"""`policy`: the schedule of a policy, in numbers and drawn."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, cast

import typer
from rich.text import Text

from invoke_retry.cli.commands import WORKING, command
from invoke_retry.cli.errors import CommandError
from invoke_retry.cli.options import JsonOption
from invoke_retry.cli.output import Column, Output
from invoke_retry.cli.times import duration
from invoke_retry.errors import InvalidPolicy
from invoke_retry.policy import RetryPolicy

Cut = Literal["never", "maybe", "always"]

_SHOWN = 20
_ADDED_UP = 1_000
_HIGHEST_POWER = 700
_BAR_WIDTHS = (8, 40)
_BESIDE_THE_BAR = 48
_EIGHTHS = "▏▎▍▌▋▊▉█"
_STYLES: dict[Cut, str] = {"never": "", "maybe": "yellow", "always": "dim"}


class Step(NamedTuple):
    """One attempt of a schedule in which every attempt fails at once; times in seconds.

    Attributes:
        wait: What is waited before it, at most.
        at: How long after the first one it begins, at most.
        cut: Whether the deadline keeps it from being made.
    """

    attempt: int
    wait: float
    at: float
    cut: Cut


def _number(text: str) -> float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise typer.BadParameter(f"{text!r} is no number")


Number = float | None


def _option(name: str, text: str) -> Any:
    return typer.Option(name, metavar="NUMBER", parser=_number, help=text, show_default=False)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "policy", WORKING)
    async def policy(
        repeats: Annotated[
            int | None, typer.Option("--repeats", "-r", help="How many attempts follow the first.")
        ] = None,
        seconds: Annotated[Number, _option("--seconds", "The interval between two.")] = None,
        minutes: Annotated[Number, _option("--minutes", "The same; both are added up.")] = None,
        backoff: Annotated[
            str,
            typer.Option(
                metavar="KIND",
                autocompletion=lambda: ["fixed", "exponential"],
                help="fixed: every wait is the interval; exponential: each is longer.",
            ),
        ] = "fixed",
        factor: Annotated[
            Number, _option("--factor", "What each wait is of the one before. Default 2.")
        ] = None,
        max_seconds: Annotated[Number, _option("--max-seconds", "The longest wait.")] = None,
        jitter: Annotated[
            str,
            typer.Option(
                metavar="KIND",
                autocompletion=lambda: ["none", "full"],
                help="full: each wait is drawn from 0 to what it would have been.",
            ),
        ] = "none",
        timeout: Annotated[Number, _option("--timeout", "Seconds that cut one attempt.")] = None,
        deadline: Annotated[Number, _option("--deadline", "Seconds that cut it all.")] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Draw the schedule of a policy: when each attempt is made, if all of them fail.

        For example: policy --repeats 8 --seconds 1 --backoff exponential --max-seconds 60
        """
        if repeats is None or (seconds is None and minutes is None):
            raise CommandError(
                "say how often and how soon: --repeats, and --seconds or --minutes, "
                "e.g. 'invoke-retry policy --repeats 5 --seconds 10'"
            )
        try:
            drawn = RetryPolicy(
                repeats, seconds, minutes, cast("Any", backoff), 2.0 if factor is None else factor,
                max_seconds, cast("Any", jitter), timeout, deadline,
            )  # fmt: skip
        except InvalidPolicy as error:
            raise CommandError(str(error)) from None
        _print(drawn, Output("policy", as_json=as_json))


def waited(policy: RetryPolicy, waits: int) -> float:
    """The sum of the first so many waits in seconds, undrawn."""
    if waits <= _ADDED_UP:
        return math.fsum(map(policy.interval, range(1, waits + 1)))
    longest_wait = policy.interval(waits)
    if longest_wait <= policy.seconds:
        return longest_wait * waits
    # a geometric series until the wait is the longest one
    growing = bisect_left(range(1, waits + 1), longest_wait, key=policy.interval)
    power = growing * math.log(policy.factor)
    if power < _HIGHEST_POWER:
        grown = policy.seconds * math.expm1(power)
    else:
        grown = math.exp(math.log(policy.seconds) + power)
    return grown / (policy.factor - 1) + longest_wait * (waits - growing)


def steps_of(policy: RetryPolicy) -> list[Step]:
    """The first attempts, and the last one."""
    last = 1 + policy.repeats
    shown = [*range(1, min(last, _SHOWN) + 1), *([last] if last > _SHOWN else [])]
    return [
        Step(
            attempt,
            policy.interval(attempt - 1) if attempt > 1 else 0,
            at := waited(policy, attempt - 1),
            _cut(policy, at),
        )
        for attempt in shown
    ]


def attempts_made(policy: RetryPolicy) -> int:
    """How many attempts the deadline lets through, if none takes time and no wait is drawn."""
    if policy.deadline is None:
        return 1 + policy.repeats
    return bisect_left(range(1 + policy.repeats), policy.deadline, key=partial(waited, policy))


def _cut(policy: RetryPolicy, at: float) -> Cut:
    if policy.deadline is None or at < policy.deadline:
        return "never"
    return "maybe" if policy.jitter == "full" else "always"


def longest(policy: RetryPolicy) -> float | None:
    """Seconds until a hopeless invocation has given up, at most; None: its attempts have no end."""
    ends = [] if policy.deadline is None else [policy.deadline]
    if policy.timeout is not None:
        ends.append(waited(policy, policy.repeats) + policy.timeout * (1 + policy.repeats))
    return min(ends, default=None)


def code(policy: RetryPolicy) -> str:
    """The policy as a program writes it."""
    given = [
        f"{name}={getattr(policy, name)!r}"
        for name, field in RetryPolicy.model_fields.items()
        if field.is_required() or getattr(policy, name) != field.default
    ]
    return f"RetryPolicy({', '.join(given)})"


def _print(policy: RetryPolicy, out: Output) -> None:
    steps = steps_of(policy)
    if out.as_json:
        out.json(_data(policy, steps))
        return
    out.print(Text(code(policy), "bold"), "")
    out.table(*_table(policy, steps, out))
    out.print("", *_summary(policy, steps))


def _data(policy: RetryPolicy, steps: list[Step]) -> dict[str, Any]:
    least = 0 if policy.jitter == "full" else 1

    def span(seconds: float) -> dict[str, float]:
        return {"least": seconds * least, "most": seconds}

    return {
        "policy": policy.model_dump(mode="json"),
        "code": code(policy),
        "attempts": 1 + policy.repeats,
        "within_deadline": attempts_made(policy) if least else None,
        "schedule": [
            {"attempt": n, "wait": span(wait), "since_start": span(at), "cut": cut}
            for n, wait, at, cut in steps
        ],
        "waits": span(steps[-1].at),
        "longest": longest(policy),
    }


def _table(
    policy: RetryPolicy, steps: list[Step], out: Output
) -> tuple[list[Column], list[list[Text | str]]]:
    to = "0 to " if policy.jitter == "full" else ""
    least, most = _BAR_WIDTHS
    width = max(least, min(most, out.console.width - _BESIDE_THE_BAR))
    longest_wait = max(step.wait for step in steps) or 1
    rows: list[list[Text | str]] = []
    for step in steps:
        if step.attempt > _SHOWN + 1:
            rows.append([Text("...", "dim"), "", "", ""])
        style, is_first = _STYLES[step.cut], step.attempt == 1
        rows.append(
            [
                Text(f"{step.attempt:,}", style),
                Text("-" if is_first else f"{to}{_seconds(step.wait)}", style),
                Text("0 s" if is_first else f"{to}{_seconds(step.at)}", style),
                Text(_bar(step.wait / longest_wait, width), style or "cyan"),
            ]
        )
    columns = [Column("attempt"), Column("after a wait of"), Column("since the start"), Column("")]
    # bars are for eyes
    number = len(columns) if out.is_terminal else len(columns) - 1
    return columns[:number], [row[:number] for row in rows]


def _bar(part: float, width: int) -> str:
    eighths = round(part * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest - 1] if rest else "")


def _seconds(seconds: float) -> str:
    return "0 s" if seconds == 0 else duration(seconds)


def _summary(policy: RetryPolicy, steps: list[Step]) -> list[str]:
    number, waits = 1 + policy.repeats, _seconds(steps[-1].at)
    attempts = "1 attempt" if number == 1 else f"{number:,} attempts"
    if policy.jitter == "full":
        mean = _seconds(steps[-1].at / 2)
        lines = [f"{attempts} at most; 0 s to {waits} of waiting, {mean} on average"]
    else:
        lines = [f"{attempts} at most; {waits} of waiting"]
    if policy.deadline is not None:
        lines.append(_about_deadline(policy, policy.deadline, steps))
    end = longest(policy)
    lines.append(
        "an attempt may take as long as it likes: there is neither a timeout nor a deadline"
        if end is None
        else f"a hopeless invocation has given up {_seconds(end)} after its start, at the latest"
    )
    return lines


def _about_deadline(policy: RetryPolicy, deadline: float, steps: list[Step]) -> str:
    name, made = f"the deadline of {_seconds(deadline)}", attempts_made(policy)
    if steps[-1].cut == "never":
        return f"{name} cuts none of them, as long as they take no time themselves"
    if policy.jitter == "full":
        return f"{name} may cut those after attempt {made:,}, as the waits are drawn"
    return f"{name} cuts those after attempt {made:,}, or more if they take time themselves"
