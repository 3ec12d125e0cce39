"""
The thread of a process pool that waits: for its workers' sockets and sentinels, and for errands of other threads.

    watch(socket, handler) ──▶ selector ──▶ handler(events) ─┐
    tell(errand) ──▶ errands, and a byte on the alarm ──▶ errand() ─┴──▶ at the end of each round: round_done()

Guarantees:
- It sleeps until something happens: there is no polling, and an idle pool takes no time.
- `tell` neither blocks nor takes a lock; many tells before the thread comes round wake it once.
- What a handler or an errand raises is a bug of this library: it is logged, and the thread goes on.

State: `_errands` guards itself; everything else is used by the thread alone, once it runs.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from socket import socket, socketpair
from typing import TypeAlias

from parallel.pools.process.wire import close_kept, keep_from_forks

LOGGER = logging.getLogger("parallel")

Handler: TypeAlias = Callable[[int], object]
"""Called with the events that came: EVENT_READ, EVENT_WRITE or both."""


class Reactor:
    """A selector, and the thread that waits in it."""

    def __init__(self, name: str, round_done: Callable[[], bool]) -> None:
        """
        Make one that does nothing yet; it takes errands already.

        Args:
            name: The thread's name.
            round_done: Called after each round; returns True when the thread is to end.
        """
        self._name = name
        self._round_done = round_done
        self._errands: deque[Callable[[], object]] = deque()
        self._bell: socket | None = None  # where `tell` writes
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """
        Take the descriptors that it needs.

        Raises:
            OSError: There are none left; nothing is kept then.
        """
        self._selector = DefaultSelector()
        try:
            alarm, bell = socketpair()
        except BaseException:
            self._selector.close()
            raise
        for end in (alarm, bell):
            end.setblocking(False)
            keep_from_forks(end)
        keep_from_forks(self._selector)
        self._alarm, self._bell = alarm, bell
        self._selector.register(alarm, EVENT_READ, self._drain)

    def start(self) -> None:
        """
        Start the thread.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=False)
        self._thread.start()

    def is_running(self) -> bool:
        """Tell whether the thread has been started, and has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def is_this_thread(self) -> bool:
        """Tell whether the current thread is the reactor's."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait for the end of the thread, if it was started."""
        if self._thread is not None:
            self._thread.join()

    def tell(self, errand: Callable[[], object]) -> None:
        """Have *errand* run on the thread, soon."""
        self._errands.append(errand)
        bell = self._bell
        if bell is not None:
            # Full: then it wakes up anyway. Closed: then it is no more, and its owner is done with errands.
            with suppress(OSError):
                bell.send(b"\0")

    def watch(self, what: socket | int, events: int, handler: Handler) -> None:
        """Call *handler* whenever one of *events* is there on *what*. On the thread, or before it is started."""
        self._selector.register(what, events, handler)

    def change(self, what: socket | int, events: int) -> None:
        """Wait for other events on *what*, if it is watched, and open. On the thread."""
        with suppress(KeyError, ValueError):
            self._selector.modify(what, events, self._selector.get_key(what).data)

    def forget(self, what: socket | int) -> None:
        """Watch *what* no longer, if it is. On the thread, and while it is open."""
        with suppress(KeyError):
            self._selector.unregister(what)

    def close(self) -> None:
        """Free the descriptors, and drop what errands are left."""
        bell, self._bell = self._bell, None
        self._errands.clear()
        if bell is not None:
            close_kept(bell)
            close_kept(self._alarm)
            close_kept(self._selector)

    def _run(self) -> None:
        try:
            while not self._round():
                for key, events in self._selector.select():
                    _guarded(key.data, events)
                    del key
        finally:
            self.close()

    def _round(self) -> bool:
        while self._errands:
            _guarded(self._errands.popleft())
        return self._round_done()

    def _drain(self, events: int) -> None:
        with suppress(BlockingIOError):
            self._alarm.recv(4096)


def _guarded(job: Callable[..., object], *args: object) -> None:
    try:
        job(*args)
    except BaseException:  # the thread is all that ends the pool's futures
        LOGGER.exception("process pool: %r failed", job)
