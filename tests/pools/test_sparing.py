"""
The contract of `contract`, for pools that leave memory free, while that comes and goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import attrs
import jobs
import pytest
from pools import test_contract
from pools.contract import Kind, PoolContract, gate, opened

from parallel import Pool, shortage
from parallel.pools import loop, sparing
from parallel.pools.process import dispatching

__all__ = ["gate"]

GIB = 2**30


def saving(kind: Kind) -> Kind:
    """Make the kind's pools leave a gibibyte free."""

    def make(max_workers: int, **options: Any) -> Pool:
        return kind.make(max_workers, memory_free=GIB, **options)

    return attrs.evolve(kind, make=make)


KINDS = [saving(kind) for kind in test_contract.KINDS if kind.name in ("thread", "loop", "process-forkserver")]


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """A machine that is short of memory most of the time, and looks often."""
    with pytest.MonkeyPatch.context() as patch:
        readings = itertools.cycle([0, 0, 3 * GIB, 0, GIB, 9 * GIB, 0])
        patch.setattr(shortage, "free_memory", lambda: next(readings))
        patch.setattr(shortage, "FRESH", 0.002)
        patch.setattr(sparing, "LOOK", 0.01)
        patch.setattr(loop, "LOOK", 0.01)
        patch.setattr(dispatching, "LOOK_FOR_MEMORY", 0.01)
        yield


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind in turn."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def shared(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers that many tests use; its workers have been started."""
    with opened(kind, 2) as pool, jobs.Gate() as gate:
        futures = [kind.hold(pool, gate) for _ in range(2)]
        gate.arrived(2)
        gate.open()
        for future in futures:
            future.result(timeout=jobs.PATIENCE)
        yield pool


@pytest.fixture
def pool(kind: Kind) -> Iterator[Pool]:
    """A pool of two workers."""
    with opened(kind, 2) as pool:
        yield pool


class TestContract(PoolContract):
    """Every kind keeps the contract."""
