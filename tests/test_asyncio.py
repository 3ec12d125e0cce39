"""
Futures and pools under asyncio: `await`, `async for`, asyncio's own combinators, cancellation, and loops that close.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sys
import threading
import weakref
from collections.abc import Awaitable, Coroutine, Iterator
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any

import jobs
import pytest
from awaiting import POOLS, awaits, value_of, watchers
from jobs import Gate, Held, frequent_switches, without_gc

from parallel import (
    Future,
    LoopPool,
    Pool,
    ProcessPool,
    StarvationError,
    ThreadPool,
    as_completed,
    completed,
    gather,
)

LONG = 30  # seconds; only a deadlock takes so long


def run(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """Run *main* to its end in a loop of its own."""
    return asyncio.run(asyncio.wait_for(main, LONG), **options)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


async def turns() -> None:
    """Give the loop some turns, so that tasks get to where they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def started(*awaitables: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Make a task of each, and return when all wait."""
    tasks = [asyncio.create_task(value_of(one)) for one in awaitables]
    await turns()
    return tasks


async def cancelled(task: asyncio.Future[Any]) -> bool:
    """Cancel *task* and tell whether it was."""
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


# -- await ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
@pytest.mark.parametrize("kind", POOLS)
def test_await(kind: str, debug: bool) -> None:
    """Calls of every kind are awaited: for a value or an error, chained and combined."""
    with POOLS[kind]() as pool:
        run(awaits(pool), debug=debug)


@pytest.mark.parametrize("kind", POOLS)
def test_asyncios_own_functions(kind: str) -> None:
    """gather, wait_for, shield, as_completed, wrap_future, run_in_executor and TaskGroup take futures and pools."""
    double: Any = jobs.async_double if kind == "loop" else jobs.double

    async def main(pool: Pool) -> None:
        assert await asyncio.gather(pool.submit(double, 1), pool.submit(double, 2)) == [2, 4]
        assert await asyncio.wait_for(pool.submit(double, 1), LONG) == 2
        assert await asyncio.shield(pool.submit(double, 1)) == 2
        assert sorted([await one for one in asyncio.as_completed([pool.submit(double, x) for x in (1, 2)])]) == [2, 4]
        assert await asyncio.wrap_future(pool.submit(double, 1)) == 2
        assert await asyncio.get_running_loop().run_in_executor(pool, double, 1) == 2
        async with asyncio.timeout(LONG), asyncio.TaskGroup() as group:
            tasks = [group.create_task(value_of(pool.submit(double, x))) for x in range(3)]
        assert [task.result() for task in tasks] == [0, 2, 4]

    with POOLS[kind]() as pool:
        run(main(pool))


def test_await_without_a_loop(held: Held) -> None:
    """Where neither asyncio nor trio runs, awaiting is an error that says so, ended or not."""
    for future in (held.future, completed(1)):
        with pytest.raises(RuntimeError, match=r"neither asyncio nor trio.*result\(\)"):
            value_of(future).send(None)
    assert watchers(held.future) == 0


def test_several_tasks_await_one_future() -> None:
    """Each of the tasks that await a future gets its value, in one loop or in several."""
    promise: Future[str] = Future()
    waiting = threading.Barrier(4)

    async def main() -> list[str]:
        tasks = await started(*[promise] * 5)
        await asyncio.to_thread(waiting.wait, LONG)
        return await asyncio.gather(*tasks)

    with ThreadPool(3) as pool:
        loops = [pool.submit(main) for _ in range(3)]
        waiting.wait(LONG)
        promise.set_result("value")
        assert gather(*loops).result(timeout=LONG) == (["value"] * 5,) * 3


def test_an_error_awaited_often_does_not_grow(held: Held) -> None:
    """Each task that awaits a failed call gets the same error, and its traceback doesn't add up."""
    broken = held.pool.submit(jobs.divide, 1, 0)

    async def depth() -> int:
        with pytest.raises(ZeroDivisionError) as caught:
            await broken
        return len(caught.traceback)

    async def main() -> None:
        tasks = [asyncio.create_task(depth()) for _ in range(5)]
        held.go.set()
        assert len({await task for task in tasks}) == 1
        assert await depth() == tasks[0].result()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks(held: Held) -> None:
    """A task that starts at once, within create_task(), awaits futures that have ended and others."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # 3.12
        ended = asyncio.create_task(value_of(completed(1)))
        assert ended.done()
        pending = asyncio.create_task(value_of(held.future))
        queued = asyncio.create_task(value_of(call := held.pool.submit(jobs.nothing)))
        assert watchers(held.future) == watchers(call) == 1
        assert await cancelled(queued)
        assert call.cancelled()
        held.go.set()
        assert (await pending, await ended) == ("held", 1)

    run(main())


def test_inside_the_loop_pool() -> None:
    """A call of a loop pool awaits calls of the same pool, of a thread pool, and in several tasks at once."""

    async def parent(loop: LoopPool, threads: ThreadPool) -> list[int]:
        one = await loop.submit(jobs.async_double, 1)
        two = await threads.submit(jobs.double, one)
        return await asyncio.gather(loop.submit(jobs.async_double, two), threads.submit(jobs.double, two))

    with LoopPool() as loop, ThreadPool(1) as threads:
        assert loop.submit(parent, loop, threads).result(timeout=LONG) == [8, 8]


def test_on_a_worker_thread() -> None:
    """Coroutines on the only worker of a pool await calls of that pool: several at once lend its one place."""

    async def parent(pool: ThreadPool) -> tuple[int, ...]:
        return tuple(await asyncio.gather(*(pool.submit(jobs.double, x) for x in range(3))))

    with ThreadPool(1) as pool:
        assert pool.submit(parent, pool).result(timeout=LONG) == (0, 2, 4)
        assert pool.stats().queued == 0


def test_a_worker_that_may_not_wait(monkeypatch: pytest.MonkeyPatch, held: Held) -> None:
    """Where the pool has no place left to lend, awaiting raises StarvationError, and cancels nothing."""
    monkeypatch.setattr("parallel.pools.crew.MAX_LENT", 0)
    call = held.pool.submit(jobs.double, 1)

    async def parent() -> int:
        return await call

    with ThreadPool(1) as pool:
        for _ in range(2):
            with pytest.raises(StarvationError):
                pool.submit(parent).result(timeout=LONG)
        assert watchers(call) == 0
        held.go.set()
        assert call.result(timeout=LONG) == 2
        monkeypatch.undo()
        assert pool.submit(lambda: pool.submit(jobs.double, 1).then(jobs.double).result(LONG)).result(LONG) == 4


def test_no_wake_up_is_lost() -> None:
    """Over thousands of ends that race with the waiting, each wakes its task."""

    async def main(pool: ThreadPool) -> None:
        for index in range(1000):
            one, two = pool.submit(jobs.double, index), pool.submit(jobs.double, index)
            assert await asyncio.gather(one, two) == [index * 2] * 2

    with frequent_switches(), ThreadPool(2) as pool:
        run(main(pool))


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelling_cancels_a_queued_call(held: Held) -> None:
    """Cancelling the only task that awaits a queued call cancels the call, and what leads only to it."""

    async def main() -> None:
        plain, source = held.pool.submit(jobs.nothing), held.pool.submit(jobs.nothing)
        chained = source.then(str)
        parts = [held.pool.submit(jobs.nothing) for _ in range(2)]
        for task in await started(plain, chained, gather(*parts)):
            assert await cancelled(task)
        assert all(future.cancelled() for future in (plain, source, chained, *parts))

    run(main())


def test_cancelling_leaves_a_running_call(held: Held) -> None:
    """Cancelling who awaits a running call cancels the task alone, and leaves nothing behind in the future."""

    async def main() -> None:
        (task,) = await started(held.future)
        assert await cancelled(task)
        assert held.future.running()
        assert watchers(held.future) == 0

    run(main())


def test_cancelling_who_awaits_another_process() -> None:
    """Cancelling who awaits a call that runs in another process leaves it running; a queued one is cancelled."""

    async def main(pool: ProcessPool) -> None:
        with Gate() as gate:
            running = pool.submit(jobs.wait_at, gate.address, "opened")
            queued = pool.submit(jobs.nothing)
            await asyncio.to_thread(gate.arrived)
            one, two = await started(running, queued)
            assert await cancelled(one)
            assert await cancelled(two)
            assert queued.cancelled()
            assert not running.cancelled()
        assert await running == "opened"

    with ProcessPool(1) as pool:
        run(main(pool))


def test_cancelling_one_of_two(held: Held) -> None:
    """A call that a second task awaits goes on; only the last one who waits cancels it."""

    async def main() -> None:
        shared, lonely = held.pool.submit(jobs.double, 1), held.pool.submit(jobs.double, 2)
        one, two, three, four = await started(shared, shared, lonely, lonely)
        assert await cancelled(one)
        assert await cancelled(three)
        assert not shared.cancelled()
        assert await cancelled(four)
        assert lonely.cancelled()
        held.go.set()
        assert await two == 2

    run(main())


@pytest.mark.parametrize("how", ["then", "callback", "gather", "result", "as_completed", "wrap_future", "wait"])
def test_cancelling_leaves_what_others_wait_for(held: Held, pool: ThreadPool, how: str) -> None:
    """A call with another continuation, callback or waiter goes on when who awaits it is cancelled."""

    async def main() -> None:
        shared = held.pool.submit(jobs.double, 1)
        seen: Any = None
        if how == "then":
            seen = shared.then(str)
        elif how == "callback":
            seen = Future[object]()
            shared.add_done_callback(lambda future: seen.set_result(future.result()))
        elif how == "gather":
            seen = gather(shared)
        elif how == "as_completed":
            seen = pool.submit(lambda: [future.result() for future in as_completed([shared])])
        elif how == "wrap_future":
            seen = asyncio.wrap_future(shared)
        elif how == "wait":
            seen = pool.submit(lambda: bool(concurrent.futures.wait([shared], LONG).done))
        else:
            seen = pool.submit(lambda: shared.result(LONG))
        while not watchers(shared) and not shared._waiters:
            await asyncio.sleep(0)
        (task,) = await started(shared)
        assert await cancelled(task)
        assert not shared.cancelled()
        held.go.set()
        await seen
        assert await shared == 2

    run(main())


def test_wait_for_in_vain(held: Held) -> None:
    """wait_for() and timeout() that run out cancel the queued call, as they do with any awaitable."""

    async def main() -> None:
        one, two = held.pool.submit(jobs.nothing), held.pool.submit(jobs.nothing)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one, 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await two
        assert one.cancelled()
        assert two.cancelled()

    run(main())


def test_shield_protects_the_call(held: Held) -> None:
    """Cancelling asyncio.shield(future) doesn't reach the call."""

    async def main() -> None:
        call = held.pool.submit(jobs.double, 1)
        shield = asyncio.shield(call)
        await turns()
        assert await cancelled(shield)
        assert not call.cancelled()
        held.go.set()
        assert await call == 2

    run(main())


def test_await_a_cancelled_future(held: Held) -> None:
    """Awaiting a call that was cancelled, before or meanwhile, raises asyncio.CancelledError."""

    async def main() -> None:
        call = held.pool.submit(jobs.nothing)
        (task,) = await started(call)
        assert call.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(main())


def test_a_call_that_ends_as_its_task_is_cancelled() -> None:
    """Whichever comes first, the task ends, and the future keeps its value."""

    async def main() -> None:
        for _ in range(300):
            promise: Future[int] = Future()
            (task,) = await started(promise)
            ending = asyncio.get_running_loop().run_in_executor(None, end, promise)
            task.cancel()
            await asyncio.wait([task, ending])
            assert task.cancelled()
            assert promise.cancelled() or promise.result() == 1

    def end(promise: Future[int]) -> None:
        with suppress(InvalidStateError):  # it was cancelled
            promise.set_result(1)

    with frequent_switches():
        run(main())


def test_a_dropped_coroutine_cancels_nothing(held: Held) -> None:
    """A coroutine that is closed while it awaits leaves nothing behind in the future, and doesn't cancel it."""
    call = held.pool.submit(jobs.double, 1)

    async def main() -> None:
        waiting = value_of(call)
        waiting.send(None)
        assert watchers(call) == 1
        waiting.close()

    run(main())
    assert watchers(call) == 0
    held.go.set()
    assert call.result(timeout=LONG) == 2


# -- as_completed -----------------------------------------------------------------------------------------------------


def test_async_for() -> None:
    """`async for` yields each future as it ends: those that have ended first, each once, given twice or not."""

    async def main() -> None:
        one, two, three = Future[int](), completed(2), Future[int]()
        coming = as_completed([one, two, three, one])
        assert await anext(coming) is two
        (task,) = await started(anext(coming))
        three.set_exception(ValueError())
        assert await task is three
        one.cancel()
        assert [future async for future in coming] == [one]
        assert [future async for future in as_completed([])] == []

    run(main())


@pytest.mark.parametrize("kind", POOLS)
def test_async_for_over_calls(kind: str) -> None:
    """It takes calls of every kind, any iterable, and futures of the standard library among them."""
    double: Any = jobs.async_double if kind == "loop" else jobs.double

    async def main(pool: Pool, executor: concurrent.futures.Executor) -> None:
        futures = [*(pool.submit(double, x) for x in range(20)), executor.submit(jobs.double, 20)]
        assert {future.result() async for future in as_completed((f for f in futures), LONG)} == set(range(0, 41, 2))

    with POOLS[kind]() as pool, concurrent.futures.ThreadPoolExecutor(1) as executor:
        run(main(pool, executor))


def test_async_for_times_out(held: Held) -> None:
    """TimeoutError comes when the time since the call of as_completed() is up; what has ended is yielded before."""

    async def main() -> None:
        coming = as_completed([held.future, completed(1)], timeout=0.05)
        await asyncio.sleep(0.06)
        assert (await anext(coming)).result() == 1
        for _ in range(2):
            with pytest.raises(TimeoutError, match="1 futures"):
                await anext(coming)
        held.go.set()
        assert await held.future == "held"
        assert await anext(coming) is held.future

    run(main())


def test_async_for_left_early(held: Held) -> None:
    """Leaving the loop early, or cancelling its task, unties it from all futures and cancels none."""
    queued = held.pool.submit(jobs.double, 1)

    async def leave() -> None:
        async for future in as_completed([completed(1), held.future, queued]):
            assert future.result() == 1
            break

    async def stay() -> None:
        async for _ in as_completed([held.future, queued]):
            raise AssertionError

    async def main() -> None:
        await leave()
        assert watchers(held.future) == watchers(queued) == 0
        task = asyncio.create_task(stay())
        await turns()
        assert watchers(held.future) == watchers(queued) == 1
        assert await cancelled(task)
        del task  # its traceback holds the loop's frame
        assert watchers(held.future) == watchers(queued) == 0
        assert not queued.cancelled()

    with without_gc():
        run(main())


def test_async_for_lets_go() -> None:
    """A future that has been yielded, and its value, are held no longer, nor is a timer for the time that is left."""

    class Big:
        pass

    async def main() -> None:
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        one, two = Future[Big](), Future[Big]()
        coming = as_completed([one, two], timeout=LONG)
        (task,) = await started(anext(coming))
        assert [timer.cancelled() for timer in timers] == [False]
        one.set_result(Big())
        ref = weakref.ref((await task).result())
        del one, task
        await turns()
        assert ref() is None
        assert all(timer.cancelled() for timer in timers)
        roll = weakref.ref(coming._roll)
        two.set_result(Big())
        assert await anext(coming) is two
        del coming
        await turns()
        assert roll() is None

    with without_gc():
        asyncio.run(main())


def test_tasks_share_one_async_for(pool: ThreadPool) -> None:
    """Several tasks share the arrivals: each future comes to one of them, and all of them end."""

    async def look(coming: Any) -> list[int]:
        return [future.result() async for future in coming]

    async def main() -> None:
        for _ in range(50):
            coming = as_completed([pool.submit(jobs.double, x) for x in range(20)])
            found = await asyncio.gather(*(look(coming) for _ in range(3)))
            assert sorted(value for part in found for value in part) == list(range(0, 40, 2))

    with frequent_switches():
        run(main())


def test_close_ends_an_async_for(held: Held) -> None:
    """close() ends the iteration for those who wait in it."""

    async def main() -> None:
        coming = as_completed([held.future])

        async def rest() -> list[Any]:
            return [future async for future in coming]

        (task,) = await started(rest())
        coming.close()
        assert await task == []

    run(main())


def test_async_for_on_a_worker_thread() -> None:
    """On the only worker of a pool, `async for` over calls of that pool lends the place."""

    async def parent(pool: ThreadPool) -> list[int]:
        return sorted([future.result() async for future in as_completed([pool.submit(jobs.double, x) for x in (1, 2)])])

    with ThreadPool(1) as pool:
        assert pool.submit(parent, pool).result(timeout=LONG) == [2, 4]


# -- a loop that closes -----------------------------------------------------------------------------------------------


CLOSING = """
import asyncio, gc, threading
from parallel import ProcessPool, ThreadPool, as_completed, gather
import jobs

go = threading.Event()

async def forget(future):
    await future

async def iterate(futures):
    async for _ in as_completed(futures):
        pass

async def main(pool, others):
    calls = [pool.submit(go.wait, 30), pool.submit(jobs.nothing), others.submit(jobs.double, 1)]
    tasks = [asyncio.create_task(forget(future)) for future in [*calls, gather(*calls), calls[0].then(str)]]
    tasks.append(asyncio.create_task(iterate(calls)))
    tasks.append(asyncio.ensure_future(asyncio.wrap_future(calls[0])))
    while not calls[0].running():
        await asyncio.sleep(0)
    return calls

def rounds():
    with ThreadPool(1) as pool, ProcessPool(1) as others:
        for round in range(3):
            calls = asyncio.run(main(pool, others), debug=round == 2)
            gc.collect()
            assert not calls[0].done()
            go.set()
            assert calls[0].result(timeout=30)
            go.clear()

if __name__ == "__main__":
    rounds()
    gc.collect()
    print("closed")
"""


def test_closing_a_loop_with_calls_pending(run_script: Any) -> None:
    """asyncio.run() that ends while tasks await calls neither hangs nor warns."""
    done = run_script(CLOSING, flags=("-W", "error", "-X", "dev"))
    assert done.stdout == "closed\n"
    assert done.stderr == ""


@pytest.mark.parametrize("how", ["run", "close"])
def test_a_future_that_ends_as_the_loop_closes(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """A future that ends while a loop that waits for it closes disturbs neither of the two threads."""

    async def main(promise: Future[int], meet: threading.Barrier) -> Coroutine[Any, Any, Any]:
        await started(promise, promise)
        left = value_of(promise)
        left.send(None)  # it waits, and nothing will cancel it
        if how == "run":
            meet.wait(LONG)
        return left

    def end(promise: Future[int], meet: threading.Barrier) -> None:
        meet.wait(LONG)
        with suppress(InvalidStateError):  # it was cancelled
            promise.set_result(1)

    def run_and_close(promise: Future[int], meet: threading.Barrier) -> None:
        with asyncio.Runner() as runner:
            left = runner.run(main(promise, meet))
            if how == "close":
                meet.wait(LONG)
        left.close()

    with frequent_switches(), ThreadPool(1) as pool, caplog.at_level(logging.DEBUG):
        for _ in range(300):
            promise: Future[int] = Future()
            meet = threading.Barrier(2)
            ending = pool.submit(end, promise, meet)
            run_and_close(promise, meet)
            ending.result(timeout=LONG)
            assert promise.done()
    assert not [record for record in caplog.records if record.name != "asyncio" or record.levelno > logging.DEBUG]


def test_a_loop_closed_over_a_waiting_coroutine(held: Held) -> None:
    """A future that ends after the loop was closed under who awaits it has nobody left to wake, and says nothing."""
    loop = asyncio.new_event_loop()
    waiting = value_of(held.future)

    async def main() -> None:
        waiting.send(None)  # a task would warn: it is its user who should have ended it

    loop.run_until_complete(main())
    loop.close()
    held.go.set()
    assert held.future.result(timeout=LONG) == "held"
    assert held.pool.submit(jobs.double, 1).result(timeout=LONG) == 2
    waiting.close()
