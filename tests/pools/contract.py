"""
What every pool must do, whatever its kind: written once, run for each kind and start method by `test_contract`.

A subclass gives the fixtures *kind*, *pool* (fresh, of two workers) and *shared* (the same for all tests of a kind,
with its workers started).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager, suppress
from typing import Any

import jobs
import pytest
from attrs import frozen

from parallel import (
    ForkedError,
    Future,
    Pool,
    PoolBrokenError,
    PoolShutdownError,
    as_completed,
    gather,
    wait,
)
from parallel.pools.base import Counts

LONG = 30  # seconds; only a deadlock takes so long
Function = Callable[..., Any]


@frozen
class Kind:
    """
    A kind of pool, and how functions are made ready for it.

    Attributes:
        name: For messages.
        make: Makes a pool: `make(max_workers, **options)`.
        job: Makes of a plain function one that the pool runs.
        blocking: The same for a function that blocks.
        concurrent: Calls run while their caller goes on.
        remote: Calls run in other processes.
        starts: Workers have an initializer.
        late: That a call runs is known a moment later.
    """

    name: str
    make: Callable[..., Pool]
    job: Callable[[Function], Function] = lambda fn: fn
    blocking: Callable[[Function], Function] = lambda fn: fn
    concurrent: bool = True
    remote: bool = False
    starts: bool = False
    late: bool = False

    def shows(self, fact: Callable[[], bool]) -> bool:
        """Tell whether something is so, now; of a late kind, soon."""
        end = time.monotonic() + (LONG if self.late else 0)
        while not (found := fact()) and time.monotonic() < end:
            time.sleep(0.01)
        return found

    def hold(self, pool: Pool, gate: jobs.Gate, value: object = None) -> Future[Any]:
        """Submit a call that runs until the gate is opened."""
        return pool.submit(self.blocking(jobs.wait_at), gate.address, value)


@pytest.fixture
def gate() -> Iterator[jobs.Gate]:
    """A gate that is opened at the end."""
    with jobs.Gate() as gate:
        yield gate


def in_time(fn: Callable[[], object]) -> None:
    """Call *fn* on a thread, and insist that it returns."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fn()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), f"{fn} hangs"
    if errors:
        raise errors.pop()


@contextmanager
def opened(kind: Kind, max_workers: int, **options: Any) -> Iterator[Pool]:
    """Make a pool and shut it down at the end, in time."""
    pool = kind.make(max_workers, **options)
    try:
        yield pool
    finally:
        in_time(pool.shutdown)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*about to fork while other threads run:RuntimeWarning")
class PoolContract:
    """The contract of an executor."""

    # -- calls ------------------------------------------------------------------------------------------------------

    def test_result(self, kind: Kind, shared: Pool) -> None:
        """submit() returns a future of ours, of the call's value."""
        future = shared.submit(kind.job(jobs.double), 2)
        assert isinstance(future, Future)
        assert future.result(timeout=LONG) == 4
        assert isinstance(shared, Executor)

    def test_exception(self, kind: Kind, shared: Pool) -> None:
        """What the call raises comes out of its future, with a traceback that shows the user's frame."""
        future = shared.submit(kind.job(jobs.divide), 1, 0)
        error = future.exception(timeout=LONG)
        assert isinstance(error, ZeroDivisionError)
        text = "".join(traceback.format_exception(error))
        assert "return a / b" in text
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            future.result()

    def test_arguments(self, kind: Kind, shared: Pool) -> None:
        """Positional and keyword arguments arrive as they are."""
        future = shared.submit(kind.job(jobs.same), 1, "two", None, three=[3], four={"f": 4.0})
        assert future.result(timeout=LONG) == ((1, "two", None), {"three": [3], "four": {"f": 4.0}})

    def test_arguments_called_as_options_are(self, kind: Kind, shared: Pool) -> None:
        """A function's own parameters named `timeout`, `pool`, `fn` or `self` get their arguments."""
        words = {"timeout": 1, "priority": 2, "key": 3, "pool": 4, "fn": 5, "self": 6}
        assert shared.submit(kind.job(jobs.takes_words), **words).result(timeout=LONG) == words

    def test_futures_are_passed_as_they_are(self, kind: Kind, pool: Pool) -> None:
        """submit() resolves no futures among the arguments, as an Executor must not."""
        if kind.remote:
            pytest.skip("a future can't travel")
        value = Future[int]()
        assert pool.submit(kind.job(jobs.same), value).result(timeout=LONG) == ((value,), {})

    def test_many_calls(self, kind: Kind, shared: Pool) -> None:
        """Some hundred calls all end, each with its own value."""
        futures = [shared.submit(kind.job(jobs.double), index) for index in range(500)]
        assert gather(*futures).result(timeout=LONG) == tuple(range(0, 1000, 2))

    def test_many_threads_submit(self, kind: Kind, shared: Pool) -> None:
        """Threads that submit at once each get their own values."""
        found: list[list[Any]] = []
        job = kind.job(jobs.double)

        def submit(base: int) -> None:
            futures = [shared.submit(job, base + index) for index in range(50)]
            found.append([future.result(timeout=LONG) - 2 * base for future in futures])

        threads = [threading.Thread(target=submit, args=(base * 1000,)) for base in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert found == [list(range(0, 100, 2))] * 8

    def test_what_is_not_callable(self, kind: Kind, shared: Pool) -> None:
        """What can't be called fails at submit() or in its future with a TypeError, and the pool goes on."""
        with pytest.raises(TypeError):
            shared.submit(5).result(timeout=LONG)  # type: ignore[arg-type]
        assert shared.submit(kind.job(jobs.double), 1).result(timeout=LONG) == 2

    def test_submit_without_a_function(self, shared: Pool) -> None:
        """submit() without a function is a TypeError."""
        with pytest.raises(TypeError):
            shared.submit()  # type: ignore[call-arg]

    # -- errors that are hard to handle -----------------------------------------------------------------------------

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("no"), GeneratorExit()])
    def test_base_exception(self, kind: Kind, shared: Pool, error: BaseException) -> None:
        """SystemExit or KeyboardInterrupt raised by a call is that call's exception; the pool goes on."""
        if kind.name == "inline" and isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):  # on the program's own thread it is the program's, too
                shared.submit(kind.job(jobs.raises), error)
            assert shared.submit(kind.job(jobs.double), 1).result(timeout=LONG) == 2
            return
        future = shared.submit(kind.job(jobs.raises), error)
        caught = future.exception(timeout=LONG)
        assert type(caught) is type(error)
        assert caught.args == error.args
        assert shared.submit(kind.job(jobs.double), 1).result(timeout=LONG) == 2

    @pytest.mark.parametrize(
        ("function", "error"),
        [
            (jobs.raise_falsy, jobs.FalsyError),
            (jobs.raise_frozen, jobs.FrozenError),
            (jobs.raise_other_arguments, jobs.OtherArgumentsError),
            (jobs.raise_unpicklable, jobs.UnpicklableError),
        ],
    )
    def test_difficult_exception(self, kind: Kind, shared: Pool, function: Function, error: type[Exception]) -> None:
        """An exception that is falsy, frozen or hard to pickle fails its future, its name and text visible."""
        caught = shared.submit(kind.job(function)).exception(timeout=LONG)
        assert caught is not None
        if not kind.remote:
            assert type(caught) is error
        assert error.__name__ in f"{type(caught).__name__} {caught} {caught.__cause__}"
        assert shared.submit(kind.job(jobs.double), 1).result(timeout=LONG) == 2

    def test_stop_iteration(self, kind: Kind, shared: Pool) -> None:
        """StopIteration raised by a call ends its future, even if it can't come out of a coroutine as it is."""
        caught = shared.submit(kind.job(jobs.raises), StopIteration(1)).exception(timeout=LONG)
        assert isinstance(caught, StopIteration | RuntimeError)

    def test_timeout_error_of_the_call(self, kind: Kind, shared: Pool) -> None:
        """A TimeoutError that the call raised is its error, and not one of waiting."""
        future = shared.submit(kind.job(jobs.raises), TimeoutError("mine"))
        with pytest.raises(TimeoutError, match="mine"):
            future.result(timeout=LONG)
        assert future.done()

    # -- map --------------------------------------------------------------------------------------------------------

    def test_map(self, kind: Kind, shared: Pool) -> None:
        """map() yields in input order; of several iterables the shortest ends it."""
        assert list(shared.map(kind.job(jobs.double), range(20))) == list(range(0, 40, 2))
        assert list(shared.map(kind.job(jobs.add), [1, 2, 3], [10, 20])) == [11, 22]
        assert list(shared.map(kind.job(jobs.double), [])) == []
        assert list(shared.map(kind.job(jobs.double), [1, 2, 3], timeout=LONG, chunksize=2)) == [2, 4, 6]

    def test_map_raises_in_order(self, kind: Kind, shared: Pool) -> None:
        """The error of an item is raised at its place."""
        results = shared.map(kind.job(jobs.divide), [4, 1, 3], [2, 0, 1])
        assert next(results) == 2
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_map_times_out(self, kind: Kind, pool: Pool, gate: jobs.Gate) -> None:
        """map(timeout=) raises TimeoutError for what takes longer."""
        if not kind.concurrent:
            pytest.skip("the caller runs the calls")
        job = kind.blocking(jobs.wait_at)
        results = pool.map(job, [gate.address], timeout=0.2)
        gate.arrived()
        with pytest.raises(TimeoutError):
            next(results)
        gate.open()

    def test_map_dropped_cancels_the_rest(self, kind: Kind, gate: jobs.Gate) -> None:
        """Leaving a map() early cancels what has not been started."""
        if not kind.concurrent:
            pytest.skip("the caller runs the calls")
        with opened(kind, 1) as pool:
            kind.hold(pool, gate)
            gate.arrived()
            results = pool.map(kind.blocking(jobs.wait_at), [gate.address] * 50, timeout=0.01)
            with pytest.raises(TimeoutError):
                next(results)
            gate.open()
        assert pool.stats().queued == 0

    # -- cancelling -------------------------------------------------------------------------------------------------

    def test_cancel_queued(self, kind: Kind, gate: jobs.Gate) -> None:
        """A queued call can be cancelled; a running one can't; the rest goes on."""
        if not kind.concurrent:
            pytest.skip("nothing is ever queued")
        with opened(kind, 1) as pool:
            running = kind.hold(pool, gate, "ran")
            gate.arrived()
            futures = [pool.submit(kind.job(jobs.double), index) for index in range(40)]
            last = futures[-1].then(jobs.double)
            middle = futures[20:]
            assert all(future.cancel() for future in middle)
            assert last.cancelled()
            assert kind.shows(running.running)
            assert not wait(middle, timeout=LONG).not_done
            with pytest.raises(CancelledError):
                middle[0].result()
            gate.open()
            assert running.result(timeout=LONG) == "ran"
            ended = [future.result(timeout=LONG) for future in futures[:20] if not future.cancelled()]
            assert ended == list(range(0, 40, 2))

    # -- shutdown ---------------------------------------------------------------------------------------------------

    def test_shutdown_twice(self, kind: Kind, pool: Pool) -> None:
        """shutdown() may be called again, with and without waiting, before any call too."""
        future = pool.submit(kind.job(jobs.double), 1)
        for arguments in ({}, {"wait": False}, {"cancel_futures": True}, {}):
            in_time(lambda arguments=arguments: pool.shutdown(**arguments))  # type: ignore[misc]
        assert future.result(timeout=LONG) == 2
        unused = kind.make(1)
        unused.shutdown()
        unused.shutdown()

    def test_submit_after_shutdown(self, kind: Kind, pool: Pool) -> None:
        """submit() and map() after shutdown() raise PoolShutdownError, a RuntimeError."""
        pool.shutdown()
        for submit in (pool.submit, pool.map):
            with pytest.raises(PoolShutdownError) as caught:
                submit(kind.job(jobs.double), [1])
            assert isinstance(caught.value, RuntimeError)
            assert "shut down" in str(caught.value)

    def test_context_manager(self, kind: Kind) -> None:
        """A with block ends with shutdown(): everything that was accepted has run."""
        with kind.make(2) as pool:
            futures = [pool.submit(kind.job(jobs.double), index) for index in range(20)]
        assert all(future.done() for future in futures)
        assert [future.result() for future in futures] == list(range(0, 40, 2))

    def test_shutdown_without_waiting(self, kind: Kind, gate: jobs.Gate) -> None:
        """shutdown(wait=False) returns at once; what was accepted is run all the same."""
        if not kind.concurrent:
            pytest.skip("nothing is ever queued")
        pool = kind.make(1)
        running = kind.hold(pool, gate)
        gate.arrived()
        queued = [pool.submit(kind.job(jobs.double), index) for index in range(5)]
        in_time(lambda: pool.shutdown(wait=False))
        assert not running.done()
        with pytest.raises(PoolShutdownError):
            pool.submit(kind.job(jobs.double), 1)
        gate.open()
        assert [future.result(timeout=LONG) for future in queued] == [0, 2, 4, 6, 8]
        in_time(pool.shutdown)

    def test_shutdown_cancels(self, kind: Kind, gate: jobs.Gate) -> None:
        """shutdown(cancel_futures=True) cancels what is queued, and whoever waits for it is woken."""
        if not kind.concurrent:
            pytest.skip("nothing is ever queued")
        pool = kind.make(1)
        running = kind.hold(pool, gate, "ran")
        gate.arrived()
        assert kind.shows(running.running)
        queued = [pool.submit(kind.job(jobs.double), index) for index in range(60)]
        after, called = queued[-1].then(jobs.double), threading.Event()
        queued[-1].add_done_callback(lambda _: called.set())
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(concurrent.futures.wait([queued[-1]], LONG)))
        waiting.start()
        in_time(lambda: pool.shutdown(wait=False, cancel_futures=True))
        waiting.join(LONG)
        assert found[0].done == {queued[-1]}
        assert after.cancelled()
        assert called.wait(LONG)
        assert queued[-1].cancelled()
        gate.open()
        assert running.result(timeout=LONG) == "ran"
        assert not wait(queued, timeout=LONG).not_done
        in_time(pool.shutdown)

    def test_shutdown_races_with_submit(self, kind: Kind) -> None:
        """Every submit that races with shutdown raises, or its future ends."""
        for _ in range(4 if kind.remote else 60):
            pool = kind.make(2)
            pool.submit(kind.job(jobs.nothing)).result(timeout=LONG)
            meet, futures, job = threading.Barrier(3), list[Future[Any]](), kind.job(jobs.double)

            def submit(pool=pool, meet=meet, futures=futures, job=job) -> None:  # type: ignore[no-untyped-def]
                meet.wait(LONG)
                with suppress(PoolShutdownError):
                    for _ in range(50):
                        futures.append(pool.submit(job, 1))

            threads = [threading.Thread(target=submit) for _ in range(2)]
            for thread in threads:
                thread.start()
            meet.wait(LONG)
            in_time(pool.shutdown)
            for thread in threads:
                thread.join(LONG)
            assert not wait(futures, timeout=LONG).not_done
            assert all(future.result() == 2 for future in futures)

    def test_shutdown_waits_for_callbacks(self, kind: Kind, pool: Pool, gate: jobs.Gate) -> None:
        """shutdown(wait=True) returns when the callbacks of its calls have run, whatever thread they run on."""
        if not kind.concurrent:
            pytest.skip("the caller runs the callbacks")
        inside, go, seen = threading.Event(), threading.Event(), list[str]()

        def block(_: object) -> None:
            inside.set()
            go.wait(LONG)
            seen.append("callback")

        kind.hold(pool, gate).add_done_callback(block)
        gate.arrived()
        gate.open()
        assert inside.wait(LONG)
        closing = threading.Thread(target=lambda: (pool.shutdown(), seen.append("shutdown")), daemon=True)
        closing.start()
        closing.join(0.3)  # it would have returned by then
        go.set()
        closing.join(LONG)
        assert seen == ["callback", "shutdown"]

    def test_dropped(self, kind: Kind) -> None:
        """A pool that nobody holds any more runs what it has accepted, and leaves nothing behind."""
        pool: Pool | None = kind.make(2)
        futures = [pool.submit(kind.job(jobs.double), index) for index in range(10)]
        del pool
        gc.collect()
        assert [future.result(timeout=LONG) for future in futures] == list(range(0, 20, 2))

    def test_dropped_unused(self, kind: Kind) -> None:
        """A pool that was never used and never shut down leaves nothing behind."""
        kind.make(2)

    # -- initializer ------------------------------------------------------------------------------------------------

    def test_initializer(self, kind: Kind) -> None:
        """Each worker calls the initializer with initargs before its first call."""
        if not kind.starts:
            pytest.skip("no initializer")
        jobs.INITIALIZED.clear()
        with opened(kind, 1, initializer=jobs.remember, initargs=("set up",)) as pool:
            assert pool.submit(jobs.remembered).result(timeout=LONG) == ["set up"]
        jobs.INITIALIZED.clear()

    @pytest.mark.parametrize("function", [jobs.bad_initializer, jobs.leave])
    def test_failing_initializer(
        self, kind: Kind, function: Function, gate: jobs.Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If it fails, pending calls and later submits fail with PoolBrokenError and the cause; nothing hangs."""
        if not kind.starts:
            pytest.skip("no initializer")
        with caplog.at_level(logging.CRITICAL), opened(kind, 1, initializer=function) as pool:
            error: BaseException | None
            try:
                error = pool.submit(jobs.nothing).exception(timeout=LONG)
            except PoolBrokenError as refusal:  # it broke while the first call was on its way
                error = refusal
            assert isinstance(error, PoolBrokenError)
            shown = f"{error} {error.__cause__!r}"
            assert "no such device" in shown or "SystemExit" in shown
            with pytest.raises(PoolBrokenError):
                for _ in range(1000):
                    pool.submit(jobs.nothing).exception(timeout=LONG)
                raise AssertionError("it still takes calls")
            in_time(pool.idle)

    # -- what follows -----------------------------------------------------------------------------------------------

    def test_chain(self, kind: Kind, shared: Pool) -> None:
        """then, catch and finally_ follow a call of any kind."""
        called = threading.Event()
        good = shared.submit(kind.job(jobs.double), 1).then(jobs.double).finally_(called.set)
        assert good.result(timeout=LONG) == 4
        assert called.is_set()
        bad = shared.submit(kind.job(jobs.divide), 1, 0).then(str).catch(ZeroDivisionError, lambda e: str(e))
        assert bad.result(timeout=LONG) == "division by zero"
        back = shared.submit(kind.job(jobs.double), 1).then(lambda x: shared.submit(kind.job(jobs.double), x))
        assert back.result(timeout=LONG) == 4

    @pytest.mark.parametrize("error", [ValueError("in a callback"), SystemExit(3), KeyboardInterrupt("in a callback")])
    def test_callback_that_fails(
        self, kind: Kind, pool: Pool, gate: jobs.Gate, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a callback raises is logged; other callbacks run and the pool goes on."""
        if not kind.concurrent:
            pytest.skip("the caller runs the callbacks")
        seen = threading.Event()
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                future = kind.hold(pool, gate)
                future.add_done_callback(lambda _: jobs.raises(error))
            gate.arrived(2)
            future.add_done_callback(lambda _: seen.set())
            gate.open()
            assert seen.wait(LONG)
            assert pool.submit(kind.job(jobs.double), 2).result(timeout=LONG) == 4
            pool.shutdown()
        assert caplog.text.count(type(error).__name__) >= 3

    def test_callback_that_blocks(self, kind: Kind, pool: Pool, gate: jobs.Gate) -> None:
        """A callback that blocks keeps no other result from being delivered."""
        if not kind.concurrent:
            pytest.skip("the caller runs the callbacks")
        go, inside = threading.Event(), threading.Event()
        future = kind.hold(pool, gate)
        future.add_done_callback(lambda _: (inside.set(), go.wait(LONG)))
        gate.arrived()
        gate.open()
        assert inside.wait(LONG)
        try:
            assert [pool.submit(kind.job(jobs.double), x).result(timeout=10) for x in range(5)] == [0, 2, 4, 6, 8]
            chained = pool.submit(kind.job(jobs.double), 1).then(jobs.double)
            assert chained.result(timeout=10) == 4
        finally:
            go.set()

    # -- with the standard library ----------------------------------------------------------------------------------

    def test_standard_functions(self, kind: Kind, shared: Pool) -> None:
        """concurrent.futures.wait and as_completed take our futures as they are."""
        futures = [shared.submit(kind.job(jobs.double), index) for index in range(30)]
        assert set(concurrent.futures.as_completed(futures, timeout=LONG)) == set(futures)
        assert concurrent.futures.wait(futures, timeout=LONG).done == set(futures)
        again = [shared.submit(kind.job(jobs.double), index) for index in range(30)]
        assert concurrent.futures.wait(again, timeout=LONG).done == set(again)
        assert set(as_completed(again, timeout=LONG)) == set(again)

    def test_asyncio(self, kind: Kind, shared: Pool) -> None:
        """await, asyncio.wrap_future and loop.run_in_executor take our futures and pools as they are."""
        double, divide = kind.job(jobs.double), kind.job(jobs.divide)

        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            with pytest.raises(ZeroDivisionError):
                await asyncio.wrap_future(shared.submit(divide, 1, 0))
            return [
                await shared.submit(double, 1),
                await asyncio.wrap_future(shared.submit(double, 2)),
                await loop.run_in_executor(shared, double, 3),
                *await asyncio.gather(*(asyncio.wrap_future(shared.submit(double, x)) for x in range(20))),
            ]

        values = asyncio.run(asyncio.wait_for(main(), LONG))
        assert values == [2, 4, 6, *range(0, 40, 2)]

    # -- looking ----------------------------------------------------------------------------------------------------

    def test_stats_and_repr(self, kind: Kind, gate: jobs.Gate) -> None:
        """stats() and repr() show what is queued and what runs, and whether the pool is shut down."""
        with opened(kind, 1) as pool:
            assert pool.counts() == Counts(workers=0, queued=0, running=0, done=0)
            assert (pool.stats().name, pool.stats().kind) == (pool.name, pool.kind)
            assert "running" in repr(pool)
            if kind.concurrent:
                futures = [kind.hold(pool, gate) for _ in range(3)]
                gate.arrived()
                assert kind.shows(lambda: pool.stats().running >= 1)
                stats = pool.stats()
                assert (stats.workers, stats.queued + stats.running, stats.done) == (1, 3, 0)
                gate.open()
                gather(*futures).result(timeout=LONG)
                in_time(pool.idle)
            else:
                for _ in range(3):
                    pool.submit(jobs.nothing)
            stats = pool.stats()
            assert (stats.queued, stats.running, stats.done) == (0, 0, 3)
        assert "shut down" in repr(pool)
        assert type(pool).__name__ in repr(pool)
        assert pool.stats().workers == 0

    def test_idle(self, kind: Kind, pool: Pool, gate: jobs.Gate) -> None:
        """idle() returns when no accepted call is left, and twice the same when nothing went on between."""
        in_time(pool.idle)
        if kind.concurrent:
            futures = [kind.hold(pool, gate) for _ in range(4)]
            waiting = threading.Thread(target=pool.idle, daemon=True)
            waiting.start()
            waiting.join(0.1)
            assert waiting.is_alive()
            gate.open()
            waiting.join(LONG)
            assert not waiting.is_alive()
            assert all(future.done() for future in futures)
        assert pool.idle() == pool.idle()

    def test_idle_after_a_cancellation(self, kind: Kind, gate: jobs.Gate) -> None:
        """Cancelled calls don't keep idle() waiting."""
        if not kind.concurrent:
            pytest.skip("nothing is ever queued")
        with opened(kind, 1) as pool:
            kind.hold(pool, gate)
            gate.arrived()
            for future in [pool.submit(kind.job(jobs.double), index) for index in range(40)]:
                future.cancel()
            gate.open()
            in_time(pool.idle)

    def test_does_not_pickle(self, shared: Pool) -> None:
        """A pool can't be pickled, and the message says what to do instead."""
        with pytest.raises(TypeError, match="name"):
            pickle.dumps(shared)

    def test_context_variables(self, kind: Kind, pool: Pool) -> None:
        """A call sees the context variables as they were at submit(), unless it runs in another process."""
        jobs.VARIABLE.set("mine")
        future = pool.submit(kind.job(jobs.variable))
        jobs.VARIABLE.set("later")
        assert future.result(timeout=LONG) == ("unset" if kind.remote else "mine")

    def test_declared_function(self, kind: Kind, shared: Pool) -> None:
        """A declared function that is submitted runs as the plain one."""
        task = jobs.loop_double if kind.name == "loop" else jobs.local_double
        assert shared.submit(task, 2).result(timeout=LONG) == 4  # type: ignore[comparison-overlap]

    # -- fork -------------------------------------------------------------------------------------------------------

    def test_fork(self, kind: Kind, pool: Pool, gate: jobs.Gate, in_fork: Callable[..., Any]) -> None:
        """In a forked child the same pool works, with workers of its own; the parent's goes on."""
        job = kind.job(jobs.double)
        ended = pool.submit(job, 1)
        assert ended.result(timeout=LONG) == 2

        def child() -> tuple[Any, ...]:
            try:
                mine = [pool.submit(job, x) for x in range(5)]
                follows = ended.then(jobs.double) if kind.concurrent else None
                return (
                    [future.result(timeout=20) for future in mine],
                    pool.submit(job, 2).then(jobs.double).result(timeout=20),
                    4 if follows is None else follows.result(timeout=20),
                    ended.result(timeout=20),
                )
            finally:
                pool.shutdown()

        for _ in range(2):
            assert in_fork(child) == ([0, 2, 4, 6, 8], 8, 4, 2)
            assert [pool.submit(job, x).result(timeout=LONG) for x in range(5)] == [0, 2, 4, 6, 8]

    def test_fork_with_pending_calls(self, kind: Kind, gate: jobs.Gate, in_fork: Callable[..., Any]) -> None:
        """In a forked child the parent's pending futures raise ForkedError; in the parent they end as ever."""
        if not kind.concurrent:
            pytest.skip("nothing is ever pending")
        with opened(kind, 1) as pool:
            running = kind.hold(pool, gate, "ran")
            gate.arrived()
            queued = pool.submit(kind.job(jobs.double), 2)
            after = queued.then(jobs.double)

            def child() -> list[str]:
                try:
                    return [type(future.exception(timeout=10)).__name__ for future in (running, queued, after)]
                finally:
                    pool.shutdown()

            assert in_fork(child) == [ForkedError.__name__] * 3
            assert not running.done()
            gate.open()
            assert running.result(timeout=LONG) == "ran"
            assert after.result(timeout=LONG) == 8

    def test_fork_after_shutdown(self, kind: Kind, pool: Pool, in_fork: Callable[..., Any]) -> None:
        """A pool that was shut down before the fork is shut down in the child."""
        job = kind.job(jobs.double)
        pool.submit(job, 1).result(timeout=LONG)
        pool.shutdown()

        def child() -> str:
            try:
                pool.submit(job, 1)
            except PoolShutdownError:
                pool.shutdown()
                return "refused"
            return "accepted"

        assert in_fork(child) == "refused"

    def test_fork_while_busy(self, kind: Kind, pool: Pool, in_fork: Callable[..., Any]) -> None:
        """Forks in the middle of submits by other threads leave parent and child working."""
        job = kind.job(jobs.double)
        stop = threading.Event()
        results: list[Any] = []
        at_work = threading.Event()  # workers that are forked later would hold the pipe of `in_fork`

        def submit() -> None:
            while not stop.is_set():
                results.append(pool.submit(job, 1).result(timeout=LONG))
                at_work.set()

        thread = threading.Thread(target=submit)
        thread.start()

        def child() -> Any:
            try:
                return pool.submit(job, 2).result(timeout=20)
            finally:
                pool.shutdown()

        try:
            assert at_work.wait(LONG)
            for _ in range(3 if kind.remote else 10):
                assert in_fork(child) == 4
        finally:
            stop.set()
            thread.join(LONG)
        assert set(results) <= {2}
