"""What a task costs over `submit`, and what its options cost: those that are off, and those on that change nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import parallel
from measures.rounds import OURS, WORKERS, Measured, Row, Scale, Side, in_turn, per_call
from measures.work import nothing
from parallel import Future, Registry, Retry, configure, task

BUDGET = 1.5
"""Microseconds a call."""

POOLS: Final = {"pools": {"measured": {"kind": "thread", "max_workers": WORKERS}}}

PLAIN = "no option"

plain = task(pool="measured")(nothing)

TIMEOUT = "timeout=10"

ON: Final[dict[str, Callable[[], Future[None]]]] = {
    TIMEOUT: plain.options(timeout=10),
    "deadline=10": plain.options(deadline=10),
    "retry=Retry(on=OSError)": plain.options(retry=Retry(on=OSError)),
    "limit=1_000_000": plain.options(limit=1_000_000),
}
"""Options that are on, but change nothing about calls that do nothing."""


def options(scale: Scale) -> Iterator[Row]:
    """Compare calls of tasks with different options."""
    yield _over_submit(configure(POOLS), scale).difference("a task, over submit", BUDGET)
    with Registry(POOLS) as registry:
        yield _over_submit(registry, scale).difference("a task in a Registry block", BUDGET)
        sides = {name: _gathered(call, scale) for name, call in ({PLAIN: plain} | ON).items()}
        group: Callable[[], AbstractContextManager[object]] | None = getattr(parallel, "TaskGroup", None)
        if group is not None:
            sides["in a TaskGroup"] = _gathered(plain, scale, group)
        measured = in_turn("µs", sides, scale.rounds)
        for name in list(sides)[1:]:
            yield measured.of(name, PLAIN).difference(name, BUDGET if name == TIMEOUT else None)


def _over_submit(registry: Registry, scale: Scale) -> Measured:
    """Measure what a call costs the caller, whose registry this is, while the workers are kept busy."""
    pool = registry.pool("measured")
    calls = scale.calls

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

    sides = {OURS: lambda: microseconds(plain), "submit": lambda: microseconds(pool.submit, nothing)}
    return in_turn("µs", sides, scale.rounds)


def _gathered(
    call: Callable[[], Future[None]],
    scale: Scale,
    block: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Side:
    """Make a side of calls that are made in a block and gathered."""

    def gather(calls: int) -> None:
        with block():
            for future in [call() for _ in range(calls)]:
                future.result()

    return per_call(gather, scale.calls)
