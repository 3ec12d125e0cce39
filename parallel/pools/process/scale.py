"""
Weighs a worker: whether it takes more memory than it may.

It is looked at where results are sent, and then at most every `EVERY`: a look costs some 10 microseconds, so that takes
a thousandth of a worker's time at most. Without a limit nothing is looked at.

State: when it was looked at, and whether it was told; that of the thread that serves.
"""

from __future__ import annotations

import time
from typing import Final

from parallel.memory import resident

EVERY: Final = 10_000_000
"""Nanoseconds between two looks. With more of them short calls outgrow the limit further before that is noticed."""


class Scale:
    """Weighs this process."""

    def __init__(self, limit: int | None) -> None:
        """Make one for a limit in bytes; None: there is none."""
        self._limit = limit
        self._next = 0

    def check(self) -> None:
        """
        See that this process, which has run no call, is not over the limit: each that takes its place would be, too.

        Raises:
            MemoryError: It is.
        """
        if self._limit is not None and (found := resident()) > self._limit:
            raise MemoryError(
                f"a worker takes {found} bytes before its first call, more than the {self._limit} of "
                "max_memory_per_child"
            )

    def is_over(self) -> bool:
        """Tell once that the limit is exceeded; mostly, that it isn't time to look."""
        if self._limit is None:
            return False
        now = time.monotonic_ns()
        if now < self._next:
            return False
        self._next = now + EVERY
        if resident() <= self._limit:
            return False
        self._limit = None  # to tell it once is enough
        return True
