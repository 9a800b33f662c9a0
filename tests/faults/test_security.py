"""Security: nothing stored is evaluated, and nothing secret is logged or kept."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import ast
import asyncio
import logging
from typing import Any

import pytest
from fault_help import PACKAGE, registry, running

from invoke_retry import (
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
    current_call,
    events,
)

CANARY = "canary4711"

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve",
    "dill", "cloudpickle", "jsonpickle", "yaml",
    "copyreg", "code", "codeop", "runpy",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "import_module", "breakpoint"}
# the command `worker MODULE:NAME` imports what a person has typed
ALLOWED = ["cli/importing.py: import_module"]


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
    if isinstance(node, ast.ImportFrom):
        found = {(node.module or "").split(".")[0]} & FORBIDDEN_MODULES
        return found | ({alias.name for alias in node.names} & FORBIDDEN_CALLS)
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name):
            return {function.id} & FORBIDDEN_CALLS
        if isinstance(function, ast.Attribute):
            own = isinstance(function.value, ast.Name) and function.value.id in ("re", "regex")
            return set() if own else {function.attr} & FORBIDDEN_CALLS
    return set()


def test_X1_nothing_in_the_package_can_evaluate_what_it_reads() -> None:
    """Write access to the store was the execution of code."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in _names(node)
    ]
    assert found == ALLOWED


def test_X1_the_lint_sees_what_it_looks_for() -> None:
    """A lint that finds nothing may be blind."""
    bad = "import pickle\nfrom marshal import loads\neval('1')\nbuiltins.exec('')\nre.compile('')"
    found = [name for node in ast.walk(ast.parse(bad)) for name in _names(node)]
    assert sorted(found) == ["eval", "exec", "marshal", "pickle"]


class Secretive(Exception):
    def __repr__(self) -> str:
        return f"Secretive({CANARY!r})"


async def _leak(services: ServiceRegistry, **options: Any) -> list[str]:
    """Let a canary loose everywhere; returns all tracebacks that are kept."""
    tracebacks: list[str] = []
    policy = RetryPolicy(repeats=2, seconds=1, timeout=5)
    async with running(services, callback_policy=policy, **options) as retry:
        for name in ("raises", "hangs", "wraps", "parks"):
            await retry.invoke_async(
                name, {"secret": CANARY}, policy=policy, callback="refuses",
                context={"secret": CANARY},
            )  # fmt: skip
            await retry.invoke(
                name, {"secret": CANARY}, policy=policy, callback="refuses",
                context={"secret": CANARY}, async_fallback=True,
            )  # fmt: skip
            with pytest.raises(RetriesExhausted):
                await retry.invoke(name, {"secret": CANARY}, policy=policy)
        await asyncio.sleep(1_000)
        for found in await retry.search():
            tracebacks += [attempt.traceback or "" for attempt in found.history]
            assert found.state in ("dead", "parked")
    return tracebacks


def _leaky_services() -> ServiceRegistry:
    services = ServiceRegistry()

    async def raises(payload: dict[str, str]) -> None:
        local = payload["secret"]
        raise ValueError(f"bad password {local}")

    async def hangs(payload: dict[str, str]) -> None:
        local = payload["secret"]
        await asyncio.sleep(1_000)
        del local

    async def wraps(payload: dict[str, str]) -> None:
        local = payload["secret"]
        try:
            raise Secretive(local)
        except Secretive as error:
            raise RuntimeError(f"https://user:{local}@example.org/") from error

    async def parks(payload: dict[str, str]) -> None:
        raise ExceptionGroup(payload["secret"], [ValueError(payload["secret"])])

    async def refuses(outcome: dict[str, Any]) -> None:
        raise ValueError(f"cannot take {outcome['context']}")

    for function in (raises, hangs, wraps, parks, refuses):
        services.register(function.__name__, function)
    return services


@pytest.mark.virtual_time
async def test_X7_secrets_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Payloads and error texts with passwords were in the logs of every worker."""
    asyncio.get_running_loop().set_debug(True)
    caplog.set_level(logging.DEBUG)
    await _leak(_leaky_services())
    assert len(caplog.records) > 20
    formatter = logging.Formatter("%(message)s %(name)s")
    for record in caplog.records:
        assert CANARY not in formatter.format(record)
        assert CANARY not in repr(record.args)


@pytest.mark.virtual_time
async def test_X7_tracebacks_hold_no_values_of_variables() -> None:
    """Tracebacks with locals were kept in the result store: CVE-2020-17495."""
    services = ServiceRegistry()

    async def raises(payload: dict[str, str]) -> None:
        local = payload["secret"]
        raise ValueError(f"{len(local)} characters")

    services.register("raises", raises)
    async with running(services) as retry:
        cid = await retry.invoke_async(
            "raises", {"secret": CANARY}, repeats=1, seconds=1, context={"secret": CANARY}
        )
        await retry.wait(cid)
        history = (await retry.get(cid)).history
    assert len(history) == 2
    for attempt in history:
        assert attempt.traceback is not None
        assert "raise ValueError" in attempt.traceback
        assert CANARY not in attempt.traceback


@pytest.mark.virtual_time
async def test_X7_a_fault_inside_logs_no_payload(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash report of the worker itself printed what it was working on."""

    class Odd:
        def __init__(self, secret: str) -> None:
            self.secret = secret

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"{name} of {CANARY}")

        def __repr__(self) -> str:
            return CANARY

    async def target(payload: dict[str, str]) -> Any:
        return Odd(payload["secret"])

    services, _ = registry(target=target)
    caplog.set_level(logging.DEBUG)
    async with running(services) as retry:
        await retry.invoke_async("target", {"secret": CANARY}, repeats=1, seconds=1)
        await asyncio.sleep(10)
    for record in caplog.records:
        assert CANARY not in logging.Formatter().format(record)


@pytest.mark.virtual_time
async def test_X7_events_and_reprs_hold_no_payload() -> None:
    """What hooks are told ends in metrics, and what repr says in crash reports."""
    seen: list[str] = []

    async def target(payload: dict[str, str]) -> None:
        seen.append(repr(current_call()))
        raise ValueError("no")

    def hook(event: events.Event) -> None:
        seen.append(repr(event))

    services, _ = registry(target=target)
    async with running(services, hooks=[hook]) as retry:
        await retry.invoke_async(
            "target", {"secret": CANARY}, repeats=1, seconds=1, callback="told",
            context={"secret": CANARY},
        )  # fmt: skip
        await asyncio.sleep(10)
        seen += [repr(retry), repr(services), repr(services["target"]), repr(retry.health())]
    assert len(seen) > 8
    assert not [text for text in seen if CANARY in text]


def test_X7_a_url_is_shown_without_its_password() -> None:
    """A backend that could not be reached printed its URL, password and all."""
    for url in (
        f"nats://user:{CANARY}@host:4222/stream?x=1",
        f"redis://:{CANARY}@host",
        f"memory://user:{CANARY}@host",
        f"memory://?keep={'x' * 3}&a=b",
    ):
        with pytest.raises(ValueError) as caught:
            InvokeRetry(ServiceRegistry(), backend=url)
        assert CANARY not in str(caught.value)
