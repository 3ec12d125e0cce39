"""
Statistics: how many calls of each pool have failed, how long they waited and ran, how busy workers were.

    the trail ──▶ Statistics: by pool ──▶ stats_of(pool), stats_of_registry(registry): with what the pool counts itself

What a pool counts itself costs nothing. The rest is found out while somebody wants it: see `start`.

State: `_counting`, the one that counts. The numbers belong to the thread that reads the trail; who asks has that read
on his own.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import evolve

from parallel import trail
from parallel.observe.narrator import Followed, Narrator
from parallel.observe.shared import Shared
from parallel.pools.base import AtWork, Pool
from parallel.stats import PoolStats, RegistryStats, Times, WorkerStats
from parallel.trail import clock

if TYPE_CHECKING:
    from parallel.registry import Registry

_LAST: Final = 10_000
"""Calls of which it is known how long they have run, when they have ended."""

_CLOSED: Final = 1_000
"""Pools whose numbers are kept after they were closed."""

STEPS: Final = 8
"""Buckets of a histogram in which a time doubles: each is 9 % wide."""


class Histogram:
    """Times, in buckets whose widths grow with them: a few dozen numbers, however many times there are."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.longest = 0
        self.buckets: defaultdict[int, int] = defaultdict(int)

    def add(self, nanoseconds: int) -> None:
        """Count a time."""
        nanoseconds = max(nanoseconds, 1)
        self.count += 1
        self.total += nanoseconds
        self.longest = max(self.longest, nanoseconds)
        self.buckets[int(math.log2(nanoseconds) * STEPS)] += 1

    def below(self, nanoseconds: int) -> int:
        """Count those that were shorter than a power of two."""
        end = int(math.log2(nanoseconds) * STEPS)
        return sum(count for bucket, count in list(self.buckets.items()) if bucket < end)

    def percentile(self, share: float) -> float:
        """Return the time, in seconds, that so great a share of them does not exceed; 0 if there are none."""
        left = math.ceil(share * self.count)
        for bucket, count in sorted(self.buckets.items()):
            left -= count
            if left <= 0:
                return min(2 ** ((bucket + 0.5) / STEPS), self.longest) / 1e9
        return 0.0

    def times(self) -> Times:
        """Sum them up."""
        p50, p95, p99 = map(self.percentile, (0.5, 0.95, 0.99))
        return Times(self.count, self.total / 1e9, p50, p95, p99, self.longest / 1e9)


class Figures:
    """What is counted of one pool."""

    def __init__(self) -> None:
        self.failed = 0
        self.cancelled = 0
        self.retried = 0
        self.queue_time = Histogram()
        self.run_time = Histogram()
        self.busy: defaultdict[int, int] = defaultdict(int)  # nanoseconds, by workers: idents, or process ids
        self.seen: dict[int, int] = {}  # since when each has been


class Statistics(Narrator):
    """Counts, pool by pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: defaultdict[int, Figures] = defaultdict(Figures)
        self._closed: deque[int] = deque()  # pools that take no more calls
        self.last: dict[int, int] = {}  # how long the last calls have run, by their numbers

    def started(self, call: Followed) -> None:
        """Count how long it has waited."""
        figures = self.pools[call.pool]
        figures.queue_time.add(call.began - call.queued)
        figures.seen.setdefault(call.worker, call.began)

    def stopped(self, call: Followed) -> None:
        """Count how long it has run."""
        figures = self.pools[call.pool]
        figures.run_time.add(call.stopped - call.began)
        figures.busy[call.worker] += call.stopped - call.began
        self.last.pop(call.number, None)
        self.last[call.number] = call.stopped - call.began
        if len(self.last) > _LAST:
            del self.last[next(iter(self.last))]

    def worker_ended(self, at: int, pool: int, worker: int, how: str) -> None:
        """Forget a worker: a pool may have any number of them, one after the other."""
        if pool in self.pools:
            self.pools[pool].busy.pop(worker, None)
            self.pools[pool].seen.pop(worker, None)

    def pool_closed(self, at: int, number: int) -> None:
        """Forget pools that were closed long ago: a program may have any number of them."""
        self._closed.append(number)
        if len(self._closed) > _CLOSED:
            self.pools.pop(self._closed.popleft(), None)

    def retried(self, call: Followed, wait: float) -> None:
        """Count an attempt that was not the last."""
        self.pools[call.pool].retried += 1

    def ended(self, call: Followed) -> None:
        """Count how it has ended."""
        if call.error is not None:
            figures = self.pools[call.pool]
            if call.is_cancelled:
                figures.cancelled += 1
            else:
                figures.failed += 1


def _begin() -> Statistics:
    statistics = Statistics()
    trail.follow(statistics.take)
    return statistics


def _end(statistics: Statistics) -> None:
    trail.leave(statistics.take)


_counting: Final = Shared(_begin, _end)


def start() -> None:
    """Count from now on, if nobody does; until as many have called `stop`."""
    _counting.start()


def stop() -> None:
    """Undo one `start`; with the last, what was counted is forgotten."""
    _counting.stop()


def stats_of(pool: Pool) -> PoolStats:
    """Return what a pool does at this moment."""
    counts, traffic = pool.counts(), pool.traffic()
    figures = figures_of(pool)
    stats = PoolStats(
        *counts,
        name=pool.name,
        kind=pool.kind,
        max_workers=pool.capacity,
        deaths=traffic.deaths,
        bytes_sent=traffic.sent,
        bytes_received=traffic.received,
        at_work=tuple(_worker(each, figures) for each in pool.at_work()),
    )
    if figures is None:
        return stats
    return evolve(
        stats,
        failed=figures.failed,
        cancelled=figures.cancelled,
        retried=figures.retried,
        queue_time=figures.queue_time.times(),
        run_time=figures.run_time.times(),
    )


def stats_of_registry(registry: Registry) -> RegistryStats:
    """Return what the pools of a registry do at this moment."""
    return RegistryStats({pool.name: stats_of(pool) for pool in registry.open_pools()}, registry.waiting())


def last_times() -> Mapping[int, int]:
    """Return how many nanoseconds the last attempts ran of calls that have ended, by their numbers; of the last."""
    statistics = _up_to_now()
    return {} if statistics is None else statistics.last


def figures_of(pool: Pool) -> Figures | None:
    """Return what is counted of a pool, up to now; None: nobody wants it."""
    statistics = _up_to_now()
    return None if statistics is None else statistics.pools[pool.number]


def _up_to_now() -> Statistics | None:
    """Return who counts, with what was noted a moment ago; None: nobody does."""
    statistics, noting = _counting.one, trail.current
    if statistics is not None and noting is not None:
        noting.tell()
    return statistics


def _worker(worker: AtWork, figures: Figures | None) -> WorkerStats:
    seconds = (clock() - worker.since) / 1e9 if worker.since else None
    return WorkerStats(
        worker.name,
        worker.process,
        worker.thread,
        worker.task,
        worker.called_at,
        seconds,
        worker.call_id,
        None if figures is None else _utilisation(worker, figures),
    )


def _utilisation(worker: AtWork, figures: Figures) -> float | None:
    """Return the share of its time, since it was first seen, in which a worker has run calls; None: it has no own."""
    if worker.coroutine is not None:
        return None
    key = worker.process if worker.process != os.getpid() else worker.thread
    if key is None:
        return None
    now = clock()
    since = figures.seen.get(key, now)
    busy = figures.busy[key] + (now - worker.since if worker.since else 0)
    return min(busy / max(now - min(since, worker.since or since), 1), 1.0)
