"""Help for testing code that uses invoke_retry."""

from invoke_retry.testing.virtual_loop import VirtualLoop

__all__ = ["VirtualLoop"]
