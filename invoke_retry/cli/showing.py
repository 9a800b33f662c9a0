"""`show`: the whole story of one invocation."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from invoke_retry.cli.commands import LOOKING, command
from invoke_retry.cli.options import JsonOption, RevealOption, StoreOption
from invoke_retry.cli.output import Output, state_text
from invoke_retry.cli.safe import clean
from invoke_retry.cli.stores import opened
from invoke_retry.cli.timeline import events_of, timeline
from invoke_retry.cli.times import ago, duration, moment
from invoke_retry.models import Invocation, utc_time

_LABEL = 16
_WIDEST = 120
_SHORT = 2_000

TracebacksOption = Annotated[
    bool, typer.Option("--traceback", "-t", help="With the traceback of every attempt.")
]
FullOption = Annotated[
    bool, typer.Option("--full", help="Payload, context and response however long they are.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "show", LOOKING)
    async def show(
        cid: Annotated[str, typer.Argument(metavar="CID", help="A cid, or its beginning.")],
        traceback: TracebacksOption = False,
        full: FullOption = False,
        store: StoreOption = None,
        as_json: JsonOption = False,
        reveal: RevealOption = False,
    ) -> None:
        """The whole story of one invocation: what it was given, every attempt, what comes next."""
        out = Output("show", as_json=as_json, reveal=reveal)
        async with opened(store) as look:
            invocation = await look.get(await look.cid(cid))
            now = utc_time(look.clock.utc())
        if as_json:
            out.json(out.value(invocation.model_dump(mode="json")))
            return
        tell_story(out, invocation, now, tracebacks=traceback, full=full)


def tell_story(
    out: Output, invocation: Invocation, now: datetime, *, tracebacks: bool, full: bool
) -> None:
    """Print all that is known of an invocation."""
    out.print(_facts(out, invocation, now))
    for name in ("payload", "context", "response"):
        value = getattr(invocation, name)
        if value is not None:
            out.print(Text(f"\n{name}", "bold"), Text(_pretty(out, value, full)))
    if invocation.response_omitted is not None:
        out.print(Text("\nresponse", "bold"), out.text(f"not kept: {invocation.response_omitted}"))
    if lines := timeline(events_of(invocation, now), min(_WIDEST, out.console.width)):
        out.print(Text("\ntimeline", "bold"), *lines)
    if invocation.history:
        out.print(Text("\nattempts", "bold"))
        _tell_attempts(out, invocation, tracebacks=tracebacks)
    _tell_what_to_do(out, invocation)


def _facts(out: Output, each: Invocation, now: datetime) -> Text:
    facts = Text()

    def fact(name: str, value: str | Text | None) -> None:
        if value is not None:
            facts.append(name.ljust(_LABEL), "bold")
            facts.append_text(out.text(value) if isinstance(value, str) else value)
            facts.append("\n")

    def time(at: datetime | None) -> str | None:
        return None if at is None else f"{moment(at)} ({ago(at, now)})"

    state = state_text(each.state)
    if each.reason is not None and each.reason != each.state:
        state.append(f" ({each.reason})")
    fact("cid", Text(str(each.call_cid)))
    fact("state", state)
    fact("target", each.target)
    fact("callback", each.callback)
    fact("source", f"{each.source} ({each.orig_cid})")
    fact("resubmit of", each.resubmit_of)
    fact("accepted", time(each.created_at))
    most, interval = 1 + each.retry_repeats, duration(each.retry_seconds)
    fact("attempts", f"{each.attempts} of {most:,}, interval {interval}")
    fact("next", time(each.next_attempt_at))
    fact("outcome", time(each.resp_ts_utc))
    fact("parked", each.parked_because)
    if each.error is not None:
        fact("error", out.text(f"{each.error.type}: {each.error.message}", "red"))
    if each.deliveries:
        calls = "1 call" if each.deliveries == 1 else f"{each.deliveries:,} calls"
        fact("deliveries", f"{calls} of the callback")
    if each.delivery_error is not None:
        told = f"{each.delivery_error.type}: {each.delivery_error.message}"
        fact("callback error", out.text(told, "red"))
    facts.rstrip()
    return facts


def _pretty(out: Output, value: Any, full: bool) -> str:
    text = clean(json.dumps(out.value(value), indent=2, ensure_ascii=False), lines=True)
    if full or len(text) <= _SHORT:
        return text
    return f"{text[:_SHORT]}\n... {len(text) - _SHORT:,} more characters: --full"


def _tell_attempts(out: Output, invocation: Invocation, *, tracebacks: bool) -> None:
    hidden = invocation.attempts - len(invocation.history)
    if hidden > 0:
        out.print(Text(f"the first {hidden:,} are not kept", "dim"))
    for attempt in invocation.history:
        took = (
            "runs"
            if attempt.ended_at is None
            else duration((attempt.ended_at - attempt.started_at).total_seconds())
        )
        line = Text(f"{attempt.number:>3}  {moment(attempt.started_at)}  {took:>8}  ")
        if attempt.error is not None:
            line.append_text(out.text(f"{attempt.error.type}: {attempt.error.message}", "red"))
        elif attempt.ended_at is not None:
            line.append("succeeded", "green")
        out.print(line)
        if tracebacks and attempt.traceback:
            out.print(out.text(attempt.traceback.rstrip(), "dim", lines=True))
    if not tracebacks and any(attempt.traceback for attempt in invocation.history):
        out.note("where they failed: --traceback")


def _tell_what_to_do(out: Output, invocation: Invocation) -> None:
    cid = invocation.call_cid
    match invocation.state:
        case "failed" | "cancelled":
            out.note(f"to run it again: invoke-retry resubmit {cid}")
        case "dead":
            out.note(f"its callback gave up; to tell it again: invoke-retry redeliver {cid}")
        case "waiting" | "parked":
            out.note(f"to run it at once: invoke-retry run-now {cid}")
        case _:
            pass
