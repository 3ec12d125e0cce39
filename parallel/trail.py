"""
The trail: what calls, workers and pools do, noted as they do it, as long as anybody follows.

    a step of a call ──▶ `Trail.note`: a tuple, appended ──▶ every `PULSE` seconds, on one thread ──▶ each follower

Who notes does no more than that: to read the clock, make a tuple and append it. What a step means is found out by who
reads it; see `observe`. When nobody follows, `current` is None, and a step costs the look at that.

Guarantees:
- A follower gets the steps in the order in which they were noted, one lot after the other; none is lost, or told twice.
- What a follower raises is logged, and changes nothing else.
- A forked child has no followers.

State: `current`, replaced under `_lock`, which is re-entrant: a signal handler may ask. The followers of a trail and
what was noted, taken under its `_turn`.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeAlias

from parallel.context import RUNNING, Waiter, this

LOGGER = logging.getLogger("parallel")

PULSE: Final = 0.05
"""Seconds between two looks at what was noted. What is shown is so late; shorter ones take time from the program."""

BEHIND: Final = 2_000_000
"""
Things that wait to be looked at, some 80 MB, from which on who makes a call looks himself: calls that do nothing can be
made faster than followers find out what that means.
"""

CREATED: Final = 0
"""A call was made: `(CREATED, ns, id, name, pool, parent, cause, items)`. *cause* is the call that it follows."""

QUEUED: Final = 1
"""It waits for a worker, as it has its arguments and its places: `(QUEUED, ns, id)`; without it, since it was made."""

STARTED: Final = 2
"""An attempt has begun: `(STARTED, ns, id, attempt, worker)`; of a thread, its ident, as `worker`."""

STOPPED: Final = 3
"""The body of an attempt has ended: `(STOPPED, ns, id, attempt, error)`; None: with a value."""

ENDED: Final = 4
"""A call has ended, otherwise than by a value: `(ENDED, ns, id, error)`; perhaps it has never begun."""

GIVEN: Final = 5
"""A worker process was sent calls: `(GIVEN, ns, pid, first, ids)`, from that worker's number *first* on."""

TIMES: Final = 6
"""What it says of them: `(TIMES, pid, first, times)`, the bytes of an array of when each has begun, and has ended."""

RETRIED: Final = 7
"""An attempt has failed, and there is going to be another: `(RETRIED, ns, id, attempt, wait, error)`."""

POOL_OPENED: Final = 8
"""A pool was made: `(POOL_OPENED, ns, pool, name, kind, capacity)`, of which *pool* is the number."""

WORKER_STARTED: Final = 9
"""A worker is ready for calls: `(WORKER_STARTED, ns, pool, worker, name)`; *worker* is a process id, or an ident."""

WORKER_ENDED: Final = 10
"""One is gone: `(WORKER_ENDED, ns, pool, worker, how)`; *how* is empty if that was to be."""

FOLLOWS: Final = 11
"""A call waits for others, which are among its arguments: `(FOLLOWS, id, ids)`."""

POOL_RESIZED: Final = 12
"""A pool may have another number of workers: `(POOL_RESIZED, ns, pool, capacity)`."""

POOL_CLOSED: Final = 13
"""One takes no more calls: `(POOL_CLOSED, ns, pool)`."""

_LENGTHS: Final = {
    CREATED: 8,
    QUEUED: 3,
    STARTED: 5,
    STOPPED: 5,
    ENDED: 4,
    GIVEN: 5,
    TIMES: 4,
    RETRIED: 6,
    POOL_OPENED: 6,
    WORKER_STARTED: 5,
    WORKER_ENDED: 5,
    FOLLOWS: 3,
    POOL_RESIZED: 4,
    POOL_CLOSED: 3,
}
"""How many things each has."""

Step: TypeAlias = Sequence[Any]
"""Something that has happened: which of the above, when (on the clock of `time.monotonic_ns`), and so on."""

Follower: TypeAlias = Callable[[Iterator[Step]], object]
"""Gets steps, in the order in which they were noted."""

CAUSE: Final[ContextVar[int]] = ContextVar("parallel.cause", default=0)
"""The call that has ended, where a function runs that follows it."""

HOOK: Final = -1
"""Stands for the cause of calls that hooks make."""

clock: Final = time.monotonic_ns
"""The one clock of all steps, in worker processes too: it is that of the machine."""

next_id: Final = itertools.count(1).__next__
"""Makes the number of another call."""


class Trail:
    """
    What was noted, and who follows.

    Attributes:
        note: Note a step, from any thread.
        noted: What nobody has looked at.
        began: When this was made: nanoseconds of Unix time, and on the clock.
    """

    def __init__(self) -> None:
        # All in one list, one behind the other: tuples that are kept would have the garbage collector run more often.
        self.noted: list[Any] = []
        self.note: Callable[[tuple[Any, ...]], None] = self.noted.extend
        self.began = (time.time_ns(), clock())
        self.followers: tuple[Follower, ...] = ()
        self._turn = threading.RLock()
        self._over = threading.Event()

    def run(self) -> None:
        """On a thread of its own: tell the followers what is noted, until there are none."""
        while not self._over.wait(PULSE):
            self.tell()

    def tell(self) -> None:
        """Tell the followers, now, what was noted."""
        with self._turn:
            told = self.noted[:]  # two single steps of a list: what is noted in between stays
            if not told:
                return
            del self.noted[: len(told)]
            for follower in self.followers:
                try:
                    follower(_steps_in(told))
                except Exception:
                    LOGGER.exception("what follows the steps of calls has failed: %r", follower)

    def end(self) -> None:
        """Have its thread end."""
        self._over.set()


def _steps_in(told: list[Any]) -> Iterator[Step]:
    at = 0
    while at < len(told):
        end = at + _LENGTHS[told[at]]
        yield told[at:end]
        at = end


current: Trail | None = None
"""What steps are noted in; None: nobody follows."""

_lock = threading.RLock()


def follow(follower: Follower) -> Trail:
    """Have *follower* get all steps from now on, on a thread of this room; until `leave`."""
    global current
    with _lock:
        trail = current
        if trail is not None:
            trail.tell()  # what was before is not for the new one
            trail.followers = (*trail.followers, follower)
            return trail
        trail = Trail()
        trail.followers = (follower,)
        threading.Thread(target=trail.run, name="parallel-trail", daemon=True).start()
        current = trail
        return trail


def leave(follower: Follower) -> None:
    """Have *follower* get what was noted so far, and no more; nothing happens if it gets none."""
    global current
    with _lock:
        trail = current
        if trail is None or follower not in trail.followers:
            return
        trail.tell()
        trail.followers = tuple(each for each in trail.followers if each != follower)
        if not trail.followers:
            current = None
            trail.end()


def id_of(future: Any) -> int:
    """Return the number of a call, which no other call of this process has."""
    number: int = future.__dict__.setdefault("_id", next_id())
    return number


def note_call(noting: Trail, future: Any, name: object, pool: int, items: int = 0) -> None:
    """
    Note that a call was made, and by which other one.

    Args:
        noting: The trail.
        future: Its future.
        name: The task's name, or the function that is called.
        pool: The number of the pool where it is to run.
        items: Of a piece of a map, how many items; 0: it is a call by itself.
    """
    if len(noting.noted) > BEHIND:
        noting.tell()
    worker: Waiter | None = this.worker
    running: object = RUNNING.get() if worker is None else worker.running
    parent = 0 if running is None else _id_in(running)
    number = future.__dict__["_id"] = next_id()
    noting.note((CREATED, clock(), number, name, pool, parent, 0 if parent else CAUSE.get(), items))


def _id_in(running: object) -> int:
    """Return the number of the call that a worker runs; 0: it runs none."""
    future_of: Any = getattr(running, "future_if_any", None)  # it is a `Run`
    if future_of is not None:
        running = future_of()
    fields: dict[str, Any] = getattr(running, "__dict__", {})
    number: int = fields.get("_id", 0)
    return number


def note_start(noting: Trail, fields: dict[str, Any]) -> None:
    """Note that the body of a call begins on this thread, of whose future these are the fields."""
    noting.note((STARTED, clock(), fields.get("_id", 0), 1, threading.get_ident()))


def note_stop(noting: Trail, fields: dict[str, Any], error: BaseException | None) -> None:
    """Note that it has ended."""
    noting.note((STOPPED, clock(), fields.get("_id", 0), 1, error))


def note_thread(pool: int, *, is_over: bool = False) -> None:
    """Note that this thread has begun to work for the pool of that number, or ends that."""
    noting = current
    if noting is not None:
        thread = threading.current_thread()
        kind, about = (WORKER_ENDED, "") if is_over else (WORKER_STARTED, thread.name)
        noting.note((kind, clock(), pool, thread.ident, about))


def is_owned() -> bool:
    """Tell whether this thread is in the middle of a change: a signal handler may ask."""
    return _lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # as Condition does


def _after_fork_in_child() -> None:
    global current, _lock
    current = None  # its thread, and its followers, are the parent's
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
