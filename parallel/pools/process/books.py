"""
What the parts of a process pool's engine share: its calls, its workers, its thread, and whether it goes on.

    engine ──▶ hiring ──▶ (starter thread) ──┐
       └─────▶ listening ◀── reactor thread ─┴──▶ books: calls, roster, reactor, lock

State, changed under `lock`: `closing` and `broken`, and all of `calls` and `roster` where they don't say otherwise.
`interrupted` is set once, by whoever interrupts.
The lock is re-entrant, and what it guards is changed by single steps after which a nested submit finds it in order: a
signal handler or a `__del__` may submit, or shut down, while its thread holds the lock. No user code runs under the
lock, nothing under it blocks, and no other lock is taken.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.context import BaseContext
from selectors import EVENT_READ, EVENT_WRITE
from typing import Final, NamedTuple

from parallel.errors import PoolBrokenError, PoolShutdownError
from parallel.gates import GatedFuture
from parallel.outcomes import failure
from parallel.pools.process.calls import Calls
from parallel.pools.process.peer import Peer
from parallel.pools.process.reactor import Reactor
from parallel.pools.process.roster import Roster
from parallel.pools.process.worker import Setup

LOGGER = logging.getLogger("parallel")

GUARD_HINT: Final = (
    "a script has to start its work under `if __name__ == '__main__':`, because each worker imports the script first"
)


class Settings(NamedTuple):
    """What a pool was made with: see `ProcessPool`."""

    label: str
    thread_name: str
    max_workers: int
    context: BaseContext
    setup: Setup
    max_tasks_per_child: int | None

    @property
    def forks(self) -> bool:
        """Whether workers are forked from this process."""
        return self.context.get_start_method() == "fork"


class Books:
    """
    What the parts of an engine share.

    Attributes:
        closing: No calls are taken any more.
        interrupted: Nor is any started again, as the workers that run calls are being killed.
        broken: Why the pool can't go on, and what caused it.
        watch: How the reader listens to a new worker; set by `Listening`, as is
        bury: what it does with a dead one.
    """

    watch: Callable[[Peer], object]
    bury: Callable[[Peer], object]

    def __init__(self, settings: Settings, round_done: Callable[[], bool]) -> None:
        self.settings = settings
        self.lock = threading.RLock()
        self.calls = Calls(self.lock)
        self.calls.wake = self._wake_reader
        self.roster = Roster(settings.max_workers)
        self.reactor = Reactor(f"{settings.thread_name}-reader", round_done)
        self.closing = False
        self.interrupted = False
        self.broken: tuple[str, BaseException | None] | None = None

    def match(self) -> list[Peer]:
        """Under the lock: give waiting calls to free workers; the calling thread is to `send` them."""
        return self.roster.match(self.calls)

    def _wake_reader(self) -> None:
        """Have the reader go round once: there is something to settle."""
        self.reactor.tell(self.calls.settle_all)

    def lacks_workers(self) -> bool:
        """Under the lock: tell whether one more worker should be started."""
        return self.roster.lacks(self.calls.waiting())

    def send(self, peer: Peer) -> None:
        """Send its call to a worker that `match` returned to this thread."""
        self._start(peer)
        sent = peer.send()
        peer.sender = 0  # (*) before `dead` is read: the reader does it the other way round, in `stream_ended`
        if peer.dead:
            self.reactor.tell(partial(self.bury, peer))
        elif not sent:
            self.reactor.tell(partial(self.reactor.change, peer.sock, EVENT_READ | EVENT_WRITE))

    def _start(self, peer: Peer) -> None:
        """Have the time of its call count from now on; one whose time can't be watched ends here, with its worker."""
        given = peer.given
        if given is None:
            return
        if isinstance(given.future, GatedFuture):
            given.future.leave_gate()
        try:
            given.run.start()
        except Exception as error:
            given.run.ask()  # so nobody has it run again
            given.run.finish(failure(error), may_block=False)
            peer.outbox = []
            peer.kill()

    def refusal(self) -> Exception:
        """Make the error of a submit that comes too late."""
        return PoolShutdownError(self.settings.label) if self.broken is None else self.broken_error(*self.broken)

    def broken_error(self, reason: str, cause: BaseException | None) -> PoolBrokenError:
        """Make the error of one future or submit: anew each time, or their tracebacks would pile up."""
        error = PoolBrokenError(self.settings.label, reason)
        error.__cause__ = cause
        return error

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
        with self.lock:
            dropped = self.calls.drop()
        for future in dropped:
            self.calls.end_dropped(future, lambda: (None, self.broken_error(reason, cause), None))
