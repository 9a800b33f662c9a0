from typing import Any

import pytest

from invoke_retry.backends import Backend, MemoryBackend
from invoke_retry.testing.conformance import BackendConformance


@pytest.mark.virtual_time
class TestMemoryInVirtualTime(BackendConformance):
    def make_backend(self, **options: Any) -> Backend:
        return MemoryBackend(**options)


class TestMemoryInRealTime(BackendConformance):
    def make_backend(self, **options: Any) -> Backend:
        return MemoryBackend(**options)
