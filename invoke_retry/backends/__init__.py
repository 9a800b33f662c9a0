"""The places where background invocations wait, and how a URL names one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from invoke_retry.backends.base import Backend, Finding, Query, Runner, without_password
from invoke_retry.backends.memory import MemoryBackend

if TYPE_CHECKING:
    from invoke_retry.backends.nats import NATSBackend
    from invoke_retry.backends.sqlite import SQLiteBackend

__all__ = [
    "Backend",
    "Finding",
    "MemoryBackend",
    "NATSBackend",
    "Query",
    "Runner",
    "SQLiteBackend",
    "backend_from",
]

_Options = dict[str, Callable[[str], object]]
_COMMON: _Options = {
    "max_waiting": int,
    "max_bytes": int,
    "retention": float,
    "dead_retention": float,
    "park_for": float,
}
_EXPECTED = "expected memory://, sqlite:///path, nats://host:port/stream, or a Backend"


def __getattr__(name: str) -> Any:
    """A backend that needs more than the others is imported when it is asked for."""
    if name == "SQLiteBackend":
        from invoke_retry.backends.sqlite import SQLiteBackend  # noqa: PLC0415

        return SQLiteBackend
    if name == "NATSBackend":
        from invoke_retry.backends.nats import NATSBackend  # noqa: PLC0415

        return NATSBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    except ValueError:  # its text may have the password
        raise ValueError(f"backend {url!r} is no URL; {_EXPECTED}") from None
    make = _MAKERS.get(parts.scheme)
    if make is None:
        raise ValueError(f"backend {url!r} is not known; {_EXPECTED}")
    return make(url, parts)


def _memory(url: str, parts: SplitResult) -> Backend:
    if parts.netloc or parts.path or parts.fragment:
        raise ValueError(f"backend {url!r}: memory:// takes no host or path, and no fragment")
    return MemoryBackend(**_options(url, parts.query, {**_COMMON, "keep": int}))


def _sqlite(url: str, parts: SplitResult) -> Backend:
    path = unquote(parts.path)[1:]
    if parts.netloc or parts.fragment or not path:
        raise ValueError(
            f"backend {url!r}: expected sqlite:///name.db (beside the working directory) or "
            "sqlite:////var/lib/name.db (an absolute path)"
        )
    from invoke_retry.backends.sqlite import SQLiteBackend  # noqa: PLC0415

    options: _Options = {**_COMMON, "lease": float, "synchronous": str, "read_only": _yes}
    return SQLiteBackend(path, **_options(url, parts.query, options))


def _nats(url: str, parts: SplitResult) -> Backend:
    from invoke_retry.backends.nats import NATSBackend  # noqa: PLC0415
    from invoke_retry.backends.nats.address import NOT_ENCODED  # noqa: PLC0415

    options: _Options = {
        **_COMMON, "lease": float, "replicas": int, "creds": str, "tls_ca": str, "tls_cert": str,
        "tls_key": str, "read_only": _yes,
    }  # fmt: skip
    if "@" in parts.query:
        raise ValueError(f"backend {url!r}: {NOT_ENCODED}")
    server = parts._replace(query="").geturl()
    return NATSBackend(server, **_options(url, parts.query, options))


def _yes(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_MAKERS: dict[str, Callable[[str, SplitResult], Backend]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "nats": _nats,
    "tls": _nats,
}


def _options(url: str, query: str, known: _Options) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known or name in options:
            wrong = "names twice the" if name in options else "has no"
            raise ValueError(
                f"backend {url!r} {wrong} option {name[:60]!r}; expected {', '.join(known)}"
            )
        try:
            options[name] = known[name](text)
        except ValueError:
            wanted = "true or false" if known[name] is _yes else "a number"
            raise ValueError(
                f"option {name} of backend {url!r} is {text[:60]!r}, but must be {wanted}"
            ) from None
    return options
