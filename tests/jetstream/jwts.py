"""A server in operator mode, and the credentials file of a user that it knows.

The forms are those of https://docs.nats.io/running-a-nats-service/configuration/securing_nats/jwt
"""

from __future__ import annotations

import base64
import json
import os
import time
from importlib import import_module
from typing import Any

_UNLIMITED = dict.fromkeys(
    ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage",
     "disk_storage", "streams", "consumer"),
    -1,
)  # fmt: skip


class Key:
    """An nkey: what signs, and whom it names."""

    def __init__(self, kind: str) -> None:
        nkeys: Any = import_module("nkeys")
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind}")
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair: Any = nkeys.from_seed(self.seed)
        self.name: str = self._pair.public_key.decode()

    def sign(self, subject: str, claims: dict[str, Any]) -> str:
        """A token in which this key says something of another."""
        told = {
            "jti": base64.b32encode(os.urandom(16)).decode().rstrip("="),
            "iat": int(time.time()), "iss": self.name, "name": "test", "sub": subject,
            "nats": {**claims, "version": 2},
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = f"{_base64(json.dumps(head).encode())}.{_base64(json.dumps(told).encode())}"
        return f"{text}.{_base64(self._pair.sign(text.encode()))}"


class Operator:
    """Settings of a server, and who may use it.

    Attributes:
        settings: For `NatsServer(settings=...)`.
    """

    def __init__(self) -> None:
        operator, account, system = Key("OPERATOR"), Key("ACCOUNT"), Key("ACCOUNT")
        self._account = account
        self.settings: dict[str, Any] = {
            "operator": operator.sign(
                operator.name, {"type": "operator", "system_account": system.name}
            ),
            "system_account": system.name,
            "resolver": "MEMORY",
            "resolver_preload": {
                account.name: operator.sign(
                    account.name, {"type": "account", "limits": {**_UNLIMITED, "wildcards": True}}
                ),
                system.name: operator.sign(system.name, {"type": "account", "limits": {}}),
            },
        }

    def credentials(self) -> str:
        """The content of a file for a user of its own."""
        user = Key("USER")
        limits = dict.fromkeys(("subs", "data", "payload"), -1)
        claims: dict[str, Any] = {"type": "user", "pub": {}, "sub": {}, **limits}
        return (
            "-----BEGIN NATS USER JWT-----\n"
            f"{self._account.sign(user.name, claims)}\n"
            "------END NATS USER JWT------\n\n"
            "-----BEGIN USER NKEY SEED-----\n"
            f"{user.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
