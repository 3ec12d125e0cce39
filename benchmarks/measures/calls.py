"""Calls that do nothing: submitted and gathered, and one by one; on threads, and in processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Iterator, Mapping

from measures.peers import Contender, Joblib, joblib_processes, joblib_threads, process_pools, thread_pools
from measures.rounds import OURS, STANDARD, WORKERS, Row, Scale, in_turn, per_call
from parallel import Future, ProcessPool, ThreadPool


def threads(scale: Scale) -> Iterator[Row]:
    """Compare the thread pools."""
    with (
        ThreadPool(WORKERS) as ours,
        concurrent.futures.ThreadPoolExecutor(WORKERS) as standard,
        thread_pools() as peers,
        joblib_threads() as joblib,
    ):
        both = {
            OURS: Contender(ours.submit, Future.result),
            STANDARD: Contender(standard.submit, concurrent.futures.Future.result),
        }
        yield from _compared(scale, both, peers, joblib, at_once=1 / 5, one_by_one=1.0)


def processes(scale: Scale) -> Iterator[Row]:
    """Compare the process pools."""
    context = multiprocessing.get_context("forkserver")
    with (
        ProcessPool(WORKERS, mp_context=context) as ours,
        concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as standard,
        process_pools(context) as peers,
        joblib_processes() as joblib,
    ):
        both = {
            OURS: Contender(ours.submit, Future.result),
            STANDARD: Contender(standard.submit, concurrent.futures.Future.result),
        }
        yield from _compared(scale, both, peers, joblib, at_once=1 / 15, one_by_one=1 / 3, beside_peers=1 / 4)


def _compared(
    scale: Scale,
    both: Mapping[str, Contender],
    peers: Mapping[str, Contender],
    joblib: Mapping[str, Joblib],
    *,
    at_once: float,
    one_by_one: float,
    beside_peers: float | None = None,
) -> Iterator[Row]:
    """Measure both ways to call; the last three are the budgets, the last of all beside the fastest peer."""
    sides = {name: per_call(one.gather, scale.calls) for name, one in both.items()}
    sides |= {name: per_call(one.gather, scale.fewer) for name, one in peers.items()}
    sides |= {name: per_call(one.gather, scale.fewer) for name, one in joblib.items()}
    measured = in_turn("µs", sides, scale.rounds)
    yield measured.ratio("submit and gather", at_once)
    if beside_peers is not None and peers:
        rows = [measured.of(OURS, name).ratio(f"... beside {name}", beside_peers) for name in peers]
        yield max(rows, key=lambda row: row.found)
    sides = {name: per_call(one.round_trips, scale.few) for name, one in {**both, **peers}.items()}
    yield in_turn("µs", sides, scale.rounds).ratio("round trip", one_by_one)
