"""
What a map has to do with its journal: what is found there is not run again, what ends is on disk before it is seen.

    items read ──▶ sift() ──┬── parts: they ended in an earlier run
                            └── runs of items that did not ──▶ sent, ended ──▶ write() ──▶ handed out

State: the keys of the items that are on their way; it belongs to who drives the map.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from parallel.chunks import Manner
from parallel.errors import UnrecordableError
from parallel.journal import Journal, fingerprint
from parallel.keys import canonical, digests

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
        draws: What an item returns hangs on its index.
        key: Returns what an item is known by; None: the item itself.
        ignores: What is recorded is run again all the same.
    """

    def __init__(
        self, journal: Journal, spread: bool, draws: bool, key: Callable[..., Hashable] | None, ignores: bool
    ) -> None:
        self._journal = journal
        self._spread = spread
        self._draws = draws
        self._key = key
        self._ignores = ignores
        self._keys: dict[int, bytes] = {}
        stale = journal.stale()
        if stale and journal.counts() == (0, 0):
            LOGGER.warning(
                "code, constants or seed of %s have changed since %d of its items were written to %s:"
                " they are run again",
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
        keys = self._keys_of(first, items)
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

    def _keys_of(self, first: int, items: Sequence[Any]) -> list[bytes]:
        rows: list[tuple[Any, ...]] = [tuple(item) if self._spread else (item,) for item in items]
        if self._key is None:
            return self._journal.keys([(index, *row) for index, row in enumerate(rows, first)] if self._draws else rows)
        words = [self._key(*row) for row in rows]
        return self._journal.keys_by(list(enumerate(words, first)) if self._draws else words)

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
    path: str,
    name: str,
    fn: Callable[..., object],
    resume: object,
    manner: Manner,
    key: Callable[..., Hashable] | None,
) -> Ledger:
    """
    Open the journal of a map.

    Args:
        path: Its file.
        name: The name of the function.
        fn: The plain function.
        resume: True: what is recorded is not run again; `"failed"`: nor is that, but what has failed; False: all is.
        manner: How it is called; what is recorded with other constants, or another seed, is not what it returns now.
        key: As for `Ledger`.

    Raises:
        ValueError: *resume* is none of these. UnrecordableError: Nobody can tell whether the constants are the same.
        JournalError, JournalLockedError: The file can't be used.
    """
    if resume not in (True, False, "failed"):
        raise ValueError(f"resume: expected True, False or 'failed', found {resume!r}")
    code = fingerprint(fn) + _beside(manner)
    journal = Journal(path, name, code, failed_again=resume == "failed")
    try:
        return Ledger(journal, manner.spread, manner.seed is not None, key, resume is False)
    except BaseException:
        journal.close()
        raise


def _beside(manner: Manner) -> str:
    """Return what tells the constants and the seed of a map from others; empty if it has none."""
    if not manner.constants and manner.seed is None:
        return ""
    try:
        text = canonical((sorted((manner.constants or {}).items(), key=itemgetter(0)), manner.seed))
    except Exception as problem:  # whatever the constants' own code raises
        raise UnrecordableError(
            "the constants of a map",
            f"{type(problem).__name__}: {problem}",
            "have the function make what can't be pickled, for example with per_worker()",
        ) from problem
    return "+" + digests([text])[0].hex()
