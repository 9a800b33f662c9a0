"""How many attempts and deliveries run at a time: overall, per service, and fairly."""

from __future__ import annotations

from invoke_retry.registry import ServiceRegistry

_TROUBLED_SHARE = 0.75


class Slots:
    """Counts what runs in the background, by service.

    A service whose latest attempt failed is troubled. All troubled services together may hold
    three quarters of the slots: one that is down, with thousands of retries due that each wait
    for a timeout, then leaves room for those that work.

    Attributes:
        total: How many are in use.
        paused: Services that are given none.
    """

    __slots__ = (
        "_running",
        "_services",
        "_troubled",
        "_troubled_limit",
        "limit",
        "paused",
        "total",
    )

    def __init__(self, limit: int, services: ServiceRegistry) -> None:
        self.limit = limit
        self.total = 0
        self.paused: frozenset[str] = frozenset()
        self._services = services
        self._running: dict[str, int] = {}
        self._troubled: set[str] = set()
        self._troubled_limit = max(1, int(limit * _TROUBLED_SHARE))

    def room(self) -> int:
        """How many slots are free."""
        return max(0, self.limit - self.total)

    def room_for(self, service: str) -> int:
        """How many of them the service may take."""
        if service in self.paused:
            return 0
        room = self.limit - self.total
        known = self._services.find(service)
        if known is not None and known.max_running is not None:
            room = min(room, known.max_running - self._running.get(service, 0))
        if self._troubled and service in self._troubled:
            held = sum(self._running.get(name, 0) for name in self._troubled)
            room = min(room, self._troubled_limit - held)
        return max(0, room)

    def limit_of(self, service: str) -> int | None:
        """How many of the service may run at most; None without a limit of its own."""
        known = self._services.find(service)
        return None if known is None else known.max_running

    def take(self, service: str) -> bool:
        """Take a slot for the service, if it may have one."""
        if self.room_for(service) <= 0:
            return False
        self.retake(service)
        return True

    def retake(self, name: str) -> None:
        """A slot of the service is in use, whether there was one or not."""
        self.total += 1
        self._running[name] = self._running.get(name, 0) + 1

    def give(self, service: str) -> None:
        """A slot of the service is free again."""
        self.total -= 1
        left = self._running[service] - 1
        if left:
            self._running[service] = left
        else:
            del self._running[service]

    def note(self, name: str, *, failed: bool) -> None:
        """How the latest attempt of the service went."""
        if failed:
            self._troubled.add(name)
        elif self._troubled:
            self._troubled.discard(name)
