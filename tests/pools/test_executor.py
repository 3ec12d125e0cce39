"""
Kind `executor`: the contract on real executors, and what only this kind does.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import jobs
import pytest
from pools.contract import LONG, Kind, PoolContract, gate, opened

from parallel import Pool
from parallel.pools.foreign import ExecutorPool

__all__ = ["gate"]


def processes(max_workers: int) -> Executor:
    """Make the standard library's pool of processes."""
    return ProcessPoolExecutor(max_workers, mp_context=multiprocessing.get_context("forkserver"))


def loky(max_workers: int) -> Executor:
    """Make an executor of loky."""
    return pytest.importorskip("loky").ProcessPoolExecutor(max_workers)  # type: ignore[no-any-return]


def executor(factory: Callable[[int], Executor], *capabilities: str) -> Callable[..., Pool]:
    """Make pools on such executors."""

    def make(max_workers: int, **options: Any) -> Pool:
        return ExecutorPool(factory, {"max_workers": max_workers}, capabilities=capabilities, **options)

    return make


KINDS = [
    Kind("standard processes", executor(processes, "running"), remote=True, starts=True, late=True),
    Kind("standard processes, untold", executor(processes), remote=True, starts=True),
    Kind("standard threads", executor(ThreadPoolExecutor, "running"), remote=True, starts=True, late=True),
    Kind("loky", executor(loky, "running"), remote=True, starts=True, late=True),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind in turn."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers that many tests use; its workers have been started."""
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
    """Every executor keeps the contract."""
