"""What is due, fair between services: each in its turn, however much another has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from invoke_retry.record import Record


class ReadyQueue:
    """Queues by service, first in first out, taken from in turn."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: OrderedDict[str, OrderedDict[str, Record]] = OrderedDict()

    def push(self, record: Record) -> None:
        queue = self._queues.get(record.service)
        if queue is None:
            queue = self._queues[record.service] = OrderedDict()
        queue[record.cid] = record

    def discard(self, service: str, cid: str) -> bool:
        """Take out what is no longer to be run; False if it was not in."""
        queue = self._queues.get(service)
        if queue is None or queue.pop(cid, None) is None:
            return False
        if not queue:
            del self._queues[service]
        return True

    def pop(self, take: Callable[[str], bool]) -> Record | None:
        """The oldest of the next service in turn for which a slot can be taken, or None."""
        for service in self._queues:
            if take(service):
                break
        else:
            return None
        queue = self._queues[service]
        _, record = queue.popitem(last=False)
        if queue:
            self._queues.move_to_end(service)
        else:
            del self._queues[service]
        return record
