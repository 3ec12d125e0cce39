"""
Waits that a Ctrl-C ends, on whatever thread: the main one sleeps for a quarter of a second at a time.

CPython tells the main thread of a signal before it falls asleep, or by waking it. One that comes in between, while it
gives up the interpreter's lock, or that the system hands to another thread, would be heard of only when the wait ends
by itself.

Nothing here has state.
"""

from __future__ import annotations

import threading
from typing import Final

NAP: Final = 0.25
"""
Seconds that the main thread sleeps at a time. A longer nap lets Ctrl-C wait, a shorter one wakes the program in vain
more often.
"""


def nap() -> float | None:
    """Return how long this thread may sleep at a time; None: for ever."""
    return NAP if threading.current_thread() is threading.main_thread() else None


def nap_on(condition: threading.Condition) -> None:
    """Wait to be notified, or a while: for who asks again then what it waits for. The condition's lock is held."""
    condition.wait(nap())


def join(thread: threading.Thread) -> None:
    """Wait until a thread has ended."""
    while thread.is_alive():
        thread.join(nap())


def until_set(event: threading.Event) -> None:
    """Wait until an event is set."""
    while not event.wait(nap()):
        pass
