"""What a server, an account and a stream say of themselves, as findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from invoke_retry.backends.base import Finding
from invoke_retry.backends.nats.client import ApiError
from invoke_retry.backends.nats.connection import Connection
from invoke_retry.backends.nats.stream import Stream
from invoke_retry.backends.wording import names, size
from invoke_retry.errors import BackendError

_SLOW_SECONDS = 1.0
_NEARLY_FULL, _FULL = 0.8, 0.95
_ONE: Final = 1

Json = dict[str, Any]


class Told(NamedTuple):
    """What the server says of the stream, and after how many seconds it did."""

    info: dict[str, Any]
    seconds: float

    @property
    def config(self) -> dict[str, Any]:
        """As the stream was made."""
        return dict(self.info["config"])


def server(connection: Connection, told: Told) -> Finding:
    """Which one it is, and how it is reached."""
    info = connection.server
    cluster = f" in the cluster {info['cluster']}" if info.get("cluster") else ""
    text = (
        f"{info.get('server_name', '?')}{cluster}, version {connection.server_version}, at "
        f"{connection.where}, {'with' if info.get('tls_required') else 'without'} TLS; it answers "
        f"in {told.seconds * 1_000:,.0f} ms"
    )
    if told.seconds > _SLOW_SECONDS:
        text += ": it is too busy, or far away"
    return Finding("warning" if told.seconds > _SLOW_SECONDS else "ok", "server", text)


async def account(connection: Connection) -> Finding:
    """What it may store, and does.

    Raises:
        BackendError: It does not say.
    """
    told = await connection.api("INFO")
    used, limit, streams = int(told.get("storage", 0)), _limit(told), int(told.get("streams", 0))
    text = f"{await _name(connection)}{size(used)} in {_streams(streams)}"
    if limit is None:
        text += "; no limit is set for it (whether the server has room cannot be seen from here)"
        return Finding("ok", "account", text)
    text += f", of {size(limit)} that it may have"
    level: Literal["ok", "warning", "bad"] = "ok"
    if used >= _NEARLY_FULL * limit:
        level = "bad" if used >= _FULL * limit else "warning"
        text += ": raise the limit, or shorten retention; when it is full nothing more is accepted"
    return Finding(level, "account", text)


def _streams(number: int) -> str:
    return "1 stream" if number == 1 else f"{number:,} streams"


def _limit(told: Json) -> int | None:
    tiers: dict[str, Json] = told.get("tiers") or {}
    limits: list[Json] = [each.get("limits") or {} for each in (told, *tiers.values())]
    most = [int(each.get("max_storage", -1)) for each in limits]
    return min((each for each in most if each > 0), default=None)


async def _name(connection: Connection) -> str:
    try:
        told = await connection.ask("$SYS.REQ.USER.INFO")
    except (ApiError, BackendError):  # not every user may ask that
        return ""
    data: Json = told.get("data") or {}
    name = data.get("account")
    return f"{name}: " if name else ""


def stream_findings(stream: Stream, told: Told) -> Iterator[Finding]:
    """Whether it is as it must be, and what is in it."""
    state, config = told.info["state"], told.config
    text = f"{stream.name} has {size(int(state['bytes']))} in {int(state['messages']):,} messages"
    limits = [
        f"{name}={config[name]}"
        for name in ("max_msg_size", "max_consumers")
        if int(config.get(name, -1)) > 0
    ]
    wrong = stream.wrong(config)
    if config.get("sealed"):
        wrong = f"{wrong + '; ' if wrong else ''}the stream is sealed: nothing can be written to it"
    if wrong:
        yield Finding("bad", "stream", f"{text}; {wrong}")
    elif limits:
        text += f"; it is limited ({names(limits)}), and what passes that is refused"
        yield Finding("warning", "stream", text)
    else:
        yield Finding("ok", "stream", f"{text}; it is as it must be, without limits of its own")


def replicas(told: Told) -> Iterator[Finding]:
    """On how many servers it is kept, and whether they follow."""
    number = int(told.config.get("num_replicas", 1))
    cluster: Json = told.info.get("cluster") or {}
    if number == _ONE:
        text = "the stream is kept on one server: while that is away, nothing is accepted or run"
        yield Finding("ok", "replicas", text)
        return
    leader, others = cluster.get("leader"), list[Json](cluster.get("replicas") or [])
    text = f"the stream is kept on {number} servers"
    if not leader:
        yield Finding("bad", "replicas", f"{text}, and has no leader: most of them are away")
        return
    away = sorted(str(each.get("name")) for each in others if each.get("offline"))
    behind = sorted(
        f"{each.get('name')} ({int(each.get('lag', 0)):,} behind)"
        for each in others
        if not each.get("current") and not each.get("offline")
    )
    text += f", led by {leader}"
    if away:
        text += f"; {names(away)} {'is' if len(away) == 1 else 'are'} away: start it again"
    if behind:
        text += f"; {names(behind)} must catch up"
    if len(others) + 1 < number:
        text += f"; only {len(others) + 1} are known"
    is_well = not away and not behind and len(others) + 1 >= number
    yield Finding("ok" if is_well else "warning", "replicas", text)


def sync(told: Told) -> Finding:
    """What a client cannot see."""
    text = "whether each message is synced to the disk (sync_interval) cannot be seen from here"
    if int(told.config.get("num_replicas", 1)) == _ONE:
        text += (
            "; unless the server has `sync_interval: always`, power loss takes what was accepted "
            "in the last two minutes"
        )
    return Finding("ok", "sync", text)
