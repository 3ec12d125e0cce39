"""
An SQLite file that one run has for itself, until that ends, however it ends.

    Storage(path) ──▶ path.lock: flock() ──▶ path: ours, or made now ──▶ connection ──▶ reading(), writing()
                      held by this process alone                   closed before a fork, opened again when needed

Guarantees:
- What a transaction wrote is on disk when its block ends; of one that did not end, nothing is there. SIGKILL and loss
  of power may come at any moment, also while the file is being made.
- One run at a time. The lock is on an open file, not in one: it is gone when its process is, and no child holds it.
- No connection of SQLite crosses a fork. A child would write to the file as it closes its own, and may find SQLite
  itself locked by a thread that it doesn't have.
- A file of something else is not changed.

The file is written ahead (WAL): a commit waits for the disk once, where a rollback journal has it wait three times, and
others may read the file meanwhile, as with `sqlite3 run.sqlite`. Where a file system can't do that, SQLite stays with
its rollback journal: slower, and as safe.

State: `_connection`, `_lent` and `_lock` of each `Storage`, and SQLite's own, guarded by `SQLITE`. Nobody holds that
while user code runs, but for a finalizer that the garbage collector may run anywhere.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/howtocorrupt.html.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from parallel.errors import JournalError, JournalLockedError
from parallel.weak import WeakSet

if TYPE_CHECKING:
    from sqlite3 import Connection, Error

PATIENCE: Final = 5.0
"""Seconds to wait for another program that writes to the file. No run does; somebody at a shell may."""

AT_ONCE: Final = 500
"""Keys that one statement asks for. Ten times fewer cost twice the time; older SQLites take no more than 999."""

SQLITE: Final = threading.RLock()
"""Held while SQLite runs; a fork waits for it. Re-entrant, as a finalizer may close a storage at any point."""

Row: TypeAlias = tuple[Any, ...]

_WORDS: Final = {
    "SQLITE_NOTADB": "is a file of something else: use another",
    "SQLITE_CORRUPT": "is damaged: use another file, or delete it to begin anew",
    "SQLITE_BUSY": f"is being written by another program, for more than {PATIENCE:g} s",
    "SQLITE_FULL": "can't be written, as there is no room on the disk",
}
"""What errors of SQLite mean, by the beginnings of their names."""


class Kind(NamedTuple):
    """
    What a storage is for.

    Attributes:
        application: The number by which SQLite files of this kind are known.
        version: That of the tables.
        tables: The statements that make them.
    """

    application: int
    version: int
    tables: tuple[str, ...]


class Storage:
    """
    A file that is held until `close`, or until nobody refers to this any more.

    Args:
        path: Of the file; it is made if there is none.
        kind: What it is for.

    Raises:
        JournalLockedError: Another run has it.
        JournalError: It is something else, or can't be read or written.

    Attributes:
        path: Of the file, without symbolic links: whatever path leads there, the lock is the same.
    """

    def __init__(self, path: str, kind: Kind) -> None:
        self.path = os.path.realpath(path)
        self._kind = kind
        self._process = os.getpid()
        self._file: tuple[int, int] | None = None  # device and number, once it has been opened
        self._connection: Connection | None = None
        self._lent = False
        self._lock: int | None = _take(self.path)
        _storages.add(self)
        try:
            with self.reading():
                self._file = _file_at(self.path)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Lend the connection, for statements and nothing else."""
        with SQLITE, _in_our_words(self.path):
            connection = self._connected()
            self._lent, lent_before = True, self._lent
            try:
                yield connection
            finally:
                self._lent = lent_before

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Lend the connection in a transaction, which is on disk when the block ends."""
        with self.reading() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._disconnect()  # undoes it, also where a ROLLBACK would fail
                raise

    def close(self) -> None:
        """Give the file back. Does nothing if that has been done, and in a forked child."""
        with SQLITE:
            if self._lock is None or os.getpid() != self._process:
                return
            lock, self._lock = self._lock, None
            self._disconnect()
            with suppress(OSError):
                os.unlink(_lock_file(self.path))  # while it is held: see `_try_to_take`
            os.close(lock)

    def __del__(self) -> None:
        if hasattr(self, "_lock"):  # it was opened
            self.close()

    def before_fork(self) -> None:
        """See that the child gets no connection, with `SQLITE` held."""
        if not self._lent:  # else this fork is made by a signal handler or finalizer in mid-statement: too late
            self._disconnect()

    def after_fork_in_child(self) -> None:
        """See that the child does not hold the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connected(self) -> Connection:
        if os.getpid() != self._process:
            raise JournalError(self.path, f"was opened by process {self._process}, and can't be used by a fork of that")
        if self._lock is None:
            raise JournalError(self.path, "has been closed")
        if self._file is not None and self._file != _file_at(self.path):
            raise JournalError(self.path, "has been removed, or replaced by another file, while it was in use")
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> Connection:
        import sqlite3  # loads a library that nothing else needs

        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            is_new = self._is_new(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            if is_new:
                self._make_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_new(self, connection: Connection) -> bool:
        """Tell whether the file is empty, or was left so by a run that was killed as it made it; check it otherwise."""
        [[application]] = connection.execute("PRAGMA application_id")
        [[version]] = connection.execute("PRAGMA user_version")
        if (application, version) == (self._kind.application, self._kind.version):
            return False
        if application == self._kind.application:
            raise JournalError(
                self.path,
                f"has format {version}, and this version of the library reads format {self._kind.version}: use another"
                " file, or the version that made it",
            )
        [[tables]] = connection.execute("SELECT count(*) FROM sqlite_master")
        if application or version or tables:
            raise JournalError(self.path, "is an SQLite file of something else: use another")
        return True

    def _make_tables(self, connection: Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for statement in self._kind.tables:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {self._kind.application}")
        connection.execute(f"PRAGMA user_version = {self._kind.version}")
        connection.execute("COMMIT")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def rows_of(connection: Connection, statement: str, first: Sequence[object], keys: Sequence[bytes]) -> Iterator[Row]:
    """
    Yield the rows that a statement with `IN (KEYS)` finds, in any order.

    Args:
        connection: Where.
        statement: What to look for.
        first: The values of its other places, which come before.
        keys: As many as you like; each once, or its row comes again.
    """
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        places = ",".join("?" * len(some))
        yield from connection.execute(statement.replace("KEYS", places), (*first, *some))


def _take(path: str) -> int:
    """Lock the file beside *path*, and return the descriptor that holds the lock."""
    try:
        while True:
            descriptor = _try_to_take(path)
            if descriptor is not None:
                return descriptor
    except ImportError:
        raise JournalError(path, "can't be locked: this system has no flock()") from None
    except OSError as problem:
        raise JournalError(path, f"can't be locked: {problem}") from problem


def _try_to_take(path: str) -> int | None:
    """Do that; return None if the one that held the lock has removed the file just now, so that others make another."""
    import fcntl  # not on every system

    with ExitStack() as undo:
        descriptor = os.open(_lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        undo.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalLockedError(path, _read_holder(descriptor)) from None
        if not _leads_to(_lock_file(path), descriptor):
            return None
        _write_holder(descriptor)
        undo.pop_all()
        return descriptor


def _lock_file(path: str) -> str:
    return f"{path}.lock"


def _leads_to(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def _read_holder(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _in_our_words(path: str) -> Generator[None]:
    """Raise what SQLite raises as a `JournalError`."""
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(path, f"{_words_of(error)} ({error})") from error


def _words_of(error: Error) -> str:
    name = getattr(error, "sqlite_errorname", "")  # it has none if it is about the use of the module
    return next((words for start, words in _WORDS.items() if name.startswith(start)), "can't be read or written")


_storages: WeakSet[Storage] = WeakSet()


def _before_fork() -> None:
    SQLITE.acquire()
    for storage in _storages:
        storage.before_fork()


def _after_fork_in_child() -> None:
    for storage in _storages:
        storage.after_fork_in_child()
    SQLITE.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=SQLITE.release, after_in_child=_after_fork_in_child)
