"""
A recording: what calls, workers and pools have done, step by step, as a table of attempts.

    the trail ──▶ Recording: a row for each attempt of a call ──▶ table() ──▶ a page, or trace events

A worker process tells when its calls have begun and ended only with its answers; until then they have been given to it.
Calls of event loops, clusters and executors, of which many run at a time on one thread, or nobody knows where, are laid
on as many lanes as run at once.

State: all of it belongs to the thread that reads the trail, which nobody else does at that time; after `stop`, to who
asks.
"""

from __future__ import annotations

import heapq
import os
import platform
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final

from parallel import trail
from parallel.machine import cpus
from parallel.observe.narrator import name_of
from parallel.outcomes import CANCELLED
from parallel.pools.base import pools
from parallel.trail import Step

SUCCEEDED: Final = 0
FAILED: Final = 1
CANCELED: Final = 2
RUNNING: Final = 3
WAITING: Final = 4
RETRIED: Final = 5
"""How an attempt has ended, or where it is."""

NEVER: Final = -1
"""Stands for a moment that has not come."""

MOST: Final = 200_000
"""Attempts that are kept unless said otherwise: 100 bytes each here, and 60 in a page. Of what comes then only the
number is kept."""

LONGEST_TEXT: Final = 500
"""Characters of an error that are kept."""

_COLUMNS: Final = (
    "id",
    "task",
    "pool",
    "lane",
    "created",
    "queued",
    "started",
    "ended",
    "state",
    "attempt",
    "items",
    "parent",
)

_TIMES: Final = ("created", "queued", "started", "ended")

_ON_SLOTS: Final = frozenset({"loop", "executor", "dask", "ray"})
"""Kinds of pools that run many calls on one thread, or nobody knows where."""

_ON_THREADS: Final = frozenset({"thread", "inline"})
"""Kinds of pools on whose own threads what follows their calls runs."""

_CALLBACKS: Final = {"name": "callbacks", "kind": "thread", "max_workers": 0}
"""What runs what follows the calls of the others."""


class Recording:
    """
    What was recorded, and is.

    Args:
        most: How many attempts are kept; of what comes then only the number is.

    Attributes:
        dropped: How many there were besides.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._columns: dict[str, array[int]] = {name: array("q") for name in _COLUMNS}
        self._rows: dict[int, int] = {}  # by the numbers of calls: that of the present attempt
        self._given: dict[tuple[int, int], int] = {}  # rows, by worker process and its own number of the call
        self._given_at: dict[int, int] = {}  # when, of those of which no more is known
        self._tasks: dict[str, int] = {}
        self._known_pools: dict[int, tuple[int, dict[str, Any]]] = {}  # by their numbers: when they opened, and what
        self._pools: dict[int, int] = {}  # those of them that have calls
        self._kinds: list[dict[str, Any]] = []
        self._lanes: dict[tuple[int, object], int] = {}
        self._lane_list: list[dict[str, Any]] = []
        self._slots: dict[int, _Slots] = {}  # by pools
        self._workers: dict[int, tuple[int, int, str]] = {}  # processes: when they began and ended, and how if by force
        self._errors: dict[int, str] = {}
        self._links: list[tuple[int, int, str]] = []
        self._marks: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}  # of threads, by their idents
        self._trail: trail.Trail | None = None
        self._ended_at = NEVER
        self.dropped = 0
        self._taken: dict[int, Callable[..., None]] = {
            trail.CREATED: self._created,
            trail.QUEUED: self._queued,
            trail.STARTED: self._started,
            trail.STOPPED: self._stopped,
            trail.ENDED: self._ended,
            trail.GIVEN: self._given_to,
            trail.TIMES: self._told,
            trail.RETRIED: self._tried_again,
            trail.POOL_OPENED: self._pool_opened,
            trail.WORKER_STARTED: self._worker_started,
            trail.WORKER_ENDED: self._worker_ended,
            trail.FOLLOWS: self._follows,
            trail.POOL_RESIZED: self._pool_resized,
            trail.POOL_CLOSED: self._pool_closed,
        }

    def start(self) -> None:
        """Record from now on."""
        for pool in pools():  # (*) one that is opened in between is noted, too
            self._pool_opened(NEVER, pool.number, pool.name, pool.kind, pool.capacity)
        self._trail = trail.follow(self.take)

    def stop(self) -> None:
        """Record no more; nothing happens if it is not recording."""
        trail.leave(self.take)
        self._ended_at = trail.clock()

    def take(self, steps: Iterable[Step]) -> None:
        """Put down what has happened; see `trail.Follower`."""
        self._names.update((thread.ident or 0, thread.name) for thread in threading.enumerate())
        taken = self._taken
        for step in steps:
            taken[step[0]](*step[1:])

    # -- steps --------------------------------------------------------------------------------------------------------

    def _created(self, at: int, number: int, name: object, pool: int, parent: int, cause: int, items: int) -> None:
        rows = self._rows
        if len(self._columns["id"]) >= self._most:
            self.dropped += 1
            return
        before = rows.get(cause)
        where = self._pool(pool, before)
        row = self._add_row(number, self._task(name), where, at, at, max(items, 1), rows.get(parent, -1))
        if before is not None:
            self._links.append((before, row, "then"))

    def _add_row(self, number: int, task: int, pool: int, created: int, queued: int, items: int, parent: int) -> int:
        row = self._rows[number] = len(self._columns["id"])
        attempt = 1
        values = (number, task, pool, -1, created, queued, NEVER, NEVER, WAITING, attempt, items, parent)
        for name, value in zip(_COLUMNS, values, strict=True):
            self._columns[name].append(value)
        return row

    def _task(self, name: object) -> int:
        return self._tasks.setdefault(name_of(name), len(self._tasks))

    def _queued(self, at: int, number: int) -> None:
        row = self._rows.get(number)
        if row is not None:
            self._columns["queued"][row] = at

    def _started(self, at: int, number: int, attempt: int, worker: int) -> None:
        row = self._rows.get(number)
        if row is None:
            return
        columns = self._columns
        columns["started"][row] = at
        columns["state"][row] = RUNNING
        if row not in self._given_at:
            columns["lane"][row] = self._lane_of(columns["pool"][row], worker, row)

    def _stopped(self, at: int, number: int, attempt: int, error: BaseException | None) -> None:
        row = self._rows.get(number)
        if row is not None and self._columns["ended"][row] == NEVER:
            self._end(row, at, error)

    def _ended(self, at: int, number: int, error: BaseException | None) -> None:
        row = self._rows.get(number)
        if row is None:
            return
        columns = self._columns
        if columns["ended"][row] == NEVER:
            if columns["started"][row] == NEVER and row in self._given_at and error is not CANCELLED:
                columns["started"][row] = self._given_at[row]  # its worker has died with it, or it overran its time
            self._end(row, at, error)
        else:  # its body has stopped; how the call has ended counts: a coroutine is stopped when its time is over
            self._note_error(row, error)

    def _end(self, row: int, at: int, error: BaseException | None) -> None:
        self._columns["ended"][row] = at
        self._note_error(row, error)
        slots = self._slots.get(self._columns["pool"][row])
        if slots is not None:
            slots.leave(row)

    def _note_error(self, row: int, error: BaseException | None) -> None:
        self._columns["state"][row] = SUCCEEDED if error is None else CANCELED if error is CANCELLED else FAILED
        if error is not None and error is not CANCELLED:
            self._errors[row] = text_of(error)

    def _given_to(self, at: int, pid: int, first: int, numbers: list[int]) -> None:
        columns = self._columns
        for index, number in enumerate(numbers):
            row = self._rows.get(number)
            if row is not None:
                self._given[pid, first + index] = row
                self._given_at[row] = at
                columns["lane"][row] = self._lane_of(columns["pool"][row], pid, row)

    def _told(self, pid: int, first: int, data: bytes) -> None:
        columns = self._columns
        times = array("q")
        times.frombytes(data)
        for index in range(0, len(times), 2):
            row = self._given.pop((pid, first + index // 2), None)
            if row is None:
                continue
            columns["started"][row], columns["ended"][row] = times[index : index + 2]
            if columns["state"][row] in (WAITING, RUNNING):
                columns["state"][row] = SUCCEEDED  # else it is told how it has ended

    def _tried_again(self, at: int, number: int, attempt: int, wait: float, error: BaseException) -> None:
        row = self._rows.get(number)
        if row is None:
            return
        columns = self._columns
        if len(columns["id"]) >= self._most:
            self.dropped += 1
            return
        if columns["ended"][row] == NEVER:
            self._end(row, at, error)
        columns["state"][row] = RETRIED
        self._errors[row] = text_of(error)
        again = self._add_row(
            number,
            columns["task"][row],
            columns["pool"][row],
            columns["created"][row],
            NEVER,
            columns["items"][row],
            columns["parent"][row],
        )
        columns["attempt"][again] = attempt + 1

    def _pool_opened(self, at: int, number: int, name: str, kind: str, capacity: int) -> None:
        """Keep it in mind; it is in the table once it has calls."""
        said = {"name": name or f"{kind} {number}", "kind": kind, "max_workers": capacity}
        self._known_pools.setdefault(number, (at, said))

    def _pool(self, number: int, cause: int | None) -> int:
        """Return which pool of the table that is; 0: that of *cause*, a row, or the callback threads."""
        if number == 0 and cause is not None:
            before = self._columns["pool"][cause]
            if self._kinds[before]["kind"] in _ON_THREADS:
                return before
        pool = self._pools.get(number)
        if pool is None:
            at, said = self._known_pools.get(number, (NEVER, _CALLBACKS))
            pool = self._pools[number] = len(self._kinds)
            self._kinds.append(said)
            if at != NEVER:
                self._marks.append({"at": at, "kind": "pool_opened", "pool": pool, "text": ""})
            if said["kind"] in _ON_SLOTS:
                self._slots[pool] = _Slots()
        return pool

    def _pool_resized(self, at: int, number: int, capacity: int) -> None:
        """Keep the most that it could have: lanes are drawn for all."""
        if number in self._known_pools:
            said = self._known_pools[number][1]
            said["max_workers"] = max(said["max_workers"], capacity)

    def _pool_closed(self, at: int, number: int) -> None:
        pool = self._pools.get(number)
        if pool is not None:
            self._marks.append({"at": at, "kind": "pool_closed", "pool": pool, "text": ""})

    def _worker_started(self, at: int, pool: int, worker: int, name: str) -> None:
        if self._is_process(pool):
            self._workers[worker] = (at, NEVER, "")
        else:
            self._names[worker] = name  # it may be gone before anybody looks

    def _worker_ended(self, at: int, pool: int, worker: int, how: str) -> None:
        if self._is_process(pool):
            began, _, _ = self._workers.get(worker, (NEVER, NEVER, ""))
            self._workers[worker] = (began, at, how)

    def _is_process(self, pool: int) -> bool:
        return pool in self._known_pools and self._known_pools[pool][1]["kind"] == "process"

    def _follows(self, number: int, others: list[int]) -> None:
        row = self._rows.get(number)
        if row is not None:
            self._links += [(self._rows[other], row, "argument") for other in others if other in self._rows]

    # -- lanes --------------------------------------------------------------------------------------------------------

    def _lane_of(self, pool: int, worker: int, row: int) -> int:
        """Return the lane of what a worker of that pool runs: a thread, by its ident, or a process, by its id."""
        slots = self._slots.get(pool)
        if slots is not None:
            slot = slots.enter(row)
            return self._lane(pool, slot, f"{self._kinds[pool]['name']} {slot + 1}")
        if self._kinds[pool]["kind"] == "process":
            return self._lane(pool, worker, f"process {worker}", process=worker)
        return self._lane(pool, worker, self._names.get(worker) or f"thread {worker}")

    def _lane(self, pool: int, worker: object, name: str, process: int = 0) -> int:
        lane = self._lanes.get((pool, worker))
        if lane is None:
            lane = self._lanes[pool, worker] = len(self._lane_list)
            self._lane_list.append({"name": name, "pool": pool, "process": process})
        return lane

    # -- what came out ------------------------------------------------------------------------------------------------

    def table(self, title: str = "") -> dict[str, Any]:
        """
        Return all that was recorded, as JSON has it: times in microseconds since the beginning, -1 for never.

        Args:
            title: What was recorded; empty: the program, as it was started.
        """
        began_ns, base = (0, 0) if self._trail is None else self._trail.began
        columns = self._columns

        def since(at: int) -> int:
            return NEVER if at == NEVER else max(at - base, 0) // 1000

        calls: dict[str, list[int]] = {
            name: [since(at) for at in columns[name]] if name in _TIMES else columns[name].tolist() for name in _COLUMNS
        }
        lanes: list[dict[str, Any]] = []
        marks = [{**mark, "at": since(mark["at"])} for mark in self._marks]
        for number, lane in enumerate(self._lane_list):
            began, ended, how = self._workers.get(lane["process"], (NEVER, NEVER, ""))
            lanes.append({**lane, "began": since(began), "ended": since(ended)})
            if began != NEVER:
                marks.append({"at": since(began), "kind": "worker_started", "lane": number, "text": ""})
            if how:
                marks.append({"at": since(ended), "kind": "worker_died", "lane": number, "text": how})
        return {
            "version": 1,
            "title": title or " ".join(sys.argv),
            "process": os.getpid(),
            "python": platform.python_version(),
            "cpus": cpus(),
            "began": began_ns / 1e9,
            "duration": since(self._ended_at),
            "tasks": list(self._tasks),
            "pools": self._kinds,
            "lanes": lanes,
            "calls": calls,
            "dropped": self.dropped,
            "errors": {str(row): text for row, text in self._errors.items()},
            "links": [list(link) for link in self._links],
            "marks": marks,
        }


class _Slots:
    """The lanes of a pool that runs many calls on one thread: as few as are needed."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._taken: dict[int, int] = {}  # by rows
        self._count = 0

    def enter(self, row: int) -> int:
        """Return the first that is free."""
        if row in self._taken:
            return self._taken[row]
        if self._free:
            slot = heapq.heappop(self._free)
        else:
            slot, self._count = self._count, self._count + 1
        self._taken[row] = slot
        return slot

    def leave(self, row: int) -> None:
        """Free the one that it was on, if it was on one."""
        slot = self._taken.pop(row, None)
        if slot is not None:
            heapq.heappush(self._free, slot)


def text_of(error: BaseException) -> str:
    """Return the type of an error and its text, as much of it as is kept."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its text is made by user code
        text = type(error).__name__
    return text[:LONGEST_TEXT]
