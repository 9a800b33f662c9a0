"""The places where background invocations wait, and how a URL names one."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

from invoke_retry.backends.base import Backend, Query, Runner, without_password
from invoke_retry.backends.memory import MemoryBackend

__all__ = ["Backend", "MemoryBackend", "Query", "Runner", "backend_from"]

_NUMBERS: dict[str, Callable[[str], float]] = {
    "max_waiting": int,
    "max_bytes": int,
    "retention": float,
    "dead_retention": float,
    "park_for": float,
    "keep": int,
}


def backend_from(where: str | Backend) -> Backend:
    """The backend that a URL names, its options in the query; a `Backend` is returned as it is.

    Raises:
        ValueError: Nothing is known of such a URL, or an option is wrong.
    """
    if isinstance(where, Backend):
        return where
    if not isinstance(where, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"backend is a {type(where).__name__}, but must be a URL or a Backend")
    url = without_password(where)[:200]
    try:
        parts = urlsplit(where)
    except ValueError as error:
        raise ValueError(f"backend {url!r} is no URL ({error}); expected memory://") from None
    if parts.scheme != "memory":
        raise ValueError(f"backend {url!r} is not known; expected memory://, or a Backend")
    if parts.netloc or parts.path or parts.fragment:
        raise ValueError(f"backend {url!r}: memory:// takes no host or path, and no fragment")
    return MemoryBackend(**_options(url, parts.query))  # type: ignore[arg-type]


def _options(url: str, query: str) -> dict[str, float]:
    options: dict[str, float] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _NUMBERS or name in options:
            wrong = "names twice the" if name in options else "has no"
            raise ValueError(
                f"backend {url!r} {wrong} option {name[:60]!r}; expected {', '.join(_NUMBERS)}"
            )
        try:
            options[name] = _NUMBERS[name](text)
        except ValueError:
            raise ValueError(
                f"option {name} of backend {url!r} is {text[:60]!r}, but must be a number"
            ) from None
    return options
