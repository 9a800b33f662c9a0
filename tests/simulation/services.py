"""The services of a run: they do what their job says, and write down what is done with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from invoke_retry import CallbackPayload, RetryAfter, ServiceRegistry, current_call

from .calls import CALLER
from .loop import PROCESS
from .plan import LINGER, Order, Step
from .saying import error_text, value_text

if TYPE_CHECKING:
    from .world import World


class Permanent(Exception):
    """What is given up on."""


class Odd(BaseException):
    """No `Exception`."""


class Services:
    """Targets and callbacks."""

    def __init__(self, world: World) -> None:
        self._world = world

    def register(self, services: ServiceRegistry, names: tuple[str, ...]) -> None:
        """Add those of these names that are not in yet."""
        functions: dict[str, Callable[[Any], Any]] = {
            "a": self._a, "b": self._b, "c": self._c, "told": self._told,
            "told.plain": self._told_plain,
        }  # fmt: skip
        most = self._world.shape.max_running_of_b
        for name in names:
            if name not in services:
                services.register(
                    name,
                    functions[name],
                    give_up_on=() if name.startswith("told") else Permanent,
                    max_running=most if name == "b" else None,
                )

    async def _a(self, order: Order) -> Any:
        return await self._serve(order.n)

    async def _b(self, order: dict[str, int]) -> Any:
        n = order["n"]
        if CALLER.get():  # whose payload all attempts in that task are given
            n %= 1_000
        order["n"] = n + 1_000  # the next attempt in the background must not see that
        return await self._serve(n)

    async def _c(self, order: Any) -> Any:
        return await self._serve(order["n"])

    async def _serve(self, n: int) -> Any:
        call, write = current_call(), self._world.write
        steps = self._world.jobs[n].steps
        caller = CALLER.get()
        write("begin", call.cid, call.attempt, call.service, caller, str(n))
        how = said = "?"
        try:
            value = await self._play(steps[min(call.attempt, len(steps)) - 1])
            how, said = "ok", value_text(value)
            return value
        except BaseException as error:
            how, said = _how(error), error_text(error)
            raise
        finally:
            write("end", call.cid, call.attempt, how, caller, said)

    async def _told(self, outcome: CallbackPayload) -> None:
        await self._be_told(outcome.model_dump(mode="json"))

    async def _told_plain(self, outcome: dict[str, Any]) -> None:
        await self._be_told(outcome)

    async def _be_told(self, outcome: dict[str, Any]) -> None:
        call, write = current_call(), self._world.write
        n: int = outcome["context"]["n"]
        steps = self._world.jobs[n].told
        text = json.dumps(outcome, sort_keys=True)
        write("told", call.cid, call.attempt, text, CALLER.get(), str(n))
        how = "?"
        try:
            await self._play(steps[min(call.attempt, len(steps)) - 1])
            how = "ok"
        except BaseException as error:
            how = _how(error)
            raise
        finally:
            write("took" if how == "ok" else "refused", call.cid, call.attempt, how)

    async def _play(self, step: Step) -> Any:
        kind, seconds = step
        try:
            if seconds or kind == "hang":
                await asyncio.sleep(self._world.shape.hang if kind == "hang" else seconds)
        except asyncio.CancelledError:
            process = PROCESS.get()
            if process is None or process.is_dead:
                raise
            if kind == "swallow":
                raise ConnectionError("cancelled, told as an error of its own") from None
            if kind == "keep":
                return "kept"
            if kind == "stubborn":
                await asyncio.sleep(LINGER)
            raise
        match kind:
            case "ok" | "keep":
                return {"seconds": seconds}
            case "nothing":
                return None
            case "odd":
                return object()
            case "permanent":
                raise Permanent
            case "after":
                raise RetryAfter(2.5)
            case "cancelled":
                raise asyncio.CancelledError("own")
            case "exit":
                raise SystemExit
            case "base":
                raise Odd
            case "group":
                raise ExceptionGroup("two", [ConnectionError(), OSError()])
            case "nest":
                return await self._nest(seconds)
            case _:
                raise ConnectionError(kind)

    async def _nest(self, seconds: float) -> Any:
        """Have something else done, and perhaps wait for it."""
        call, world = current_call(), self._world
        job = world.new_job(is_child=True)
        job.orig = call.cid
        cid = await call.retry.invoke_async(job.target, {"n": job.n}, policy=job.policy)
        world.accepted(job, cid, "nested")
        if seconds:
            await call.retry.wait(cid, timeout=5)
        return None


def _how(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "failed" if error.args == ("own",) else "cut"
    if isinstance(error, Permanent | Odd | SystemExit):
        return "permanent"
    if isinstance(error, RetryAfter):
        return "after"
    return "failed"
