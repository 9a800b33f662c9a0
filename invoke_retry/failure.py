"""An exception as text: bounded, printable, without locals, whatever the exception does."""

from __future__ import annotations

import traceback
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple

from invoke_retry.errors import group_members
from invoke_retry.models import ErrorInfo

MESSAGE_LIMIT = 2_000
TRACEBACK_LIMIT = 8_000
_FRAMES_LIMIT = 20
_CHAIN_LIMIT = 5
_MEMBERS_LIMIT = 5
_SHARED_LIMIT = 256


class Failure(NamedTuple):
    """A failure as it is kept: what `ErrorInfo` and `Attempt` say of it, without their weight."""

    type: str
    message: str
    traceback: str | None = None

    @property
    def info(self) -> ErrorInfo:
        """The error as it is told."""
        return ErrorInfo(type=self.type, message=self.message)


def printable(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """*text* with everything that a terminal or JSON could stumble over written as an escape.

    Args:
        limit: How many characters to keep at most; a cut is marked.
    """
    cut = len(text) - limit
    if cut > 0:
        text = text[:limit]
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
        )
        if len(text) > limit:
            cut = max(cut, 0) + len(text) - limit
            text = text[:limit]
    return f"{text}... ({cut} more characters)" if cut > 0 else text


def type_name(error: BaseException) -> str:
    """The qualified name of the error's class, without `builtins.`."""
    cls = type(error)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return printable(name.removeprefix("builtins."), 500)


def message_of(error: BaseException) -> str:
    """The error's own text, or a remark where it has none to give."""
    try:
        return printable(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # a broken __str__ must not hide the failure
        return f"<its text cannot be made: {type_name(broken)}>"


def error_info(error: BaseException) -> ErrorInfo:
    """The error as it is told."""
    return ErrorInfo(type=type_name(error), message=message_of(error))


def failure_of(error: BaseException) -> Failure:
    """The error as it is kept; while a dependency is down, all that wait for it share one."""
    return _shared(type_name(error), message_of(error), render_traceback(error))


@lru_cache(_SHARED_LIMIT)
def _shared(name: str, message: str, trace: str) -> Failure:
    return Failure(name, message, trace)


def describe(error: BaseException) -> str:
    """The error on one line."""
    message = message_of(error)
    return f"{type_name(error)}: {message}" if message else type_name(error)


def render_traceback(error: BaseException) -> str:
    """The traceback as text: source lines but no locals, the newest frames and the nearest causes.

    The standard formatter walks a chain to its end and a group to its last leaf; an error can be
    made so that this takes seconds. Here each dimension has a limit.
    """
    parts: list[str] = []
    seen: set[int] = set()
    link: BaseException | None = error
    joint = ""
    while link is not None and id(link) not in seen and len(seen) < _CHAIN_LIMIT:
        seen.add(id(link))
        parts.append(_one(link) + joint)
        if link.__cause__ is not None:
            link, joint = link.__cause__, "\n\nwhich was the direct cause of:\n\n"
        elif link.__suppress_context__:
            link = None
        else:
            link, joint = link.__context__, "\n\nwhile it was handled, came:\n\n"
    if link is not None:
        parts.append(f"(more causes are not shown){joint}")
    text = "".join(reversed(parts))
    if len(text) > TRACEBACK_LIMIT:
        text = f"... ({len(text) - TRACEBACK_LIMIT} more characters)\n{text[-TRACEBACK_LIMIT:]}"
    return text


def _one(error: BaseException) -> str:
    lines = [*_frames(error.__traceback__), describe(error)]
    members = group_members(error) or ()
    lines += [f"  | {describe(member)}" for member in members[:_MEMBERS_LIMIT]]
    if len(members) > _MEMBERS_LIMIT:
        lines.append(f"  | ... ({len(members) - _MEMBERS_LIMIT} more)")
    return "\n".join(lines)


def _frames(tb: TracebackType | None) -> list[str]:
    if tb is None:
        return []
    try:
        frames = traceback.extract_tb(tb, limit=-_FRAMES_LIMIT)
        text = "".join(traceback.format_list(frames))
    except Exception as broken:  # a file name that is no text, a loader of the user's own
        return [f"<its traceback cannot be made: {type_name(broken)}>"]
    lines = [printable(line) for line in text.rstrip("\n").split("\n")]
    return ["Traceback (most recent call last):", *lines]
