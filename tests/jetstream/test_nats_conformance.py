from typing import Any

import pytest

from invoke_retry.backends import Backend, NATSBackend
from invoke_retry.testing.conformance import BackendConformance


class TestNATS(BackendConformance):
    @pytest.fixture(autouse=True)
    def _stream(self, url: str) -> None:
        self.url = url

    def make_backend(self, **options: Any) -> Backend:
        return NATSBackend(self.url, **options)
