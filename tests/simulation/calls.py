"""Callers: what they ask of a coordinator, each in a task of its own, and how they are cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from invoke_retry import CorrelationId, InvokeRetry

from .plan import Job, draw_cut
from .saying import refusal_text, value_text

if TYPE_CHECKING:
    from .world import Life, World

CALLER: ContextVar[int] = ContextVar("CALLER", default=0)
"""Set in the tasks that call; an attempt in the background never sees it."""

Asking = Callable[[InvokeRetry], Awaitable[Any]]


class Calls:
    """Makes calls, and writes down what became of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made = 0

    def begin(
        self, life: Life, what: str, ask: Asking, job: Job | None = None, cid: str = "",
        detail: str = "",
    ) -> None:  # fmt: skip
        """Have a new caller ask.

        Args:
            cid: Of which invocation.
            detail: What else it asks for.
        """
        self._made += 1
        loop, number = self._world.loop, self._made
        cut, seconds = draw_cut(self._world.chance)
        about = (what, cid, -1 if job is None else job.n, detail)
        task = life.spawn(self._call(life, number, about, ask, cut, seconds))
        life.callers.add(task)
        task.add_done_callback(life.callers.discard)
        if cut == "cancel":
            life.context.copy().run(loop.call_later, seconds, self._cancel, number, task)

    def _cancel(self, number: int, task: asyncio.Task[None]) -> None:
        if not task.done():
            self._world.write("limit", caller=number)
            task.cancel()

    async def _call(
        self, life: Life, number: int, about: tuple[str, str, int, str], ask: Asking, cut: str,
        seconds: float,
    ) -> None:  # fmt: skip
        CALLER.set(number)
        write = self._world.write
        what, cid, n, detail = about
        write("calls", cid, n, what, number, detail)
        limited = cut in ("timeout", "scope")
        until = self._world.loop.time() + seconds
        how = said = "?"
        try:
            if cut == "timeout":
                async with asyncio.timeout(seconds):
                    how, said = _told(await ask(life.retry))
            elif cut == "scope":
                with anyio.fail_after(seconds):
                    how, said = _told(await ask(life.retry))
            else:
                how, said = _told(await ask(life.retry))
        except asyncio.CancelledError as error:
            how = "own CancelledError" if error.args == ("own",) else "cut"
        except TimeoutError:
            how = "cut" if limited and self._world.loop.time() >= until else "TimeoutError"
        except GeneratorExit:
            raise
        except BaseException as error:  # of a target, or of the coordinator
            how, said = type(error).__name__, refusal_text(error)
        if limited and self._world.loop.time() >= until:
            write("limit", caller=number, text=f"{until}")
        write("answer", cid, n, how, number, said)

    # What they ask.

    def submit(self, life: Life, job: Job, mode: str) -> None:
        """Call a service in one of the three modes."""
        payload = {"n": job.n}

        async def ask(retry: InvokeRetry) -> Any:
            if mode == "async":
                cid = await retry.invoke_async(
                    job.target, payload, policy=job.policy, callback=job.callback,
                    context=job.context, cid=job.key,
                )  # fmt: skip
                self._world.accepted(job, cid, mode)
                return cid
            if mode == "inline":
                return await retry.invoke(job.target, payload, policy=job.policy)
            answer = await retry.invoke(
                job.target, payload, policy=job.policy, async_fallback=True,
                callback=job.callback, context=job.context, cid=job.key,
            )  # fmt: skip
            if isinstance(answer, CorrelationId):
                self._world.accepted(job, answer, mode)
            return answer

        self.begin(life, mode, ask, job)

    def conflict(self, life: Life, job: Job) -> None:
        """Ask for something else under a cid that is known."""

        async def ask(retry: InvokeRetry) -> Any:
            return await retry.invoke_async(
                job.target, {"n": job.n}, policy=job.policy, callback=job.callback,
                context="other", cid=job.key,
            )  # fmt: skip

        self.begin(life, "conflict", ask, cid=str(job.key))

    def decide(self, life: Life, what: str, cid: str) -> None:
        """Cancel, hasten or redeliver an invocation."""

        async def ask(retry: InvokeRetry) -> Any:
            write = self._world.write
            write(f"{what}?", cid)
            done = await getattr(retry, what)(cid)
            if done:
                write(f"{what}!", cid)
            return done

        self.begin(life, what, ask, cid=cid)

    def resubmit(self, life: Life, job: Job, cid: str) -> None:
        """Have a failed one made again."""

        async def ask(retry: InvokeRetry) -> Any:
            self._world.write("resubmit?", cid)
            new = await retry.resubmit(cid)
            self._world.accepted(job, new, "resubmit")
            return new

        self.begin(life, "resubmit", ask, job, cid)

    def wait(self, life: Life, cid: str, timeout: float | None) -> None:
        """Wait for an outcome."""

        async def ask(retry: InvokeRetry) -> Any:
            outcome = await retry.wait(cid, timeout=timeout)
            text = json.dumps(outcome.model_dump(mode="json"), sort_keys=True)
            self._world.write("seen", cid, text=text)
            return None

        self.begin(life, "wait", ask, cid=cid, detail=json.dumps(timeout))

    def set_paused(self, life: Life, name: str, *, paused: bool) -> None:
        """Pause a service, or let it go on."""

        async def ask(retry: InvokeRetry) -> Any:
            return await (retry.pause(name) if paused else retry.resume(name))

        self.begin(life, f"{'pause' if paused else 'resume'} {name}", ask)


def _told(answer: object) -> tuple[str, str]:
    said = value_text(answer)
    text = f"cid {answer}" if isinstance(answer, CorrelationId) else f"value {said}"[:40]
    return text, said
