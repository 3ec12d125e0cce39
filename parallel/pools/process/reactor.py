"""
The thread of a process pool that waits: for its workers' sockets and sentinels, and for errands of other threads.

    watch(descriptor, handler) ──▶ poller ──▶ handler(events) ─┐
    tell(errand) ──▶ errands, and a byte on the alarm ──▶ errand() ─┴──▶ at the end of each round: round_done()

Guarantees:
- It sleeps until something happens, or until the moment that `round_done` names: there is no polling, and an idle pool
  takes no time.
- `tell` neither blocks nor takes a lock; many tells before the thread comes round wake it once.
- What a handler or an errand raises is a bug of this library: it is logged, and the thread goes on.

State: `_errands` guards itself, and so does the poller: another thread may take a socket out for a while, and put it
back (`poller.unregister`, `poller.register`). Everything else is used by the thread alone, once it runs.
"""

from __future__ import annotations

import logging
import math
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import socket, socketpair
from typing import Final, Protocol, TypeAlias

from parallel.naps import join
from parallel.pools.process.wire import LONGEST, close_kept, keep_from_forks

LOGGER = logging.getLogger("parallel")

READ: Final = 1
WRITE: Final = 4
"""What may be there on a descriptor; the numbers are those of epoll, which adds others: the end, and errors."""

Handler: TypeAlias = Callable[[int], object]
"""Called with the events that came: `WRITE`, and anything else, which says that there is something to read."""


AGAIN: Final = 0.1
"""Seconds until the next round after one that has failed."""


class Poller(Protocol):
    """What waits for descriptors, as `select.epoll` does."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float | None, /) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class Selected:
    """A `Poller` where there is no epoll."""

    def __init__(self) -> None:
        self._selector = DefaultSelector()

    def register(self, fd: int, eventmask: int, /) -> None:
        """Wait for what the mask names."""
        self._selector.register(fd, _events(eventmask))

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Wait for something else."""
        try:
            self._selector.modify(fd, _events(eventmask))
        except KeyError as error:
            raise FileNotFoundError(fd) from error

    def unregister(self, fd: int, /) -> None:
        """Wait for it no longer."""
        try:
            self._selector.unregister(fd)
        except KeyError as error:
            raise FileNotFoundError(fd) from error

    def poll(self, timeout: float | None, /) -> list[tuple[int, int]]:
        """Wait so many seconds at most; return the descriptors, and what is there on each."""
        return [
            (key.fd, (READ if events & EVENT_READ else 0) | (WRITE if events & EVENT_WRITE else 0))
            for key, events in self._selector.select(timeout)
        ]

    def close(self) -> None:
        """Free what it took."""
        self._selector.close()


def _events(mask: int) -> int:
    return (EVENT_READ if mask & READ else 0) | (EVENT_WRITE if mask & WRITE else 0)


def make_poller() -> Poller:
    """Make the best one that there is."""
    return select.epoll() if hasattr(select, "epoll") else Selected()


class Reactor:
    """A poller, and the thread that waits in it."""

    def __init__(self, name: str, round_done: Callable[[], float | None]) -> None:
        """
        Make one that does nothing yet; it takes errands already.

        Args:
            name: The thread's name.
            round_done: Called after each round; returns for how many seconds to wait at most, infinity for no limit,
                None when the thread is to end.
        """
        self._name = name
        self._round_done = round_done
        self._errands: deque[Callable[[], object]] = deque()
        self._handlers: dict[int, Handler] = {}
        self._bell: socket | None = None  # where `tell` writes
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """
        Take the descriptors that it needs.

        Raises:
            OSError: There are none left; nothing is kept then.
        """
        self.poller = make_poller()
        try:
            alarm, bell = socketpair()
        except BaseException:
            self.poller.close()
            raise
        for end in (alarm, bell):
            end.setblocking(False)
            keep_from_forks(end)
        keep_from_forks(self.poller)
        self._alarm, self._bell = alarm, bell
        self.watch(alarm.fileno(), self._drain)

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

    @property
    def thread(self) -> threading.Thread | None:
        """The thread; None: it was not started."""
        return self._thread

    def is_this_thread(self) -> bool:
        """Tell whether the current thread is the reactor's."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait for the end of the thread, if it was started."""
        if self._thread is not None:
            join(self._thread)

    def tell(self, errand: Callable[[], object]) -> None:
        """Have *errand* run on the thread, soon."""
        self._errands.append(errand)
        self.ring()

    def ring(self) -> None:
        """Have the thread go round once."""
        bell = self._bell
        if bell is not None:
            # Full: then it wakes up anyway. Closed: then it is no more, and its owner is done with errands.
            with suppress(OSError):
                bell.send(b"\0")

    def watch(self, descriptor: int, handler: Handler) -> None:
        """Call *handler* whenever there is something to read. On the thread, or before it is started."""
        self._handlers[descriptor] = handler
        self.listen(descriptor, READ)

    def listen(self, descriptor: int, events: int) -> None:
        """Wait for these events on a descriptor that is watched. On the thread, while it is open."""
        if descriptor not in self._handlers:
            return
        try:
            self.poller.modify(descriptor, events)
        except FileNotFoundError:
            with suppress(FileExistsError):  # who led it has put it back meanwhile
                self.poller.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no longer, if it is. On the thread, and while it is open."""
        if self._handlers.pop(descriptor, None) is not None:
            with suppress(OSError):
                self.poller.unregister(descriptor)

    def close(self) -> None:
        """Free the descriptors, and drop what errands are left."""
        bell, self._bell = self._bell, None
        self._errands.clear()
        self._handlers.clear()
        if bell is not None:
            close_kept(bell)
            close_kept(self._alarm)
            close_kept(self.poller)

    def _run(self) -> None:
        try:
            while (wait := self._round()) is not None:
                for descriptor, events in self.poller.poll(None if wait == math.inf else min(wait, LONGEST)):
                    handler = self._handlers.get(descriptor)
                    if handler is not None:
                        _guarded(handler, events)
                    else:  # somebody has put it back who had it for too long: it may be another file by now
                        with suppress(OSError):
                            self.poller.unregister(descriptor)
                    del handler  # it holds a worker, which may be dead by now
        finally:
            self.close()

    def _round(self) -> float | None:
        while self._errands:
            _guarded(self._errands.popleft())
        try:
            return self._round_done()
        except BaseException:  # as in `_guarded`
            _tell("the round")
            return AGAIN

    def _drain(self, events: int) -> None:
        with suppress(BlockingIOError):
            self._alarm.recv(4096)


def _guarded(job: Callable[..., object], *args: object) -> None:
    try:
        job(*args)
    except BaseException:  # the thread is all that ends the pool's futures
        _tell(repr(job))


def _tell(what: str) -> None:
    """Tell of an error of this library; what tells of it may be what has raised: a filter of the user's."""
    try:
        LOGGER.exception("process pool: %s failed", what)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
