"""Processes that share one SQLite store, and die in it."""
