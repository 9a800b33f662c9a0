"""What a test itself does with the store that its children share."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from invoke_retry import CallbackPayload, InvokeRetry
from invoke_retry.backends import SQLiteBackend

from .journal import Journal
from .tasks import CALLBACK_POLICY, make_services


def coordinator(folder: Path, **options: Any) -> InvokeRetry:
    """One on the store of the folder, to be entered."""
    backend = SQLiteBackend(folder / "retries.db", lease=options.pop("lease", 30))
    services = make_services(Journal(folder / "journal"))
    return InvokeRetry(services, backend=backend, callback_policy=CALLBACK_POLICY, **options)


def submitting(folder: Path) -> InvokeRetry:
    """One that submits and asks, and runs nothing."""
    return coordinator(folder, work=False)


def told_of(journal: Journal) -> dict[str, list[CallbackPayload]]:
    """What the callback was told, by cid."""
    told = defaultdict[str, list[CallbackPayload]](list)
    for line in journal.lines("told"):
        told[line.cid].append(CallbackPayload.model_validate_json(line.text))
    return told
