"""
Kind `ray`: the contract on a real local cluster, and what only this kind does.
"""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jobs
import pytest
from pools.contract import LONG, Kind, PoolContract, gate, opened

from parallel import Pool, RayPool

KNOWN = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
"""Ray's wheels are known to run here; elsewhere its tests are skipped if they can't be had."""

try:
    import ray  # noqa: F401
except ImportError as error:
    if KNOWN:
        raise
    pytest.skip(f"there is no Ray for this machine: {error}", allow_module_level=True)

__all__ = ["gate"]

pytestmark = pytest.mark.ray


def cluster(max_workers: int, **options: Any) -> Pool:
    """Make a pool on the cluster of this process."""
    return RayPool(max_workers=max_workers, **options)


@pytest.fixture(scope="module")
def kind() -> Kind:
    """One cluster for all pools of this process."""
    return Kind("ray", cluster, remote=True, starts=True, late=True)


@pytest.fixture(scope="module", autouse=True)
def shared(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers that many tests use; as long as it is there, so is the cluster."""
    with opened(kind, 2) as pool:
        with jobs.Gate() as gate:
            futures = [kind.hold(pool, gate) for _ in range(2)]
            gate.arrived(2)
        for future in futures:
            future.result(timeout=LONG)
        yield pool


@pytest.fixture
def pool(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers."""
    with opened(kind, 2) as pool:
        yield pool


class TestContract(PoolContract):
    """A cluster keeps the contract, but in forked children: Ray's own threads are not there."""

    def test_fork(self, kind: Kind, pool: Pool, gate: jobs.Gate, in_fork: Callable[..., Any]) -> None:
        """A forked child is told so at once; what had ended before can be read, and the parent goes on."""
        ended = pool.submit(jobs.double, 1)
        assert ended.result(timeout=LONG) == 2

        def child() -> tuple[Any, ...]:
            try:
                return ended.result(timeout=20), str(pool.submit(jobs.double, 1).exception(timeout=20))
            finally:
                pool.shutdown()

        value, told = in_fork(child)
        assert value == 2
        assert "Ray was used before this process was forked" in told
        assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4

    def test_fork_while_busy(self, kind: Kind, pool: Pool, in_fork: Callable[..., Any]) -> None:
        """Forks in the middle of submits by other threads leave the parent working."""
        stop = threading.Event()
        results: list[Any] = []

        def submit() -> None:
            while not stop.is_set():
                results.append(pool.submit(jobs.double, 1).result(timeout=LONG))

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            for _ in range(3):
                assert in_fork(lambda: pool.stats().running) == 0
        finally:
            stop.set()
            thread.join(LONG)
        assert set(results) == {2}
