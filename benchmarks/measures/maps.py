"""What maps cost an item: many tiny ones, short ones, very different ones, and how much a stream keeps in memory."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import multiprocessing
import multiprocessing.pool
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from measures.peers import installed
from measures.rounds import OURS, STANDARD, WORKERS, Row, Side, in_turn
from measures.work import one_more, pause, timed
from parallel import Registry, task, using

TINY: Final = 1_000_000
THREADED: Final = 100_000
BEST: Final = 25_000
"""Items in a chunk of those that have to be told: with 2,500 or 100,000 none of them is faster."""

CHUNKS: Final = "chunks"
SILENCE: Final = "nothing said"
"""Whether somebody is told how many items to send together."""

FEWER: Final = {
    f"{STANDARD}, {SILENCE}": 200,
    f"joblib, {CHUNKS}": 10,
    f"joblib, {SILENCE}": 10,
    f"mpire, {CHUNKS}": 10,
    f"mpire, {SILENCE}": 10,
}
"""Those who take that many times as long over a tiny item as the others, or longer, get so many times fewer."""

PEERS: Final = ("joblib", "mpire")
"""By the names under which they are installed."""

SHORT: Final = 2_000
STREAMED: Final = 10_000_000
GROWTH: Final = 20.0
"""MB that the stream may take."""

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Sequence[Any]]
"""Calls a function with each item, and returns the values."""

REGISTRY: Final[dict[str, object]] = {
    "pools": {
        "processes": {"kind": "process", "max_workers": WORKERS, "mp_context": "forkserver"},
        "threads": {"kind": "thread", "max_workers": WORKERS},
    }
}


@contextmanager
def mappers() -> Iterator[dict[str, Map]]:
    """
    Open all pools of processes that are there: ours, to which nothing is said, then the others.

    Who is told about chunks is told the best size for tiny items, or a fortieth of all items where that is less.
    """
    context = multiprocessing.get_context("forkserver")
    with ExitStack() as stack:
        stack.enter_context(using(stack.enter_context(Registry(REGISTRY))))
        standard = stack.enter_context(concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context))
        pool = stack.enter_context(context.Pool(WORKERS))
        found: dict[str, Map] = {
            OURS: lambda fn, items: task(pool="processes")(fn).map(items).result(),
            f"Pool.map, {SILENCE}": lambda fn, items: pool.map(fn, items),
            f"{STANDARD}, {CHUNKS}": lambda fn, items: list(standard.map(fn, items, chunksize=_chunk(items))),
            f"{STANDARD}, {SILENCE}": lambda fn, items: list(standard.map(fn, items)),
        }
        there = installed(PEERS)
        if "joblib" in there:
            found |= _of_joblib(stack)
        if "mpire" in there:
            found |= _of_mpire(stack)
        yield found


def _chunk(items: Sequence[Any]) -> int:
    return max(1, min(BEST, len(items) // 40))


def _of_joblib(stack: ExitStack) -> dict[str, Map]:
    joblib: Any = import_module("joblib")
    silent: Any = stack.enter_context(joblib.Parallel(WORKERS))

    def run(parallel: Any, fn: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        return list(parallel(joblib.delayed(fn)(item) for item in items))

    def told(items: Sequence[Any]) -> Any:  # it has the same processes
        return joblib.Parallel(WORKERS, batch_size=_chunk(items), pre_dispatch="all")

    return {
        f"joblib, {CHUNKS}": lambda fn, items: run(told(items), fn, items),
        f"joblib, {SILENCE}": lambda fn, items: run(silent, fn, items),
    }


def _of_mpire(stack: ExitStack) -> dict[str, Map]:
    mpire: Any = import_module("mpire")
    pool: Any = stack.enter_context(mpire.WorkerPool(WORKERS, start_method="forkserver", keep_alive=True))
    return {
        f"mpire, {CHUNKS}": lambda fn, items: list(pool.map(fn, items, chunk_size=_chunk(items))),
        f"mpire, {SILENCE}": lambda fn, items: list(pool.map(fn, items)),
    }


def _microseconds(mapper: Map, fn: Callable[[Any], Any], items: Sequence[Any]) -> Side:
    def measure() -> float:
        start = time.perf_counter()
        values = mapper(fn, items)
        seconds = time.perf_counter() - start
        assert len(values) == len(items)
        return seconds / len(items) * 1e6

    return measure


def tiny(rounds: int) -> Iterator[Row]:
    """Compare a million items of 50 ns each; beside `Pool.map`, the fastest of the others that are always there."""
    with mappers() as sides:
        counts = {name: TINY // FEWER.get(name, 1) for name in sides}
        measures = {name: _microseconds(mapper, one_more, range(counts[name])) for name, mapper in sides.items()}
        yield in_turn("us", measures, rounds).ratio(f"{TINY:,} items of x + 1, processes", 1.0)
        threads: dict[str, Map] = {
            OURS: lambda fn, items: task(pool="threads")(fn).map(items).result(),
            "a loop": lambda fn, items: [fn(item) for item in items],
        }
        measures = {name: _microseconds(mapper, one_more, range(THREADED)) for name, mapper in threads.items()}
        yield in_turn("us", measures, rounds).itself(f"{THREADED:,} items of x + 1, threads", 1.0)


def short(rounds: int) -> Iterator[Row]:
    """Compare items of a millisecond with two bare processes that each do half of them."""
    with mappers() as sides:
        measures = {OURS: _microseconds(sides[OURS], pause, [0.001] * SHORT), "bare": _bare}
        yield in_turn("us", measures, rounds).ratio(f"{SHORT:,} items of 1 ms, to two bare processes", 1 / 0.95)


def _bare() -> float:
    """Have two processes sleep for half of the items each; microseconds an item."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(WORKERS + 1)
    children = [context.Process(target=_sleep_half, args=(ready,)) for _ in range(WORKERS)]
    for child in children:
        child.start()
    ready.wait()
    start = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - start
    for child in children:
        child.join()
    return seconds / SHORT * 1e6


def _sleep_half(ready: Any) -> None:
    ready.wait()
    for _ in range(SHORT // WORKERS):
        time.sleep(0.001)
    ready.wait()


def uneven(rounds: int) -> Iterator[Row]:
    """
    Compare items of very different lengths with the least that they can take, by what each of them took.

    Of the peers only those to which nothing is said: nobody knows the best chunks of such.
    """
    chance = random.Random(1)
    tails = [min(max(chance.lognormvariate(2.0, 1.3), 1.0), 200.0) / 1e3 for _ in range(200)]
    mix = [0.1 if chance.random() < 0.002 else 1e-6 for _ in range(20_000)]
    with mappers() as all_sides:
        sides = {
            name: mapper for name, mapper in all_sides.items() if name not in (f"{peer}, {CHUNKS}" for peer in PEERS)
        }
        for what, durations, budget in (("heavy tails", tails, 1.1), ("1 us and 100 ms", mix, 1.15)):
            measures = {name: _over_bound(mapper, durations) for name, mapper in sides.items()}
            yield in_turn("x", measures, rounds).itself(f"{what}, over the bound", budget)


def _over_bound(mapper: Map, durations: Sequence[float]) -> Side:
    def measure() -> float:
        start = time.perf_counter()
        taken = mapper(partial(timed, nap), durations)
        return (time.perf_counter() - start) / max(sum(taken) / WORKERS, max(taken))

    return measure


def nap(seconds: float) -> None:
    """Take so long; what is below the resolution of a sleep is not slept."""
    if seconds > 1e-4:
        time.sleep(seconds)


def memory(rounds: int) -> Iterator[Row]:
    """Say what a long stream takes in memory, with somebody at its end who is slower than the workers."""
    del rounds  # once
    with using(Registry(REGISTRY)) as registry:
        for pool in ("threads", "processes"):
            stream = task(pool=pool)(one_more).stream(itertools.count())
            for _ in range(200_000):
                next(stream)
            before = most = _resident()
            for number, _ in enumerate(itertools.islice(stream, STREAMED)):
                if number % 500_000 == 0:
                    most = max(most, _resident())
            stream.close()
            grown = most - before
            yield Row(
                f"a stream of {STREAMED:,} items, {pool}", "MB", {OURS: grown, STANDARD: 0.0}, grown, "MB", GROWTH
            )
        registry.shutdown()


def _resident() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
