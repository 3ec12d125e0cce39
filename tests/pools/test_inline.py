"""
What only inline pools do: the caller runs the call, at once.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import jobs
import pytest
from jobs import without_gc

from parallel import Future, InlinePool, PoolShutdownError, Retry, gather, task, using

LONG = 30  # seconds; only a deadlock takes so long


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    """An inline pool."""
    with InlinePool() as pool:
        yield pool


def test_runs_on_the_caller(pool: InlinePool) -> None:
    """submit() runs the call on the caller's thread and returns its ended future."""
    future = pool.submit(threading.current_thread)
    assert future.done()
    assert future.result() is threading.current_thread()


def test_starts_no_thread(pool: InlinePool) -> None:
    """Calls, chains, combinations and coroutines need no thread."""
    before = threading.active_count()
    end = pool.submit(jobs.double, 1).then(jobs.double).catch(str).finally_(jobs.nothing)
    assert gather(end, pool.submit(jobs.async_double, 1)).then(len).result(timeout=0) == 2
    assert threading.active_count() == before


def test_error_is_on_the_future(pool: InlinePool) -> None:
    """What the call raises comes out of the future, not of submit()."""
    future = pool.submit(jobs.divide, 1, 0)
    assert future.done()
    with pytest.raises(ZeroDivisionError):
        future.result()


def test_coroutine_is_run(pool: InlinePool) -> None:
    """A coroutine function is run to its end by the caller, no coroutine is returned."""
    assert pool.submit(jobs.async_double, 2).result(timeout=0) == 4  # type: ignore[comparison-overlap]


def test_coroutine_inside_a_running_loop(pool: InlinePool) -> None:
    """Within a running loop a coroutine is run all the same, and sees the caller's context variables."""
    jobs.VARIABLE.set("mine")

    async def look() -> str:
        await asyncio.sleep(0)
        return jobs.variable()

    async def main() -> tuple[object, object]:
        return pool.submit(jobs.async_double, 2).result(timeout=0), pool.submit(look).result(timeout=0)

    assert asyncio.run(main()) == (4, "mine")


def test_continuations_run_in_order(pool: InlinePool) -> None:
    """Everything runs in the order of the program."""
    seen: list[str] = []
    pool.submit(seen.append, "call").then(lambda _: seen.append("then")).finally_(lambda: seen.append("finally"))
    seen.append("program")
    assert seen == ["call", "then", "finally", "program"]


def test_then_on_a_promise_ended_inline(pool: InlinePool) -> None:
    """What an inline call chains and ends runs inline too."""
    promise: Future[int] = Future()
    after = pool.submit(jobs.nothing).then(lambda _: promise).then(jobs.double)
    assert not after.done()
    promise.set_result(2)
    assert after.result(timeout=30) == 4


def test_nested_calls(pool: InlinePool) -> None:
    """Calls of calls run as deep as plain functions do."""

    def down(n: int) -> int:
        return pool.submit(down, n - 1).result() + 1 if n else 0

    assert pool.submit(down, 50).result() == 50


def test_shut_down_inside_a_call(pool: InlinePool) -> None:
    """A call that shuts its pool down ends; the next one is refused."""
    assert pool.submit(pool.shutdown).result() is None
    with pytest.raises(PoolShutdownError):
        pool.submit(jobs.nothing)


def test_stats_inside_a_call(pool: InlinePool) -> None:
    """Inside a call the pool shows it as running."""
    assert pool.submit(lambda: pool.stats().running).result() == 1
    assert pool.stats().running == 0
    assert pool.stats().done == 1


def test_makes_a_program_deterministic() -> None:
    """A configuration that makes every pool inline runs tasks, chains and maps on the caller."""
    seen: list[str] = []

    @task(pool="threads")
    def one(x: int) -> int:
        seen.append(f"one {x}")
        return x + 1

    @task(pool="processes")
    def two(x: int) -> int:
        seen.append(f"two {x}")
        return x * 2

    inline = {"kind": "inline"}
    with using({"pools": {"threads": inline, "processes": inline, "loop": inline}}):
        before = threading.active_count()
        assert one(1).then(two).result(timeout=0) == 4
        assert one.then(two)(2).result(timeout=0) == 6
        assert list(two.map([1, 2])) == [2, 4]
        assert threading.active_count() == before
    assert seen == ["one 1", "two 2", "one 2", "two 3", "two 1", "two 2"]


@pytest.mark.parametrize("options", [{}, {"limit": 1}, {"timeout": LONG}, {"retry": Retry(on=OSError, attempts=2)}])
def test_a_failure_keeps_nothing_alive(options: Any) -> None:
    """What a failed call was given is freed with its future, without the cyclic garbage collector."""

    class Thing:
        """Can be referred to weakly."""

    def fail(_: Thing) -> NoReturn:
        raise ValueError

    with using({"pools": {"i": {"kind": "inline"}}}), without_gc():
        gone = threading.Event()
        thing = Thing()
        weakref.finalize(thing, gone.set)
        future = task(pool="i", **options)(fail)(thing)
        assert isinstance(future.exception(), ValueError)
        del future, thing
        assert gone.wait(LONG)
