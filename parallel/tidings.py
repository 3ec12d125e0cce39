"""
Events, as they come: an iterator for whoever wants to read them.

State: of a stream, guarded by its `_arrived`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeAlias
from weakref import ref

from parallel.context import era
from parallel.events import Event
from parallel.naps import nap_on

MOST: Final = 100_000
"""Events that wait in a stream, unless said otherwise: some 30 MB."""

Sink: TypeAlias = Callable[[Event], object]
"""Takes an event, on the trail's thread; it must be quick, and raise nothing."""


class EventStream:
    """
    The events of a registry, as they come: an iterator, which waits for the next, and a context manager.

    It ends when the registry has been shut down, and all that has happened was told, or when it is closed.

    Args:
        most: How many may wait in it; beyond that, those that came first are dropped.
        close: What is called to have no more come.

    Attributes:
        dropped: How many were.
    """

    def __init__(self, most: int, close: Callable[[Sink], object]) -> None:
        self.dropped = 0
        self._most = most
        self._close = close
        self._era = era()
        self._arrived = threading.Condition()
        self._events: deque[Event] = deque()
        self._is_over = False
        me = ref(self)

        def sink(event: Event) -> None:
            stream = me()
            if stream is not None:
                stream.put(event)

        self.sink: Sink = sink

    def put(self, event: Event) -> None:
        """Add an event."""
        with self._arrived:
            if len(self._events) >= self._most:
                self._events.popleft()
                self.dropped += 1
            self._events.append(event)
            self._arrived.notify()

    def end(self) -> None:
        """Have it end after what waits in it."""
        with self._arrived:
            self._is_over = True
            self._arrived.notify_all()

    def close(self) -> None:
        """End it now; nothing happens if it has ended."""
        if self._era == era():
            self._close(self.sink)
            with self._arrived:
                self._events.clear()
            self.end()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._era != era():
            raise StopIteration  # in a forked child, where nothing comes
        with self._arrived:
            while not self._events:
                if self._is_over:
                    raise StopIteration
                nap_on(self._arrived)
            return self._events.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
