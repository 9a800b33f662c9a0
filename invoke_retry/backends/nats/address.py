"""Where a NATS server is, and with what one connects: a URL and options, secrets apart."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from invoke_retry.backends.base import without_password

DEFAULT_STREAM = "invoke_retry"
NOT_ENCODED = (
    "its user, password or token has a character that must be percent-encoded (/ as %2F, ? as %3F, "
    "# as %23)"
)
_PORT = 4222
_LONGEST = 64


class Address(NamedTuple):
    """What a URL says.

    Attributes:
        servers: URLs of the servers of one cluster, without secrets.
        secrets: What nats-py's `connect` takes for them.
        stream: The stream's name.
        where: How all this is spoken of, without secrets.
    """

    servers: list[str]
    secrets: dict[str, Any]
    stream: str
    where: str


def address(url: object, stream: str | None) -> Address:
    """The parts of `nats://[user:password@|token@]host[:port][,host[:port]...][/stream]`.

    Raises:
        ValueError: It is no such URL.
    """
    if not isinstance(url, str):
        raise TypeError(f"url is a {type(url).__name__}, but must be text: nats://host:port/stream")
    shown = without_password(url)[:200]
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError(f"url {shown!r}: {NOT_ENCODED}")
    if parts.scheme not in ("nats", "tls") or parts.query or parts.fragment:
        raise ValueError(f"url is {shown!r}, but must be nats://host:port/stream, or tls://...")
    before, _, hosts = parts.netloc.rpartition("@")
    servers = [_server(parts.scheme, host, shown) for host in hosts.split(",")]
    user, is_pair, password = before.partition(":")
    secrets: dict[str, Any] = {}
    if is_pair:
        secrets = {"user": unquote(user), "password": unquote(password)}
    elif user:
        secrets = {"token": unquote(user)}
    name = stream if stream is not None else unquote(parts.path).strip("/") or DEFAULT_STREAM
    if re.fullmatch(r"[A-Za-z0-9_-]+", name) is None or len(name) > _LONGEST:
        raise ValueError(
            f"the stream of {shown!r} is {name[:80]!r}, but must be of letters, digits, - and _, "
            f"at most {_LONGEST} of them"
        )
    return Address(servers, secrets, name, f"{parts.scheme}://{hosts}")


def _server(scheme: str, host: str, shown: str) -> str:
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+)(?::(\d{1,5}))?", host)
    if found is None:
        raise ValueError(f"url is {shown!r}, but must name a host: nats://host:port/stream")
    return f"{scheme}://{found[1]}:{found[2] or _PORT}"


def tls_context(ca: str | None, cert: str | None, key: str | None) -> dict[str, ssl.SSLContext]:
    """The option of nats-py for certificates of one's own.

    Raises:
        ValueError: A file cannot be used.
    """
    if ca is None and cert is None:
        if key is not None:
            raise ValueError("tls_key needs tls_cert, the certificate that belongs to it")
        return {}
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the files of tls_ca={ca!r}, tls_cert={cert!r} and tls_key cannot be used: {error}"
        ) from None
    return {"tls": context}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for nats-py that this package does not need for itself.

    Raises:
        ValueError: One of them is ours.
    """
    ours = {
        "servers", "allow_reconnect", "max_reconnect_attempts", "reconnect_time_wait",
        "pending_size", "error_cb", "closed_cb", "disconnected_cb", "reconnected_cb", "no_echo",
    }  # fmt: skip
    wrong = ours & set(options)
    if wrong:
        raise ValueError(f"options must not have {', '.join(sorted(wrong))}: set by the backend")
    return dict(options)
