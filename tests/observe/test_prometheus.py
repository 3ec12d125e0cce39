"""
The numbers of pools, as Prometheus scrapes them from a running server.
"""

from __future__ import annotations

import re
import sys
import urllib.request
from collections.abc import Callable, Iterator

import jobs
import pytest
from observe import seen_jobs
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from parallel import Registry, configure, gather, settle, trail, using
from parallel.observe.prometheus import PoolCollector

LONG = 30.0
POOLS = {"pools": {"io": {"kind": "thread", "max_workers": 2}, "cpu": {"kind": "process", "max_workers": 1}}}


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with two pools."""
    with Registry(POOLS) as made, using(made):
        yield made


@pytest.fixture
def scrape(registry: Registry) -> Iterator[Callable[[], dict[tuple[str, str], float]]]:
    """Ask a server, over HTTP; values by metric and labels."""
    into = CollectorRegistry()
    collector = PoolCollector(registry)
    into.register(collector)
    server, thread = start_http_server(0, "127.0.0.1", registry=into)

    def ask() -> dict[tuple[str, str], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=LONG) as answer:
            text = answer.read().decode()
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[sample.name, labels] = sample.value
        return found

    try:
        yield ask
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        collector.close()


def test_numbers(registry: Registry, scrape: Callable[[], dict[tuple[str, str], float]]) -> None:
    """What was done is there, pool by pool."""
    assert scrape() == {}, "no pool is open"
    io, cpu = registry.pool("io"), registry.pool("cpu")
    gather(*(io.submit(jobs.double, 1) for _ in range(7)), cpu.submit(seen_jobs.nap, 0.05)).result(LONG)
    settle(io.submit(jobs.divide, 1, 0)).result(LONG)
    found = scrape()
    in_io, in_cpu = "kind=thread,pool=io", "kind=process,pool=cpu"
    assert found["parallel_pool_done_total", in_io] == 8
    assert found["parallel_pool_done_total", in_cpu] == 1
    assert found["parallel_pool_failed_total", in_io] == 1
    assert found["parallel_pool_max_workers", in_io] == 2
    assert found["parallel_pool_queued", in_cpu] == 0
    assert found["parallel_pool_deaths_total", in_cpu] == 0
    assert found["parallel_pool_bytes_sent_total", in_cpu] > 0
    assert ("parallel_pool_bytes_sent_total", in_io) not in found
    assert found["parallel_pool_run_seconds_count", in_io] == 8
    assert found["parallel_pool_run_seconds_sum", in_cpu] >= 0.05


def test_histograms(registry: Registry, scrape: Callable[[], dict[tuple[str, str], float]]) -> None:
    """Buckets grow to the count; what took 50 ms is in those from there on."""
    cpu = registry.pool("cpu")
    cpu.submit(seen_jobs.nap, 0.05).result(LONG)
    cpu.submit(jobs.nothing).result(LONG)
    buckets: list[tuple[float, float]] = []
    for (name, labels), value in scrape().items():
        bound = re.search(r"le=([^,]+)", labels)
        if name == "parallel_pool_run_seconds_bucket" and bound is not None:
            buckets.append((float(bound[1]), value))
    buckets.sort()
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == 2
    assert buckets[-1][0] == float("inf")
    assert [count for bound, count in buckets if bound < 0.05][-1] == 1
    assert next(count for bound, count in buckets if bound > 1) == 2


def test_it_counts_until_it_is_closed(registry: Registry) -> None:
    """It needs no option, and leaves nobody who follows."""
    collector = PoolCollector(registry)
    assert trail.current is not None
    collector.close()
    collector.close()
    assert trail.current is None
    registry.pool("io").submit(jobs.nothing).result(LONG)
    names = {family.name: len(family.samples) for family in collector.collect()}
    assert names["parallel_pool_done"] == 1
    assert names["parallel_pool_failed"] == 0


def test_the_programs_registry(nowhere: object) -> None:
    """Without one said it is the program's, as it is at the time."""
    collector = PoolCollector()
    try:
        for _ in range(2):
            configure(POOLS).pool("io").submit(jobs.nothing).result(LONG)
            done = next(family for family in collector.collect() if family.name == "parallel_pool_done")
            assert {sample.labels["pool"] for sample in done.samples} == {"io"}
    finally:
        collector.close()


def test_in_a_forked_child(registry: Registry, in_fork: Callable[..., object]) -> None:
    """A server that forks its workers has numbers of each."""
    collector = PoolCollector(registry)
    registry.pool("io").submit(jobs.nothing).result(LONG)

    def child() -> float:
        list(collector.collect())
        gather(*(registry.pool("io").submit(jobs.nothing) for _ in range(3))).result(LONG)
        run = next(family for family in collector.collect() if family.name == "parallel_pool_run_seconds")
        return next(sample.value for sample in run.samples if sample.name.endswith("_count"))

    try:
        assert in_fork(child) == 3
    finally:
        collector.close()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "parallel.observe.prometheus")
    with pytest.raises(ImportError, match=r"install parallel-pools\[prometheus\]"):
        import parallel.observe.prometheus  # noqa: F401  # that is the test
