"""
Weak sets that any thread may change, and in which no signal is handled.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time

import pytest

from parallel.weak import WeakSet


class Thing:
    """May be referred to weakly."""


def test_members() -> None:
    """What is referred to elsewhere is in there, once."""
    things, some = [Thing() for _ in range(3)], WeakSet[Thing]()
    some.update(things)
    some.add(things[0])
    assert len(some) == 3
    assert set(some) == set(things)
    del things[0]
    assert len(some) == 2
    some.clear()
    assert list(some) == []


def test_dead_at_once() -> None:
    """A member that dies while the set is gone through is none any more; those to come are no part of the round."""
    things, some = [Thing() for _ in range(10)], WeakSet[Thing]()
    some.update(things)
    more = []
    for _ in some:
        things.clear()
        more.append(Thing())
        some.update(more)
    assert len(more) == 10
    del _
    assert set(some) == set(more)


def test_the_set_goes_first() -> None:
    """It is no more than its members know: they may outlive it."""
    thing, some = Thing(), WeakSet[Thing]()
    some.add(thing)
    del some
    gc.collect()
    del thing


def test_threads() -> None:
    """Many threads add, lose and go through members at once."""
    some, stop, errors = WeakSet[Thing](), threading.Event(), []
    kept = [Thing() for _ in range(100)]
    some.update(kept)

    def churn() -> None:
        try:
            while not stop.is_set():
                mine = [Thing() for _ in range(50)]
                some.update(mine)
                assert set(kept) <= set(some)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
    finally:
        stop.set()
        sys.setswitchinterval(before)
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(some) == set(kept)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no interval timers")
def test_signals() -> None:
    """What a signal's handler raises while members die comes out: it is never raised where nobody hears it."""
    some, raised, heard = WeakSet[Thing](), 0, 0

    def handler(*_: object) -> None:
        nonlocal raised
        raised += 1
        raise InterruptedError

    def churn(before: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while raised == before:
            some.add(Thing())

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for before in range(200):
            try:
                churn(before)  # a function: a `while` right here would not be wholly inside the `try` of every CPython
            except InterruptedError:
                heard += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert heard == raised == 200
