"""
What a map remembers between runs: which item ended, and how.

    item ──▶ key ──▶ find(): ended in an earlier run? ──(no)──▶ the call ──▶ record(): on disk ──▶ its result is seen
                              │ its value or error

    codes   a row per task and fingerprint: a changed function begins anew, and what was before stays
    ended   a row per item that has ended: its code, its key, whether it failed, its value or error

Guarantees:
- When `record` returns, what it took is on disk: see `storage`.
- What was recorded of one function, or of one item, is never found for another.
- No item stops the others: `record` tells which it can't write, and `find` warns of those that it can't load.

State: that of `storage` and `occurrences`. One thread at a time uses a journal, whichever. Items, values and errors are
pickled and loaded with no lock held.
"""

from __future__ import annotations

import os
import pickle
import reprlib
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

from parallel.errors import UnrecordableError
from parallel.fingerprints import fingerprint
from parallel.keys import canonical, canonical_word, digests
from parallel.occurrences import Occurrences
from parallel.storage import Kind, Row, Storage, rows_of

__all__ = ["Entry", "Journal", "Recorded", "Refused", "fingerprint"]

LARGEST: Final = 999_999_000
"""Bytes that a pickled value may have: what SQLite takes for a row is 10 ** 9, with all else that is in it."""

KIND: Final = Kind(
    application=0x70617261,  # "para"
    version=1,
    tables=(
        "CREATE TABLE codes (id INTEGER PRIMARY KEY, task TEXT NOT NULL, fingerprint TEXT NOT NULL,"
        " UNIQUE (task, fingerprint))",
        "CREATE TABLE ended (code INTEGER NOT NULL, key BLOB NOT NULL, failed INTEGER NOT NULL, data BLOB NOT NULL,"
        " UNIQUE (code, key))",
        "CREATE INDEX failures ON ended (code) WHERE failed",  # for their number; it has the failed ones only
    ),
)
"""What the file is. Values stay out of the index, so that a look for small keys reads no large values."""

_ADD_CODE: Final = "INSERT OR IGNORE INTO codes (task, fingerprint) VALUES (?, ?)"
_FIND_CODE: Final = "SELECT id FROM codes WHERE task = ? AND fingerprint = ?"
_RECORD: Final = "INSERT OR REPLACE INTO ended (code, key, failed, data) VALUES (?, ?, ?, ?)"
_FIND: Final = "SELECT key, failed, data FROM ended WHERE code = ? AND key IN (KEYS)"
_FIND_DONE: Final = _FIND + " AND NOT failed"
_COUNT: Final = "SELECT count(*) FROM ended WHERE code = ?"
_COUNT_FAILED: Final = _COUNT + " AND failed"
_COUNT_STALE: Final = (
    "SELECT count(*) FROM codes JOIN ended ON ended.code = codes.id WHERE codes.task = ? AND codes.id != ?"
)

Entry: TypeAlias = tuple[bytes, object, BaseException | None]
"""An item that has ended: its key, its value (None if it failed), and its error (None if it did not)."""

Refused: TypeAlias = tuple[int, UnrecordableError]
"""An entry that can't be written: its position among those given, and why."""


class Recorded(NamedTuple):
    """
    How an item ended in an earlier run.

    Attributes:
        value: Its value; None if it failed.
        error: Its error, None if there was none. The traceback of that time is its `__cause__`, as text.
    """

    value: object
    error: BaseException | None


class Journal:
    """
    The journal of one run of one task: a file that this run has for itself, until `close`.

    Args:
        path: Of the file, which is made if there is none. Several tasks may use the same, one run at a time.
        name: The task's.
        fingerprint: Its function's, as it is now.
        failed_again: Items that failed are not found.

    Raises:
        JournalLockedError: Another run, in this process or another one, has the file.
        JournalError: It is something else, is damaged, or can't be written. Every method may raise that as well.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str, fingerprint: str, *, failed_again: bool = False
    ) -> None:
        self.name = name
        self._find = _FIND_DONE if failed_again else _FIND
        self._keyed = 0  # how many items have been given a key
        self._pickling = _process_room("pickling")
        self._storage = Storage(os.fspath(path), KIND)
        try:
            self._occurrences = Occurrences()
            with self._storage.writing() as connection:
                connection.execute(_ADD_CODE, (name, fingerprint))
                [[self._code]] = connection.execute(_FIND_CODE, (name, fingerprint))
        except BaseException:
            self._storage.close()
            raise

    @property
    def path(self) -> str:
        """Of the file, without symbolic links."""
        return self._storage.path

    def keys(self, items: Sequence[tuple[object, ...]]) -> list[bytes]:
        """
        Return a key per item: which of all possible ones it is, and how many equal ones came before it in this run.

        To be called for each item once, in input order. An item's classes and functions count by their names, all else
        as `keys` says.

        Args:
            items: The arguments of each.

        Raises:
            UnrecordableError: One of them can't be pickled; none has got a key.
        """
        return self._numbered([self._text_of(number, item) for number, item in enumerate(items, self._keyed)])

    def keys_by(self, words: Sequence[object]) -> list[bytes]:
        """
        Return a key per item, from what the user's own function returned for it; else as `keys`.

        Args:
            words: A str, int or bytes per item, or tuples of these.

        Raises:
            TypeError: One is something else; none has got a key.
        """
        return self._numbered([canonical_word(word) for word in words])

    def find(self, keys: Sequence[bytes]) -> list[Recorded | None]:
        """
        Return what is recorded, per key; None for an item that is to be run.

        A value that can't be loaded any more, as its class has gone or been changed, counts as not recorded; a
        `RuntimeWarning` tells of it.
        """
        with self._storage.reading() as connection:
            rows = {key: rest for key, *rest in rows_of(connection, self._find, (self._code,), list({*keys}))}
        problems: list[BaseException] = []
        found = {key: self._load(failed, data, problems) for key, (failed, data) in rows.items()}
        if problems:
            warnings.warn(self._of_lost(problems), RuntimeWarning, stacklevel=2)
        return [found.get(key) for key in keys]

    def record(self, entries: Iterable[Entry]) -> list[Refused]:
        """
        Write how items ended, in one transaction; they are on disk when this returns. What was there is replaced.

        Returns:
            The entries that can't be written, as their values can't be pickled, or are too large. All others are.
        """
        rows: list[Row] = []
        refused: list[Refused] = []
        for position, (key, value, error) in enumerate(entries):
            try:
                rows.append((self._code, key, error is not None, self._packed(value, error)))
            except UnrecordableError as problem:
                refused.append((position, problem))
        if rows:
            with self._storage.writing() as connection:
                connection.executemany(_RECORD, rows)
        return refused

    def counts(self) -> tuple[int, int]:
        """Return how many items of this task, as it is now, are done, and how many have failed."""
        with self._storage.reading() as connection:
            [[all_of_them]] = connection.execute(_COUNT, (self._code,))
            [[failed]] = connection.execute(_COUNT_FAILED, (self._code,))
        return all_of_them - failed, failed

    def stale(self) -> int:
        """Return how many items are recorded of this task as it was before its function was changed."""
        with self._storage.reading() as connection:
            [[count]] = connection.execute(_COUNT_STALE, (self.name, self._code))
        return int(count)

    def close(self) -> None:
        """Give the file back, so that another run may have it. May be called twice."""
        self._occurrences.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Journal {self.path!r} of {self.name}>"

    def _text_of(self, number: int, item: tuple[object, ...]) -> bytes:
        try:
            return canonical(item)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # whatever the item's own code raises
            raise _refusal(
                f"item {number} ({_short(item)})",
                problem,
                "give the map key=, a function that returns a str, an int or a tuple of these for each item",
            ) from problem

    def _numbered(self, texts: Sequence[bytes]) -> list[bytes]:
        self._keyed += len(texts)
        whats = digests(texts)
        return [_key(what, count) for what, count in zip(whats, self._occurrences.count(whats), strict=True)]

    def _packed(self, value: object, error: BaseException | None) -> bytes:
        if error is not None:
            return pickle.dumps(_process_room("failures").pack_error(error, False))
        try:
            # What `__main__` defines goes by its name, in a notebook too: what comes back is of the present class.
            data: bytes = self._pickling.dumps(value, False)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # whatever the value's own code raises
            raise self._unwritable(problem) from problem
        if len(data) > LARGEST:
            raise self._unwritable(ValueError(f"it takes {len(data):,} bytes, more than the {LARGEST:,} of SQLite"))
        return data

    def _unwritable(self, problem: BaseException) -> UnrecordableError:
        return _refusal(f"a value of {self.name}", problem, "return what can be pickled, such as the path of a file")

    def _load(self, failed: bool, data: bytes, problems: list[BaseException]) -> Recorded | None:
        try:
            if failed:
                return Recorded(None, _process_room("replies").error_of(*pickle.loads(data)))
            return Recorded(self._pickling.loads(data), None)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # whatever the value's own code raises
            problems.append(problem)
            return None

    def _of_lost(self, problems: list[BaseException]) -> str:
        return (
            f"{len(problems)} values of {self.name} in the journal {self.path!r} can't be loaded any more, and are made"
            f" again; the first: {_described(problems[0])}"
        )


def _process_room(name: str) -> Any:
    """A module of the process kind, loaded late: multiprocessing comes with it, which threads can do without."""
    return import_module(f"parallel.pools.process.{name}")


def _key(digest: bytes, count: int) -> bytes:
    """Tell equal items apart. All digests have one length, so no key is the beginning of another item's."""
    return digest + count.to_bytes((count.bit_length() + 7) // 8, "big") if count else digest


def _refusal(what: str, problem: BaseException, advice: str) -> UnrecordableError:
    return UnrecordableError(what, _described(problem), advice)


def _described(problem: BaseException) -> str:
    try:
        return f"{type(problem).__name__}: {problem}"
    except Exception as failure:  # its text is made by user code
        return f"{type(problem).__name__}, whose text can't be made: {type(failure).__name__}"


def _short(item: tuple[object, ...]) -> str:
    try:
        return reprlib.repr(item[0] if len(item) == 1 else item)
    except Exception:  # made by user code
        return "its repr fails"
