"""
What a map has to do with its journal: what is found there is not run again, what ends is on disk before it is seen.

    items read ──▶ sift() ──┬── parts: they ended in an earlier run
                            └── runs of items that did not ──▶ sent, ended ──▶ write() ──▶ handed out

State: the keys of the items that are on their way; it belongs to who drives the map.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parallel.journal import Journal, fingerprint

LOGGER = logging.getLogger("parallel")

LOOKUP = 256
"""Items that are looked up together: one by one takes ten times as long."""


class Part(NamedTuple):
    """
    Items that have ended, one after the other in the input.

    Attributes:
        first: The index of the first of them.
        values: Their values; None for one that failed.
        failures: The indexes of those that failed, and how.
    """

    first: int
    values: list[Any]
    failures: list[tuple[int, BaseException]]


class Ledger:
    """
    The journal of one map.

    Args:
        journal: The open journal.
        spread: Each item is a tuple of arguments.
        key: Returns what an item is known by; None: the item itself.
        ignores: What is recorded is run again all the same.
    """

    def __init__(self, journal: Journal, spread: bool, key: Callable[..., object] | None, ignores: bool) -> None:
        self._journal = journal
        self._spread = spread
        self._key = key
        self._ignores = ignores
        self._keys: dict[int, bytes] = {}
        stale = journal.stale()
        if stale and journal.counts() == (0, 0):
            LOGGER.warning(
                "the code of %s has changed since %d of its items were written to %s: they are run again",
                journal.name,
                stale,
                journal.path,
            )

    def sift(self, first: int, items: Sequence[Any]) -> tuple[list[Part], list[tuple[int, list[Any]]]]:
        """
        Tell what is recorded of some items from what is not.

        Returns:
            What is, in order; and where the runs of items begin that are not, with those.
        """
        keys = self._keys_of(items)
        found = [None] * len(keys) if self._ignores else self._journal.find(keys)
        parts: list[Part] = []
        left: list[tuple[int, list[Any]]] = []
        for index, (item, key, record) in enumerate(zip(items, keys, found, strict=True), first):
            if record is None:
                self._keys[index] = key
                if not left or left[-1][0] + len(left[-1][1]) != index:
                    left.append((index, []))
                left[-1][1].append(item)
                continue
            if not parts or parts[-1].first + len(parts[-1].values) != index:
                parts.append(Part(index, [], []))
            parts[-1].values.append(record.value)
            if record.error is not None:
                parts[-1].failures.append((index, record.error))
        return parts, left

    def _keys_of(self, items: Sequence[Any]) -> list[bytes]:
        rows: list[tuple[Any, ...]] = [tuple(item) if self._spread else (item,) for item in items]
        key = self._key
        return self._journal.keys(rows) if key is None else self._journal.keys_by([key(*row) for row in rows])

    def write(self, parts: Sequence[Part]) -> None:
        """Record what has ended; a value that can't be recorded is a failure from now on."""
        entries: list[tuple[bytes, object, BaseException | None]] = []
        places: list[tuple[Part, int]] = []
        for part in parts:
            failures = dict(part.failures)
            for index, value in enumerate(part.values, part.first):
                key = self._keys.pop(index, None)
                if key is not None:
                    entries.append((key, value, failures.get(index)))
                    places.append((part, index))
        for position, error in self._journal.record(entries) if entries else ():
            part, index = places[position]
            part.values[index - part.first] = None
            part.failures.append((index, error))
            part.failures.sort(key=lambda failure: failure[0])

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def open_ledger(
    path: str, name: str, fn: Callable[..., object], resume: object, spread: bool, key: Callable[..., object] | None
) -> Ledger:
    """
    Open the journal of a map.

    Args:
        path: Its file.
        name: The name of the function.
        fn: The plain function.
        resume: True: what is recorded is not run again; `"failed"`: nor is that, but what has failed; False: all is.
        spread: As for `Ledger`.
        key: Likewise.

    Raises:
        ValueError: *resume* is none of these. JournalError, JournalLockedError: The file can't be used.
    """
    if resume not in (True, False, "failed"):
        raise ValueError(f"resume: expected True, False or 'failed', found {resume!r}")
    journal = Journal(path, name, fingerprint(fn), failed_again=resume == "failed")
    try:
        return Ledger(journal, spread, key, resume is False)
    except BaseException:
        journal.close()
        raise
