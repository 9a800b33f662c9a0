"""Opening the file: what is in it, whose it is, and which versions can read it.

Migrations only widen (a new table, a new column with a default), and the file says the oldest
version of this module that can work with it, so that going back to an older release is no outage.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from invoke_retry.backends.sqlite.files import beside
from invoke_retry.backends.sqlite.rows import ERRORS, KEPT, READY, SPOILT
from invoke_retry.errors import BackendError

APPLICATION = 0x49525459  # "IRTY": what a file of ours says in its header
VERSION = 1
WAL_LIMIT = 8 * 1024 * 1024

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID""",
        """CREATE TABLE invocation (
            id INTEGER PRIMARY KEY,
            cid TEXT NOT NULL UNIQUE,
            target TEXT NOT NULL,
            callback TEXT,
            source TEXT NOT NULL,
            orig_cid TEXT NOT NULL,
            policy TEXT NOT NULL,
            created_at REAL NOT NULL,
            resubmit_of TEXT,
            service TEXT NOT NULL,
            state TEXT NOT NULL,
            token INTEGER NOT NULL,
            attempts INTEGER NOT NULL,
            deliveries INTEGER NOT NULL,
            due REAL,
            began REAL NOT NULL,
            deadline REAL,
            owner INTEGER,
            attempt_at REAL,
            first_at REAL,
            reason TEXT,
            outcome_at REAL,
            response_omitted TEXT,
            error_type TEXT,
            error_message TEXT,
            delivery_error_type TEXT,
            delivery_error_message TEXT,
            parked_because TEXT
        )""",
        # JSON is kept apart, so that a change of state does not write it again
        """CREATE TABLE request (id INTEGER PRIMARY KEY, payload BLOB, context BLOB)""",
        """CREATE TABLE response (id INTEGER PRIMARY KEY, response BLOB)""",
        """CREATE TABLE attempt (
            id INTEGER NOT NULL, number INTEGER NOT NULL, started_at REAL NOT NULL,
            ended_at REAL NOT NULL, error_type TEXT, error_message TEXT, traceback TEXT,
            PRIMARY KEY (id, number)
        ) WITHOUT ROWID""",
        f"CREATE INDEX ready ON invocation (service, due) WHERE {READY}",
        f"CREATE INDEX kept ON invocation (due) WHERE {KEPT}",
        """CREATE INDEX parked ON invocation (service) WHERE state = 'parked'""",
        """CREATE INDEX deadline ON invocation (deadline) WHERE deadline IS NOT NULL""",
        """CREATE INDEX held ON invocation (owner) WHERE owner IS NOT NULL""",
        # always empty, unless somebody else has written to the file
        f"CREATE INDEX spoilt ON invocation (id) WHERE {SPOILT}",
        """CREATE TABLE total (state TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE paused (service TEXT PRIMARY KEY, since REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE worker (
            seat INTEGER PRIMARY KEY, pid INTEGER NOT NULL, beat INTEGER NOT NULL,
            services TEXT NOT NULL, started_at REAL NOT NULL
        )""",
    ),
)
_OLDEST_READER = 1


def connect(path: Path, *, synchronous: str, alone: bool) -> sqlite3.Connection:
    """Open a file that is ours, or make one; the caller holds the lock.

    Args:
        alone: No other process may use it meanwhile: SQLite itself sees to that.

    Raises:
        BackendError: It is not ours, unreadable, corrupted, or of a version that we cannot read.
            The file is as it was.
    """
    try:
        is_new = path.stat().st_size == 0
        if not is_new:
            with read_only(path) as looking:
                _check(looking, path)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        db.text_factory = _text
    except (*ERRORS, OSError) as error:
        raise unusable(path, error) from error
    try:
        if alone:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA auto_vacuum = NONE")
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise BackendError(
                f"the store {path} cannot be used: its file system has no WAL mode ({mode}); put "
                "it on a local disk"
            )
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA fullfsync = ON")  # macOS: without it a sync does not reach the disk
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cache_size = -8192")
        _migrate(db)
    except ERRORS as error:
        db.close()
        raise unusable(path, error) from error
    except BaseException:
        db.close()
        raise
    return db


def connect_to_look(path: Path) -> sqlite3.Connection:
    """Open a file that is ours, without writing, locking or checkpointing.

    Raises:
        BackendError: There is none, or it is not ours.
    """
    try:
        if not path.exists():
            raise BackendError(f"there is no store {path}; check the path")
        db = _open_read_only(path)
    except (*ERRORS, OSError) as error:
        raise unusable(path, error) from error
    try:
        _check(db, path)
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
            raise BackendError(f"the store {path} is empty: nothing was ever accepted there")
    except ERRORS as error:
        db.close()
        raise unusable(path, error) from error
    except BackendError:
        db.close()
        raise
    return db


@contextmanager
def read_only(path: Path) -> Generator[sqlite3.Connection]:
    """A connection that cannot write, nor checkpoint when it is closed."""
    db = _open_read_only(path)
    try:
        yield db
    finally:
        db.close()


def _open_read_only(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5)
    db.text_factory = _text
    return db


def _text(raw: bytes) -> str | bytes:
    """One spoilt text must not make a statement fail that finds other rows, too."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def unusable(path: Path, error: Exception) -> BackendError:
    """What SQLite or the system says of the file, as an error that names it."""
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else error
    return BackendError(f"the store {path} cannot be used: {text}")


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that we cannot work with, before anything in it is changed."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == 0 and tables == 0:
        return  # made, but never filled: its maker was killed
    if application != APPLICATION:
        raise BackendError(
            f"{path} is a SQLite file of something else, and was left as it is; name another file"
        )
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        oldest = db.execute("SELECT value FROM meta WHERE name = 'oldest_reader'").fetchone()
        if oldest is None or not isinstance(oldest[0], int) or oldest[0] > VERSION:
            raise BackendError(
                f"the store {path} was written by a newer invoke-retry (schema {version}), which "
                f"this one (schema {VERSION}) cannot read; upgrade this one, or name another file"
            )


def _migrate(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version >= VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('oldest_reader', ?)", (_OLDEST_READER,))
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # else SQLite has rolled it back itself
            db.execute("ROLLBACK")
        raise


def wal_size(path: Path) -> int:
    """Bytes of the write-ahead log."""
    try:
        return beside(path, "-wal").stat().st_size
    except OSError:
        return 0
