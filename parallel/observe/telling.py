"""
The steps of one registry's calls, workers and pools, as events.

    the trail ──▶ Teller: which are this registry's? ──▶ events ──▶ sinks: hooks, and the streams of `Registry.events`

What follows calls on the callback threads belongs to the registry of what it follows. Calls that hooks make, and what
comes of those, are not told: hooks would go round in circles.

State: the trail's thread's own, but `sinks`, a tuple that is replaced as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Final

from parallel import trail
from parallel.events import (
    CallCreated,
    CallEnded,
    CallQueued,
    CallRetried,
    CallStarted,
    EndState,
    Event,
    PoolClosed,
    PoolOpened,
    PoolResized,
    WorkerEnded,
    WorkerStarted,
)
from parallel.observe.narrator import NEVER, Followed, Narrator
from parallel.pools.base import pools
from parallel.tidings import Sink
from parallel.trail import HOOK

_REMEMBERED: Final = 100_000
"""Calls that have ended, and may still have something follow them."""

_UNCLAIMED: Final = 100
"""Pools that were opened last, and are kept in mind: a registry says a moment later that one is its own."""


class Teller(Narrator):
    """
    Makes events of steps.

    Args:
        names: Those of the registry's pools, by their numbers; the registry adds to it.

    Attributes:
        sinks: Who gets the events.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.sinks: tuple[Sink, ...] = ()
        self._pools = names
        self._began = (0, 0)
        self._kinds: dict[int, str] = {}  # of pools, by their numbers
        self._names: dict[int, str] = {}  # of workers: by ident, or process id
        self._unclaimed: list[tuple[int, int, str]] = []  # pools that were opened, and are nobody's yet
        self._mine = _Remembered()
        self._quiet = _Remembered()  # calls of which nothing is told

    def start(self) -> None:
        """Tell from now on."""
        for pool in pools():  # what is there already
            self._kinds[pool.number] = pool.kind
            self._names.update((worker.process, worker.name) for worker in pool.at_work())
        self._names.update((thread.ident or 0, thread.name) for thread in threading.enumerate())
        self._began = trail.follow(self.take).began

    def stop(self) -> None:
        """Tell no more, but what was noted so far."""
        trail.leave(self.take)

    def take(self, steps: Iterable[trail.Step]) -> None:
        """Take the next steps."""
        super().take(steps)
        if self._unclaimed:
            self._claim()

    def _tell(self, event: Event) -> None:
        for sink in self.sinks:
            sink(event)

    def _unix(self, at: int) -> float:
        unix, base = self._began
        return (unix + at - base) / 1e9

    # -- calls --------------------------------------------------------------------------------------------------------

    def created(self, call: Followed) -> None:
        """Tell that a call was made, if it is one of this registry's."""
        origin = call.parent or call.cause
        if call.cause == HOOK or origin in self._quiet:
            self._quiet.add(call.number)
            return
        name = self._pools.get(call.pool)
        if name is None and (call.pool or origin not in self._mine):
            return
        call.tag = name or ""
        self._mine.add(call.number)
        self._tell(
            CallCreated(
                name or "",
                call.task,
                call.parent or None,
                call.cause or None,
                call.items,
                at=self._unix(call.created),
                call_id=call.number,
            )
        )

    def queued(self, call: Followed) -> None:
        """Tell that it waits for a worker."""
        if call.tag is not None and not call.is_told:
            call.is_told = True
            at = self._unix(call.queued)
            self._tell(CallQueued(call.tag, call.task, call.attempt, at=at, call_id=call.number))

    def started(self, call: Followed) -> None:
        """Tell that an attempt has begun."""
        if call.tag is None:
            return
        self.queued(call)  # if it had all it needs when it was made, nothing else says so
        worker, at = self._worker(call), self._unix(call.began)
        self._tell(CallStarted(call.tag, call.task, call.attempt, worker, at=at, call_id=call.number))

    def retried(self, call: Followed, wait: float) -> None:
        """Tell that there is going to be another."""
        if call.tag is not None and call.error is not None:
            event = CallRetried(
                call.tag,
                call.task,
                call.error,
                call.attempt,
                wait,
                at=self._unix(call.stopped or call.queued),
                call_id=call.number,
            )
            self._tell(event)

    def ended(self, call: Followed) -> None:
        """Tell how it has ended."""
        if call.tag is None:
            return
        state: EndState = "succeeded" if call.error is None else "cancelled" if call.is_cancelled else "failed"
        began = call.began != NEVER
        self._tell(
            CallEnded(
                call.tag,
                call.task,
                state,
                call.error if state == "failed" else None,
                call.attempt,
                self._worker(call) if began else "",
                self._unix(call.queued),
                self._unix(call.began) if began else None,
                at=self._unix(call.over),
                call_id=call.number,
            )
        )

    def _worker(self, call: Followed) -> str:
        name = self._names.get(call.worker)
        if name is None and self._kinds.get(call.pool) == "process":
            return f"process {call.worker}"  # it has died with the call
        if name is None:  # it is no worker of ours: whoever has made a call that runs where it is made
            threads = (thread.name for thread in threading.enumerate() if thread.ident == call.worker)
            name = self._names[call.worker] = next(threads, f"thread {call.worker}")
        return name

    # -- pools and workers --------------------------------------------------------------------------------------------

    def pool_opened(self, at: int, number: int, name: str, kind: str, capacity: int) -> None:
        """Keep it in mind: it may become this registry's in a moment."""
        self._unclaimed.append((at, number, kind))
        self._claim()

    def _claim(self) -> None:
        left: list[tuple[int, int, str]] = []
        for at, number, kind in self._unclaimed:
            name = self._pools.get(number)
            if name is not None:
                self._kinds[number] = kind
                self._tell(PoolOpened(name, kind, at=self._unix(at)))
            else:
                left.append((at, number, kind))
        self._unclaimed = left[-_UNCLAIMED:]

    def pool_resized(self, at: int, number: int, capacity: int) -> None:
        """Tell that, of a pool of this registry."""
        if number in self._pools:
            self._tell(PoolResized(self._pools[number], capacity, at=self._unix(at)))

    def pool_closed(self, at: int, number: int) -> None:
        """Tell that, of a pool of this registry."""
        if number in self._pools:
            self._tell(PoolClosed(self._pools[number], self._kinds.get(number, ""), at=self._unix(at)))

    def worker_started(self, at: int, pool: int, worker: int, name: str) -> None:
        """Keep its name in mind; tell of it, if it is of a pool of this registry."""
        self._names[worker] = name
        if pool in self._pools:
            self._tell(WorkerStarted(self._pools[pool], name, at=self._unix(at)))

    def worker_ended(self, at: int, pool: int, worker: int, how: str) -> None:
        """Tell that it is gone; its number may be another's from now on."""
        name = self._names.pop(worker, None)
        if pool in self._pools and name is not None:
            self._tell(WorkerEnded(self._pools[pool], name, how, at=self._unix(at)))


class _Remembered:
    """The last numbers that were added."""

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._numbers

    def add(self, number: int) -> None:
        """Add a number, and forget the first if there are too many."""
        self._numbers[number] = None
        if len(self._numbers) > _REMEMBERED:
            del self._numbers[next(iter(self._numbers))]
