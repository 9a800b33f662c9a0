"""Invocations that wait in a SQLite file, which the processes of one machine may share.

backend.py   what the coordinator sees
working.py   what is due is taken while there is room, and held
executor.py  hands jobs to the thread, and hears what came of them
writer.py    the thread that owns the connection, and commits whatever has queued up
store.py     what is done within one transaction; every change of a record goes through it
rows.py      a record as rows, and back
schema.py    opening, checking and migrating the file
files.py     locks between processes, and what is refused before SQLite sees it
"""

from invoke_retry.backends.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
