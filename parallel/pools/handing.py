"""
Counts what an engine hands on to callback threads, so that the engine can wait for it.

    settle on the engine's thread ──▶ Handing ──▶ callback threads ──▶ the step runs
                                         └──▶ Tally of the engine ◀── it has ended

The tally belongs to the engine and knows nothing but the steps that are out; the pool makes the dispatcher. So an
engine, which its own thread keeps alive, does not keep the callback threads' registry alive, and the pools in it.

State: that of a tally, guarded by its lock, which is re-entrant: a `__del__` or a signal handler may end a call while
it is held. No user code runs while it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from parallel.context import Dispatcher, Step, era
from parallel.naps import nap_on
from parallel.pools.base import Pool


class Tally:
    """The steps that one engine has handed on."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget all steps, which stayed in the parent of this forked process; never waits."""
        self._lock = threading.RLock()  # entered itself: in `with condition` a Ctrl-C can leave the lock held
        self._quiet = threading.Condition(self._lock)
        self._out: set[_Handed] = set()  # handed on, not ended
        self._here: list[int] = []  # the threads that run one of them
        self._ended = 0

    def add(self, step: _Handed) -> None:
        """Note that *step* is about to be handed on."""
        with self._lock:
            self._out.add(step)

    def begin(self) -> None:
        """Note that this thread runs one of the steps."""
        with self._lock:
            self._here.append(threading.get_ident())

    def leave(self) -> None:
        """Note that this thread has run it."""
        with self._lock:
            self._here.remove(threading.get_ident())

    def end(self, step: _Handed) -> None:
        """Note that *step* has been run, or that nobody took it."""
        with self._lock:
            self._out.discard(step)
            self._ended += 1
            if not self._out:
                self._quiet.notify_all()

    def is_owned(self) -> bool:
        """Tell whether this thread is in the middle of one of these: then it can't wait."""
        return self._quiet._is_owned()  # type: ignore[attr-defined, no-any-return]

    def wait(self) -> int:
        """
        Wait until no step is out; a thread that runs one doesn't wait, as it would for itself.

        Returns:
            How many steps have ended so far.
        """
        with self._lock:
            while self._out and threading.get_ident() not in self._here:
                nap_on(self._quiet)
            return self._ended


class Handing:
    """
    The `Dispatcher` of an engine's futures: hands what follows them on, and has it counted.

    Attributes:
        callbacks: Who runs it.
        era: The `era()` in which it was made, as its engine: in a forked child, the calls of an older one never end.
        lead: How a waiter looks for the end of a call itself; see `State.sleep`. None: its engine does all of that.
        kill: How its engine ends the body of a future's call by force; None: it can't.
        ask: How its engine tells that body that it is to stop; None: it sees that for itself.
    """

    __slots__ = ("ask", "callbacks", "era", "kill", "lead", "tally")

    def __init__(self, callbacks: Dispatcher, tally: Tally) -> None:
        self.callbacks = callbacks
        self.tally = tally
        self.era = era()
        self.lead: Callable[[Any, float | None], float | None] | None = None
        self.kill: Callable[[Any], object] | None = None
        self.ask: Callable[[Any], object] | None = None

    def dispatch(self, step: Step) -> None:
        """Hand *step* on; see `Dispatcher`."""
        handed = _Handed(step, self)
        self.tally.add(handed)
        try:
            self.callbacks.dispatch(handed)
        except BaseException:
            self.tally.end(handed)
            raise

    def fuses(self, link: Any, dispatcher: Dispatcher) -> bool:
        """Tell whether a link may run on the callback thread at hand; see `Dispatcher`."""
        return dispatcher is self


class HandingPool(Pool):
    """A pool whose own threads must not run code of the user's: what follows its calls is handed on, and counted."""

    _handing: Handing | None = None

    def handing(self, tally: Tally) -> Handing:
        """Return the dispatcher of its futures; one for all, unless the engine or the current registry changes."""
        callbacks = self.callbacks
        handing = self._handing
        if handing is None or handing.callbacks is not callbacks or handing.tally is not tally:
            handing = self._handing = Handing(callbacks, tally)
        return handing


class _Handed:
    """A step on its way to a callback thread, and there."""

    __slots__ = ("_handing", "_step")
    priority = 0

    def __init__(self, step: Step, handing: Handing) -> None:
        self._step = step
        self._handing = handing

    def run_on(self, here: Dispatcher) -> None:
        tally = self._handing.tally
        tally.begin()
        try:
            # Not *here*: the handing is the dispatcher of the futures at hand, whose next link may run here too.
            self._step.run_on(self._handing)
        finally:
            tally.leave()
            tally.end(self)
