"""The NATS JetStream backend: many processes on many machines share the work of one stream."""

from __future__ import annotations

try:
    import nats as _client  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as error:  # pragma: no cover
    raise ImportError("the NATS backend needs nats-py: pip install 'invoke-retry[nats]'") from error

from invoke_retry.backends.nats.backend import NATSBackend

__all__ = ["NATSBackend"]
