"""
Runs: one attempt of a call, as its engine sees it and as the function sees it that runs.

    future.begin() ──▶ Run ──▶ run.start(), the engine does its work ──▶ run.finish(outcome)
                        ▲ ▲
      cancel(), timeouts ─┘ └── current_run(), from inside the function

A running function is asked to stop (`ask`), and finds out if it looks; one in another process is told by its engine. If
that can do more, it gives the run a `stop`, as for a coroutine, or a `kill`, as for a process.

State: a run's, of single values that are written once; `stop` and `kill` are taken away at the end. The event of
`asked` is made when first needed, under `_events`, which is re-entrant: a signal handler may cancel while it is held.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

from parallel import context, trail
from parallel.context import RUNNING, Dispatcher, era, this
from parallel.coroutines import close_loop
from parallel.delivery import settle
from parallel.outcomes import CANCELLED, NOTHING, Outcome, Work
from parallel.states import State, hangs_on, is_ours

_events = threading.RLock()


class Asked(threading.Event):
    """Set when a function is asked to stop. In a forked child, a thread that is no more may hold its lock."""

    def __init__(self) -> None:
        super().__init__()
        self.era = era()


class Run:
    """
    One attempt of a call. This one ends its future with what comes out.

    It refers to its future weakly, as that refers to it; the engine that runs it holds both.

    Attributes:
        work: What is to be run; taken by whoever runs it.
        number: Which attempt of its call it is; the first is 1.
        stop: Ends the body in order, if its engine can; None: it can only be asked.
        kill: Ends the body by force, and what it runs in, if its engine can; None: it can't.
        cancel_requested: Somebody wants the call cancelled, not only this attempt.
    """

    __slots__ = ("_asked", "_future", "cancel_requested", "kill", "number", "stop", "work")

    def __init__(self, future: State[Any], work: Work | None = None, number: int = 1) -> None:
        self._future = ref(future)
        self.work = work
        self.number = number
        self.stop: Callable[[], object] | None = None
        self.kill: Callable[[], object] | None = None
        self.cancel_requested = False
        self._asked: Asked | None = None

    @property
    def future(self) -> State[Any]:
        """The call's future."""
        future = self._future()
        assert future is not None, "who runs a call holds its future"
        return future

    @property
    def is_over(self) -> bool:
        """Whether its end has been decided, though its body may not have been run, or may still run."""
        future = self._future()
        return future is None or future.done()

    @property
    def given(self) -> State[Any] | Run:
        """What its engine knows it by, where it was given to a worker."""
        return self.future

    def future_if_any(self) -> State[Any] | None:
        """The call's future; None if nobody holds it any more."""
        return self._future()

    def start(self) -> None:
        """
        Note that the body begins, for its engine, which has set `stop` and `kill` before, if it has such.

        Raises:
            RuntimeError: Its time can't be watched: no thread can be started. Then the body must not run.
        """
        if trail.current is not None:
            self.note_start(trail.current)
        stop = self.stop
        if self.cancel_requested and stop is not None:
            stop()  # who cancelled it was too early to do so

    def note_start(self, noting: trail.Trail) -> None:
        """Note that the body begins, on this thread."""
        number: int | None = self.future.__dict__.get("_id")
        if number is not None:
            noting.note((trail.STARTED, trail.clock(), number, self.number, threading.get_ident()))

    def note_stop(self, noting: trail.Trail, outcome: Outcome) -> None:
        """Note how the body has ended."""
        future = self._future()
        number: int | None = None if future is None else future.__dict__.get("_id")
        if number is not None:
            noting.note((trail.STOPPED, trail.clock(), number, self.number, outcome[1]))

    def rewind(self) -> None:
        """Note that its worker has died, and that another one is to run the body from its beginning."""

    def finish(self, outcome: Outcome, here: Dispatcher | None = None, *, may_block: bool = True) -> None:
        """
        Note that the body has ended.

        Args:
            outcome: What came out.
            here: The dispatcher whose thread this is, if any.
            may_block: Whether user code may run on this thread.
        """
        self.stop = self.kill = None  # they refer to this run
        if trail.current is not None:
            self.note_stop(trail.current, outcome)
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
        with _events:
            asked = self._asked
            if asked is None or asked.era != era():  # after a fork in the body, it is the child's body too
                anew = self._asked = Asked()
                if asked is not None and asked.is_set():
                    anew.set()
                return anew
            return asked

    def cancel(self, *, kill: bool = False) -> bool:
        """Ask the function to stop; True if its engine can stop it, or may *kill* it: the future is cancelled now."""
        self.cancel_requested = True  # before `stop` is read: see `start`
        self.ask()
        stop = self.stop or (self._killer() if kill else None)
        if stop is None:
            self.pass_on()
            return False
        if not settle(self.future, (None, CANCELLED, None)):
            return False
        stop()
        return True

    def pass_on(self) -> None:
        """Have the function told that it is asked to stop, if it runs in another process: it sees nothing of this."""
        ask = getattr(self.future.dispatcher, "ask", None)
        if ask is not None:
            ask(self.given)

    def _killer(self) -> Callable[[], object] | None:
        """Return what ends the body by force; of a call that travels with others, its engine knows how."""
        kill = getattr(self.future.dispatcher, "kill", None)
        return self.kill if self.kill is not None or kill is None else partial(kill, self.given)

    # -- what its body waits for --------------------------------------------------------------------------------------

    def lend(self, awaited: Any) -> None:
        """Note that the body waits for *awaited* now (None: nobody knows what), and lend that what it holds."""
        future = self.future_if_any()
        if future is not None:  # else it is a task that a coroutine has left behind: its call is over, and forgotten
            future.__dict__.setdefault("_awaited", []).append(awaited)

    def unlend(self) -> None:
        """Note that it has waited long enough, and take back what it has lent."""
        future = self.future_if_any()
        if future is not None:
            strike_off(future.__dict__.get("_awaited", []))


def strike_off(awaited: list[Any]) -> None:
    """
    Take out of what a body waits for that which it waits for no more.

    The one that has ended: of two coroutines in one body, the first to wait may be the first to go on. If none has, a
    thread has waited long enough, for what it came to last.
    """
    for index, future in enumerate(awaited):
        if future is not None and future.done():
            del awaited[index]
            return
    awaited.pop()


def begin_waiting(running: object, awaited: State[Any] | None) -> None:
    """Note that the body of *running*, what a worker runs now, waits for *awaited*; None: nobody knows for what."""
    if is_ours(running):
        running = run_of(running)
    if isinstance(running, Run):
        running.lend(awaited)
    if awaited is not None:
        for part in hangs_on(awaited, through_bodies=True):
            part.look()


def end_waiting(running: object) -> None:
    """Note that the body of *running* goes on."""
    if is_ours(running):
        running = run_of(running)
    if isinstance(running, Run):
        running.unlend()


def ask_to_stop(running: object) -> None:
    """Ask the body of *running*, what a worker runs now, to stop."""
    if is_ours(running):
        if running.done():
            return
        running = run_of(running)
    if isinstance(running, Run):
        running.cancel()


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
    future = running.future_if_any() if isinstance(running, Run) else None
    if not isinstance(running, Run) or future is None or (future.done() and not running.asked):
        return None  # perhaps a task that a coroutine has left behind: its call is over, and forgotten
    return running


class _Caller:
    """The `Waiter` of a thread that is no worker, and runs a call: it sleeps."""

    running: Any = None

    def wait(self, future: State[Any], timeout: float | None) -> bool:
        """Sleep; see `Waiter`."""
        self.lend(future)
        try:
            return future.sleep(timeout)
        finally:
            self.unlend()

    def check(self, futures: Iterable[Any], /) -> None:
        """Nothing hangs on this thread alone."""

    def lend(self, awaited: Any = None) -> None:
        """Note what the call at hand waits for."""
        begin_waiting(self.running, awaited)

    def unlend(self) -> None:
        """Note that it goes on."""
        end_waiting(self.running)

    def replace(self) -> None:
        """Nobody can take the place of the caller."""

    def come_back(self) -> None:
        """It has not been replaced."""


@contextmanager
def run_by_caller(future: State[Any]) -> Generator[None]:
    """Note that this thread, whatever else it is, runs the call of *future* now."""
    outer = this.worker
    # What waits for the calls of a worker process takes no note of those that run inline there: see `_Caller`.
    is_worker_process = context.in_worker_process and threading.current_thread() is threading.main_thread()
    worker = this.worker = _Caller() if outer is None or is_worker_process else outer
    before = worker.running
    if before is not None:
        begin_waiting(before, future)  # the call around this one goes on when this one has ended
    worker.running = future
    try:
        yield
    finally:
        worker.running = before
        if before is not None:
            end_waiting(before)
        this.worker = outer
        if outer is None:
            close_loop()


def raise_interrupt(future: State[Any]) -> None:
    """Raise the Ctrl-C that has ended *future*, if one has, on the main thread: it is for the program as well."""
    error = (future.ended() or NOTHING)[1]
    try:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error
    finally:
        del future, error  # an error refers to this frame: break the cycle


def _after_fork_in_child() -> None:
    global _events
    _events = threading.RLock()  # a thread that is no more may have held the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
