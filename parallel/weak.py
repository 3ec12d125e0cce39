"""
Weak sets that any thread may change and go through at any time, and that no signal handler is called in.

A member that dies is taken out by C code. That of `weakref.WeakSet` is Python: a signal that comes meanwhile is handled
there, and what its handler raises, a `KeyboardInterrupt` or `SystemExit`, is lost. Nor can that one be gone through
while another thread adds to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class WeakSet(Generic[T]):
    """
    Objects, compared by their `==` and hash, as long as somebody else refers to them.

    Each change is a single atomic step, and so is the look that going through it takes at the beginning.
    """

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members: set[ref[T]] = set()

    def add(self, member: T) -> None:
        """Add it, if it is not in there."""
        self._members.add(ref(member, self._members.discard))

    def update(self, members: Iterable[T]) -> None:
        """Add them all."""
        for member in members:
            self.add(member)

    def clear(self) -> None:
        """Take all out."""
        self._members.clear()

    def __iter__(self) -> Iterator[T]:
        """Go through those that are in there now."""
        return iter([member for each in list(self._members) if (member := each()) is not None])

    def __len__(self) -> int:
        """The number of members."""
        return len(self._members)
