"""
The numbers of a registry's pools for Prometheus; needs the extra `prometheus`.

    from prometheus_client import REGISTRY
    from parallel.observe.prometheus import PoolCollector

    REGISTRY.register(PoolCollector())

Each time that somebody scrapes, the pools are asked: between two scrapes nothing is done, but that what calls cost is
counted, as with `[observe] stats = true`.

State: of a collector, the `era()` in which it has begun to count, changed by single steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from parallel.context import era
from parallel.observe import statistics
from parallel.observe.statistics import Histogram
from parallel.registry import Registry, default_registry
from parallel.stats import PoolStats

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    needs = "parallel.observe.prometheus needs prometheus_client: install parallel-pools[prometheus]"
    raise ImportError(needs) from error

if TYPE_CHECKING:
    from prometheus_client import Metric

_LABELS: Final = ("pool", "kind")

_GAUGES: Final = {
    "workers": "Threads, processes or loops that the pool has.",
    "max_workers": "How many calls it runs at a time, at most.",
    "queued": "Calls that wait for a worker.",
    "running": "Calls that a worker runs.",
    "stragglers": "Workers whose call has overrun its timeout, and runs all the same.",
}
"""By the names of `PoolStats`."""

_COUNTERS: Final = {
    "done": "Calls that have ended.",
    "failed": "Calls that have ended with an error.",
    "cancelled": "Calls that were cancelled.",
    "retried": "Attempts that have failed, and were followed by another.",
    "deaths": "Worker processes that have died.",
    "bytes_sent": "Bytes that were sent to workers.",
    "bytes_received": "Bytes that have come from workers.",
}

_BOUNDS: Final = [1 << power for power in range(10, 40, 2)]
"""Upper bounds of the buckets, in nanoseconds: from 1 µs to 5 minutes, each four times the one before."""


class PoolCollector(Collector):
    """
    Collects what the pools of a registry do; for `prometheus_client`.

    All metrics begin with `parallel_pool_` and have the labels `pool` and `kind`: gauges (`workers`, `max_workers`,
    `queued`, `running`, `stragglers`), counters (`done`, `failed`, `cancelled`, `retried`, `deaths`, `bytes_sent`,
    `bytes_received`), and the histograms `queue_seconds` and `run_seconds`, of attempts. Failures and times are counted
    from its making on, until `close()`: a microsecond or two a call.

    Args:
        registry: Which; None: the program's, as it is when it is asked.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry
        self._era: object = None
        self._begin()

    def _begin(self) -> None:
        """Count, in a forked child anew."""
        if self._era != era():
            self._era = era()
            statistics.start()

    def close(self) -> None:
        """Count no more; nothing happens the second time."""
        if self._era == era():
            self._era = None
            statistics.stop()

    def describe(self) -> Iterable[Metric]:
        """Say nothing before somebody asks: pools come and go."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as they are now."""
        if self._era is not None:
            self._begin()
        registry = default_registry() if self._registry is None else self._registry
        pools = registry.open_pools()
        all_stats = [pool.stats() for pool in pools]
        for name, about in _GAUGES.items():
            gauge = GaugeMetricFamily(f"parallel_pool_{name}", about, labels=_LABELS)
            for stats in all_stats:
                gauge.add_metric(_labels(stats), getattr(stats, name))
            yield gauge
        for name, about in _COUNTERS.items():
            counter = CounterMetricFamily(f"parallel_pool_{name}", about, labels=_LABELS)
            for stats in all_stats:
                value: int | None = getattr(stats, name)
                if value is not None:
                    counter.add_metric(_labels(stats), value)
            yield counter
        queue = HistogramMetricFamily(
            "parallel_pool_queue_seconds", "How long attempts waited for a worker.", labels=_LABELS
        )
        run = HistogramMetricFamily("parallel_pool_run_seconds", "How long attempts ran.", labels=_LABELS)
        for pool, stats in zip(pools, all_stats, strict=True):
            figures = statistics.figures_of(pool)
            if figures is not None:
                _add(queue, stats, figures.queue_time)
                _add(run, stats, figures.run_time)
        yield queue
        yield run


def _labels(stats: PoolStats) -> tuple[str, str]:
    return stats.name, stats.kind


def _add(family: HistogramMetricFamily, stats: PoolStats, times: Histogram) -> None:
    buckets = [(str(bound / 1e9), float(times.below(bound))) for bound in _BOUNDS]
    family.add_metric(_labels(stats), [*buckets, ("+Inf", float(times.count))], times.total / 1e9)
