"""Locks between the processes that share one file, and files that are refused by name."""

from __future__ import annotations

import errno
import os
import stat
import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from time import sleep

from invoke_retry.clock import SYSTEM_CLOCK
from invoke_retry.errors import BackendError

if sys.platform == "win32":
    CAN_LOCK = False
else:
    import fcntl

    CAN_LOCK = True

_PRIVATE = 0o600
_LOCK_STEP = 0.001
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

# where a lock may be granted to two machines at once, or WAL's shared memory is not shared
_NETWORK = frozenset(
    (
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.glusterfs", "fuse.s3fs",
        "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
        "smb3", "smbfs",
    )
)  # fmt: skip


def beside(path: Path, suffix: str) -> Path:
    """The file that stands beside *path* and belongs to it."""
    return path.with_name(path.name + suffix)


def is_there(path: Path) -> bool:
    """Whether the file exists; a symlink that leads nowhere does not.

    Raises:
        BackendError: It cannot be told: a directory may not be entered, or the name is too long.
    """
    return _mode(path, path, os.stat) is not None


def check_file(path: Path) -> None:
    """Refuse what SQLite should not be given.

    Raises:
        BackendError: A symlink, something that is no file, or no directory to put it in.
    """
    if not stat.S_ISDIR(_mode(path, path.parent, os.stat) or 0):
        raise BackendError(
            f"the store {path} cannot be made: there is no directory {path.parent}; create it first"
        )
    for each in (path, beside(path, "-wal"), beside(path, "-shm"), beside(path, "-lock")):
        mode = _mode(path, each, os.lstat)
        if mode is None:
            continue
        if stat.S_ISLNK(mode):
            raise BackendError(
                f"the store {path} is refused: {each} is a symlink, and what it points to could "
                "be exchanged; give the path of the file itself"
            )
        if not stat.S_ISREG(mode):
            raise BackendError(f"the store {path} is refused: {each} is not a regular file")


def _mode(store: Path, path: Path, look: Callable[[Path], os.stat_result]) -> int | None:
    try:
        return look(path).st_mode
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise BackendError(f"the store {store} cannot be looked at: {error.strerror}") from error


def create_privately(path: Path) -> None:
    """Make the file if it is not there, readable by its owner only; SQLite's own inherit that."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, _PRIVATE))
        if CAN_LOCK:  # a new file may be gone after a power loss until its folder is written, too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except FileExistsError:
        pass
    except OSError as error:
        raise BackendError(f"the store {path} cannot be made: {error}") from error


def file_system(path: Path) -> str:
    """The type of the file system that holds the path; empty where that is not known."""
    where, found = path.parent.resolve(), ("", "")
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split(" ")[4].replace("\\040", " ")
        if len(mount) >= len(found[0]) and where.is_relative_to(mount):
            found = mount, after.split(" ", 1)[0]
    return found[1]


def why_alone(path: Path) -> str | None:
    """Why only one process may use the file; None if many may."""
    if not CAN_LOCK:
        return f"{sys.platform} has no flock()"
    kind = file_system(path)
    return f"it is on a network file system ({kind})" if kind in _NETWORK else None


class FileLock:
    """An exclusive lock on a file of its own, which ends with the process that holds it.

    A forked child closes its copy: it would keep the lock of a parent that dies.

    Args:
        make: Make the file if it is not there.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
        try:
            self._descriptor = os.open(path, flags | _NO_LINK, _PRIVATE)
        except OSError as error:
            raise BackendError(f"the lock file {path} cannot be opened: {error}") from error
        _open_locks.add(self)

    def take(self) -> None:
        """Wait until the lock is ours."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def try_to_take(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody has it.

        Args:
            shared: Others that only look may have it, too.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def give(self) -> None:
        """Let others have it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold it for a while."""
        self.take()
        try:
            yield
        finally:
            self.give()

    def close(self) -> None:
        """Let go of it for good."""
        if self._descriptor >= 0:
            _open_locks.discard(self)
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def is_locked(path: Path) -> bool | None:
    """Whether somebody holds the lock of that file; None if it is missing or not ours to open."""
    try:
        lock = FileLock(path, make=False)
    except BackendError:
        return None
    try:
        return not lock.try_to_take(shared=True)
    finally:
        lock.close()


def wait_for_lock(path: Path, most: float) -> float | None:
    """Seconds until the lock of that file could be had; it is given back at once.

    Returns:
        Infinity after *most* seconds; None if the file is missing or not ours to open.
    """
    try:
        lock = FileLock(path, make=False)
    except BackendError:
        return None
    began = SYSTEM_CLOCK.monotonic()
    try:
        while not lock.try_to_take():
            if SYSTEM_CLOCK.monotonic() - began > most:
                return inf
            sleep(_LOCK_STEP)
        return SYSTEM_CLOCK.monotonic() - began
    finally:
        lock.close()


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in tuple(_open_locks):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
