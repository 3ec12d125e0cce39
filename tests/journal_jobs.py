"""
What the tests of the journal write, and the runs that are killed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from parallel.journal import Journal


class Untimely(Exception):
    """Its constructor takes other arguments than it hands on."""

    def __init__(self, what: str, when: int) -> None:
        super().__init__(f"{what} at {when}")
        self.when = when


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


class Fragile:
    """Can be pickled, and loaded until it is broken."""

    broken = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _fragile, ()


def _fragile() -> Fragile:
    if Fragile.broken:
        raise LookupError("its parts have gone")
    return Fragile()


class Refuses:
    """Can't be pickled, for the reason that it is given."""

    def __init__(self, reason: BaseException) -> None:
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.reason

    def __repr__(self) -> str:
        raise ValueError("no text either")


def value_of(number: int) -> bytes:
    """Of the item of that number: some small, some of many pages."""
    return number.to_bytes(4, "big") * (1 + number % 7 * 500)


def write_for_ever(path: str, size: int) -> None:
    """Record batches from where an earlier run was killed, and tell of each that is on disk."""
    with Journal(path, "work", "print") as journal:
        done, _ = journal.counts()
        while True:
            numbers = range(done, done + size)
            keys = journal.keys_by(numbers)
            refused = journal.record([(key, value_of(n), None) for key, n in zip(keys, numbers, strict=True)])
            assert not refused
            done += size
            os.write(1, b"%d\n" % done)


def hold(path: str) -> None:
    """Have the journal until killed."""
    with Journal(path, "work", "print"):
        os.write(1, b"held\n")
        sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_for_ever(sys.argv[2], int(sys.argv[3]))
    else:
        hold(sys.argv[2])
