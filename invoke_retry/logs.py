"""The package's log lines: printable, without payloads or messages of errors, bounded in number."""

from __future__ import annotations

import logging
from typing import Any

from invoke_retry.clock import Clock, running_clock
from invoke_retry.correlation import Call
from invoke_retry.failure import type_name

logger = logging.getLogger("invoke_retry")

LINES_PER_MINUTE = 50
_FEW = 6
_MINUTE = 60.0
_KEYS_LIMIT = 10_000


class Log:
    """Writes one line an occurrence, until there are too many of a kind in a minute.

    While a dependency is down every invocation fails alike. The lines of one kind are then held
    back, and the next one that is written says how many were.

    Args:
        clock: None: that of the running loop.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._attempts, self._problems, self._notables = _Windows(), _Windows(), _Windows()

    def attempt_failed(
        self,
        call: Call,
        error: BaseException,
        then: float | str,
        clock: Clock,
        where: str = "again",
    ) -> None:
        """One line for one failed attempt of a target or a callback.

        Args:
            then: Seconds until the next one, or why there is none.
            where: How the next one is spoken of.
        """
        if not logger.isEnabledFor(logging.WARNING):
            return
        note = self._attempts.note(call.service, clock.monotonic(), LINES_PER_MINUTE)
        if note is not None:
            logger.warning(
                "%s failed (%d/%d) %s: %s; %s%s",
                call.service,
                call.attempt,
                1 + call.repeats,
                call.cid,
                type_name(error),
                f"gave up ({then})"
                if isinstance(then, str)
                else f"{where} in {then:{'.3g' if then < 1000 else '.0f'}} s",
                note,
            )

    def problem(self, kind: str, text: str, *args: Any, error: BaseException | None = None) -> None:
        """Something is wrong with the background itself; a traceback at most once a minute."""
        note = self._problems.note(kind, self._now(), _FEW)
        if note is not None:
            first = self._problems[kind].lines == 1
            logger.error(text + note, *args, exc_info=error if first else None)

    def notable(self, kind: str, text: str, *args: Any) -> None:
        """Something that a person should know of one invocation."""
        note = self._notables.note(kind, self._now(), LINES_PER_MINUTE)
        if note is not None:
            logger.warning(text + note, *args)

    def left(self, cids: list[str], total: int) -> None:
        """Ids whose outcome nobody was told; never held back."""
        logger.error("left with %d invocations that nobody was told of: %s", total, " ".join(cids))

    def _now(self) -> float:
        return (self._clock or running_clock()).monotonic()


class _Window:
    __slots__ = ("held_back", "lines", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.lines = 0
        self.held_back = 0


class _Windows(dict[str, _Window]):
    """The minute under way, for each kind of line."""

    def note(self, kind: str, now: float, limit: int) -> str | None:
        """What to add to the line, or None if it is held back.

        Args:
            limit: How many lines of the kind are written in a minute.
        """
        window = self.get(kind)
        if window is None:
            if len(self) >= _KEYS_LIMIT:
                self.clear()
            window = self[kind] = _Window(now)
        elif now - window.since >= _MINUTE:
            held_back = window.held_back
            window.since, window.lines, window.held_back = now, 1, 0
            return f" ({held_back} more like this since then were not logged)" if held_back else ""
        if window.lines >= limit:
            window.held_back += 1
            return None
        window.lines += 1
        return ""
