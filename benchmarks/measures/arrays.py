"""Arrays that go to processes and come back: as arguments, as one object for many calls, as results."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Final

from measures.peers import installed
from measures.rounds import OURS, STANDARD, WORKERS, Measured, Row, Side, in_turn
from parallel import ProcessPool

CALLS: Final = 20
"""In a round, of each kind."""

ARGUMENT: Final = 100_000_000
"""Bytes of an argument."""

RESULT: Final = 20_000_000
"""Bytes of a result."""

JOBLIB: Final = "joblib (loky)"
"""It maps a large array for all calls of one list from one file."""


def total(array: Any) -> float:
    """Read all of an array, and say little."""
    return float(array.sum())


def make(number: int) -> Any:
    """Make an array."""
    numpy: Any = import_module("numpy")
    return numpy.full(RESULT // 8, number, dtype="f8")


def last(array: Any) -> float:
    """See that it has come."""
    return float(array[-1])


def arrays(rounds: int) -> Iterator[Row]:
    """Compare the process pools."""
    numpy: Any = import_module("numpy")
    array = numpy.random.default_rng(0).random(ARGUMENT // 8)
    want = [total(array)] * CALLS
    with _pools() as (both, joblib):
        sides = {name: _timed(partial(_submit_all, pool, total, [array] * CALLS), want) for name, pool in both.items()}
        yield in_turn("ms", sides, rounds).ratio("100 MB to each of 20 calls", 1 / 10)

        sides = {name: _timed(partial(_share, pool, total, array), want) for name, pool in both.items()}
        peers = {name: _timed(partial(run, total, [array] * CALLS), want) for name, run in joblib.items()}
        yield _of_map(in_turn("ms", {**sides, **peers}, rounds), bool(peers))

        want = [float(number) for number in range(CALLS)]
        sides = {name: _timed(partial(_submit_all, pool, make, range(CALLS)), want) for name, pool in both.items()}
        sides |= {name: _timed(partial(run, make, range(CALLS)), want) for name, run in joblib.items()}
        yield in_turn("ms", sides, rounds).ratio("20 results of 20 MB", 1 / 3)


def _of_map(measured: Measured, beside_joblib: bool) -> Row:
    what = "the same 100 MB for 20 calls"
    return measured.of(OURS, JOBLIB).ratio(what, 1.0) if beside_joblib else measured.ratio(what)


@contextmanager
def _pools() -> Iterator[tuple[Mapping[str, Any], Mapping[str, Callable[..., list[Any]]]]]:
    """Open our pool and the standard one, and joblib's if it is installed: what runs a function over items."""
    context = multiprocessing.get_context("forkserver")
    with ExitStack() as stack:
        both: dict[str, Any] = {
            OURS: stack.enter_context(ProcessPool(WORKERS, mp_context=context)),
            STANDARD: stack.enter_context(concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context)),
        }
        yield both, {JOBLIB: _run_in_joblib} if "joblib" in installed() else {}


def _run_in_joblib(fn: Callable[..., Any], items: Any) -> list[Any]:
    joblib: Any = import_module("joblib")
    return list(joblib.Parallel(n_jobs=WORKERS)(joblib.delayed(fn)(item) for item in items))


def _submit_all(pool: Any, fn: Callable[..., Any], items: Any) -> list[Any]:
    return [future.result() for future in [pool.submit(fn, item) for item in items]]


def _share(pool: Any, fn: Callable[..., Any], array: Any) -> list[Any]:
    """Give the same array to all calls: ours as a constant, which is packed here each time."""
    return _submit_all(pool, fn, [pool.constant(array) if isinstance(pool, ProcessPool) else array] * CALLS)


def _timed(work: Callable[[], list[Any]], want: list[float]) -> Side:
    """Make a side of *work*: milliseconds for all its calls, whose values are those that it must have."""

    def milliseconds() -> float:
        start = time.perf_counter()
        values = work()
        took = time.perf_counter() - start
        found = [value if isinstance(value, float) else last(value) for value in values]
        assert found == want, "what comes back is what was to come"
        return took * 1e3

    return milliseconds
