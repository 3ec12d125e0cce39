"""
The libraries beside which ours is measured, each as its documentation uses it: those of them that are installed.

unsync and more-executors run on pools of `concurrent.futures` and give them continuations; joblib's threads, Pebble's
and `multiprocessing.pool` are pools of their own.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from measures.rounds import WORKERS
from measures.work import nothing

PEERS = ("joblib", "Pebble", "unsync", "more-executors")
"""By the names under which they are installed: the extra `bench`."""


class Contender(NamedTuple):
    """
    A pool, in the words in which all can be asked.

    Attributes:
        submit: Takes a function and its arguments, returns a handle.
        take: Waits for a handle's value.
        settle: Waits until what was submitted lies where it is to lie until a worker comes.
    """

    submit: Callable[..., Any]
    take: Callable[[Any], Any]
    settle: Callable[[], object] = nothing

    def gather(self, calls: int) -> None:
        """Submit all calls, then wait for all."""
        submit, take = self.submit, self.take
        for handle in [submit(nothing) for _ in range(calls)]:
            take(handle)

    def round_trips(self, calls: int) -> None:
        """Wait for each call before the next is made."""
        submit, take = self.submit, self.take
        for _ in range(calls):
            take(submit(nothing))


class Joblib:
    """joblib hands out no handles: it takes a list of calls and waits for all. It isn't made for one at a time."""

    def __init__(self, parallel: Callable[[Any], object], delayed: Callable[[Any], Callable[[], object]]) -> None:
        self._parallel = parallel
        self._call = delayed(nothing)

    def gather(self, calls: int) -> None:
        """Hand all calls in as one list."""
        self._parallel(self._call() for _ in range(calls))


def installed(names: Iterable[str] = PEERS) -> dict[str, str]:
    """Return the versions of those peers that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def thread_pools() -> Iterator[dict[str, Contender]]:
    """Open a thread pool of each peer that hands out handles."""
    there = installed()
    with ExitStack() as stack:
        found = {"multiprocessing.pool.ThreadPool": _of_multiprocessing(stack)}
        if "Pebble" in there:
            found["Pebble"] = _of_pebble(stack)
        if "unsync" in there:
            found["unsync"] = _of_unsync(stack)
        if "more-executors" in there:
            found["more-executors"] = _of_more_executors(stack)
        yield found


def _of_multiprocessing(stack: ExitStack) -> Contender:
    pool = stack.enter_context(multiprocessing.pool.ThreadPool(WORKERS))
    return Contender(pool.apply_async, multiprocessing.pool.AsyncResult.get)


def _of_pebble(stack: ExitStack) -> Contender:
    pool: Any = import_module("pebble").ThreadPool(max_workers=WORKERS)
    stack.callback(pool.join)
    stack.callback(pool.close)
    return Contender(pool.schedule, concurrent.futures.Future.result)


def _of_unsync(stack: ExitStack) -> Contender:
    unsync: Any = import_module("unsync").unsync
    unsync.thread_executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(WORKERS))
    declared: dict[Any, Any] = {}

    def submit(fn: Callable[..., Any]) -> Any:
        # Declaring is no part of a call.
        call = declared.get(fn) or declared.setdefault(fn, unsync(fn))
        return call()

    def settle() -> None:
        done = concurrent.futures.Future[None]()
        unsync.loop.call_soon_threadsafe(done.set_result, None)
        done.result()

    return Contender(submit, lambda handle: handle.result(), settle)


def _of_more_executors(stack: ExitStack) -> Contender:
    executors: Any = import_module("more_executors").Executors
    pool = stack.enter_context(executors.thread_pool(max_workers=WORKERS))
    return Contender(pool.submit, lambda handle: handle.result())


@contextmanager
def joblib_threads() -> Iterator[dict[str, Joblib]]:
    """Open joblib's threads, if it is installed."""
    if "joblib" not in installed():
        yield {}
        return
    joblib: Any = import_module("joblib")
    with joblib.Parallel(n_jobs=WORKERS, backend="threading") as parallel:
        yield {"joblib (threading)": Joblib(parallel, joblib.delayed)}


@contextmanager
def process_pools(context: BaseContext) -> Iterator[dict[str, Contender]]:
    """Open a process pool of each peer that hands out handles, with workers started as *context* does."""
    with ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.pool.Pool(WORKERS, context=context))
        found = {"multiprocessing.Pool": Contender(pool.apply_async, multiprocessing.pool.AsyncResult.get)}
        if "Pebble" in installed():
            found["Pebble"] = _of_pebble_processes(stack, context)
        if "joblib" in installed():
            found["loky"] = _of_loky(stack)
        yield found


def _of_pebble_processes(stack: ExitStack, context: BaseContext) -> Contender:
    pool: Any = import_module("pebble").ProcessPool(max_workers=WORKERS, context=context)
    stack.callback(pool.join)
    stack.callback(pool.close)
    return Contender(pool.schedule, concurrent.futures.Future.result)


def _of_loky(stack: ExitStack) -> Contender:
    """The pool under joblib's processes, which brings it along."""
    pool: Any = import_module("joblib.externals.loky").ProcessPoolExecutor(WORKERS)
    stack.callback(pool.shutdown)
    return Contender(pool.submit, lambda handle: handle.result())


@contextmanager
def joblib_processes() -> Iterator[dict[str, Joblib]]:
    """Open joblib's processes, if it is installed."""
    if "joblib" not in installed():
        yield {}
        return
    joblib: Any = import_module("joblib")
    with joblib.Parallel(n_jobs=WORKERS, backend="loky") as parallel:
        yield {"joblib (loky)": Joblib(parallel, joblib.delayed)}
