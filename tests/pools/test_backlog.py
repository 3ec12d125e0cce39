"""
Backlogs, and priorities in the pools that have one.
"""

from __future__ import annotations

import threading
from typing import Any

import jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel import Future, task, using
from parallel.pools.backlog import Backlog
from parallel.pools.process.calls import Calls

LONG = 30  # seconds; only a deadlock takes so long


class Item:
    """Something with a priority."""

    def __init__(self, priority: int) -> None:
        self.priority = priority


@given(st.lists(st.one_of(st.none(), st.just("put back"), st.integers(-3, 3))))
def test_highest_first_then_first_come(moves: list[int | str | None]) -> None:
    """
    The highest priority comes out first; of one priority, the first to come.

    None takes one out, and `"put back"` puts it back again: that changes nothing, and it stays before its like.
    """
    backlog: Backlog[Item] = Backlog()
    model: list[Item] = []
    for move in moves:
        if isinstance(move, int):
            item = Item(move)
            backlog.append(item)
            model.append(item)
        elif model:
            best = max(model, key=lambda one: one.priority)  # the first of those
            assert backlog.popleft() is best
            if move is None:
                model.remove(best)
            else:
                backlog.appendleft(best)
        else:
            with pytest.raises(IndexError):
                backlog.popleft()
        assert len(backlog) == len(model)
    assert list(backlog) == sorted(model, key=lambda one: -one.priority)
    backlog.clear()
    assert not backlog


def test_priorities() -> None:
    """A call of a higher priority starts before those that wait; of one priority, the first to come."""
    seen: list[int] = []
    go = threading.Event()
    with using({"pools": {"p": {"kind": "thread", "max_workers": 1}}}):
        running = task(pool="p")(go.wait)()
        call = task(pool="p")(seen.append)
        futures = [call.options(priority=priority)(i) for i, priority in enumerate([0, 5, -1, 5, 9, 0])]
        go.set()
        for future in [running, *futures]:
            future.result(LONG)
    assert seen == [4, 1, 3, 0, 5, 2]


def test_put_back() -> None:
    """A call that was taken and put back comes before its like, and after those of a higher priority that come then."""
    calls = Calls(threading.RLock())
    usual, second, urgent, last = (Future[int]() for _ in range(4))
    urgent.priority, last.priority = 1, -1
    for future in (last, usual, second):
        calls.queue(future)
    taken = calls.take()
    assert taken is usual
    calls.put_back(usual)
    calls.queue(urgent)
    assert list(calls.stream()) == [urgent, usual, second, last]


@pytest.mark.parametrize("pool", ["loop", "process"])
def test_priorities_elsewhere(pool: str) -> None:
    """The same on a loop and in processes: while the higher one runs, the lower one waits."""
    with jobs.Gate() as first, jobs.Gate() as second, using({"pools": {"p": {"kind": pool, "max_workers": 1}}}):
        call: Any = task(pool="p")(jobs.to_thread(jobs.wait_at) if pool == "loop" else jobs.wait_at)
        running = call(first.address)
        first.arrived()
        low, high = call(second.address, "low"), call.options(priority=3)(second.address, "high")
        first.open()
        second.arrived()
        assert (low.running(), high.running()) == (False, True)
        second.open()
        assert [future.result(LONG) for future in (running, low, high)] == [None, "low", "high"]
