"""
A backlog: what waits for a worker, first come first served, and by priority once a call has one.

    append() ──▶ deque ──────────────────────────▶ popleft()
            └──▶ heap, from the first call with a priority on ──▶ popleft()

Guarantees:
- Of two calls, the one with the higher priority comes out first; of two with the same, the one that came first.

State: `_plain` and `_ranked`, guarded by the lock of whoever owns the backlog.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Ranked(Protocol):
    """What may have a priority."""

    @property
    def priority(self) -> int:
        """The higher, the earlier it runs; 0 is usual."""
        ...


S = TypeVar("S", bound=Ranked)


class Backlog(Generic[S]):
    """What waits for a worker."""

    def __init__(self) -> None:
        self._plain: deque[S] = deque()
        self._ranked: list[tuple[int, int, S]] | None = None  # a heap; None until a priority came
        self._numbers = itertools.count()

    def append(self, step: S) -> None:
        """Add *step* behind all that come before it."""
        if self._ranked is None:
            if not step.priority:
                self._plain.append(step)
                return
            self._ranked = []  # from here on a signal handler's step goes there, too
            while self._plain:
                self._rank(self._ranked, self._plain.popleft())
        self._rank(self._ranked, step)

    def _rank(self, heap: list[tuple[int, int, S]], step: S) -> None:
        heapq.heappush(heap, (-step.priority, next(self._numbers), step))

    def popleft(self) -> S:
        """
        Take the next.

        Raises:
            IndexError: There is none.
        """
        return self._plain.popleft() if self._ranked is None else heapq.heappop(self._ranked)[2]

    def clear(self) -> None:
        """Forget all."""
        self._plain.clear()
        if self._ranked is not None:
            self._ranked.clear()

    def __len__(self) -> int:
        return len(self._plain) if self._ranked is None else len(self._ranked)

    def __iter__(self) -> Iterator[S]:
        """Iterate over all that wait, in the order in which they would come out."""
        return iter(list(self._plain) if self._ranked is None else [one for _, _, one in sorted(self._ranked)])
