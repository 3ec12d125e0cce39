"""
A clock that stands still until a test moves it.
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue

from parallel.lanes import Action
from parallel.timer import Timer

LONG = 30.0
"""Seconds that only a deadlock lasts."""


class Stage:
    """A timer whose clock a test moves, and whose thread sleeps until something wakes it."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.naps: list[float] = []
        """How long the thread wanted to sleep, each time."""
        self._napping = threading.Condition()
        self.timer = Timer(lambda: self.time, self._wait)

    def _wait(self, inbox: SimpleQueue[Action], seconds: float) -> Action:
        try:
            return inbox.get_nowait()
        except Empty:
            if seconds <= 0:
                return int
        with self._napping:
            self.naps.append(seconds)
            self._napping.notify_all()
        return inbox.get(timeout=LONG)

    def settle(self) -> None:
        """Return when the thread has seen to all that is due, and sleeps again or has ended."""
        seen: SimpleQueue[tuple[int, threading.Thread]] = SimpleQueue()
        self.timer.soon(lambda: seen.put((len(self.naps), threading.current_thread())))
        naps, thread = seen.get(timeout=LONG)
        deadline = time.monotonic() + LONG
        with self._napping:
            while len(self.naps) == naps and thread.is_alive():
                assert time.monotonic() < deadline, "the timer thread hangs"
                self._napping.wait(0.01)  # its end tells nobody

    def go_on(self, seconds: float) -> None:
        """Let so much time go by."""
        self.time += seconds
        self.settle()
