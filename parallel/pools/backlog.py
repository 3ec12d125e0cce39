"""
A backlog: what waits for a worker, first come first served, and by priority.

    append(), appendleft() ──▶ deque, of the usual priority ──▶ popleft()
                          └──▶ heap, of the others ─────────▶

Guarantees:
- Of two calls, the one with the higher priority comes out first; of two with the same, the one that came first. One
  that was put back comes before its like.

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
        self._plain: deque[S] = deque()  # those of the usual priority
        self._ranked: list[tuple[int, int, S]] = []  # a heap of the others
        self._numbers = itertools.count()
        self._numbers_before = itertools.count(-1, -1)  # of those that were put back

    def append(self, step: S) -> None:
        """Add *step* behind all that come before it."""
        if step.priority:
            heapq.heappush(self._ranked, (-step.priority, next(self._numbers), step))
        else:
            self._plain.append(step)

    def appendleft(self, step: S) -> None:
        """Put *step* back, before all of its priority."""
        if step.priority:
            heapq.heappush(self._ranked, (-step.priority, next(self._numbers_before), step))
        else:
            self._plain.appendleft(step)

    def popleft(self) -> S:
        """
        Take the next.

        Raises:
            IndexError: There is none.
        """
        ranked = self._ranked
        if ranked and (ranked[0][0] < 0 or not self._plain):
            return heapq.heappop(ranked)[2]
        return self._plain.popleft()

    def clear(self) -> None:
        """Forget all."""
        self._plain.clear()
        self._ranked.clear()

    def __len__(self) -> int:
        return len(self._plain) + len(self._ranked)

    def __iter__(self) -> Iterator[S]:
        """Iterate over all that wait, in the order in which they would come out."""
        ranked = sorted(self._ranked)
        high = [step for rank, _, step in ranked if rank < 0]
        return iter([*high, *self._plain, *(step for _, _, step in ranked[len(high) :])])
