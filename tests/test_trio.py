"""
Futures and pools under trio: `await`, `async for`, cancellation, and runs that end before what they wait for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import signal
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any

import jobs
import pytest
import trio
import trio.testing
from awaiting import POOLS, awaits, value_of, watchers
from jobs import Held, frequent_switches, without_gc

from parallel import (
    Future,
    InlinePool,
    Pool,
    ThreadPool,
    as_completed,
    completed,
    failed,
    gather,
)

LONG = 30  # seconds; only a deadlock takes so long


def run(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run *main* to its end under trio."""

    async def in_time() -> Any:
        with trio.fail_after(LONG):
            return await main(*args)

    return trio.run(in_time)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


class Waiting:
    """Tasks of a nursery that await futures, each in a scope of its own."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.values: list[Any] = []

    async def start(self, awaitable: Awaitable[Any]) -> trio.CancelScope:
        """Start a task, and return when it waits."""
        scope: trio.CancelScope = await self._nursery.start(self._wait, awaitable)
        await trio.testing.wait_all_tasks_blocked()
        return scope

    async def _wait(self, awaitable: Awaitable[Any], *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            self.values.append(await awaitable)


async def cancelled(scope: trio.CancelScope) -> bool:
    """Cancel *scope* and tell whether it took effect."""
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    return scope.cancelled_caught


# -- await ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POOLS)
def test_await(kind: str) -> None:
    """Calls of every kind are awaited: for a value or an error, chained and combined."""
    with POOLS[kind]() as pool:
        run(awaits, pool)


def test_trio_without_asyncio(run_script: Any) -> None:
    """A program of trio that awaits futures doesn't load asyncio; one of asyncio doesn't load trio."""
    run_script("""
import sys, trio
from parallel import ThreadPool, as_completed
async def main(pool):
    assert await pool.submit(int) == 0
    assert [future.result() async for future in as_completed([pool.submit(int)])] == [0]
with ThreadPool(1) as pool:
    trio.run(main, pool)
assert "asyncio" not in sys.modules
""")
    run_script("""
import asyncio, sys
from parallel import ThreadPool
async def main(pool):
    assert await pool.submit(int) == 0
with ThreadPool(1) as pool:
    asyncio.run(main(pool))
assert "trio" not in sys.modules
""")


@pytest.mark.parametrize("future", [completed(1), failed(ValueError())], ids=["value", "error"])
def test_awaiting_what_has_ended_is_a_checkpoint(future: Future[Any]) -> None:
    """Awaiting a future that has ended gives way to other tasks, and notices a cancellation, as trio's own calls do."""

    async def main() -> None:
        with trio.testing.assert_checkpoints():
            await trio.lowlevel.checkpoint_if_cancelled()
            with pytest.raises(ValueError) if future.exception() is not None else trio.CancelScope():
                await future
        with trio.CancelScope() as scope:
            scope.cancel()
            await future
        assert scope.cancelled_caught

    run(main)


def test_several_tasks_await_one_future() -> None:
    """Each of the tasks that await a future gets its value, in one run or in several."""
    promise: Future[str] = Future()
    waiting = threading.Barrier(4)

    async def main() -> list[str]:
        async with trio.open_nursery() as nursery:
            tasks = Waiting(nursery)
            for _ in range(5):
                await tasks.start(promise)
            waiting.wait(LONG)
        return tasks.values

    with ThreadPool(3) as pool:
        runs = [pool.submit(run, main) for _ in range(3)]
        waiting.wait(LONG)
        promise.set_result("value")
        assert gather(*runs).result(timeout=LONG) == (["value"] * 5,) * 3


def test_on_a_worker_thread() -> None:
    """A run of trio on the only worker of a pool awaits calls of that pool: it lends its place."""

    async def main(pool: ThreadPool) -> list[int]:
        assert await pool.submit(jobs.double, 1) == 2
        return sorted([future.result() async for future in as_completed([pool.submit(jobs.double, x) for x in (1, 2)])])

    with ThreadPool(1) as pool:
        assert pool.submit(run, main, pool).result(timeout=LONG) == [2, 4]


def test_no_wake_up_is_lost() -> None:
    """Over thousands of ends that race with the waiting, each wakes its task."""

    async def main(pool: ThreadPool) -> None:
        for index in range(1000):
            one, two = pool.submit(jobs.double, index), pool.submit(jobs.double, index)
            assert await one == await two == index * 2

    with frequent_switches(), ThreadPool(2) as pool:
        run(main, pool)


def test_errors_are_freed(pool: ThreadPool) -> None:
    """An error that was awaited dies with its future, without the cyclic garbage collector."""

    class BigError(Exception):
        pass

    def fail() -> None:
        raise BigError

    async def main() -> weakref.ref[BaseException]:
        future = pool.submit(fail)
        try:
            await future
        except BigError as error:
            return weakref.ref(error)
        finally:
            del future  # the error's traceback refers to this frame
        raise AssertionError

    with without_gc():
        ref = run(main)
        for _ in range(3):
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert ref() is None


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelling_cancels_a_queued_call(held: Held) -> None:
    """Cancelling the scope of the only task that awaits a queued call cancels it, and what leads only to it."""

    async def main() -> None:
        plain, source = held.pool.submit(jobs.nothing), held.pool.submit(jobs.nothing)
        chained = source.then(str)
        parts = [held.pool.submit(jobs.nothing) for _ in range(2)]
        async with trio.open_nursery() as nursery:
            tasks = Waiting(nursery)
            for future in (plain, chained, gather(*parts)):
                assert await cancelled(await tasks.start(future))
        assert all(future.cancelled() for future in (plain, source, chained, *parts))

    run(main)


def test_a_timeout_cancels_a_queued_call(held: Held) -> None:
    """So does trio's own timeout."""
    call = held.pool.submit(jobs.nothing)

    async def main() -> None:
        with trio.fail_after(0.01):
            await call

    with pytest.raises(trio.TooSlowError):
        run(main)
    assert call.cancelled()


def test_cancelling_leaves_a_running_call(held: Held) -> None:
    """Cancelling who awaits a running call raises trio.Cancelled at once, and leaves nothing behind in the future."""

    async def main() -> None:
        with trio.move_on_after(0.01) as scope:
            await held.future
        assert scope.cancelled_caught
        assert held.future.running()
        assert watchers(held.future) == 0

    run(main)


def test_a_scope_cancelled_before(held: Held) -> None:
    """Awaiting in a scope that was cancelled before doesn't wait."""
    call = held.pool.submit(jobs.nothing)

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await call
        assert scope.cancelled_caught

    run(main)
    assert call.cancelled()


def test_cancelling_one_of_two(held: Held) -> None:
    """A call that a second task awaits goes on; only the last one who waits cancels it."""

    async def main() -> None:
        shared, lonely, chained = (held.pool.submit(jobs.double, x) for x in (1, 2, 3))
        follows = chained.then(jobs.double)
        async with trio.open_nursery() as nursery:
            tasks = Waiting(nursery)
            one, _, three, four = [await tasks.start(one) for one in (shared, shared, lonely, lonely)]
            assert await cancelled(one)
            assert await cancelled(three)
            assert not shared.cancelled()
            assert await cancelled(four)
            assert lonely.cancelled()
            assert await cancelled(await tasks.start(chained))
            assert not chained.cancelled()
            held.go.set()
        assert tasks.values == [2]
        assert await follows == 12

    run(main)


def test_await_a_cancelled_future(held: Held) -> None:
    """A call that was cancelled, before or meanwhile, raises the CancelledError of concurrent.futures: no scope was."""

    async def main() -> None:
        call = held.pool.submit(jobs.nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, call)
            await trio.testing.wait_all_tasks_blocked()
            assert call.cancel()
        await refused(call)

    async def refused(call: Future[Any]) -> None:
        with pytest.raises(concurrent.futures.CancelledError):
            await call

    run(main)


def test_a_call_that_ends_as_its_scope_is_cancelled() -> None:
    """Whichever comes first, the task ends, and the future keeps its value."""

    def end(promise: Future[int], meet: threading.Barrier) -> None:
        meet.wait(LONG)
        with suppress(InvalidStateError):  # it was cancelled
            promise.set_result(1)

    async def main(pool: ThreadPool) -> None:
        for _ in range(300):
            promise: Future[int] = Future()
            meet = threading.Barrier(2)
            ending = pool.submit(end, promise, meet)
            async with trio.open_nursery() as nursery:
                scope = await Waiting(nursery).start(promise)
                meet.wait(LONG)
                scope.cancel()
            await ending
            assert promise.cancelled() or promise.result() == 1

    with frequent_switches(), ThreadPool(1) as pool:
        run(main, pool)


def test_ctrl_c(held: Held) -> None:
    """Ctrl-C ends the waiting, and cancels the queued call."""
    call = held.pool.submit(jobs.nothing)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            await call

    async def interrupt() -> None:
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(BaseExceptionGroup) as caught:
        run(main)
    assert caught.value.split(KeyboardInterrupt)[1] is None
    assert call.cancelled()
    assert not held.future.done()


# -- as_completed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POOLS)
def test_async_for(kind: str) -> None:
    """`async for` yields each future as it ends; it takes calls of every kind, and standard futures among them."""
    double: Any = jobs.async_double if kind == "loop" else jobs.double

    async def main(pool: Pool, executor: concurrent.futures.Executor) -> None:
        futures = [*(pool.submit(double, x) for x in range(20)), executor.submit(jobs.double, 20)]
        assert {future.result() async for future in as_completed((f for f in futures), LONG)} == set(range(0, 41, 2))

    with POOLS[kind]() as pool, concurrent.futures.ThreadPoolExecutor(1) as executor:
        run(main, pool, executor)


def test_async_for_gives_way() -> None:
    """Each step of the loop is a checkpoint, the last one too."""

    async def main() -> None:
        coming = as_completed([completed(1)])
        with trio.testing.assert_checkpoints():
            assert (await anext(coming)).result() == 1
        with trio.testing.assert_checkpoints(), pytest.raises(StopAsyncIteration):
            await anext(coming)

    run(main)


def test_async_for_times_out(held: Held) -> None:
    """TimeoutError comes when the time is up; what has ended is yielded before, what ends later after it."""

    async def main() -> None:
        coming = as_completed([held.future, completed(1)], timeout=0.01)
        assert (await anext(coming)).result() == 1
        for _ in range(2):
            with pytest.raises(TimeoutError, match="1 futures"):
                await anext(coming)
        held.go.set()
        assert await held.future == "held"
        assert await anext(coming) is held.future

    run(main)


def test_async_for_left_early(held: Held) -> None:
    """Leaving the loop early, or cancelling its scope, unties it from all futures and cancels none."""
    queued = held.pool.submit(jobs.double, 1)

    async def main() -> None:
        async for future in as_completed([completed(1), held.future, queued]):
            assert future.result() == 1
            break
        assert watchers(held.future) == watchers(queued) == 0
        with trio.move_on_after(0.01) as scope:
            async for _ in as_completed([held.future, queued]):
                raise AssertionError
        assert scope.cancelled_caught
        await trio.lowlevel.checkpoint()  # until then trio itself holds the error, and thus the loop's frame
        assert watchers(held.future) == watchers(queued) == 0
        assert not queued.cancelled()

    with without_gc():
        run(main)


def test_tasks_share_one_async_for(pool: ThreadPool) -> None:
    """Several tasks share the arrivals: each future comes to one of them, and all of them end."""

    async def look(coming: Any, found: list[int]) -> None:
        async for future in coming:
            found.append(future.result())

    async def main() -> None:
        for _ in range(20):
            coming = as_completed([pool.submit(jobs.double, x) for x in range(20)])
            found: list[int] = []
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(look, coming, found)
            assert sorted(found) == list(range(0, 40, 2))

    with frequent_switches():
        run(main)


# -- a run that ends --------------------------------------------------------------------------------------------------


def test_a_run_over_before_the_end(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    """A future that ends after the run that waited for it has nobody left to wake, and says nothing."""
    left: list[Coroutine[Any, Any, Any]] = []

    async def main() -> None:
        left.append(value_of(held.future))
        left[0].send(None)  # it waits, and nothing will cancel it

    with caplog.at_level(logging.DEBUG):
        run(main)
        assert watchers(held.future) == 1
        held.go.set()
        assert held.future.result(timeout=LONG) == "held"
        assert held.pool.submit(jobs.double, 1).result(timeout=LONG) == 2
        left[0].close()
    assert not caplog.records


def test_a_future_that_ends_as_the_run_does(caplog: pytest.LogCaptureFixture) -> None:
    """A future that ends while a run whose tasks waited for it ends disturbs neither of the two threads."""

    async def main(promise: Future[int], meet: threading.Barrier) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(value_of, promise)
            await trio.testing.wait_all_tasks_blocked()
            meet.wait(LONG)
            nursery.cancel_scope.cancel()

    def end(promise: Future[int], meet: threading.Barrier) -> None:
        meet.wait(LONG)
        with suppress(InvalidStateError):  # it was cancelled
            promise.set_result(1)

    with frequent_switches(), ThreadPool(1) as pool, caplog.at_level(logging.DEBUG):
        for _ in range(300):
            promise: Future[int] = Future()
            meet = threading.Barrier(2)
            ending = pool.submit(end, promise, meet)
            trio.run(main, promise, meet)
            ending.result(timeout=LONG)
            assert promise.done()
    assert not caplog.records


# -- beside asyncio ---------------------------------------------------------------------------------------------------


def test_trio_inside_a_task_of_asyncio(pool: ThreadPool) -> None:
    """trio.run() in a coroutine of asyncio, as in a notebook's cell: each side awaits by its own means."""

    async def inner() -> int:
        return await pool.submit(jobs.double, 1) + await completed(1)

    async def outer() -> int:
        return await pool.submit(jobs.double, run(inner)) + await pool.submit(jobs.double, 1)

    assert asyncio.run(outer()) == 8


def test_asyncio_inside_a_task_of_trio(pool: ThreadPool) -> None:
    """asyncio.run() in a coroutine of trio, as an inline pool does for an `async def`: each awaits by its own means."""

    async def inner() -> int:
        await asyncio.sleep(0)
        return await pool.submit(jobs.double, 1) + await completed(1)

    async def outer() -> int:
        assert await pool.submit(jobs.double, asyncio.run(inner())) == 6
        return await InlinePool().submit(inner) + await pool.submit(jobs.double, 1)

    assert run(outer) == 5


def test_trio_as_a_guest_of_asyncio(run_script: Any) -> None:
    """trio as the guest of a loop of asyncio: the tasks of both await on one thread."""
    run_script("""
import asyncio, trio
from parallel import ThreadPool, completed

async def either(pool):
    return await pool.submit(int, 1) + await completed(1)

async def host(pool):
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    trio.lowlevel.start_guest_run(
        either, pool, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result
    )
    return await either(pool), (await ended).unwrap()

with ThreadPool(1) as pool:
    assert asyncio.run(host(pool)) == (2, 2)
""")  # in a process of its own: trio's threads stay for a while


def test_await_without_a_run(held: Held) -> None:
    """Where neither runs, though both are loaded, awaiting is an error that says so."""
    with pytest.raises(RuntimeError, match="neither asyncio nor trio"):
        value_of(held.future).send(None)
    assert watchers(held.future) == 0
