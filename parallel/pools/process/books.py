"""
What the parts of a process pool's engine share: its calls, its workers, its thread, and whether it goes on.

    engine ──▶ hiring ──▶ (starter thread) ──┐
       └─────▶ listening ◀── reactor thread ─┴──▶ books: calls, dispatching, roster, reactor, lock

State, changed under `lock`: `closing`, `cancelling` and `broken`, and all of `roster`. `interrupted` is set once, by
whoever interrupts.
The lock is re-entrant, and what it guards is changed by single steps after which a nested submit finds it in order: a
signal handler or a `__del__` may submit, or shut down, while its thread holds the lock. No user code runs under the
lock, nothing under it blocks, and no other lock is taken but the gate of `dispatching`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from parallel.errors import PoolBrokenError, PoolShutdownError
from parallel.outcomes import CANCELLED, Outcome
from parallel.pools.process.calls import Calls
from parallel.pools.process.dispatching import Dispatching
from parallel.pools.process.killing import Killing
from parallel.pools.process.launching import Launcher
from parallel.pools.process.logs import Relay
from parallel.pools.process.peer import Peer
from parallel.pools.process.reactor import Reactor
from parallel.pools.process.roster import Roster
from parallel.pools.process.segments import KEPT, LEAST_KEPT, Store
from parallel.pools.process.worker import Setup
from parallel.shortage import Shortage

LOGGER = logging.getLogger("parallel")

GUARD_HINT: Final = (
    "a script has to start its work under `if __name__ == '__main__':`, because each worker imports the script first"
)


class Settings(NamedTuple):
    """What a pool was made with: see `ProcessPool`."""

    label: str
    thread_name: str
    max_workers: int
    launcher: Launcher
    setup: Setup
    max_tasks_per_child: int | None
    kill_grace: float
    idle_timeout: float | None
    memory_free: int | None = None
    number: int = 0

    @property
    def kept_by_each(self) -> int:
        """The most bytes of free segments that each worker keeps."""
        return max(KEPT // self.max_workers, LEAST_KEPT)


class Books:
    """
    What the parts of an engine share.

    Attributes:
        closing: No calls are taken any more.
        store: The segments of the pool.
        cancelling: Nor are those run that wait for a worker, or are given back by one.
        interrupted: Nor is any started again, as the workers that run calls are being killed.
        broken: Why the pool can't go on, and what caused it.
        deaths: How many workers have died, other than by the pool's own will. The reader's, as is
        traffic: the bytes that those who are gone have been sent, and that have come from them.
        watch: How the reader listens to a new worker; set by `Listening`.
    """

    watch: Callable[[Peer], object]

    def __init__(self, settings: Settings, round_done: Callable[[], float | None]) -> None:
        self.settings = settings
        self.lock = threading.RLock()
        self.calls = Calls(self.lock)
        self.roster = Roster(settings.max_workers)
        self.killing = Killing(settings.kill_grace, settings.max_workers)
        self.reactor = Reactor(f"{settings.thread_name}-reader", round_done)
        self.relay = Relay(f"{settings.thread_name}-logs")
        self.dispatching = Dispatching(self.calls)
        self.dispatching.ring = self.calls.wake = self.reactor.ring
        self.dispatching.tell = self.reactor.tell
        if settings.memory_free is not None:
            self.dispatching.shortage = Shortage(settings.label, settings.memory_free)
        self.store = Store(patient=True)
        self.store.wake = self.reactor.ring
        self.closing = False
        self.cancelling = False
        self.interrupted = False
        self.broken: tuple[str, BaseException | None] | None = None
        self.deaths = 0
        self.traffic: tuple[int, int] = (0, 0)

    def lacks_workers(self) -> bool:
        """Under the lock: tell whether one more worker should be started."""
        with self.dispatching.gate:
            self.calls.drop_ended()
            waiting = self.calls.waiting()
        idle = any(peer.is_idle() for peer in list(self.dispatching.peers))
        if idle or not self.roster.lacks(waiting):
            return False
        # One more would take memory itself, and its calls had to wait; but one there has to be.
        return self.dispatching.shortage is None or not (self.roster.staff and self.dispatching.is_short())

    def note_room(self) -> None:
        """Under the lock: have submits look whether there are workers enough, as long as there is room for more."""
        self.dispatching.lacking = lacking = self.roster.has_room()
        if lacking:
            self.dispatching.attention = True

    def refusal(self) -> Exception:
        """Make the error of a submit that comes too late."""
        return PoolShutdownError(self.settings.label) if self.broken is None else self.broken_error(*self.broken)

    def broken_error(self, reason: str, cause: BaseException | None) -> PoolBrokenError:
        """Make the error of one future or submit: anew each time, or their tracebacks would pile up."""
        error = PoolBrokenError(self.settings.label, reason)
        error.__cause__ = cause
        return error

    def fail_to_start(self, what: str, error: BaseException) -> None:
        """On the reader: break down, as *what* is done at the start of each worker has raised *error*."""
        self.break_down(f"{what} raised {type(error).__name__}: {error}", error)

    def break_down(self, reason: str, cause: BaseException | None) -> None:
        """On the reader: take no more calls, and fail the queued ones; running ones end as they do."""
        with self.lock:
            if self.broken is not None:
                return
            self.broken = (reason, cause)
            self.closing = True
        self.fail_queued(reason, cause)

    def fail_queued(self, reason: str, cause: BaseException | None) -> None:
        """On the reader: end all calls that wait for a worker."""
        self._end_queued(lambda: (None, self.broken_error(reason, cause), None))

    def drop_if_cancelling(self) -> None:
        """On the reader, after calls were given back: cancel them, if none is to be begun any more."""
        if self.cancelling:
            self._end_queued(lambda: (None, CANCELLED, None))
        elif self.broken is not None:
            self.fail_queued(*self.broken)

    def _end_queued(self, outcome: Callable[[], Outcome]) -> None:
        with self.dispatching.gate:
            dropped = self.calls.drop()
        for future in dropped:
            self.calls.end_dropped(future, outcome)
