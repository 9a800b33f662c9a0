"""How many attempts and deliveries run at a time: overall, per service, and fairly."""

from __future__ import annotations

from invoke_retry.registry import ServiceRegistry

_TROUBLED_SHARE = 0.75


class Slots:
    """Counts what runs in the background, by service.

    A service whose latest attempt failed is troubled. All troubled services together may hold
    three quarters of the slots: one that is down, with thousands of retries due that each wait
    for a timeout, then leaves room for those that work.
    """

    __slots__ = ("_running", "_services", "_troubled", "_troubled_limit", "limit", "total")

    def __init__(self, limit: int, services: ServiceRegistry) -> None:
        self.limit = limit
        self.total = 0
        self._services = services
        self._running: dict[str, int] = {}
        self._troubled: set[str] = set()
        self._troubled_limit = max(1, int(limit * _TROUBLED_SHARE))

    def has_room(self) -> bool:
        """Whether any slot is free."""
        return self.total < self.limit

    def admits(self, service: str) -> bool:
        """Whether the service may take a slot now."""
        if self.total >= self.limit:
            return False
        known = self._services.find(service)
        limit = known.max_running if known is not None else None
        if limit is not None and self._running.get(service, 0) >= limit:
            return False
        return not self._troubled or service not in self._troubled or self._troubled_has_room()

    def take(self, name: str) -> None:
        """A slot of the service is in use."""
        self.total += 1
        self._running[name] = self._running.get(name, 0) + 1

    def give(self, name: str) -> None:
        """A slot of the service is free again."""
        self.total -= 1
        left = self._running[name] - 1
        if left:
            self._running[name] = left
        else:
            del self._running[name]

    def note(self, name: str, *, failed: bool) -> None:
        """How the latest attempt of the service went."""
        if failed:
            self._troubled.add(name)
        elif self._troubled:
            self._troubled.discard(name)

    def _troubled_has_room(self) -> bool:
        held = sum(self._running.get(name, 0) for name in self._troubled)
        return held < self._troubled_limit
