"""The options that several commands share, and the filters of `list`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

import typer

from invoke_retry.backends import Query
from invoke_retry.cli.stores import ENVIRONMENT
from invoke_retry.cli.times import seconds_from
from invoke_retry.models import State
from invoke_retry.storable import has_surrogate

STATES: Final[tuple[State, ...]] = get_args(State)


def _state(text: str) -> str:
    if text not in STATES:
        raise typer.BadParameter(f"{text!r} is no state; expected one of {', '.join(STATES)}")
    return text


def _name(text: str) -> str:
    if has_surrogate(text):
        raise typer.BadParameter(f"{text!r} is no valid text, and nothing is called so")
    return text


def _age(text: str) -> float:
    try:
        return seconds_from(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _filter(
    name: str, metavar: str, parser: Callable[[str], object], text: str, **more: Any
) -> Any:
    return typer.Option(
        name, metavar=metavar, parser=parser, help=text, rich_help_panel="Filters", **more
    )


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL",
        envvar=ENVIRONMENT,
        help="The store: sqlite:///path, nats://host:port/stream, or the path of a file.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
RevealOption = Annotated[
    bool, typer.Option("--reveal", help="Show the values of fields that are named like secrets.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
StateOption = Annotated[
    State | None,
    _filter(
        "--state",
        "STATE",
        _state,
        f"Only those in this state: {', '.join(STATES)}.",
        autocompletion=lambda: list(STATES),
    ),
]
TargetOption = Annotated[
    str | None, _filter("--target", "SERVICE", _name, "Only those of this service.")
]
SourceOption = Annotated[
    str | None, _filter("--source", "NAME", _name, "Only those that it invoked.")
]
ErrorTypeOption = Annotated[
    str | None,
    _filter(
        "--error-type",
        "TYPE",
        _name,
        "Only those whose latest error is of this type, e.g. ConnectionError.",
    ),
]
NewerOption = Annotated[
    float | None,
    _filter("--newer", "AGE", _age, "Only those accepted within this time: 90s, 15m, 2h, 7d."),
]
OlderOption = Annotated[
    float | None, _filter("--older", "AGE", _age, "Only those accepted before this time.")
]

FinishedOption = Annotated[
    float,
    typer.Option(
        "--older",
        metavar="AGE",
        parser=_age,
        help="Those whose outcome is older than this: 90s, 15m, 2h, 7d.",
    ),
]


@dataclass(frozen=True)
class Filters:
    """What `list` and the commands that decide over many look for; ages in seconds."""

    state: State | None = None
    target: str | None = None
    source: str | None = None
    error_type: str | None = None
    newer: float | None = None
    older: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether any was."""
        return any(value is not None for value in vars(self).values())

    def query(self, now: float) -> Query:
        """The same as a `Query` of a backend.

        Args:
            now: Seconds since the epoch, from which ages count.
        """
        return Query(
            state=self.state,
            target=self.target,
            source=self.source,
            error_type=self.error_type,
            created_from=None if self.newer is None else now - self.newer,
            created_before=None if self.older is None else now - self.older,
        )
