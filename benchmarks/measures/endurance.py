"""What process pools cost in the long run: memory, descriptors, idle time; and at both ends: first results, tails."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from measures.peers import Contender
from measures.rounds import OURS, STANDARD, WORKERS, Row, Scale, Side, in_turn
from measures.work import busy, nothing, pause, timed
from parallel import Future, ProcessPool

WINDOW: Final = 500
"""Calls that are pending at a time: enough to keep the workers busy, few enough to weigh nothing."""

CALLS: Final = 1_000_000
SHARE: Final = 20
"""The standard pool makes so many times fewer calls in the window: all of them would take it minutes."""

WARM: Final = 50_000
"""Calls until the memory counts: caches and free lists are filled then."""

GROWTH: Final = 10.0
"""MB that the window may leave."""

RECYCLED: Final = 1000
"""Workers that are replaced after one call each."""

DURATIONS: Final = 200
ABOVE_BOUND: Final = 1.1
"""What the tails may take, as a share of the least that is possible."""

IDLE: Final = 5.0
"""Seconds of doing nothing."""

TICK: Final = 0.2
"""Percent of a CPU that counts as none: one tick of the system's clock in the idle time, by which it counts."""

METHODS: Final = ("forkserver", "spawn", "fork")

COLD: Final = """
import time
{imports}
if __name__ == "__main__":
    start = time.perf_counter()
    pool = {pool}({workers}, mp_context={context})
    pool.submit(abs, -1).result()
    print((time.perf_counter() - start) * 1e3, flush=True)
    pool.shutdown()
"""

COLD_POOLS: Final = {
    OURS: ("from parallel import ProcessPool", "ProcessPool", "{method!r}"),
    STANDARD: (
        "import multiprocessing; from concurrent.futures import ProcessPoolExecutor",
        "ProcessPoolExecutor",
        "multiprocessing.get_context({method!r})",
    ),
}


@contextmanager
def both_pools() -> Iterator[dict[str, Contender]]:
    """Open our pool and the standard one, with workers started in the same way."""
    context = multiprocessing.get_context("forkserver")
    with (
        ProcessPool(WORKERS, mp_context=context) as ours,
        concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as standard,
    ):
        yield {
            OURS: Contender(ours.submit, Future.result),
            STANDARD: Contender(standard.submit, concurrent.futures.Future.result),
        }


def workers_of(pool: Contender) -> list[int]:
    """Return the ids of the pool's workers, once all of them run."""
    found: set[int] = set()
    while len(found) < WORKERS:
        handles = [pool.submit(pid_after, 0.05) for _ in range(WORKERS)]
        found.update(pool.take(handle) for handle in handles)
    return sorted(found)


def pid_after(seconds: float) -> int:
    """Return the id of this process, after so long that no other call is run by it meanwhile."""
    time.sleep(seconds)
    return os.getpid()


# -- memory and descriptors -------------------------------------------------------------------------------------------


def window(scale: Scale) -> Iterator[Row]:
    """Say what many calls leave, of which few are pending at a time: in this process, and in the worker with most."""
    del scale  # it is the number of calls that is promised
    grown: dict[str, tuple[float, float]] = {}
    with both_pools() as pools:
        for name, pool in pools.items():
            few = 1 if name == OURS else SHARE
            pids = workers_of(pool)
            _slide(pool, WARM // few)
            before = _resident(os.getpid()), [_resident(pid) for pid in pids]
            _slide(pool, CALLS // few)
            workers = max(_resident(pid) - size for pid, size in zip(pids, before[1], strict=True))
            grown[name] = _resident(os.getpid()) - before[0], workers
    for number, where in enumerate(("the parent", "a worker")):
        figures = {name: each[number] for name, each in grown.items()}
        yield Row(f"{CALLS:,} calls, {where} grows", "MB", figures, figures[OURS], "MB", GROWTH)


def _slide(pool: Contender, calls: int) -> None:
    submit, take = pool.submit, pool.take
    pending: deque[Any] = deque()
    for _ in range(calls):
        pending.append(submit(nothing))
        if len(pending) >= WINDOW:
            take(pending.popleft())
    while pending:
        take(pending.popleft())


def _resident(pid: int) -> float:
    gc.collect()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def recycling(scale: Scale) -> Iterator[Row]:
    """Count the descriptors that replaced workers leave."""
    del scale  # it is the number of workers that is promised
    _recycle(20)  # what multiprocessing keeps
    before = _descriptors()
    seconds = _recycle(RECYCLED)
    left = float(_descriptors() - before)
    yield Row(f"{RECYCLED:,} recycled workers leave", "fds", {OURS: left, STANDARD: 0.0}, left, "fds", 0.0)
    each = seconds / RECYCLED * 1e3
    yield Row("... and take, each", "ms", {OURS: each, STANDARD: 0.0}, each, "ms")


def _recycle(workers: int) -> float:
    start = time.perf_counter()
    with ProcessPool(WORKERS, "forkserver", max_tasks_per_child=1) as pool:
        pids = [pool.submit(os.getpid) for _ in range(workers)]
    assert len({future.result() for future in pids}) == workers, "a worker ran more than one call"
    return time.perf_counter() - start


def _descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# -- both ends --------------------------------------------------------------------------------------------------------


def tails(scale: Scale) -> Iterator[Row]:
    """
    Compare calls of very different lengths with the least that they can take: half of all, or the longest.

    By what they took there: on a busy machine, calls that compute take longer, whoever runs them.
    """
    chance = random.Random(1)
    durations = [min(max(chance.lognormvariate(2.0, 1.3), 1.0), 200.0) / 1e3 for _ in range(DURATIONS)]
    rounds = min(scale.rounds, 3)
    with both_pools() as pools:
        for fn in (pause, busy):
            sides = {name: _tail(pool, fn, durations) for name, pool in pools.items()}
            yield in_turn("x", sides, rounds).itself(f"heavy tails, {fn.__name__}, over the bound", ABOVE_BOUND)


def _tail(pool: Contender, fn: Callable[[float], None], durations: list[float]) -> Side:
    def over_bound() -> float:
        start = time.perf_counter()
        taken = [pool.take(handle) for handle in [pool.submit(timed, fn, seconds) for seconds in durations]]
        return (time.perf_counter() - start) / max(sum(taken) / WORKERS, max(taken))

    return over_bound


def cold(scale: Scale) -> Iterator[Row]:
    """Compare how long it takes from making a pool to its first result, in fresh interpreters."""
    for method in METHODS:
        sides = {name: _first_result(method, *words) for name, words in COLD_POOLS.items()}
        yield in_turn("ms", sides, min(scale.rounds, 9)).ratio(f"first result, {method}", 1.0)


def _first_result(method: str, imports: str, pool: str, context: str) -> Side:
    text = COLD.format(imports=imports, pool=pool, workers=WORKERS, context=context.format(method=method))

    def milliseconds() -> float:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "cold.py")
            script.write_text(text)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else it measures the compiler
            command = [sys.executable, "-W", "ignore", str(script)]
            return float(subprocess.check_output(command, text=True, env=environment))

    return milliseconds


# -- idle -------------------------------------------------------------------------------------------------------------


def idle(scale: Scale) -> Iterator[Row]:
    """Say what share of a CPU pools take that have nothing to do, their workers included."""
    del scale  # it is a matter of time
    figures: dict[str, float] = {}
    with both_pools() as pools:
        everybody = {name: workers_of(pool) for name, pool in pools.items()}
        time.sleep(0.5)  # until all have settled down
        before = {name: sum(map(_cpu, pids)) for name, pids in everybody.items()}
        parent = time.process_time()
        time.sleep(IDLE)
        spent = time.process_time() - parent  # of both: what none of them takes, neither does
        for name, pids in everybody.items():
            figures[name] = (sum(map(_cpu, pids)) - before[name] + spent) / IDLE * 100
    yield Row("idle, parent and workers", "%", figures, figures[OURS], "%", TICK)


def _cpu(pid: int) -> float:
    """Return the seconds of the CPU that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
