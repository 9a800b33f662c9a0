"""Makes the pictures of `docs/command-line.md`: `python docs/pictures.py [FOLDER]`.

The commands draw them themselves, on a store that the services below have filled on virtual time
and with seeded ids, so that they come out alike every time.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from rich.console import Console
from rich.text import Text

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)
from invoke_retry.backends import MemoryBackend, Query
from invoke_retry.cli.listing import print_page
from invoke_retry.cli.looks import Rates, take_look
from invoke_retry.cli.output import Output
from invoke_retry.cli.showing import tell_story
from invoke_retry.cli.stores import Store
from invoke_retry.cli.watching import Screen
from invoke_retry.models import utc_time
from invoke_retry.testing import VirtualLoop

NIGHT = datetime(2026, 3, 14, 2, 50, tzinfo=UTC).timestamp() + 0.0003
STORE = "sqlite:////var/lib/shop/retries.db"
RANDOM = Random(4_711)
POLICY = RetryPolicy(repeats=4, seconds=5, backoff="exponential")

services = ServiceRegistry()


@services.service("crm.update", policy=POLICY)
async def update(order: dict[str, object]) -> str:
    """Down more often than not."""
    await asyncio.sleep(0.4 + RANDOM.random())
    if current_call().attempt <= RANDOM.randrange(9):
        raise ConnectionError("the CRM is down")
    return f"order {order['number']} is known"


@services.service("mail.send", policy=POLICY, give_up_on=(ValueError,))
async def send(order: dict[str, object]) -> str:
    """Meets wrong addresses."""
    await asyncio.sleep(0.05 + 0.2 * RANDOM.random())
    if RANDOM.random() < 0.12:
        raise ValueError("no such mailbox: grace@example.org")
    return f"order {order['number']} was confirmed"


@services.service("stock.reserve", policy=POLICY)
async def reserve(order: dict[str, object]) -> str:
    """Slow, and too slow at times."""
    await asyncio.sleep(0.3 + RANDOM.random())
    if RANDOM.random() < 0.25:
        raise TimeoutError("the warehouse did not answer within 5 s")
    return f"order {order['number']} is reserved"


@services.service("partner.told")
async def told(outcome: CallbackPayload) -> None:
    """Down for some orders."""
    context: dict[str, int] = outcome.context
    if context["order"] % 19 == 0:
        raise ConnectionError("the partner answers 503")


class Shop(Store):
    """A coordinator of these services, at which the commands look as they do at a store."""

    def __init__(self) -> None:
        InvokeRetry.__init__(
            self, services, backend=MemoryBackend(), name="shop.web", grace=0, random=RANDOM,
            callback_policy=RetryPolicy(repeats=1, seconds=1),
        )  # fmt: skip


async def order(shop: Shop, number: int) -> CorrelationId:
    """Place an order, as the web service does."""
    target = RANDOM.choice(("crm.update", "mail.send", "stock.reserve"))
    payload = {"number": number, "customer": "Grace", "card_number": "4000 0000 0000 0002"}
    with shop.caller("orders.api", cid=f"request {number}"):
        return await shop.invoke_async(
            target, payload, callback="partner.told", context={"order": number}
        )


class Picture:
    """A terminal whose content becomes a picture."""

    def __init__(self, columns: int, rows: int) -> None:
        self.console = Console(
            record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor",
            width=columns, height=rows, legacy_windows=False, highlight=False, markup=False,
            emoji=False, _environ={},
        )  # fmt: skip

    def out(self, command: str, line: str) -> Output:
        """Where a command prints that was typed here."""
        self.console.print(Text.assemble(("$ ", "bold green"), (line, "bold")))
        return Output(command, console=self.console)

    def save(self, path: Path) -> None:
        """Write it, as small as it can be: no fonts from elsewhere, no spaces that nobody sees."""
        svg = self.console.export_svg(title="invoke-retry", unique_id=path.stem)
        svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
        svg = svg.replace("font-family: Fira Code, monospace", "font-family: monospace")
        svg = "\n".join(line.strip() for line in svg.splitlines() if line.strip())
        path.write_text(f"{svg}\n", encoding="utf-8")


async def draw(folder: Path) -> None:
    """Fill the store, and draw."""
    async with Shop() as shop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = loop.clock
        clock.step(NIGHT - clock.utc())
        rates, number = Rates(), 0
        look = Picture(112, 32)
        screen = Screen(Output("watch", console=look.console), STORE, rates)
        for _ in range(90):
            for _ in range(RANDOM.randrange(6)):
                number += 1
                await order(shop, number)
            await asyncio.sleep(1)
            seen = await take_look(shop)
            screen.take(seen, rates.add(clock.monotonic(), seen.counts))
        look.console.print(screen.draw())
        look.save(folder / "watch.svg")

        now = utc_time(clock.utc())
        table = Picture(132, 30)
        newest = await shop.found(Query(limit=8))
        print_page(table.out("list", "invoke-retry list -n 8"), newest, now, is_more=False)
        for state in ("failed", "dead"):
            found = await shop.found(Query(state=state, limit=5))
            table.console.print()
            out = table.out("list", f"invoke-retry list --state {state} -n 5")
            print_page(out, found, now, is_more=False)
        table.save(folder / "list.svg")

        (failed,) = await shop.found(Query(state="failed", target="crm.update", limit=1))
        story = Picture(96, 50)
        out = story.out("show", f"invoke-retry show {failed.call_cid[:7]}")
        tell_story(out, failed, now, tracebacks=False, full=False)
        story.save(folder / "show.svg")


if __name__ == "__main__":
    logging.disable()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(draw(Path(*sys.argv[1:2]) if sys.argv[1:] else Path(__file__).parent))
