"""
Deadlines by themselves: one entry of the timer for all calls that share one.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from jobs import without_gc

from parallel.deadlines import Deadline
from parallel.timer import TIMER

LONG = 30  # seconds; only a deadlock takes so long


class Bounded:
    """A call, as far as deadlines know it."""

    def __init__(self) -> None:
        self.late = threading.Event()

    def overdue(self, deadline: Deadline, /) -> None:
        """Note it."""
        self.late.set()


def test_all_calls_are_overdue() -> None:
    """When it is over, all its calls are told, but those that have ended."""
    deadline = Deadline(0.02)
    calls = [Bounded() for _ in range(3)]
    ended = Bounded()
    for call in [*calls, ended]:
        deadline.add(call)
    deadline.discard(ended)
    assert all(call.late.wait(LONG) for call in calls)
    assert not ended.late.is_set()
    assert deadline.left() <= 0


def test_late_comer() -> None:
    """A call that comes when it is over is told soon."""
    deadline = Deadline(0.001)
    first, second = Bounded(), Bounded()
    deadline.add(first)
    assert first.late.wait(LONG)
    deadline.add(second)
    assert second.late.wait(LONG)


def test_is_on_the_clock_of_monotonic() -> None:
    """It tells what is left, and its moment on the clock of `time.monotonic`."""
    before = time.monotonic()
    deadline = Deadline(5)
    assert before + 5 <= deadline.at <= time.monotonic() + 5
    assert 0 < deadline.left() <= 5


def test_timer_forgets_it_with_its_last_call() -> None:
    """While it has no calls it is not on the timer, and nothing keeps it or them alive."""
    with without_gc():
        deadline = Deadline(LONG)
        calls = [Bounded(), Bounded()]
        scheduled = len(TIMER._actions)
        for call in calls:
            deadline.add(call)
        assert len(TIMER._actions) == scheduled + 1
        for call in calls:
            deadline.discard(call)
        deadline.discard(calls[0])
        assert len(TIMER._actions) == scheduled
        refs = [weakref.ref(each) for each in calls]
        del calls, call
        assert [ref() for ref in refs] == [None, None]


def test_fork(in_fork: Callable[..., Any]) -> None:
    """In a forked child it bounds the calls that are made there, and forgets the parent's."""
    deadline = Deadline(0.3)
    parents = Bounded()
    deadline.add(parents)

    def child() -> list[bool]:
        call = Bounded()
        deadline.discard(parents)
        deadline.add(call)
        return [call.late.wait(LONG), parents.late.is_set()]

    assert in_fork(child) == [True, False]
    assert parents.late.wait(LONG)
