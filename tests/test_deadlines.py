"""
Deadlines by themselves: the timer watches one once for all calls that share it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
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


def test_lane() -> None:
    """One that is made with its first call takes no entry of the timer: equal ones share a lane."""
    lane = TIMER.lane(LONG)
    calls = [Bounded() for _ in range(100)]
    deadlines = [Deadline(LONG, lane) for _ in calls]
    scheduled = len(TIMER._actions)
    for deadline, call in zip(deadlines, calls, strict=True):
        deadline.add(call)
    assert len(lane._running) == len(calls)
    assert len(TIMER._actions) <= scheduled + 1
    for deadline, call in zip(deadlines, calls, strict=True):
        deadline.discard(call)
    assert not lane._running


def test_over_in_its_lane() -> None:
    """It is over in a lane as it is by an entry: those that have not ended are told."""
    deadline = Deadline(0.02, TIMER.lane(0.02))
    calls = [Bounded() for _ in range(3)]
    for call in calls:
        deadline.add(call)
    deadline.discard(calls[0])
    assert all(call.late.wait(LONG) for call in calls[1:])
    assert not calls[0].late.is_set()
    assert deadline.left() <= 0


def test_back_after_its_lane() -> None:
    """A call that comes when there were none is told at the same moment: the lane would begin to count anew."""
    deadline = Deadline(0.05, TIMER.lane(LONG))  # a lane in which it would take too long
    first, second = Bounded(), Bounded()
    deadline.add(first)
    deadline.discard(first)
    deadline.add(second)
    assert second.late.wait(LONG / 2)
    assert not first.late.is_set()


@pytest.mark.parametrize("has_lane", [False, True])
def test_fork(in_fork: Callable[..., Any], has_lane: bool) -> None:
    """In a forked child it bounds the calls that are made there, and forgets the parent's."""
    deadline = Deadline(0.3, TIMER.lane(0.3) if has_lane else None)
    parents = Bounded()
    deadline.add(parents)

    def child() -> list[bool]:
        call = Bounded()
        deadline.discard(parents)
        deadline.add(call)
        return [call.late.wait(LONG), parents.late.is_set()]

    assert in_fork(child) == [True, False]
    assert parents.late.wait(LONG)
