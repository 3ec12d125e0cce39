"""
`MapFuture`: one function over many items.

    items ──▶ one call each, submitted at once ──▶ futures in input order ──▶ the list of all values

The input is read to its end before the first result is asked for: use a bounded iterable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from parallel.context import current_registry
from parallel.futures import Future
from parallel.meetings import all_or_error, meet
from parallel.states import BARE

R = TypeVar("R")


class MapFuture(Future[list[R]]):
    """
    The future of the list of all values, one per item, in input order; iterating yields each as soon as it is there.

    The first item that fails fails the whole, and the others are cancelled, as by `gather`. Iterating raises the failed
    item's exception at its place. Leaving a loop over it early cancels nothing.
    """

    def __init__(self, futures: Sequence[Future[R]]) -> None:
        super().__init__(BARE, current_registry().callbacks)
        self._futures = tuple(futures)
        meet(self._futures, all_or_error(selects=True), self)

    def __len__(self) -> int:
        return len(self._futures)

    def __bool__(self) -> bool:
        """True: a future is one, of however many items."""
        return True

    def __iter__(self) -> Iterator[R]:
        for future in self._futures:
            try:
                value = future.result()
            except CancelledError:
                self._raise_why(future)
                raise
            yield value

    def _raise_why(self, future: Future[R]) -> None:
        """Raise the failure that made the others be cancelled, if that is why *future* was."""
        if not self.cancelled():
            self.result()


def map_eagerly(submit: Callable[..., Future[R]], iterables: Sequence[Iterable[Any]]) -> MapFuture[R]:
    """
    Submit one call per item, or per tuple of items, and return their future.

    Args:
        submit: Makes the call.
        iterables: As for `map`: with several, the shortest ends it.

    Raises:
        What an iterable raises; the calls submitted so far are cancelled then.
    """
    futures: list[Future[R]] = []
    try:
        for arguments in zip(*iterables, strict=False):
            futures.append(submit(*arguments))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return MapFuture(futures)
