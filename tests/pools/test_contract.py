"""
The contract of `contract`, for every kind of pool and every way to start processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import jobs
import pytest
from pools.contract import LONG, Kind, PoolContract, gate, opened

from parallel import InlinePool, LoopPool, Pool, ProcessPool, ThreadPool

__all__ = ["gate"]


def process(method: str) -> Callable[..., Pool]:
    """Make pools whose processes start so."""

    def make(max_workers: int, **options: Any) -> Pool:
        return ProcessPool(max_workers, mp_context=multiprocessing.get_context(method), **options)

    return make


KINDS = [
    Kind("thread", ThreadPool, starts=True),
    Kind("loop", LoopPool, job=jobs.to_async, blocking=jobs.to_thread),
    Kind("inline", lambda _: InlinePool(), concurrent=False),
    *(
        Kind(f"process-{method}", process(method), remote=True, starts=True)
        for method in ("fork", "forkserver", "spawn")
        if method in multiprocessing.get_all_start_methods()
    ),
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
        if kind.concurrent:
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
    """Every kind keeps the contract."""


AT_EXIT = """
import asyncio, multiprocessing, sys
from parallel import LoopPool, ProcessPool, ThreadPool
import jobs

def show(text):
    print(text, flush=True)

if __name__ == "__main__":
    kind, how = {kind!r}, {how!r}
    if kind == "thread":
        pool = ThreadPool(1)
    elif kind == "loop":
        pool = LoopPool(1)
    else:
        pool = ProcessPool(1, mp_context=multiprocessing.get_context(kind))
    job = jobs.to_async(show) if kind == "loop" else show
    futures = [pool.submit(job, f"call {{index}}") for index in range(5)]
    end = futures[-1].then(lambda _: show("then")).then(lambda _: "x").then(lambda _: show("last"))
    if how == "shut":
        pool.shutdown(wait=False)
    elif how == "dropped":
        del pool
    elif how == "raise":
        raise SystemExit(0)
    elif how == "exit in thread":
        import threading
        threading.Thread(target=end.result).start()
"""


@pytest.mark.parametrize("how", ["left open", "shut", "dropped", "raise", "exit in thread"])
@pytest.mark.parametrize("kind_name", ["thread", "loop", "fork", "forkserver", "spawn"])
def test_interpreter_exit(kind_name: str, how: str, run_script: Callable[..., CompletedProcess[str]]) -> None:
    """At the exit of the interpreter what was accepted is run, what is chained to it too, and the status is 0."""
    done = run_script(AT_EXIT.format(kind=kind_name, how=how), timeout=30, flags=("-W", "ignore::DeprecationWarning"))
    assert done.stdout.split("\n")[:-1] == [*(f"call {index}" for index in range(5)), "then", "last"]
    assert done.stderr == ""
