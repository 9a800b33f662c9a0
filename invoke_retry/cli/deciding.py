"""`run-now`, `cancel`, `redeliver`, `resubmit`, `pause`, `resume`: deciding over what is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple

import typer

from invoke_retry.cli.commands import DECIDING, command, confirmed
from invoke_retry.cli.errors import CommandError, ExitCode
from invoke_retry.cli.options import (
    ErrorTypeOption,
    Filters,
    JsonOption,
    NewerOption,
    OlderOption,
    SourceOption,
    StateOption,
    StoreOption,
    TargetOption,
    YesOption,
)
from invoke_retry.cli.output import Output, invocations
from invoke_retry.cli.stores import Store, opened
from invoke_retry.errors import InvalidState, InvocationNotFound
from invoke_retry.models import State

CidsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CID]...", help="Which ones, or the beginnings of their cids."),
]
ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE", help="The name of the service.")]


class Decision(NamedTuple):
    """What is done with one invocation, and how it is spoken of.

    Attributes:
        do: Does it; False or `InvalidState` if its state does not allow it. A new cid, if any.
        done: What was done, as in "3 invocations run now".
        states: Those that allow it. With filters and no state only these are looked at.
        do_all: Does it with what filters have found, if it is not the same: filters find again
            what the same command has found before.
    """

    name: str
    do: Callable[[Store, str], Awaitable[bool | str]]
    done: str
    states: tuple[State, ...]
    do_all: Callable[[Store, str], Awaitable[bool | str]] | None = None


async def _resubmit_once(store: Store, cid: str) -> str:
    return await store.resubmit(cid, once=True)


_NAMED = 10  # more are only counted

_RUN_NOW = Decision("run-now", Store.run_now, "will run now", ("waiting", "notifying", "parked"))
_CANCEL = Decision("cancel", Store.cancel, "cancelled", ("waiting", "running", "parked"))
_REDELIVER = Decision("redeliver", Store.redeliver, "will be told again", ("dead",))
_RESUBMIT = Decision(
    "resubmit", Store.resubmit, "resubmitted", ("failed", "cancelled"), _resubmit_once
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for decision, text in (
        (
            _RUN_NOW,
            "Do at once what waits for its time: the next attempt, or the callback's. What is "
            "parked is tried again.",
        ),
        (
            _CANCEL,
            "End what has no outcome yet: it is recorded as cancelled, and its callback is told.",
        ),
        (_REDELIVER, "Tell the callback of a dead letter again; the target is not run again."),
        (
            _RESUBMIT,
            "Run what failed or was cancelled again, as a new invocation with the same payload, "
            "callback and policy. What filters have found is resubmitted by them only once.",
        ),
    ):
        _register(app, decision, text)

    @command(app, "pause", DECIDING)
    async def pause(
        service: ServiceArgument, store: StoreOption = None, as_json: JsonOption = False
    ) -> ExitCode:
        """Begin nothing more of a service, in any process, until 'resume'.

        What runs goes on, what waits is kept. It lasts over restarts.
        """
        return await _set_paused(service, store, Output("pause", as_json=as_json), paused=True)

    @command(app, "resume", DECIDING)
    async def resume(
        service: ServiceArgument, store: StoreOption = None, as_json: JsonOption = False
    ) -> ExitCode:
        """Let a paused service go on."""
        return await _set_paused(service, store, Output("resume", as_json=as_json), paused=False)


def _register(app: typer.Typer, decision: Decision, text: str) -> None:
    async def decide(
        cids: CidsArgument = None,
        state: StateOption = None,
        target: TargetOption = None,
        source: SourceOption = None,
        error_type: ErrorTypeOption = None,
        newer: NewerOption = None,
        older: OlderOption = None,
        yes: YesOption = False,
        store: StoreOption = None,
        as_json: JsonOption = False,
    ) -> ExitCode:
        filters = Filters(state, target, source, error_type, newer, older)
        if bool(cids) == filters.is_given:
            raise CommandError(
                f"say which ones: 'invoke-retry {decision.name} CID', or the filters of 'list', "
                f"e.g. --state {decision.states[0]}; not both"
            )
        async with opened(store, to_change=True) as change:
            if cids:
                do, chosen = decision.do, [await change.cid(cid) for cid in cids]
            else:
                do = decision.do_all or decision.do
                chosen = await _fitting(change, filters, decision)
                if chosen:
                    confirmed(f"{decision.name} {invocations(len(chosen))}?", yes=yes)
            out = Output(decision.name, as_json=as_json)
            return await _decide(change, chosen, decision._replace(do=do), out)

    decide.__doc__ = (
        f"{text}\n\nOne, several, or with the filters of 'list' all that fit: their number is "
        "shown first."
    )
    command(app, decision.name, DECIDING)(decide)


async def _fitting(store: Store, filters: Filters, decision: Decision) -> list[str]:
    query = filters.query(store.clock.utc())
    states = decision.states if filters.state is None else (filters.state,)
    return [
        cid for state in states for cid in await store.backend.cids(query._replace(state=state))
    ]


async def _decide(store: Store, cids: list[str], decision: Decision, out: Output) -> ExitCode:
    done: list[dict[str, str]] = []
    refused: list[dict[str, str]] = []
    with out.progress() as progress:
        task = progress.add_task(decision.name, total=len(cids))
        for cid in cids:
            try:
                answer = await decision.do(store, cid)
            except (InvalidState, InvocationNotFound) as error:  # it may have moved on meanwhile
                refused.append({"cid": cid, "why": str(error)})
            else:
                if answer is False:
                    refused.append({"cid": cid, "why": await _why_not(store, cid, decision)})
                elif answer is True:
                    done.append({"cid": cid})
                else:
                    done.append({"cid": cid, "new_cid": str(answer)})
            progress.advance(task)
    if out.as_json:
        out.json({"done": done, "refused": refused})
    else:
        _tell(done, refused, decision, out)
    return ExitCode.NO if refused or not cids else ExitCode.DONE


def _tell(
    done: list[dict[str, str]], refused: list[dict[str, str]], decision: Decision, out: Output
) -> None:
    if len(done) + len(refused) == 0:
        out.note("no invocation fits")
    for each in done if len(done) <= _NAMED else ():
        new = f" as {each['new_cid']}" if "new_cid" in each else ""
        out.print(f"{each['cid']} {decision.done}{new}")
    if len(done) > _NAMED:
        out.print(f"{invocations(len(done))} {decision.done}")
    for each in refused[:_NAMED]:
        out.note(each["why"])
    if len(refused) > _NAMED:
        out.note(f"and {len(refused) - _NAMED:,} more were left as they are")


async def _why_not(store: Store, cid: str, decision: Decision) -> str:
    state = (await store.get(cid)).state
    wanted = " or ".join(decision.states)
    return f"{cid} is {state}, and was left as it is: {decision.name} is for what is {wanted}"


async def _set_paused(service: str, url: str | None, out: Output, *, paused: bool) -> ExitCode:
    async with opened(url, to_change=True) as store:
        try:
            changed = await (store.pause if paused else store.resume)(service)
        except ValueError as error:
            raise CommandError(str(error)) from None
        all_paused = sorted(await store.paused())
    if out.as_json:
        out.json({"changed": changed, "paused": all_paused})
    elif changed:
        out.print(f"{out.plain(service)} {'is paused' if paused else 'goes on'}")
    else:
        out.note(f"{out.plain(service)} was {'' if paused else 'not '}paused before")
    return ExitCode.DONE if changed else ExitCode.NO
