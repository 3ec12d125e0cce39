"""
The desk of a registry: the calls that are in no pool, for which a shutdown waits.
"""

from __future__ import annotations

import threading

import pytest

from parallel import Future
from parallel.pools.desk import Desk


class Waiting(Future[int]):
    """A call that waits for something that will come."""

    def is_stuck(self) -> bool:
        """Tell so."""
        return False


LONG = 30  # seconds; only a deadlock takes so long


def test_counts() -> None:
    """A call is counted from `add` to `discard`, per attempt; what was not in is not counted out."""
    desk = Desk()
    call: Waiting = Waiting()
    desk.add(call, 0)
    desk.add(call, 1)  # it comes for its second attempt before it has left for the first
    assert desk.counts().queued == 2
    desk.discard(call, 0)
    desk.discard(call, 0)
    assert (desk.counts().queued, desk.counts().done) == (1, 1)
    desk.discard(call, 1)
    assert desk.idle() == 2


def test_idle_waits() -> None:
    """`idle` and `join` return when the last call has left."""
    desk = Desk()
    call: Waiting = Waiting()
    desk.add(call, 0)
    threads = [threading.Thread(target=desk.idle), threading.Thread(target=desk.join)]
    for thread in threads:
        thread.start()
    threads[0].join(0.02)
    assert all(thread.is_alive() for thread in threads)
    desk.discard(call, 0)
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


@pytest.mark.parametrize("cancel", [True, False])
def test_close(cancel: bool) -> None:
    """Closing cancels the calls only if told to: those that are there, and those that come later."""
    desk = Desk()
    calls = [Waiting(), Waiting()]
    desk.add(calls[0], 0)
    desk.close(cancel)
    desk.add(calls[1], 0)
    assert [call.cancelled() for call in calls] == [cancel] * 2


def test_fork() -> None:
    """In a forked child the calls are the parent's."""
    desk = Desk()
    desk.add(Waiting(), 0)
    desk.abandon()
    assert desk.idle() == 0
