"""The memory of a call that waits for a worker, over its arguments."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from measures.peers import Contender, thread_pools
from measures.rounds import OURS, STANDARD, WORKERS, Row, Scale, Side, in_turn
from measures.work import nothing
from parallel import Future, Registry, ThreadPool, task

BUDGET = 500.0

ROUNDS = 3
"""What is allocated hardly differs from round to round, and tracing is slow."""

CALLS = 5000
"""Enough that what the interpreter keeps in its free lists, some hundreds of objects, doesn't tell."""


@task(pool="measured")
def declared() -> None:
    """Do nothing, as a task."""


def memory(scale: Scale) -> Iterator[Row]:
    """Compare what a pending call of each pool takes."""
    rounds = min(scale.rounds, ROUNDS)
    with (
        ThreadPool(WORKERS) as ours,
        concurrent.futures.ThreadPoolExecutor(WORKERS) as standard,
        thread_pools() as peers,
    ):
        pools = {
            OURS: Contender(ours.submit, Future.result),
            STANDARD: Contender(standard.submit, concurrent.futures.Future.result),
            **peers,
        }
        sides = {name: _pending(pool, partial(pool.submit, nothing)) for name, pool in pools.items()}
        yield in_turn("B", sides, rounds).itself("a pending call", BUDGET)
    with (
        Registry({"pools": {"measured": {"kind": "thread", "max_workers": WORKERS}}}) as registry,
        concurrent.futures.ThreadPoolExecutor(WORKERS) as standard,
    ):
        mine = Contender(registry.pool("measured").submit, Future.result)
        other = Contender(standard.submit, concurrent.futures.Future.result)
        sides = {OURS: _pending(mine, declared), STANDARD: _pending(other, partial(standard.submit, nothing))}
        yield in_turn("B", sides, rounds).itself("a pending call of a task", BUDGET)


def _pending(pool: Contender, call: Callable[[], Any]) -> Side:
    """Make a side: the bytes that *call* leaves behind while all workers of *pool* are busy."""

    def measured() -> float:
        at_work, go_on = threading.Barrier(WORKERS + 1), threading.Event()

        def hold() -> None:
            at_work.wait()
            go_on.wait()

        held = [pool.submit(hold) for _ in range(WORKERS)]
        at_work.wait()
        handles: list[Any] = [None] * CALLS
        gc.collect()  # empties the free lists, too
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(CALLS):
                handles[number] = call()
            pool.settle()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            go_on.set()
        for handle in held + handles:
            pool.take(handle)
        return (after - before) / CALLS

    return measured
