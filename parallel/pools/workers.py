"""
Workers: the threads of a crew, and how each waits inside a call.

    a worker that waits for a future ──▶ runs what that hangs on, as far as it is queued here (helping)
                                     └─▶ then lends its place to a spare worker until it goes on

Helping never runs a stranger: that might want a lock which the waiting call holds. What belongs to the awaited future
is run on the waiter's stack, up to `MAX_HELP` deep, unless it has a timeout: its overrun could not be told from the
waiter's. It sees the waiter's thread-locals and re-entrant locks.

State: a worker's own, but for `lent` and `straggling`, which are guarded by its crew's lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from queue import Empty
from typing import Any, Final, Protocol

from parallel.context import Dispatcher, Step, era, this
from parallel.errors import StarvationError
from parallel.futures import Future
from parallel.kept import close_kept
from parallel.runs import begin_waiting, end_waiting
from parallel.states import State, hangs_on, no_failure
from parallel.trail import clock, note_thread

LOGGER = logging.getLogger("parallel")

MAX_HELP: Final = 16
"""How deep a worker runs awaited calls on its own stack: each level takes some of Python's 1,000 frames."""


class Employer(Dispatcher, Protocol):
    """What a worker needs of its crew."""

    number: int
    label: str
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    helping: bool
    take: Callable[[], Step]
    """Return something to do; `queue.Empty` if there is nothing."""

    def next_step(self) -> Step:
        """Wait for something to do."""
        ...

    def step_at_hand(self) -> Step | None:
        """Return something to do, None if there is nothing; any token resolved."""
        ...

    def leave(self, worker: Worker, *, if_surplus: bool = False) -> bool:
        """Strike *worker* off, if it may go; True if it is to end."""
        ...

    def lose(self, worker: Worker) -> None:
        """Strike off a worker that ends without having been sent home."""
        ...

    def lend(self, worker: Worker) -> None:
        """Give the place of *worker* to a spare one."""
        ...

    def unlend(self, worker: Worker) -> None:
        """Take the place back."""
        ...

    def replace(self, worker: Worker) -> None:
        """Give the place of *worker* away, as its call has overrun its time."""
        ...

    def come_back(self, worker: Worker) -> None:
        """Take that place back, as the call has ended now."""
        ...

    def break_down(self, reason: str, cause: BaseException | None) -> None:
        """Refuse and fail everything from now on."""
        ...


class Worker:
    """
    One thread of a crew. It is the `Waiter` of that thread.

    Attributes:
        done: Steps that it has ended; written by itself alone.
        running: The step, or the run of a call, that it is at; None between two.
        since: When it began that, on the clock of the trail.
        lent: Waits that lend its place.
        straggling: Calls on its stack that have overrun their timeouts.
    """

    __slots__ = ("_depth", "begun", "crew", "done", "lent", "running", "since", "straggling", "thread")

    def __init__(self, crew: Employer) -> None:
        self.crew = crew
        self.done = 0
        self.running: Any = None
        self.since = 0
        self.lent = 0
        self.straggling = 0
        self.begun = threading.Event()
        self.thread: threading.Thread | None = None
        self._depth = 0  # awaited calls on its stack

    @property
    def is_away(self) -> bool:
        """Whether its place is given to a spare worker."""
        return self.lent > 0 or self.straggling > 0

    def run(self) -> None:
        """Take steps and run them until sent home."""
        this.worker = self
        crew = self.crew
        self.begun.set()
        try:
            note_thread(crew.number)
            self._initialize()
            while not self._serve():
                continue
        finally:
            close_kept()
            note_thread(crew.number, is_over=True)
            crew.lose(self)

    def work_off(self) -> None:
        """Run on this thread, which isn't the crew's, what is queued; until nothing is."""
        before, this.worker = this.worker, self
        crew = self.crew
        try:
            self._initialize()
            while (step := crew.step_at_hand()) is not None:
                if not isinstance(step, GoHome):
                    self.running = step
                    step.run_on(crew)
                    self.done += 1
        finally:
            this.worker = before
            crew.lose(self)

    def _initialize(self) -> None:
        crew = self.crew
        try:
            if crew.initializer is not None:
                crew.initializer(*crew.initargs)
        except BaseException as error:
            crew.break_down(f"its initializer raised {error!r}", error)

    def _serve(self) -> bool:
        """Run steps until sent home (True), or until one gets out of hand (False)."""
        crew = self.crew
        take = crew.take
        now = clock
        try:
            while True:
                try:
                    step = take()
                except Empty:
                    step = crew.next_step()
                self.since = now()
                self.running = step
                step.run_on(crew)
                self.running = None
                del step  # a call must not live until the next one comes
                self.done += 1
        except GoHome as told:
            self.running = None
            return crew.leave(self, if_surplus=told.if_surplus)
        except BaseException:
            LOGGER.exception("%s: a step got out of hand; the worker goes on", crew.label)
            self.running = None
            self.done += 1
            return False

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, future: State[Any], timeout: float | None) -> bool:
        """Wait for *future*: help to bring it about, then lend this place; see `Waiter`."""
        begin_waiting(self.running, future)
        try:
            if timeout is None and self._help(future):
                return True
            try:
                self.crew.lend(self)
            except StarvationError:
                future.overlook(no_failure)  # who waits gets this instead; in a deep nest each level would be told of
                raise
            try:
                return future.sleep(timeout)
            finally:
                self.crew.unlend(self)
        finally:
            end_waiting(self.running)

    def check(self, futures: Iterable[Any], /) -> None:
        """Nothing hangs on this thread alone: another worker takes its place."""

    def lend(self, awaited: Any = None) -> None:
        """Give this place to a spare worker; see `Waiter`. It is one place, however many coroutines wait on it."""
        begin_waiting(self.running, awaited)
        try:
            self.crew.lend(self)
        except BaseException:
            end_waiting(self.running)
            raise

    def unlend(self) -> None:
        """Take the place back."""
        self.crew.unlend(self)
        end_waiting(self.running)

    def replace(self) -> None:
        """Give this place away; see `Waiter`."""
        self.crew.replace(self)

    def come_back(self) -> None:
        """Take it back."""
        self.crew.come_back(self)

    def _help(self, future: State[Any]) -> bool:
        """Run here what *future* hangs on, as far as it is queued here; True if that has brought it to its end."""
        crew = self.crew
        if not crew.helping or self._depth >= MAX_HELP:
            return False
        before = self.running
        helper = _Helper(crew, future)
        self._depth += 1
        try:
            found = True
            while found and not future.done():  # what has been run may have brought more of it
                found = False
                for part in hangs_on(future):
                    if part.is_queued_at(crew) and isinstance(part, Future):
                        found = True
                        self.running = part
                        part.run_on(helper, may_block=False)
                        self.running = before
        finally:
            self._depth -= 1
            self.running = before
        return future.done()


class _Helper:
    """The dispatcher of a call that its waiter runs: what follows it runs there too, if the waiter waits for that."""

    __slots__ = ("_awaited", "_crew", "era")

    def __init__(self, crew: Employer, awaited: State[Any]) -> None:
        self._crew = crew
        self._awaited = awaited
        self.era = era()

    def dispatch(self, step: Step) -> None:
        """Leave a stranger to the crew."""
        self._crew.dispatch(step)

    def fuses(self, link: Any, dispatcher: Dispatcher) -> bool:
        """Tell whether the awaited future hangs on *link*; see `Dispatcher`."""
        return dispatcher is self._crew and any(part is link.target for part in hangs_on(self._awaited))


class GoHome(BaseException):
    """
    Tells a worker to end, if its crew lets it go.

    It is a step that raises itself: so the loop of a worker need not look at each step. No other can raise it, as what
    a call raises ends in its future.
    """

    priority = 0

    def __init__(self, *, if_surplus: bool) -> None:
        self.if_surplus = if_surplus
        super().__init__(if_surplus)

    def run_on(self, here: Dispatcher) -> None:
        """Tell the worker at hand."""
        raise GoHome(if_surplus=self.if_surplus)  # a new one, or its traceback would grow
