"""How findings speak of sizes, times, numbers and names, and what every store may have to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from invoke_retry.backends.base import Finding
from invoke_retry.durations import shown
from invoke_retry.errors import InvocationNotFound

SHOWN: Final = 5
MANY: Final = 10_000  # nobody needs to know a larger number exactly


def unknown(cid: object) -> InvocationNotFound:
    """The error that says so, whatever was asked for."""
    asked = shown(cid).removesuffix(" (str)")
    return InvocationNotFound(
        f"no invocation has the cid {asked}; it never was accepted here, or was pruned after its "
        "retention"
    )


def size(number: int) -> str:
    """A number of bytes."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 10_240 or unit == "GiB":
            break
        number //= 1_024
    return f"{number:,} {unit}"


def span(seconds: float) -> str:
    """How long something takes."""
    for length, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def moment(since: object) -> str:
    """Seconds since the epoch, as they are stored; "?" if they are none."""
    try:
        return datetime.fromtimestamp(since, UTC).isoformat(" ", "seconds")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def many(number: int) -> str:
    """A number that was not counted beyond `MANY`."""
    return f"{number:,}" if number <= MANY else f"more than {MANY:,}"


def names(known: Sequence[object]) -> str:
    """The first of them."""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(map(str, known[:SHOWN])) + more if known else "nothing"


# What is found in one store as in another.

NOTHING_STUCK: Final = Finding(
    "ok", "stuck", "nothing is left behind, and no attempt takes over an hour"
)


def nobody_works(unfinished: int) -> Finding:
    """No process does."""
    if unfinished:
        text = f"no process works, and {unfinished:,} invocations wait for one: start one"
        return Finding("warning", "workers", text)
    return Finding("ok", "workers", "no process works, and nothing waits for one")


def long_attempt(target: object, since: object, cid: object) -> Finding:
    """One that has run for more than an hour."""
    text = (
        f"an attempt of {target} has run since {moment(since)}: {cid}; cancel it if it hangs, and "
        "give its policy a timeout"
    )
    return Finding("warning", "stuck", text)


def overdue_in_all(services: int) -> Iterator[Finding]:
    """What is said after the first `SHOWN` services of which something is overdue."""
    if services > SHOWN:
        text = f"and so are some of {services - SHOWN} other services"
        yield Finding("bad", "overdue", text)
    if not services:
        yield Finding("ok", "overdue", "nothing has been due for more than a minute")


def parked(number: int) -> Finding:
    """How many are."""
    if number:
        text = (
            f"{number:,} cannot run and wait for what they miss; see why (parked_because), and "
            "start a process that can run them"
        )
        return Finding("warning", "parked", text)
    return Finding("ok", "parked", "nothing is parked")


def dead(number: int) -> Finding:
    """How many dead letters there are."""
    if number:
        text = f"the callbacks of {number:,} gave up; mend them and redeliver"
        return Finding("warning", "dead", text)
    return Finding("ok", "dead", "there are no dead letters")
