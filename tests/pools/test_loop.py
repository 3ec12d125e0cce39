"""
What only loop pools do: one asyncio loop on a thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from subprocess import CompletedProcess
from typing import Any

import jobs
import pytest
from jobs import frequent_switches, without_gc

from parallel import (
    DeadlockError,
    Future,
    LoopPool,
    PoolBrokenError,
    PoolShutdownError,
    ThreadPool,
    UnsuitableFunctionError,
    as_completed,
    completed,
    gather,
    wait,
)

LONG = 30  # seconds; only a deadlock takes so long


@pytest.fixture
def pool() -> Iterator[LoopPool]:
    """A loop."""
    pool = LoopPool()
    yield pool
    closed_in_time(pool)


def closed_in_time(pool: LoopPool) -> None:
    """Shut the pool down, and insist that it ends."""
    closing = threading.Thread(target=pool.shutdown, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive(), "shutdown hangs"


async def nothing() -> None:
    """Do nothing."""


# -- what it takes ----------------------------------------------------------------------------------------------------


class Callable1:
    """An object that is called as a coroutine function."""

    async def __call__(self, x: int) -> int:
        """Return twice *x*."""
        return x * 2

    async def method(self, x: int) -> int:
        """Return three times *x*."""
        return x * 3


def test_plain_function_is_refused(pool: LoopPool) -> None:
    """A plain function would block the loop: it is refused at submit(), by name, and nothing is started."""
    for plain in (jobs.double, len, functools.partial(jobs.double, 1), int, Callable1, lambda: None):
        with pytest.raises(UnsuitableFunctionError, match="async def"):
            pool.submit(plain)
    with pytest.raises(UnsuitableFunctionError, match="jobs:double"):
        pool.submit(jobs.double, 1)
    assert pool.stats().workers == 0


@pytest.mark.parametrize(
    "function",
    [
        jobs.async_double,
        functools.partial(jobs.async_double),
        Callable1(),
        functools.partial(Callable1()),
        functools.partial(functools.partial(jobs.async_double)),
    ],
)
def test_coroutine_functions(pool: LoopPool, function: Callable[[int], Any]) -> None:
    """An async def, a partial of one and an object that is called so are run."""
    assert pool.submit(function, 2).result(timeout=LONG) == 4


def test_coroutine_methods(pool: LoopPool) -> None:
    """A bound async method is run."""
    assert pool.submit(Callable1().method, 2).result(timeout=LONG) == 6


def test_wrong_arguments(pool: LoopPool) -> None:
    """Wrong arguments are the call's TypeError."""
    assert isinstance(pool.submit(nothing, 1).exception(timeout=LONG), TypeError)  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [0, -1])
def test_too_few_workers(wrong: int) -> None:
    """Less than one call in flight is a ValueError."""
    with pytest.raises(ValueError, match=str(wrong)):
        LoopPool(wrong)


# -- running ----------------------------------------------------------------------------------------------------------


def test_runs_on_one_thread(pool: LoopPool) -> None:
    """All calls run on the loop's one thread, started with the first call."""
    name = jobs.to_async(jobs.thread_name)
    assert len(set(gather(*(pool.submit(name) for _ in range(20))).result(timeout=LONG))) == 1
    assert pool.stats().workers == 1


def test_calls_meet(pool: LoopPool) -> None:
    """Coroutines run together: they can wait for each other."""
    barrier: list[asyncio.Barrier] = []

    async def meet() -> int:
        if not barrier:
            barrier.append(asyncio.Barrier(50))
        return await barrier[0].wait()

    assert sorted(gather(*(pool.submit(meet) for _ in range(50))).result(timeout=LONG)) == list(range(50))


def test_max_workers_bounds_the_calls_in_flight() -> None:
    """No more than max_workers coroutines are in flight, and they start in submission order."""
    running, most, started = 0, 0, list[int]()

    async def count(index: int) -> None:
        nonlocal running, most
        started.append(index)
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1

    with LoopPool(3) as pool:
        gather(*(pool.submit(count, index) for index in range(100))).result(timeout=LONG)
    assert most == 3
    assert started == list(range(100))


def test_cancelled_call_frees_its_place() -> None:
    """With all places taken and the next ones cancelled, later calls still run."""
    with LoopPool(1) as pool, jobs.Gate() as gate:
        held = pool.submit(jobs.to_thread(jobs.wait_at), gate.address)
        gate.arrived()
        futures = [pool.submit(jobs.async_double, index) for index in range(10)]
        for future in futures[:9]:
            future.cancel()
        gate.open()
        assert futures[9].result(timeout=LONG) == 18
        held.result(timeout=LONG)


def test_context_variables_are_the_callers(pool: LoopPool) -> None:
    """A coroutine sees the caller's context variables; what it sets stays its own."""
    jobs.VARIABLE.set("caller")

    async def look() -> str:
        before = jobs.VARIABLE.get()
        jobs.VARIABLE.set("coroutine")
        await asyncio.sleep(0)
        return before + " " + jobs.VARIABLE.get()

    assert gather(*(pool.submit(look) for _ in range(5))).result(timeout=LONG) == ("caller coroutine",) * 5
    assert jobs.VARIABLE.get() == "caller"


def test_await_a_call_of_the_same_loop(pool: LoopPool) -> None:
    """A coroutine may await calls of its own loop, and of other pools."""

    async def parent(other: ThreadPool) -> int:
        return await pool.submit(jobs.async_double, 1) + await other.submit(jobs.double, 1)

    with ThreadPool(1) as other:
        assert pool.submit(parent, other).result(timeout=LONG) == 4


@pytest.mark.parametrize("how", ["result", "exception", "gather", "wait", "as_completed", "then"])
def test_waiting_on_the_loops_thread(pool: LoopPool, how: str) -> None:
    """Blocking the loop for what only it can bring raises DeadlockError instead of hanging."""

    async def parent() -> object:
        child = pool.submit(jobs.async_double, 1)
        if how == "result":
            return child.result()
        if how == "exception":
            return child.exception(timeout=LONG)
        if how == "gather":
            return gather(child, pool.submit(jobs.async_double, 2)).result()
        if how == "wait":
            return wait([child]).done
        if how == "as_completed":
            return list(as_completed([child]))
        return child.then(str).result()

    error = pool.submit(parent).exception(timeout=10)
    assert isinstance(error, DeadlockError)
    assert "the thread of the loop pool was to wait for " in str(error)
    assert "; use `await`" in str(error)


@pytest.mark.parametrize("how", ["thread", "late link", "other loop", "standard wait"])
def test_waiting_on_the_loops_thread_for_what_waits_for_it(pool: LoopPool, how: str) -> None:
    """Blocking the loop for a call that comes to wait for the loop raises, whoever of the two began first."""
    blocked = threading.Event()

    def child() -> int:
        assert blocked.wait(LONG)
        return pool.submit(jobs.async_double, 1).result()

    async def on_the_other() -> int:
        return pool.submit(jobs.async_double, 1).result()

    def late(_: object) -> Future[int]:
        assert blocked.wait(LONG)
        return pool.submit(jobs.async_double, 1)

    async def parent() -> object:
        asyncio.get_running_loop().call_soon(blocked.set)
        await asyncio.sleep(0)
        if how == "thread":
            return other.submit(child).result()
        if how == "late link":
            return completed(1).then(late).result()
        if how == "other loop":
            return loop.submit(on_the_other).result()
        return len(concurrent.futures.wait([pool.submit(jobs.async_double, 1)]).done)

    with ThreadPool(1) as other, LoopPool() as loop:
        assert isinstance(pool.submit(parent).exception(timeout=LONG), DeadlockError)


def test_waiting_for_its_own_future(pool: LoopPool) -> None:
    """A coroutine that asks for its own result gets a DeadlockError."""
    ready = threading.Event()
    futures: list[Any] = []

    async def mine() -> object:
        await asyncio.to_thread(ready.wait, LONG)
        return futures[0].result()

    futures.append(pool.submit(mine))
    ready.set()
    assert isinstance(futures[0].exception(timeout=10), DeadlockError)


def test_waiting_for_an_ended_call(pool: LoopPool) -> None:
    """result() of a call that has ended is allowed on the loop's thread."""

    async def parent() -> int:
        child = pool.submit(jobs.async_double, 1)
        await child
        return child.result()

    assert pool.submit(parent).result(timeout=LONG) == 2


def test_ended_calls_are_no_reason_to_refuse(pool: LoopPool) -> None:
    """The loop's thread may wait for what other threads bring, though ended calls of the loop are in it too."""

    async def parent(other: ThreadPool) -> object:
        ended = pool.submit(jobs.async_double, 1)
        assert ended.cancel()
        return gather(ended, other.submit(jobs.double, 2), return_exceptions=True).result(timeout=LONG)[1]

    with ThreadPool(1) as other:
        assert pool.submit(parent, other).result(timeout=LONG) == 4


def test_waiting_for_what_is_combined_many_times(pool: LoopPool) -> None:
    """The look at what a future hangs on takes each once, however many ways lead to it."""
    with ThreadPool(1) as other, jobs.Gate() as gate:
        combined: Any = other.submit(jobs.wait_at, gate.address)
        for _ in range(60):
            combined = gather(combined, combined)

        async def poll() -> None:
            combined.result(timeout=0)

        assert isinstance(pool.submit(poll).exception(timeout=LONG), TimeoutError)
        gate.arrived()


# -- cancellation inside ----------------------------------------------------------------------------------------------


def test_coroutine_that_raises_cancelled_error(pool: LoopPool) -> None:
    """A coroutine that ends with asyncio.CancelledError is a cancelled call; the loop goes on."""

    async def give_up() -> None:
        raise asyncio.CancelledError

    future = pool.submit(give_up)
    assert not wait([future], timeout=LONG).not_done
    assert future.cancelled()
    assert pool.submit(jobs.async_double, 1).result(timeout=LONG) == 2


def test_coroutine_that_cancels_all_others(pool: LoopPool) -> None:
    """A coroutine that cancels every task of the loop, those that have not begun too, leaves no future pending."""

    async def cancel_all() -> None:
        for other in asyncio.all_tasks():
            if other is not asyncio.current_task():
                other.cancel()

    async def forever() -> None:
        await asyncio.Event().wait()

    async def spree() -> list[Any]:
        mine = [pool.submit(forever) for _ in range(5)]
        await asyncio.sleep(0)
        mine += [pool.submit(forever) for _ in range(5)]
        while pool.stats().queued:
            await asyncio.sleep(0)
        await cancel_all()
        return mine

    futures = pool.submit(spree).result(timeout=LONG)
    assert not wait(futures, timeout=10).not_done
    assert all(future.cancelled() for future in futures)


def test_tasks_cancelled_before_their_first_step(pool: LoopPool) -> None:
    """A call whose task is cancelled before its first step is a cancelled call, and not one that hangs."""

    async def cancel_new() -> None:
        me = asyncio.current_task()
        for _ in range(50):
            for other in asyncio.all_tasks():
                if other is not me:
                    other.cancel()
            await asyncio.sleep(0)

    futures: list[Any] = []
    cancelling = pool.submit(cancel_new)
    futures += [pool.submit(jobs.async_double, 1) for _ in range(200)]
    cancelling.result(timeout=LONG)
    assert not wait(futures, timeout=10).not_done
    assert pool.submit(jobs.async_double, 1).result(timeout=LONG) == 2


def test_timeout_inside(pool: LoopPool) -> None:
    """asyncio's own timeouts work in a call."""

    async def slow() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    assert isinstance(pool.submit(slow).exception(timeout=LONG), TimeoutError)


def test_background_tasks_are_cancelled_at_shutdown() -> None:
    """What a coroutine started and nobody awaits is cancelled when the loop closes."""
    told: list[str] = []
    tasks: list[Any] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append("cancelled")

    async def start() -> None:
        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    pool = LoopPool()
    pool.submit(start).result(timeout=LONG)
    closed_in_time(pool)
    assert told == ["cancelled"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_background_task_that_ends_the_loop(error: BaseException) -> None:
    """A background task that raises SystemExit, which ends asyncio's loop, leaves no future pending and no hang."""
    pool = LoopPool()
    tasks: list[Any] = []

    async def bad() -> None:
        raise error

    async def parent() -> None:
        tasks.append(asyncio.create_task(bad()))
        await asyncio.Event().wait()

    futures = [pool.submit(parent)]
    try:
        futures += [pool.submit(jobs.async_double, 1) for _ in range(5)]
        assert not wait(futures, timeout=10).not_done
        with_new = pool.submit(jobs.async_double, 2)  # it goes on, or refuses; it doesn't hang
        assert with_new.exception(timeout=10) is None or with_new.result() == 4
    except RuntimeError:
        pass
    finally:
        tasks.clear()
        closed_in_time(pool)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_coroutine_that_stops_the_loop() -> None:
    """A coroutine that stops the loop leaves no future pending, and shutdown() returns."""
    pool = LoopPool()

    async def stop() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "went on"

    futures = [pool.submit(stop), *(pool.submit(jobs.async_double, 1) for _ in range(5))]
    assert not wait(futures, timeout=10).not_done
    closed_in_time(pool)


def test_loop_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """If asyncio's loop itself fails, every call ends, and new ones are refused with the reason."""
    pool = LoopPool(2)
    queued: list[Any] = []

    async def sabotage() -> None:
        queued.extend(pool.submit(nothing) for _ in range(3))
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> None:
            del selector.select
            raise OSError("the selector is gone")

        selector.select = select
        await asyncio.Event().wait()

    with jobs.Gate() as gate:
        running: list[Any] = [pool.submit(jobs.to_thread(jobs.wait_at), gate.address)]
        gate.arrived()
        running.append(pool.submit(sabotage))
    assert not wait(running, timeout=10).not_done
    assert not wait(queued, timeout=10).not_done
    assert [type(future.exception()) for future in queued] == [PoolBrokenError] * 3
    with pytest.raises(PoolBrokenError, match="the selector is gone"):
        pool.submit(nothing)
    closed_in_time(pool)
    assert "loop has failed" in caplog.text


def test_task_factory_that_fails(pool: LoopPool) -> None:
    """A task factory of the user's that raises fails the calls; the loop goes on."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise LookupError("no tasks today")

    async def refuse_one() -> object:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuse)
        refused = pool.submit(nothing)
        while not refused.done():
            await asyncio.sleep(0)
        loop.set_task_factory(None)
        return refused.exception()

    assert isinstance(pool.submit(refuse_one).result(timeout=LONG), LookupError)
    assert pool.submit(jobs.async_double, 1).result(timeout=LONG) == 2


# -- callbacks --------------------------------------------------------------------------------------------------------


def test_blocking_callback_does_not_block_the_loop(pool: LoopPool) -> None:
    """Callbacks and continuations never run on the loop's thread."""
    go, inside = threading.Event(), threading.Event()
    names: list[str] = []

    def block(_: object) -> None:
        names.append(jobs.thread_name())
        inside.set()
        go.wait(LONG)

    with jobs.Gate() as gate:
        future = pool.submit(jobs.to_thread(jobs.wait_at), gate.address)
        future.add_done_callback(block)
        gather(future).add_done_callback(lambda _: names.append(jobs.thread_name()))
        gate.arrived()
    assert inside.wait(LONG)
    try:
        assert pool.submit(jobs.async_double, 1).result(timeout=10) == 2
        loop_name = pool.submit(jobs.to_async(jobs.thread_name)).result(timeout=10)
        assert pool.submit(nothing).then(lambda _: jobs.thread_name()).result(timeout=10) != loop_name
    finally:
        go.set()
    assert loop_name not in names


def test_shutdown_waits_for_what_follows() -> None:
    """shutdown() returns when callbacks and continuations have run, the later stages of a chain too."""
    pool = LoopPool()
    go = threading.Event()
    told: list[str] = []

    def slow(what: str) -> None:
        go.wait(LONG)
        told.append(what)

    future = pool.submit(nothing)
    future.add_done_callback(lambda _: slow("callback"))
    last = future.then(lambda _: slow("then")).then(lambda _: told.append("last"))
    closing = threading.Thread(target=pool.shutdown, daemon=True)
    closing.start()
    future.result(timeout=LONG)
    closing.join(0.1)
    assert closing.is_alive()
    go.set()
    closing.join(LONG)
    assert not closing.is_alive()
    assert last.done()
    assert sorted(told) == ["callback", "last", "then"]


def test_shutdown_from_what_follows(pool: LoopPool) -> None:
    """A continuation may shut the pool of its call down: it doesn't wait for itself."""
    assert pool.submit(nothing).then(lambda _: pool.shutdown()).result(timeout=10) is None
    with pytest.raises(PoolShutdownError):
        pool.submit(nothing)


def test_a_chain_stays_on_its_thread(pool: LoopPool) -> None:
    """Link after link of one chain runs on the same callback thread, without a hand-over."""
    with jobs.Gate() as gate:
        chain: Any = pool.submit(jobs.to_thread(jobs.wait_at), gate.address).then(lambda _: [])
        for _ in range(50):
            chain = chain.then(lambda idents: [*idents, threading.get_ident()])
        gate.arrived()
    assert len(set(chain.result(timeout=LONG))) == 1


# -- shutdown ---------------------------------------------------------------------------------------------------------


def test_shutdown_from_the_loop() -> None:
    """A coroutine may shut its own pool down; what was accepted is run."""
    pool = LoopPool()
    after: list[Any] = []

    async def close() -> None:
        after.append(pool.submit(jobs.async_double, 2))
        pool.shutdown()
        with pytest.raises(PoolShutdownError):
            pool.submit(jobs.async_double, 1)

    pool.submit(close).result(timeout=LONG)
    assert after[0].result(timeout=LONG) == 4
    closed_in_time(pool)


def test_cancelling_goes_on_after_a_callback_that_exits() -> None:
    """With cancel_futures, a callback that raises SystemExit comes out, but all waiting calls are cancelled."""
    pool = LoopPool(1)

    def leave(_: object) -> None:
        raise SystemExit(3)

    with jobs.Gate() as gate:
        pool.submit(jobs.to_thread(jobs.wait_at), gate.address)
        gate.arrived()
        futures = [pool.submit(nothing) for _ in range(5)]
        futures[1].add_done_callback(leave)
        with pytest.raises(SystemExit):
            pool.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in futures)
    closed_in_time(pool)


def test_shutdown_races_with_submit() -> None:
    """Every submit that races with shutdown raises or its future ends."""
    with frequent_switches():
        for _ in range(100):
            pool = LoopPool()
            closing = threading.Thread(target=pool.shutdown, daemon=True)
            futures = []
            closing.start()
            with suppress(PoolShutdownError):
                for _ in range(20):
                    futures.append(pool.submit(jobs.async_double, 1))
            assert not wait(futures, timeout=LONG).not_done
            closing.join(LONG)
            assert not closing.is_alive()


def test_shutdown_closes_the_loop() -> None:
    """After shutdown the loop is closed, and its default executor's threads are gone."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def look() -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.to_thread(jobs.nothing)

    with LoopPool() as pool:
        pool.submit(look).result(timeout=LONG)
    assert loops[0].is_closed()


def test_errors_are_freed(pool: LoopPool) -> None:
    """An error dies with its future, without the cyclic garbage collector."""

    class BigError(Exception):
        pass

    async def fail() -> None:
        raise BigError

    with without_gc():
        future = pool.submit(fail)
        ref = weakref.ref(future.exception(timeout=LONG))  # type: ignore[type-var]
        del future
        for _ in range(3):
            pool.submit(nothing).result(timeout=LONG)
        freed = ref() is None
    gc.collect()
    assert freed


def test_many_calls(pool: LoopPool) -> None:
    """10,000 coroutines at once come to an end."""
    futures = [pool.submit(jobs.async_double, index) for index in range(10_000)]
    assert gather(*futures).result(timeout=LONG) == tuple(range(0, 20_000, 2))


def test_loop_that_cannot_start(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """If no thread can be started, submit() raises and leaves nothing behind; the next one works."""
    out = run_script(
        """
import threading
from parallel import LoopPool

async def double(x):
    return x * 2

pool = LoopPool()
threading.stack_size(1 << 46)  # more than there is: the operating system refuses
try:
    pool.submit(double, 1)
except RuntimeError:
    print("refused")
threading.stack_size(0)
print(pool.submit(double, 2).result(timeout=10))
pool.shutdown()
""",
        timeout=20,
        flags=("-W", "error"),
    )
    assert out.stdout.split() == ["refused", "4"]
    assert out.stderr == ""


def test_contexts_are_not_mixed(pool: LoopPool) -> None:
    """Calls submitted from one context object many times each run in a copy."""
    context = contextvars.copy_context()
    context.run(jobs.VARIABLE.set, "mine")
    futures = [context.run(pool.submit, jobs.to_async(jobs.VARIABLE.set), str(index)) for index in range(5)]
    gather(*futures).result(timeout=LONG)
    assert context[jobs.VARIABLE] == "mine"


def test_first_callers_context_is_not_kept(pool: LoopPool) -> None:
    """The loop does not keep alive what the context of the first submit() holds."""

    class Request:
        pass

    request = Request()
    ref = weakref.ref(request)
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    context.run(variable.set, request)
    context.run(pool.submit, nothing).result(timeout=LONG)
    del context, request
    for _ in range(3):
        pool.submit(nothing).result(timeout=LONG)
    gc.collect()
    assert ref() is None


def test_error_of_a_call_that_knows_its_task_is_freed(pool: LoopPool) -> None:
    """An error whose frame holds the asyncio task dies with its future, without the cyclic garbage collector."""

    class BigError(Exception):
        pass

    async def fail() -> None:
        me = asyncio.current_task()
        assert me is not None
        raise BigError

    with without_gc():
        future = pool.submit(fail)
        ref = weakref.ref(future.exception(timeout=LONG))  # type: ignore[type-var]
        del future
        for _ in range(3):
            pool.submit(nothing).result(timeout=LONG)
        freed = ref() is None
    gc.collect()
    assert freed


def test_interrupted_program_cancels_what_runs(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """After a Ctrl-C that nobody handles, running coroutines are cancelled, and the program ends."""
    out = run_script(
        """
import asyncio
import concurrent.futures
from parallel import LoopPool

async def long():
    try:
        print("started", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

pool = LoopPool(1)
future = pool.submit(long)
waiting = pool.submit(long)
waiting.add_done_callback(lambda f: print("waiting", f.cancelled(), flush=True))
future.result()
""",
        timeout=30,
        interrupt_at="started",
        status=None,
    )
    assert "cleaned up" in out.stdout
    assert "waiting True" in out.stdout
    assert out.returncode not in (0, -6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_a_lock_is_held(pool: LoopPool, in_fork: Callable[..., Any]) -> None:
    """Locks that another thread holds at a fork don't hang the child, nor closing what it took over."""
    pool.submit(nothing).result(timeout=LONG)
    engine: Any = pool._engine
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with engine._lock, engine.handed._quiet:
            held.set()
            release.wait(LONG)

    def child() -> int:
        engine.close(False)
        engine.join()
        return pool.submit(jobs.async_double, 1).then(jobs.double).result(timeout=10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(LONG)
        assert in_fork(child) == 4
    finally:
        release.set()
        holder.join()


def test_a_call_that_awaits_another_lends_its_place() -> None:
    """In a pool of one place, calls may await calls, as deep as they like, and several at a time."""
    with LoopPool(1) as pool:

        async def nest(depth: int) -> int:
            if depth == 0:
                return 0
            one, two = await asyncio.gather(pool.submit(nest, depth - 1), pool.submit(nest, 0))
            return 1 + one + two

        assert pool.submit(nest, 30).result(jobs.PATIENCE) == 30
        assert pool.submit(jobs.async_double, 2).result(jobs.PATIENCE) == 4
