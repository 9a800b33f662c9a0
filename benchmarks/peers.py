"""Other libraries that repeat calls: at most 4 attempts, no wait, one exception type."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from types import ModuleType

from benchmarks.machine import missing

Function = Callable[[int], Awaitable[int]]


class Flaw(Exception):
    """What the services of the benchmarks raise."""


def _tenacity(tenacity: ModuleType, function: Function) -> Function:
    decorated: Function = tenacity.retry(
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_exception_type(Flaw),
        reraise=True,
    )(function)
    return decorated


def _stamina(stamina: ModuleType, function: Function) -> Function:
    decorated: Function = stamina.retry(
        on=Flaw, attempts=4, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0
    )(function)
    return decorated


def _nopanic(nopanic: ModuleType, function: Function) -> Function:
    decorated: Function = nopanic.retry(attempts=4, on=Flaw, backoff=0)(function)
    return decorated


DECORATORS = {"tenacity": _tenacity, "stamina": _stamina, "nopanic": _nopanic}


def peers(function: Function) -> dict[str, Function]:
    """The function under the decorator of each library that is installed."""
    return {
        name: decorate(import_module(name), function)
        for name, decorate in DECORATORS.items()
        if not missing(name)
    }
