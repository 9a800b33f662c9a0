"""How the journal tells of values and errors: as JSON, the same in every process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

ODD = "what no JSON can say"


def value_text(value: object) -> str:
    """A value as JSON; what cannot be stored has one text for all."""
    return json.dumps(value, default=lambda _: ODD)


def error_text(error: BaseException) -> str:
    """The error's type and message."""
    return json.dumps(_error(error))


def refusal_text(error: BaseException) -> str:
    """What a caller learns from an error: the target's own one, the attempts, and why no more."""
    cause = error.__cause__
    return json.dumps(
        {
            **_error(error),
            "attempts": getattr(error, "attempts", None),
            "reason": getattr(error, "reason", None),
            "cause": None if cause is None else _error(cause),
        }
    )


def _error(error: BaseException) -> dict[str, Any]:
    cls = type(error)
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    # anyio's cancellations name their scope by its address
    is_foreign = isinstance(error, asyncio.CancelledError) and error.args != ("own",)
    return {"type": name, "message": "" if is_foreign else str(error)}
