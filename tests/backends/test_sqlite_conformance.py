from pathlib import Path
from typing import Any

import pytest

from invoke_retry.backends import Backend, SQLiteBackend
from invoke_retry.testing.conformance import BackendConformance


class TestSQLite(BackendConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "retries.db"

    def make_backend(self, **options: Any) -> Backend:
        return SQLiteBackend(self.path, **options)
