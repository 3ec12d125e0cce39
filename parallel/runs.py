"""
Runs: one attempt of a call, as its engine sees it and as the function sees it that runs.

    future.begin() ──▶ Run ──▶ the engine does its work ──▶ run.finish(outcome)
                        ▲ ▲
      cancel(), timeouts ─┘ └── current_run(), from inside the function

A running function is asked to stop (`ask`), and finds out if it looks. If its engine can do more, it gives the run a
`stop`, as for a coroutine, or a `kill`, as for a process.

State: a run's, of single values that are written once. The event of `asked` is made when first needed, under
`_EVENTS`, which is re-entrant: a signal handler may cancel while it is held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any
from weakref import ref

from parallel.context import RUNNING, Dispatcher, this
from parallel.delivery import settle
from parallel.outcomes import CANCELLED, Outcome, Work
from parallel.states import State, hangs_on, is_ours

_EVENTS = threading.RLock()


class Run:
    """
    One attempt of a call. This one ends its future with what comes out.

    It refers to its future weakly, as that refers to it; the engine that runs it holds both.

    Attributes:
        work: What is to be run; taken by whoever runs it.
        stop: Ends the body in order, if its engine can; None: it can only be asked.
        kill: Ends the body by force, and what it runs in, if its engine can; None: it can't.
        number: Which attempt of its call it is; the first is 1.
        stop: Ends the body from outside, if its engine can; None: it can only be asked.
    """

    __slots__ = ("_asked", "_future", "kill", "number", "stop", "work")

    def __init__(self, future: State[Any], work: Work | None = None, number: int = 1) -> None:
        self._future = ref(future)
        self.work = work
        self.number = number
        self.stop: Callable[[], object] | None = None
        self.kill: Callable[[], object] | None = None
        self._asked: threading.Event | None = None

    @property
    def future(self) -> State[Any]:
        """The call's future."""
        future = self._future()
        assert future is not None, "who runs a call holds its future"
        return future

    def future_if_any(self) -> State[Any] | None:
        """The call's future; None if nobody holds it any more."""
        return self._future()

    def finish(self, outcome: Outcome, here: Dispatcher | None = None, *, may_block: bool = True) -> None:
        """
        Note that the body has ended.

        Args:
            outcome: What came out.
            here: The dispatcher whose thread this is, if any.
            may_block: Whether user code may run on this thread.
        """
        self.stop = self.kill = None  # they refer to this run
        settle(self.future, self.told(outcome), here, may_block=may_block)

    def told(self, outcome: Outcome) -> Outcome:
        """Tell a function that stopped because it was asked to from one that failed."""
        return (None, CANCELLED, None) if self.asked and isinstance(outcome[1], CancelledError) else outcome

    # -- being asked to stop ------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask the function to stop: it sees that in `asked`, and wakes from `pause`."""
        self._event().set()

    @property
    def asked(self) -> bool:
        """Whether it has been asked to stop."""
        event = self._asked
        return event is not None and event.is_set()

    def pause(self, seconds: float) -> bool:
        """Wait so long, or until asked to stop: then the answer is True."""
        return self._event().wait(min(max(seconds, 0), threading.TIMEOUT_MAX))

    def _event(self) -> threading.Event:
        with _EVENTS:
            if self._asked is None:
                self._asked = threading.Event()
            return self._asked

    def cancel(self, *, kill: bool = False) -> bool:
        """Ask the function to stop; True if its engine can stop it, or may *kill* it: the future is cancelled now."""
        self.ask()
        stop = self.stop or (self.kill if kill else None)
        if stop is None or not settle(self.future, (None, CANCELLED, None)):
            return False
        stop()
        return True

    # -- what its body waits for --------------------------------------------------------------------------------------

    def lend(self, awaited: Any) -> None:
        """Note that the body waits for *awaited* now (None: nobody knows what), and lend that what it holds."""
        self.future.__dict__.setdefault("_awaited", []).append(awaited)

    def unlend(self) -> None:
        """Note that it has waited long enough, and take back what it has lent."""
        self.future.__dict__["_awaited"].pop()


def begin_waiting(running: object, awaited: State[Any] | None) -> None:
    """Note that the body of *running*, what a worker runs now, waits for *awaited*; None: nobody knows for what."""
    if is_ours(running):
        running = run_of(running)
    if isinstance(running, Run):
        running.lend(awaited)
    if awaited is not None:
        for part in hangs_on(awaited):
            part.look()


def end_waiting(running: object) -> None:
    """Note that the body of *running* goes on."""
    if is_ours(running):
        running = run_of(running)
    if isinstance(running, Run):
        running.unlend()


def run_of(future: State[Any]) -> Run:
    """Return the run of a future that has started; made now, if nobody has asked for it before."""
    run: Run | None = future.__dict__.get("_run")
    return future.__dict__.setdefault("_run", Run(future)) if run is None else run


def current_run() -> Run | None:
    """Return the run of the call whose function this thread, or this coroutine, is in; None: it is in none."""
    worker = this.worker
    running: object = worker.running if worker is not None else None
    if running is None:
        running = RUNNING.get()
    if is_ours(running):
        if not running.done():
            return run_of(running)
        # After its end its thread runs what follows it; or still its function, if that has overrun its time.
        overrun: Run | None = running.__dict__.get("_run")
        return overrun if overrun is not None and overrun.asked else None
    return running if isinstance(running, Run) else None
