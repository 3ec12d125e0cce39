"""
What a call costs that does nothing: our pools beside those of `concurrent.futures`.

    python benchmarks/overhead.py [--rounds N] [--calls N]

Both run in this one process, in turn, round by round, after a warm-up, with the same number of workers and the same
start method; the figures are medians over the rounds. Exit status 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple, Protocol

from parallel import ProcessPool, Registry, ThreadPool, task

WORKERS = 2
"""Of every pool: as many as the machine has CPUs on which the budgets were set."""

ONE_BY_ONE = 20
"""A round trip takes about as long as so many calls made at once; a round has so many fewer of them."""

IMPORT_ROUNDS = 15
"""Fresh interpreters for each import: one takes about 100 ms."""

HEAVY = ("rich", "asyncio", "multiprocessing", "cattrs", "cloudpickle")
"""What is to be loaded only when it is used."""


class Executor(Protocol):
    """What is measured of a pool."""

    def submit(self, fn: Callable[[], None], /) -> concurrent.futures.Future[None]:
        """Take a call."""
        ...


class Row(NamedTuple):
    """One line of the table: medians, the figure of interest, and what bounds it, if anything does."""

    what: str
    ours: str
    theirs: str
    found: float
    budget: float | None
    unit: str


def nothing() -> None:
    """Do nothing."""


@task(pool="measured")
def declared() -> None:
    """Do nothing, as a task."""


def submit_and_gather(pool: Executor, calls: int) -> None:
    """Submit all calls, then wait for all."""
    for future in [pool.submit(nothing) for _ in range(calls)]:
        future.result()


def round_trips(pool: Executor, calls: int) -> None:
    """Wait for each call before the next is made."""
    for _ in range(calls):
        pool.submit(nothing).result()


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Measure both *rounds* times; who goes first changes each time. One round before that doesn't count."""
    sides: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):
            gc.collect()  # else a round pays for the garbage of the one before
            sides[side].append((ours, theirs)[side]())
    return sides[0][1:], sides[1][1:]


def compared(
    what: str,
    work: Callable[[Executor, int], None],
    ours: Executor,
    theirs: Executor,
    calls: int,
    rounds: int,
    budget: float,
) -> Row:
    """Measure *work* of *calls* calls on two pools; the budget bounds the ratio."""

    def microseconds(pool: Executor) -> float:
        start = time.perf_counter()
        work(pool, calls)
        return (time.perf_counter() - start) / calls * 1e6

    mine, other = map(median, in_turn(lambda: microseconds(ours), lambda: microseconds(theirs), rounds))
    return Row(what, f"{mine:.2f} µs", f"{other:.2f} µs", mine / other, budget, "")


def pools(calls: int, rounds: int) -> Iterator[Row]:
    """Compare the engines."""
    few = max(calls // ONE_BY_ONE, 1)
    with ThreadPool(WORKERS) as ours, concurrent.futures.ThreadPoolExecutor(WORKERS) as theirs:
        yield compared("threads: submit and gather", submit_and_gather, ours, theirs, calls, rounds, 1 / 3)
        yield compared("threads: round trip", round_trips, ours, theirs, few, rounds, 1.0)
    context = multiprocessing.get_context("forkserver")
    with (
        ProcessPool(WORKERS, mp_context=context) as ours,
        concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as theirs,
    ):
        yield compared("processes: submit and gather", submit_and_gather, ours, theirs, calls, rounds, 1 / 2)
        yield compared("processes: round trip", round_trips, ours, theirs, few, rounds, 1 / 2)


def calling(calls: int, rounds: int) -> Row:
    """Measure what calling a decorated function costs more than `pool.submit`, while the workers are kept busy."""
    with Registry({"pools": {"measured": {"kind": "thread", "max_workers": WORKERS}}}) as registry:
        pool = registry.pool("measured")

        def microseconds(call: Callable[..., object], *args: object) -> float:
            gate = threading.Event()
            for _ in range(WORKERS):
                pool.submit(gate.wait)
            start = time.perf_counter()
            for _ in range(calls):
                call(*args)
            seconds = time.perf_counter() - start
            gate.set()
            pool.idle()
            return seconds / calls * 1e6

        mine, other = in_turn(lambda: microseconds(declared), lambda: microseconds(pool.submit, nothing), rounds)
    more = median(one - two for one, two in zip(mine, other, strict=True))
    return Row("calling a task, over submit", f"{median(mine):.2f} µs", f"{median(other):.2f} µs", more, 1.5, " µs")


def importing(statement: str, rounds: int, budget: float | None) -> Row:
    """Measure what an import costs more than the standard thread pool's, in fresh interpreters."""

    def milliseconds(imports: str) -> float:
        program = f"from time import perf_counter as now; start = now(); {imports}; print((now() - start) * 1e3)"
        return float(subprocess.check_output([sys.executable, "-c", program], text=True))

    mine, other = in_turn(
        lambda: milliseconds(statement), lambda: milliseconds("import concurrent.futures.thread"), rounds
    )
    more = median(one - two for one, two in zip(mine, other, strict=True))
    return Row(statement, f"{median(mine):.1f} ms", f"{median(other):.1f} ms", more, budget, " ms")


def heavy(statement: str) -> list[str]:
    """List the heavy modules that an import loads."""
    program = f"{statement}; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


def show(row: Row) -> bool:
    """Print a line of the table; True unless a budget is missed."""
    kept = row.budget is None or row.found <= row.budget
    found = f"{row.found:.2f}{row.unit}"
    budget = "none" if row.budget is None else f"{row.budget:.2f}{row.unit}"
    verdict = "" if row.budget is None else "kept" if kept else "MISSED"
    print(f"{row.what:30}{row.ours:>12}{row.theirs:>14}{found:>12}{budget:>12}  {verdict}", flush=True)
    return kept


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what calls cost, beside concurrent.futures.")
    parser.add_argument("--rounds", type=int, default=25, help="of each kind, per side (default: 25)")
    parser.add_argument("--calls", type=int, default=4000, help="per round (default: 4000)")
    options = parser.parse_args()
    rounds, calls = max(options.rounds, 1), max(options.calls, 1)

    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}, {WORKERS} workers, medians of {rounds} rounds of {calls} calls\n")
    print(f"{'a call':30}{'parallel':>12}{'standard':>14}{'found':>12}{'budget':>12}")
    kept = [show(row) for row in pools(calls, rounds)]
    kept.append(show(calling(calls, rounds)))
    for statement, budget in (("import parallel", 45.0), ("from parallel import task", None)):
        kept.append(show(importing(statement, min(rounds, IMPORT_ROUNDS), budget)))
        loaded = heavy(statement)
        print(f"{'':4}heavy modules that it loads: {', '.join(loaded) or 'none'}")
        kept.append(not loaded)
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
