"""
What the steps of the trail say of each call: a call is followed from its making to its end, attempt by attempt.

    steps ──▶ Narrator.take() ──▶ created(), queued(), started(), stopped(), retried(), ended() of a `Followed`

A worker process tells when its calls have begun and ended with its answers only; how they have ended is known a moment
earlier. So what comes of them waits for their times, or for the worker's death.

State: all of it belongs to the thread that reads the trail, which nobody else does at that time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final

from parallel import trail
from parallel.outcomes import CANCELLED
from parallel.trail import Step

NEVER: Final = 0
"""Stands for a moment that has not come."""


class Followed:
    """
    A call, as far as is known. Moments are nanoseconds on the clock of the trail.

    Attributes:
        number: Its number.
        name: The task's name, or the function that is called.
        pool: The number of the pool where it runs; 0: where what follows calls runs.
        parent: The number of the call that made it; 0: none.
        cause: That of the call that it follows.
        items: Of a piece of a map, how many; 0: it is a call by itself.
        created: When it was made.
        queued: When the present attempt had all that it needs, but a worker.
        began: When that began,
        stopped: and stopped.
        over: When the call had ended.
        attempt: Which attempt it is; the first is 1.
        worker: Who runs it: a thread, by its ident, or a process, by its id.
        error: How it has ended; None: with a value, or not yet.
        tag: What the narrator makes of it.
        is_told: So is this, of the present attempt.
    """

    __slots__ = (
        "attempt",
        "began",
        "cause",
        "created",
        "error",
        "given",
        "given_at",
        "is_over",
        "is_told",
        "items",
        "name",
        "number",
        "over",
        "parent",
        "pool",
        "queued",
        "stopped",
        "tag",
        "wait",
        "worker",
    )

    def __init__(
        self, at: int, number: int, name: object, pool: int, parent: int = 0, cause: int = 0, items: int = 0
    ) -> None:
        self.number = number
        self.name = name
        self.pool = pool
        self.parent = parent
        self.cause = cause
        self.items = items
        self.created = self.queued = at
        self.began = self.stopped = self.over = NEVER
        self.attempt = 1
        self.worker = 0
        self.error: BaseException | None = None
        self.given: tuple[int, int] | None = None  # the worker process that was given it, and its number there
        self.given_at = NEVER
        self.wait = -1.0  # if another attempt follows, after so many seconds
        self.tag: Any = None
        self.is_told = False
        self.is_over = False  # nothing else will come of it, but its times

    @property
    def task(self) -> str:
        """The task's name, or that of the function."""
        return name_of(self.name)

    @property
    def is_cancelled(self) -> bool:
        """Whether it has ended by being cancelled."""
        return self.error is CANCELLED

    def again(self, at: int) -> Followed:
        """Return what stands for the next attempt, which is queued at that moment."""
        other = Followed(self.created, self.number, self.name, self.pool, self.parent, self.cause, self.items)
        other.queued, other.attempt, other.tag = at, self.attempt + 1, self.tag
        return other


def name_of(fn: object) -> str:
    """Return a name as calls have it: `module:qualname` of a function; what is a name stays one."""
    if isinstance(fn, str):
        return fn
    module, name = getattr(fn, "__module__", ""), getattr(fn, "__qualname__", None)
    return f"{module}:{name}" if isinstance(name, str) else type(fn).__qualname__


class Narrator:
    """Follows calls. Who wants to know more than that overrides what is called."""

    def __init__(self) -> None:
        self._calls: dict[int, Followed] = {}  # that have not ended, by their numbers: the present attempt
        self._given: dict[tuple[int, int], Followed] = {}  # by worker process and its own number of the call
        self._taken: dict[int, Callable[..., None]] = {
            trail.CREATED: self._on_created,
            trail.QUEUED: self._on_queued,
            trail.STARTED: self._on_started,
            trail.STOPPED: self._on_stopped,
            trail.ENDED: self._on_ended,
            trail.GIVEN: self._on_given,
            trail.TIMES: self._on_times,
            trail.RETRIED: self._on_retried,
            trail.POOL_OPENED: self.pool_opened,
            trail.WORKER_STARTED: self.worker_started,
            trail.WORKER_ENDED: self._on_worker_ended,
            trail.POOL_RESIZED: self.pool_resized,
            trail.POOL_CLOSED: self.pool_closed,
            trail.FOLLOWS: self._nothing,
        }

    def take(self, steps: Iterable[Step]) -> None:
        """Take the next steps."""
        taken = self._taken
        for step in steps:
            taken[step[0]](*step[1:])

    # -- what is told; each may be overridden -------------------------------------------------------------------------

    def created(self, call: Followed) -> None:
        """Tell that a call was made."""

    def queued(self, call: Followed) -> None:
        """Tell that one waits for a worker that had to wait for something else before."""

    def started(self, call: Followed) -> None:
        """Tell that an attempt has begun."""

    def stopped(self, call: Followed) -> None:
        """Tell that its body has stopped; both moments are known."""

    def retried(self, call: Followed, wait: float) -> None:
        """Tell that an attempt has failed, and another follows after so many seconds."""

    def ended(self, call: Followed) -> None:
        """Tell that a call has ended."""

    def pool_opened(self, at: int, number: int, name: str, kind: str, capacity: int) -> None:
        """Tell that a pool was made."""

    def pool_resized(self, at: int, number: int, capacity: int) -> None:
        """Tell that one may have another number of workers."""

    def pool_closed(self, at: int, number: int) -> None:
        """Tell that one takes no more calls."""

    def worker_started(self, at: int, pool: int, worker: int, name: str) -> None:
        """Tell that a worker is ready."""

    def worker_ended(self, at: int, pool: int, worker: int, how: str) -> None:
        """Tell that one is gone; *how* is empty if that was to be."""

    # -- the steps ----------------------------------------------------------------------------------------------------

    def _nothing(self, *_: object) -> None:
        """Pass over a step of which nothing is to be told."""

    def _on_created(self, at: int, number: int, *about: Any) -> None:
        call = self._calls[number] = Followed(at, number, *about)
        self.created(call)

    def _on_queued(self, at: int, number: int) -> None:
        call = self._calls.get(number)
        if call is not None:
            call.queued = at
            self.queued(call)

    def _on_started(self, at: int, number: int, attempt: int, worker: int) -> None:
        call = self._calls.get(number)
        if call is not None and call.given is None and call.began == NEVER:
            call.began, call.worker = at, worker
            self.started(call)

    def _on_stopped(self, at: int, number: int, attempt: int, error: BaseException | None) -> None:
        call = self._calls.get(number)
        if call is None or call.given is not None or call.stopped != NEVER:
            return
        call.error = error
        self._stop(call, at)
        if error is None:  # else it is noted next what becomes of it: another attempt, or its end
            self._over(call, at)

    def _stop(self, call: Followed, at: int) -> None:
        call.stopped = at
        if call.began == NEVER:
            call.began = at
            self.started(call)
        self.stopped(call)

    def _on_ended(self, at: int, number: int, error: BaseException | None) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        call.error = error
        if call.given is not None:
            call.is_over, call.over = True, at  # its times follow
        else:
            self._conclude(call, at)

    def _conclude(self, call: Followed, at: int) -> None:
        """Tell of the end of an attempt whose body's end nobody has told, if it has begun, and of what comes of it."""
        if call.began == NEVER and call.given_at != NEVER and not call.is_cancelled:
            call.began = call.given_at  # its worker has died with it, or it overran its time
            self.started(call)
        if call.began != NEVER and call.stopped == NEVER:
            self._stop(call, at)
        if call.wait >= 0:
            self.retried(call, call.wait)
        else:
            self._over(call, at)

    def _over(self, call: Followed, at: int) -> None:
        call.over = max(call.over, at)
        if self._calls.get(call.number) is call:
            del self._calls[call.number]
        self.ended(call)

    def _on_given(self, at: int, pid: int, first: int, numbers: list[int]) -> None:
        for index, number in enumerate(numbers, first):
            call = self._calls.get(number)
            if call is not None:
                if call.given is not None:  # another worker had it, and did not begin it
                    self._given.pop(call.given, None)
                call.given, call.worker, call.given_at = (pid, index), pid, at
                self._given[pid, index] = call

    def _on_times(self, pid: int, first: int, data: bytes) -> None:
        times = array("q")
        times.frombytes(data)
        for index in range(0, len(times), 2):
            call = self._given.pop((pid, first + index // 2), None)
            if call is None:
                continue
            call.given = None
            call.began = times[index]
            self.started(call)
            self._stop(call, times[index + 1])
            if call.error is None or call.is_over or call.wait >= 0:
                self._conclude(call, call.stopped)

    def _on_retried(self, at: int, number: int, attempt: int, wait: float, error: BaseException) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        call.error, call.wait = error, wait
        self._calls[number] = call.again(at + int(wait * 1e9))
        if call.given is None:  # else its times follow
            self._conclude(call, at)

    def _on_worker_ended(self, at: int, pool: int, worker: int, how: str) -> None:
        for key in [key for key in self._given if key[0] == worker]:
            call = self._given.pop(key)
            call.given = None
            if call.is_over or call.wait >= 0:
                self._conclude(call, at)
        self.worker_ended(at, pool, worker, how)
