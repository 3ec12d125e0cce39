"""
Which of several equal items an item is: equal items of one run are different items.

The count of each is kept in a database of SQLite's own making, which begins in memory and goes to a nameless temporary
file as it grows: a run over 10 ** 7 items takes no more memory than one over 10 ** 4.

State: that database; guarded by `SQLITE`, which is held while SQLite runs, and by the rule that one thread counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel.storage import SQLITE, rows_of

_TABLE = "CREATE TABLE seen (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID"
_LOOK = "SELECT digest, times FROM seen WHERE digest IN (KEYS)"
_NOTE = "INSERT OR REPLACE INTO seen VALUES (?, ?)"


class Occurrences:
    """Counts how often each digest has come, until `close`."""

    def __init__(self) -> None:
        import sqlite3  # loads a library that nothing else needs

        with SQLITE:
            self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = OFF")  # it ends with the run: nothing is ever undone
            self._connection.execute(_TABLE)

    def count(self, digests: Sequence[bytes]) -> list[int]:
        """Return for each of *digests* how many equal ones have come before it, in this call or an earlier one."""
        times = dict.fromkeys(digests, 0)
        with SQLITE:
            times.update(rows_of(self._connection, _LOOK, (), list(times)))
            before = [_next(times, digest) for digest in digests]
            self._connection.execute("BEGIN")
            self._connection.executemany(_NOTE, times.items())
            self._connection.execute("COMMIT")
        return before

    def close(self) -> None:
        """Forget all."""
        with SQLITE:
            self._connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_connection"):  # it was made
            self.close()


def _next(times: dict[bytes, int], digest: bytes) -> int:
    count = times[digest]
    times[digest] = count + 1
    return count
