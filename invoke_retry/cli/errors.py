"""What goes wrong at the command line: a line for people, a kind for scripts, an exit code."""

from __future__ import annotations

from enum import IntEnum

from invoke_retry.errors import BackendError, InvalidState, InvocationNotFound


class ExitCode(IntEnum):
    """What the command ends with; part of its contract, see `docs/command-line.md`."""

    DONE = 0
    NO = 1
    USAGE = 2
    STORE = 3
    NOT_FOUND = 4
    SYSTEM = 74
    INTERRUPTED = 130
    BROKEN_PIPE = 141


KINDS = {
    ExitCode.NO: "no",
    ExitCode.USAGE: "usage",
    ExitCode.STORE: "store",
    ExitCode.NOT_FOUND: "not_found",
    ExitCode.INTERRUPTED: "interrupted",
}


class CommandError(Exception):
    """The command ends here; its text is for people.

    Args:
        text: What was wrong, what was expected, what to do.
        code: What the process ends with.
    """

    def __init__(self, text: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(text)
        self.code = code


def command_error(error: Exception) -> CommandError | None:
    """The error that people see for one of the library's own; None for a fault of the program."""
    match error:
        case CommandError():
            return error
        case InvocationNotFound():
            return CommandError(str(error), ExitCode.NOT_FOUND)
        case InvalidState():
            return CommandError(str(error), ExitCode.NO)
        case BackendError():
            return CommandError(str(error), ExitCode.STORE)
        case _:
            return None
