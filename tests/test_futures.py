"""
Futures: state, waiting, chaining, cancelling, and what is left of them afterwards.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress
from typing import Any

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Held, frequent_switches, without_gc

from parallel import (
    Future,
    InlinePool,
    LoopPool,
    PoolShutdownError,
    ThreadPool,
    UnknownPoolError,
    completed,
    failed,
    gather,
    task,
    using,
)
from parallel.outcomes import ENDED, take_first
from parallel.pools.crew import Crew

LONG = 30  # seconds; only a deadlock takes so long
CHAIN = 100_000


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


# -- a promise, made by hand ------------------------------------------------------------------------------------------


def test_is_a_standard_future() -> None:
    """A future is one of the standard library's, and pending when it is made."""
    future: Future[int] = Future()
    assert isinstance(future, concurrent.futures.Future)
    assert not future.done()
    assert not future.running()
    assert not future.cancelled()
    future.cancel()


def test_result_and_exception_of_value() -> None:
    """A value is the result, and there is no exception."""
    future = completed(1)
    assert future.result() == 1
    assert future.result(timeout=0) == 1
    assert future.exception() is None
    assert future.done()
    assert not future.cancelled()
    assert not future.running()


def test_result_and_exception_of_error() -> None:
    """An error is raised by result() and returned by exception(), the same object."""
    error = ValueError("bad")
    future = failed(error)
    with pytest.raises(ValueError, match="bad") as caught:
        future.result()
    assert caught.value is error
    assert future.exception() is error


def test_result_times_out() -> None:
    """Waiting too short raises TimeoutError and leaves the future as it was."""
    future: Future[int] = Future()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.001)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    with pytest.raises(TimeoutError):
        future.result(timeout=-1)
    future.set_result(1)
    assert future.result(timeout=0) == 1


def test_huge_timeout() -> None:
    """A timeout of more than a thread can wait for is no error."""
    with ThreadPool(1) as pool:
        gate = threading.Event()
        future = pool.submit(gate.wait, LONG)
        threading.Timer(0.01, gate.set).start()
        assert future.result(timeout=1e300)


@pytest.mark.parametrize("end", [lambda f: f.set_result(1), lambda f: f.set_exception(ValueError())])
def test_ends_once(end: Callable[[Future[int]], None]) -> None:
    """A second end is an InvalidStateError, as in the standard library."""
    for future in (completed(1), failed(ValueError())):
        with pytest.raises(InvalidStateError):
            end(future)
    future = Future[int]()
    assert future.cancel()
    with pytest.raises(InvalidStateError):
        end(future)
    assert future.cancelled()


def test_running_by_hand() -> None:
    """set_running_or_notify_cancel() makes it uncancellable, and says False for a cancelled one."""
    future: Future[int] = Future()
    assert future.set_running_or_notify_cancel()
    assert future.running()
    assert not future.cancel()
    future.set_result(1)
    other: Future[int] = Future()
    other.cancel()
    assert not other.set_running_or_notify_cancel()


class Interrupted(Future[int]):
    """A future that is begun in the moment in which it is being cancelled."""

    begun: bool | None = None

    def take_work(self) -> Any:
        work = super().take_work()
        self.begun = self.set_running_or_notify_cancel()
        return work


def test_begun_while_it_is_cancelled() -> None:
    """Who begins a promise that somebody is cancelling is told that it is cancelled."""
    promise = Interrupted()
    assert promise.cancel()
    assert promise.begun is False
    assert promise.set_running_or_notify_cancel() is False


def test_begun_twice() -> None:
    """A promise can't be begun twice, nor can a call that an engine runs."""
    promise: Future[int] = Future()
    assert promise.set_running_or_notify_cancel()
    with Held() as held:
        for future in (promise, held.future):
            with pytest.raises(RuntimeError, match="RUNNING"):
                future.set_running_or_notify_cancel()


def test_set_exception_takes_a_class() -> None:
    """An exception class does as well as an instance, as in the standard library."""
    future: Future[int] = Future()
    future.set_exception(ValueError)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        future.result(timeout=LONG)


def test_cancel_twice() -> None:
    """Cancelling again says True again; result() raises CancelledError, a new one each time."""
    future: Future[int] = Future()
    assert future.cancel()
    assert future.cancel()
    with pytest.raises(CancelledError) as first:
        future.result()
    with pytest.raises(CancelledError) as second:
        future.exception()
    assert first.value is not second.value


def test_does_not_pickle() -> None:
    """A future can't be pickled, and the message says what to do instead."""
    with pytest.raises(TypeError, match="result"):
        pickle.dumps(completed(1))


def test_repr_tells_the_state() -> None:
    """The repr names the state, and the type of value or error."""
    future: Future[int] = Future()
    assert "pending" in repr(future)
    future.set_running_or_notify_cancel()
    assert "running" in repr(future)
    assert "int" in repr(completed(1))
    assert "ValueError" in repr(failed(ValueError()))
    future = Future()
    future.cancel()
    assert "cancelled" in repr(future)


@pytest.mark.parametrize(
    ("future", "state"),
    [(completed(1), "FINISHED"), (failed(ValueError()), "FINISHED")],
    ids=["value", "error"],
)
def test_standard_fields(future: Future[Any], state: str) -> None:
    """The fields that asyncio and the standard functions read are real."""
    assert future._state == state
    assert (future._result, future._exception) == (
        (1, None) if future.exception() is None else (None, future.exception())
    )
    assert future._waiters == []
    with future._condition:
        assert future.done()


# -- values and errors that are hard to handle ------------------------------------------------------------------------


def test_falsy_exception(pool: ThreadPool) -> None:
    """A falsy exception is still an exception: for result(), exception(), then, catch and gather."""
    future = pool.submit(jobs.raise_falsy)
    with pytest.raises(jobs.FalsyError):
        future.result(timeout=LONG)
    assert future.exception() is not None
    with pytest.raises(jobs.FalsyError):
        future.then(str).result(timeout=LONG)
    with pytest.raises(jobs.FalsyError):
        gather(future).result(timeout=LONG)
    assert future.catch(jobs.FalsyError, lambda _: "caught").result(timeout=LONG) == "caught"


def test_weird_values_and_errors(pool: ThreadPool) -> None:
    """Values and errors that can't be compared, hashed or asked for their truth pass through."""
    value, error = jobs.Weird(), jobs.WeirdError()
    assert pool.submit(lambda: value).then(lambda x: x).finally_(jobs.nothing).result(timeout=LONG) is value
    future = pool.submit(jobs.raises, error).then(str).finally_(jobs.nothing)
    assert future.exception(timeout=LONG) is error
    assert future.catch(jobs.WeirdError, lambda e: e).result(timeout=LONG) is error
    assert gather(future, completed(value), return_exceptions=True).result(timeout=LONG)[0] is error
    repr(future)
    done, _ = concurrent.futures.wait([future, completed(value)], timeout=LONG)
    assert len(done) == 2


def test_frozen_exception(pool: ThreadPool) -> None:
    """An exception whose attributes can't be set arrives as itself."""
    assert pool.submit(jobs.raise_frozen).then(str).exception(timeout=LONG) == jobs.FrozenError(7)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_base_exceptions_settle(pool: ThreadPool, error: BaseException) -> None:
    """Whatever a continuation raises settles its future, and the pool goes on."""
    for future in (
        completed(1).then(lambda _: jobs.raises(error)),
        pool.submit(jobs.nothing).then(lambda _: jobs.raises(error)),
        failed(ValueError()).catch(lambda _: jobs.raises(error)),
        completed(1).finally_(lambda: jobs.raises(error)),
    ):
        assert future.exception(timeout=LONG) is error
        assert future.then(str).exception(timeout=LONG) is error
    assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4


def test_stop_iteration(pool: ThreadPool) -> None:
    """StopIteration comes out as itself."""
    assert isinstance(pool.submit(lambda: next(iter(()))).exception(timeout=LONG), StopIteration)


def test_cancelled_error_raised_by_the_call(pool: ThreadPool) -> None:
    """A call that raises CancelledError has failed; it was not cancelled."""
    future = pool.submit(jobs.raises, CancelledError())
    with pytest.raises(CancelledError):
        future.result(timeout=LONG)
    assert not future.cancelled()


# -- then, catch, finally_ --------------------------------------------------------------------------------------------


def test_then_gets_the_value(pool: ThreadPool) -> None:
    """then() calls with the value; its value is the next one's."""
    assert pool.submit(jobs.double, 1).then(jobs.double).then(str).result(timeout=LONG) == "4"


def test_then_is_skipped_by_an_error() -> None:
    """An error skips every then() down to the next catch()."""
    called: list[object] = []
    future = failed(ValueError("bad")).then(called.append).then(called.append).catch(ValueError, str)
    assert future.result(timeout=LONG) == "bad"
    assert called == []


def test_error_in_then() -> None:
    """What a continuation raises, its future raises."""
    assert isinstance(completed(0).then(lambda x: 1 // x).exception(timeout=LONG), ZeroDivisionError)


def test_catch_only_what_it_names() -> None:
    """catch() of another type passes the error on; of a tuple takes each of them."""
    assert isinstance(failed(ValueError()).catch(KeyError, str).exception(timeout=LONG), ValueError)
    assert failed(KeyError("k")).catch((KeyError, ValueError), lambda e: e.args[0]).result(timeout=LONG) == "k"
    assert failed(KeyError("k")).catch(LookupError, type).result(timeout=LONG) is KeyError


def test_catch_all_leaves_base_exceptions() -> None:
    """catch() without a type takes every Exception, but not SystemExit; named, it takes that too."""
    assert failed(ValueError()).catch(lambda _: 1).result(timeout=LONG) == 1
    future = failed(SystemExit(1)).catch(lambda _: 1)
    assert isinstance(future.exception(timeout=LONG), SystemExit)
    assert failed(SystemExit(1)).catch(SystemExit, lambda _: 1).result(timeout=LONG) == 1


def test_catch_of_a_value() -> None:
    """catch() passes a value on."""
    assert completed(1).catch(lambda _: 2).result(timeout=LONG) == 1


@pytest.mark.parametrize("wrong", [[ValueError], "ValueError", 5, (ValueError, 5), ValueError()])
def test_catch_of_no_exception_type(wrong: Any) -> None:
    """What is no exception type is refused when catch() is called, and not when an error comes."""
    with pytest.raises(TypeError):
        failed(ValueError()).catch(wrong, str)


class _Touchy(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("don't ask")


class TouchyError(Exception, metaclass=_Touchy):
    """Asking whether an error is one of these fails."""


def test_catch_of_a_type_that_cannot_be_asked(pool: ThreadPool) -> None:
    """A type whose check raises fails the future, as in an `except` clause; nothing hangs."""
    first = pool.submit(jobs.divide, 1, 0)
    for future in (first.catch(TouchyError, str), failed(ValueError()).catch(TouchyError, str)):
        assert isinstance(future.exception(timeout=5), (RuntimeError, ValueError, ZeroDivisionError))


@pytest.mark.parametrize("chain", ["then", "catch", "finally_"])
def test_not_callable(chain: str) -> None:
    """A continuation that can't be called is refused at once."""
    with pytest.raises(TypeError):
        getattr(completed(1), chain)(5)


def test_finally_passes_the_end_on() -> None:
    """finally_() passes value and error on, and drops what its function returns."""
    called: list[int] = []
    assert completed(1).finally_(lambda: called.append(1)).result(timeout=LONG) == 1
    error = ValueError()
    assert failed(error).finally_(lambda: called.append(2)).exception(timeout=LONG) is error
    assert called == [1, 2]


def test_finally_error_wins() -> None:
    """An error in finally_() takes the place of the end."""
    assert isinstance(completed(1).finally_(lambda: 1 // 0).exception(timeout=LONG), ZeroDivisionError)
    assert isinstance(failed(ValueError()).finally_(lambda: 1 // 0).exception(timeout=LONG), ZeroDivisionError)


def test_finally_runs_on_cancel() -> None:
    """finally_() is called for a cancelled future, which stays cancelled; catch() is not."""
    future: Future[int] = Future()
    ran, caught = threading.Event(), []
    after = future.catch(caught.append).finally_(ran.set)
    future.cancel()
    with pytest.raises(CancelledError):
        after.result(timeout=LONG)
    assert after.cancelled()
    assert ran.is_set()
    assert caught == []


def test_catch_never_on_cancel() -> None:
    """catch() of CancelledError, even by name, is not called for a cancelled future."""
    future: Future[int] = Future()
    after = future.catch(CancelledError, lambda _: 1)
    future.cancel()
    assert concurrent.futures.wait([after], timeout=LONG).done == {after}
    assert after.cancelled()


def test_finally_waits_for_its_future(held: Held) -> None:
    """A future that finally_()'s function returns is waited for; its error wins."""
    after = completed(1).finally_(lambda: held.future)
    with pytest.raises(TimeoutError):
        after.result(timeout=0.01)
    held.go.set()
    assert after.result(timeout=LONG) == 1
    assert isinstance(completed(1).finally_(lambda: failed(KeyError())).exception(timeout=LONG), KeyError)


def test_on_success_and_on_failure() -> None:
    """Side effects see the value or the error, change nothing, and return the same future."""
    seen: list[object] = []
    good, error = completed(1), ValueError()
    bad = failed(error)
    for future in (good, bad):
        assert future.on_success(seen.append).on_failure(seen.append) is future
    assert seen == [1, error]
    gone: Future[int] = Future()
    gone.on_success(seen.append).on_failure(seen.append)
    gone.cancel()
    assert seen == [1, error]


def test_error_in_a_side_effect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What a side effect raises is logged, and the others run."""
    seen: list[int] = []
    future: Future[int] = Future()
    future.on_success(lambda _: 1 // 0).on_success(seen.append)
    with caplog.at_level(logging.ERROR):
        future.set_result(1)
    assert future.result() == 1
    assert seen == [1]
    assert "ZeroDivisionError" in caplog.text


def test_callbacks_in_order() -> None:
    """Callbacks are called in the order in which they came, with the future; a late one at once."""
    seen: list[tuple[int, object]] = []
    future: Future[int] = Future()
    for index in range(3):
        future.add_done_callback(lambda done, index=index: seen.append((index, done)))  # type: ignore[misc]
    future.set_result(1)
    future.add_done_callback(lambda done: seen.append((3, done)))
    assert seen == [(index, future) for index in range(4)]


def test_callback_on_cancel() -> None:
    """A callback is called for a cancelled future too."""
    seen: list[bool] = []
    future: Future[int] = Future()
    future.add_done_callback(lambda done: seen.append(done.cancelled()))
    future.cancel()
    assert seen == [True]


def test_callback_that_submits(pool: ThreadPool) -> None:
    """A callback may submit, and so may what follows, many times over."""
    ended: Future[int] = Future()

    def again(done: concurrent.futures.Future[int]) -> None:
        value = done.result()
        if value < 300:
            pool.submit(jobs.add, value).add_done_callback(again)
        else:
            ended.set_result(value)

    pool.submit(jobs.add, 0).add_done_callback(again)
    assert ended.result(timeout=LONG) == 300


def test_flattens_futures(pool: ThreadPool) -> None:
    """A future that a continuation returns is waited for, whatever library it is from."""
    assert completed(2).then(lambda x: pool.submit(jobs.double, x)).result(timeout=LONG) == 4
    with concurrent.futures.ThreadPoolExecutor(1) as standard:
        assert completed(2).then(lambda x: standard.submit(jobs.double, x)).result(timeout=LONG) == 4
    assert isinstance(completed(1).then(lambda _: failed(KeyError())).exception(timeout=LONG), KeyError)
    assert completed(1).then(lambda x: completed(x).then(completed)).result(timeout=LONG) == 1


def test_flattens_awaitables() -> None:
    """A coroutine that a continuation makes is run, in the pool `loop`."""
    assert completed(2).then(jobs.async_double).result(timeout=LONG) == 4
    assert failed(ValueError(3)).catch(lambda e: jobs.async_double(e.args[0])).result(timeout=LONG) == 6


def test_continuation_returns_itself() -> None:
    """A continuation that returns the future that waits for it fails, and doesn't hang."""
    holder: list[Future[Any]] = []
    start: Future[int] = Future()
    holder.append(start.then(lambda _: holder[0]))
    start.set_result(1)
    assert isinstance(holder[0].exception(timeout=LONG), RuntimeError)


def test_flattened_future_that_is_cancelled() -> None:
    """If the future that came back is cancelled, so is what waits for it."""
    inner: Future[int] = Future()
    outer = completed(1).then(lambda _: inner)
    after = outer.then(str)
    inner.cancel()
    with pytest.raises(CancelledError):
        after.result(timeout=LONG)
    assert outer.cancelled()


def test_mixed_chain_of_base_and_cancel(pool: ThreadPool) -> None:
    """Several continuations of one future all run."""
    start = pool.submit(jobs.double, 1)
    assert [start.then(jobs.add, pool=None).result(timeout=LONG) for _ in range(5)] == [3] * 5


def test_traceback_does_not_grow(pool: ThreadPool) -> None:
    """result() called again shows the same traceback, down to the user's frames."""
    future = pool.submit(jobs.divide, 1, 0)
    lengths = []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            future.result(timeout=LONG)
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert "divide" in traceback.format_tb(caught.value.__traceback__)[-1]
    assert len(set(lengths)) == 1


# -- where continuations run ------------------------------------------------------------------------------------------


def thread_of(future: Future[Any], **options: Any) -> str:
    """Name the thread on which a continuation of *future* runs."""
    return future.then(lambda _: threading.current_thread().name, **options).result(timeout=LONG)


def test_follows_a_thread_call_on_its_pool() -> None:
    """After a thread call a continuation runs on a thread of the same pool, whether the call has ended or not."""
    with ThreadPool(1, "mine") as pool:
        gate = threading.Event()
        waiting = pool.submit(gate.wait, LONG)
        following = waiting.then(lambda _: threading.current_thread().name)
        gate.set()
        assert following.result(timeout=LONG).startswith("mine")
        assert waiting.done()
        assert thread_of(waiting).startswith("mine")
        assert thread_of(waiting.then(str)).startswith("mine")


def test_never_on_the_thread_that_called_then() -> None:
    """A continuation of an ended future doesn't run on the thread that called then()."""
    here = threading.current_thread().name
    with ThreadPool(1) as pool:
        ended = pool.submit(jobs.nothing)
        ended.result(timeout=LONG)
        assert thread_of(ended) != here
    assert thread_of(completed(1)) != here


def test_follows_a_promise_on_callback_threads() -> None:
    """What follows a future made by hand runs on the callback threads."""
    promise: Future[int] = Future()
    name = promise.then(lambda _: threading.current_thread().name)
    promise.set_result(1)
    assert name.result(timeout=LONG).startswith("parallel-callback")


def test_follows_a_loop_call_on_callback_threads() -> None:
    """What follows a coroutine runs on the callback threads, never on the loop's."""
    with LoopPool() as pool:
        assert thread_of(pool.submit(jobs.async_double, 1)).startswith("parallel-callback")


def test_follows_an_inline_call_inline() -> None:
    """What follows an inline call runs on the caller's thread, at once."""
    with InlinePool() as pool:
        future = pool.submit(jobs.nothing)
        following = future.then(lambda _: threading.current_thread())
        assert following.done()
        assert following.result() is threading.current_thread()


def test_follows_in_the_pool_named() -> None:
    """pool= names the pool; an unknown one raises at once."""
    with using({"pools": {"other": {"kind": "thread", "thread_name_prefix": "other"}}}):
        assert thread_of(completed(1), pool="other").startswith("other")
        caught = failed(ValueError()).catch(ValueError, lambda _: threading.current_thread().name, pool="other")
        assert caught.result(timeout=LONG).startswith("other")
        with pytest.raises(UnknownPoolError, match="other"):
            completed(1).then(str, pool="nowhere")


def test_follows_in_a_task_of_another_pool() -> None:
    """A task as continuation runs in its own pool."""
    where = task(pool="other")(lambda _: threading.current_thread().name)
    with using({"pools": {"other": {"kind": "thread", "thread_name_prefix": "other"}}}):
        assert completed(1).then(where).result(timeout=LONG).startswith("other")


@pytest.mark.parametrize("kind", ["loop", "process"])
def test_a_task_after_another_pool_needs_no_hop(kind: str) -> None:
    """A task whose call only has to be queued is queued by the thread that brings the value; no callback thread is."""
    first = task(pool=kind)(jobs.async_double if kind == "loop" else jobs.double)
    second = task(pool="other")(jobs.double)
    with using({"pools": {"other": {"kind": "thread"}, "process": {"kind": "process", "max_workers": 1}}}) as registry:
        assert second(1).result(timeout=LONG) == 2  # from now on its pool is known
        assert first(1).then(second).then(second).result(timeout=LONG) == 8
        callbacks = registry.callbacks
        assert isinstance(callbacks, Crew)
        assert callbacks.counts().workers == 0
        assert first(1).then(lambda x: x).then(second).result(timeout=LONG) == 4
        assert callbacks.counts().workers == 1  # for the plain function


def test_a_task_that_might_block_is_handed_on() -> None:
    """A task whose pool runs code of the user's to take a call, or is full, is called on a callback thread."""
    thread: list[str] = []

    class Travels:
        """Notes where it was pickled."""

        def __reduce__(self) -> tuple[Any, ...]:
            thread.append(threading.current_thread().name)
            return (int, ())

    async def make() -> Travels:
        return Travels()

    second = task(pool="p")(jobs.double)
    with using({"pools": {"p": {"kind": "process", "max_workers": 1}}}):
        assert second(1).result(timeout=LONG) == 2
        assert task(make)().then(second).result(timeout=LONG) == 0  # type: ignore[arg-type]  # it becomes an int there
    assert thread[0].startswith("parallel-callback")


def test_chain_goes_on_when_its_pool_is_shut() -> None:
    """A continuation added after the pool's shutdown runs on the callback threads."""
    with ThreadPool(1) as pool:
        future = pool.submit(jobs.double, 1)
    assert future.then(jobs.double).result(timeout=LONG) == 4


def test_continuation_in_a_shut_pool() -> None:
    """A continuation whose named pool is shut fails its future."""
    with using({"pools": {"other": {"kind": "thread"}}}) as registry:
        promise: Future[int] = Future()
        after = promise.then(str, pool="other")
        registry.pool("other").shutdown()
        promise.set_result(1)
        assert isinstance(after.exception(timeout=LONG), PoolShutdownError)


def test_context_variables_are_seen(pool: ThreadPool) -> None:
    """Calls and continuations see the context variables as they were at submit and at then()."""
    jobs.VARIABLE.set("one")
    future = pool.submit(jobs.variable)
    jobs.VARIABLE.set("two")
    after = future.then(lambda before: (before, jobs.variable()))
    jobs.VARIABLE.set("three")
    assert after.result(timeout=LONG) == ("one", "two")


def test_context_variables_are_not_leaked(pool: ThreadPool) -> None:
    """What a call sets, the next call on that thread doesn't see."""
    jobs.VARIABLE.set("one")
    pool.submit(jobs.VARIABLE.set, "inner").result(timeout=LONG)
    assert [pool.submit(jobs.variable).result(timeout=LONG) for _ in range(4)] == ["one"] * 4


def test_blocking_callback_holds_no_other(pool: ThreadPool) -> None:
    """A callback that blocks, on a thread where user code may, doesn't keep other calls from ending."""
    start, gate, inside = threading.Event(), threading.Event(), threading.Event()

    def block(_: object) -> None:
        inside.set()
        gate.wait(LONG)

    slow = pool.submit(start.wait, LONG)
    slow.add_done_callback(block)
    start.set()
    assert inside.wait(LONG)
    assert pool.submit(jobs.double, 2).result(timeout=LONG) == 4
    gate.set()


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancel_queued(held: Held) -> None:
    """A queued call is cancelled, never runs, and what follows it is cancelled."""
    called: list[int] = []
    queued = held.pool.submit(called.append, 1)
    after = queued.then(called.append).then(called.append)
    assert queued.cancel()
    assert after.cancelled()
    held.go.set()
    held.pool.shutdown()
    assert called == []


def test_cancel_running_says_no(held: Held) -> None:
    """A running call can't be cancelled; it ends with its value."""
    assert held.future.running()
    assert not held.future.cancel()
    held.go.set()
    assert held.future.result(timeout=LONG) == "held"
    assert not held.future.cancel()


def test_cancel_up_the_chain(held: Held) -> None:
    """Cancelling the end of a chain cancels what is queued up the chain."""
    queued = held.pool.submit(jobs.nothing)
    middle = queued.then(str)
    end = middle.finally_(jobs.nothing).catch(str)
    assert end.cancel()
    assert middle.cancelled()
    assert queued.cancelled()


def test_cancel_stops_at_others_who_wait(held: Held) -> None:
    """Cancelling the end of a chain leaves alone what somebody else waits for."""
    queued = held.pool.submit(jobs.double, 1)
    other, end = queued.then(jobs.double), queued.then(str)
    assert end.cancel()
    assert not queued.cancelled()
    held.go.set()
    assert other.result(timeout=LONG) == 4


def test_cancel_stops_at_a_callback(held: Held) -> None:
    """A callback on a call keeps it from being cancelled through its chain."""
    seen = threading.Event()
    queued = held.pool.submit(jobs.nothing)
    queued.add_done_callback(lambda _: seen.set())
    queued.then(str).cancel()
    assert not queued.cancelled()
    held.go.set()
    assert seen.wait(LONG)


def test_cancel_stops_at_a_waiter(held: Held) -> None:
    """A thread that waits for a call keeps it from being cancelled through its chain."""
    queued = held.pool.submit(jobs.double, 1)
    with ThreadPool(1) as other:
        waiting = other.submit(queued.result, LONG)
        while queued.serves_only(None):  # until the other thread is there
            threading.Event().wait(0.001)
        assert queued.then(str).cancel()
        assert not queued.cancelled()
        held.go.set()
        assert waiting.result(timeout=LONG) == 2


def test_cancel_while_upstream_runs(held: Held) -> None:
    """What follows a running call is cancelled without touching the call."""
    after = held.future.then(str)
    assert after.cancel()
    assert not held.future.cancelled()
    held.go.set()
    assert held.future.result(timeout=LONG) == "held"


def test_cancel_reaches_a_flattened_future() -> None:
    """Cancelling a future that waits for one that came back cancels that one, if nobody else waits for it."""
    inner: Future[int] = Future()
    made = threading.Event()

    def give(_: object) -> Future[int]:
        made.set()
        return inner

    outer = completed(1).then(give)
    assert made.wait(LONG)
    while not outer.cancel():  # until the callback thread has tied the two
        threading.Event().wait(0.001)
    assert inner.cancelled()
    assert outer.cancelled()


def test_cancelled_call_drops_its_arguments(held: Held) -> None:
    """A cancelled call holds its function and arguments no longer."""
    argument = jobs.Weird()
    ref = weakref.ref(argument)
    queued = held.pool.submit(jobs.same, argument)
    del argument
    assert queued.cancel()
    assert ref() is None


def test_cancel_wakes_waiters(held: Held) -> None:
    """Whoever waits for a cancelled call is woken."""
    queued = held.pool.submit(jobs.nothing)
    with ThreadPool(2) as other:
        ours = other.submit(queued.exception, LONG)
        theirs = other.submit(concurrent.futures.wait, [queued], LONG)
        queued.cancel()
        with pytest.raises(CancelledError):
            ours.result(timeout=LONG)
        assert theirs.result(timeout=LONG).done == {queued}


# -- long chains ------------------------------------------------------------------------------------------------------


def test_long_chain_of_then() -> None:
    """A chain of 100,000 continuations runs through."""
    start: Future[int] = Future()
    end = start
    for _ in range(CHAIN):
        end = end.then(lambda x: x + 1)
    start.set_result(0)
    assert end.result(timeout=60) == CHAIN


def test_long_chain_of_catch() -> None:
    """An error passes 100,000 continuations that don't want it; a value passes 100,000 catches."""
    start: Future[int] = Future()
    end: Future[Any] = start
    for _ in range(CHAIN // 2):
        end = end.then(str).catch(KeyError, str)
    start.set_exception(ValueError("bad"))
    assert end.catch(ValueError, str).result(timeout=60) == "bad"
    good: Future[int] = Future()
    end = good
    for _ in range(CHAIN):
        end = end.catch(str)
    good.set_result(1)
    assert end.result(timeout=60) == 1


def test_long_chain_on_a_thread_pool(pool: ThreadPool) -> None:
    """A chain of 100,000 continuations after a thread call runs on that pool."""
    gate = threading.Event()
    end: Future[Any] = pool.submit(gate.wait, LONG)
    for _ in range(CHAIN):
        end = end.then(lambda x: x + 1)
    gate.set()
    assert end.result(timeout=60) == CHAIN + 1


def test_long_chain_inline() -> None:
    """A chain of 100,000 inline continuations runs through."""
    with InlinePool() as pool:
        end = pool.submit(jobs.double, 0)
        for _ in range(CHAIN):
            end = end.then(lambda x: x + 1)
        assert end.result() == CHAIN


def test_long_chain_cancelled_at_the_end() -> None:
    """Cancelling the end of a chain of 100,000 cancels its start."""
    start: Future[int] = Future()
    end = start
    for _ in range(CHAIN):
        end = end.then(lambda x: x + 1)
    assert end.cancel()
    assert start.cancelled()


def test_long_chain_cancelled_at_the_start() -> None:
    """Cancelling the start of a chain of 100,000 cancels its end."""
    start: Future[int] = Future()
    end = start
    for _ in range(CHAIN):
        end = end.then(lambda x: x + 1)
    assert start.cancel()
    assert end.cancelled()


def test_long_chain_that_nobody_wants() -> None:
    """A pending chain of 100,000 that is dropped is freed without a deep recursion."""
    start: Future[int] = Future()
    end = start
    for _ in range(CHAIN):
        end = end.then(lambda x: x + 1)
    ref = weakref.ref(end)
    del start, end
    gc.collect()
    assert ref() is None


def test_deep_flattening() -> None:
    """Continuations that return futures of continuations, 10,000 deep, come to an end."""

    def down(n: int) -> Any:
        return completed(n - 1).then(down) if n else "ground"

    assert completed(10_000).then(down).result(timeout=60) == "ground"


def test_deep_flattening_inline() -> None:
    """Futures within futures that have all ended, 10,000 deep, are flattened one by one."""
    promise: Future[Any] = Future()
    end = promise
    for _ in range(10_000):
        end = completed(end).then(lambda inner: inner)
    promise.set_result("core")
    assert end.result(timeout=60) == "core"


def test_many_continuations_of_one() -> None:
    """One future may have 20,000 continuations."""
    start: Future[int] = Future()
    ends = [start.then(jobs.double) for _ in range(20_000)]
    start.set_result(1)
    assert {end.result(timeout=60) for end in ends} == {2}


def test_many_continuations_cancelled_one_by_one() -> None:
    """Cancelling 20,000 continuations of one future, the last first or the first first, takes no ages."""
    for order in (lambda ends: ends, reversed):
        start: Future[int] = Future()
        keep = start.then(jobs.double)
        for end in order([start.then(jobs.double) for _ in range(20_000)]):  # type: ignore[operator]
            assert end.cancel()
        start.set_result(1)
        assert keep.result(timeout=LONG) == 2


# -- a simple model of chains -----------------------------------------------------------------------------------------

Model = tuple[str, Any]  # ("value", v), ("error", type) or ("cancelled", None)
OPS = st.sampled_from(["then", "then fails", "catch", "catch other", "catch fails", "finally", "finally fails", "flat"])


def modelled(state: Model, op: str) -> Model:
    """Say how a chain's end changes by one more link."""
    kind, what = state
    if op == "finally fails":
        return ("error", KeyError)
    if kind == "value":
        changes: dict[str, Model] = {
            "then": ("value", what + 1),
            "then fails": ("error", ValueError),
            "flat": ("value", what + 10),
        }
        return changes.get(op, state)
    if kind == "error":
        if op == "catch":
            return ("value", 100)
        if op == "catch fails":
            return ("error", OSError)
        if op == "catch other" and what is OSError:
            return ("value", 200)
    return state


def linked(future: Future[int], op: str) -> Future[int]:
    """Add one more link to a chain."""
    links: dict[str, Callable[[], Future[Any]]] = {
        "then": lambda: future.then(lambda x: x + 1),
        "then fails": lambda: future.then(lambda _: jobs.raises(ValueError())),
        "flat": lambda: future.then(lambda x: completed(x + 10)),
        "catch": lambda: future.catch(lambda _: 100),
        "catch fails": lambda: future.catch(lambda _: jobs.raises(OSError())),
        "catch other": lambda: future.catch(OSError, lambda _: 200),
        "finally": lambda: future.finally_(jobs.nothing),
        "finally fails": lambda: future.finally_(lambda: jobs.raises(KeyError())),
    }
    return links[op]()


def ended(future: Future[Any]) -> Model:
    """Say how a chain has ended, in the model's words."""
    assert not concurrent.futures.wait([future], LONG).not_done
    if future.cancelled():
        return ("cancelled", None)
    error = future.exception()
    return ("value", future.result()) if error is None else ("error", type(error))


@settings(max_examples=80, deadline=None)
@given(
    ops=st.lists(OPS, max_size=12),
    start=st.sampled_from(["value", "error", "cancelled"]),
    early=st.booleans(),
    inline=st.booleans(),
)
def test_chains_do_as_the_model_says(ops: list[str], start: str, early: bool, inline: bool) -> None:
    """Any chain ends as a sequence of plain steps would, ended before or after it was tied, inline or not."""
    with InlinePool() as pool:
        begin: Future[int] = Future()
        if inline:
            begin.dispatcher = pool.callbacks
        expected: Model = {"value": ("value", 0), "error": ("error", OSError), "cancelled": ("cancelled", None)}[start]
        end = {"value": lambda: begin.set_result(0), "error": lambda: begin.set_exception(OSError())}
        if early:
            end.get(start, begin.cancel)()
        last, states, futures = begin, [expected], [begin]
        for op in ops:
            last, expected = linked(last, op), modelled(expected, op)
            futures.append(last)
            states.append(expected)
        if not early:
            end.get(start, begin.cancel)()
        assert [ended(future) for future in futures] == states


# -- races ------------------------------------------------------------------------------------------------------------


def test_first_registered_as_the_call_ends() -> None:
    """Who registers between the end and the telling is not overlooked, and not told twice."""
    for taken_by_the_end in (False, True):
        future = Future[int]()
        told: list[object] = []

        class Late(dict[str, Any]):
            """The cells of a future that ends when the first entry has been written."""

            def setdefault(self, key: str, default: Any = None) -> Any:
                found = super().setdefault(key, default)
                if key == "_first":
                    super().setdefault("_end", (1, None, None))
                    if taken_by_the_end:  # noqa: B023  # called in this round
                        told.append(take_first(self, ENDED))  # noqa: B023  # as above
                return found

        cells = Late(future.__dict__)
        object.__setattr__(future, "__dict__", cells)
        entry = object()
        assert future.add(entry) is taken_by_the_end
        assert told == ([entry] if taken_by_the_end else [])
        assert take_first(cells, ENDED) is None


def test_first_taken_back() -> None:
    """The first that is taken back is not told, nor does its place come free: what comes later is told in order."""
    future = Future[int]()
    first, second, third = object(), object(), object()
    assert future.add(first)
    assert future.add(second)
    assert future.entries() == [first, second]
    assert future.remove(first)
    assert not future.remove(first)
    assert future.add(third)
    assert future.end_with((1, None, None)) == [second, third]
    assert not future.add(first)


def test_cancel_races_with_run() -> None:
    """A call that is cancelled while a worker takes it either runs or is cancelled, never both."""
    ran: list[int] = []
    with frequent_switches(), ThreadPool(2) as pool:
        futures = []
        for index in range(3000):
            future = pool.submit(ran.append, index)
            futures.append((index, future, future.cancel()))
        for index, future, cancelled in futures:
            assert future.cancelled() == cancelled
            assert (future.exception(timeout=LONG) is None) if not cancelled else True
            del index
    assert sorted(ran) == [index for index, _, cancelled in futures if not cancelled]


def test_cancel_races_with_set_result() -> None:
    """A promise that is cancelled and set at once ends one way, and whoever waits is woken."""
    with frequent_switches(), ThreadPool(3) as pool:
        for _ in range(700):
            promise: Future[int] = Future()
            after = promise.then(lambda x: x)
            meet = threading.Barrier(3)

            def race(what: Callable[[], object], meet: threading.Barrier = meet) -> object:
                meet.wait(LONG)
                try:
                    return what()
                except InvalidStateError:
                    return False

            setting = pool.submit(race, lambda promise=promise: promise.set_result(1))
            cancelling = pool.submit(race, promise.cancel)
            waiting = pool.submit(race, lambda promise=promise: concurrent.futures.wait([promise], LONG))
            won = setting.result(timeout=LONG) is None
            assert cancelling.result(timeout=LONG) is not won
            assert waiting.result(timeout=LONG).done == {promise}
            assert concurrent.futures.wait([after], LONG).done == {after}
            assert after.cancelled() is not won


def test_then_races_with_the_end() -> None:
    """A continuation added while the call ends is called once."""
    with frequent_switches(), ThreadPool(2) as pool:
        for _ in range(3000):
            count = itertools.count()
            future = pool.submit(jobs.nothing)
            future.then(lambda _, count=count: next(count)).result(timeout=LONG)
            assert next(count) == 1


def test_callback_races_with_the_end() -> None:
    """Callbacks added by two threads while the call ends are each called once."""
    with frequent_switches(), ThreadPool(3) as pool:
        for _ in range(500):
            seen: list[int] = []
            promise: Future[int] = Future()
            meet = threading.Barrier(3)

            def add(index: int, promise=promise, meet=meet, seen=seen) -> None:  # type: ignore[no-untyped-def]
                meet.wait(LONG)
                promise.add_done_callback(lambda _: seen.append(index))

            adding = [pool.submit(add, index) for index in range(2)]
            meet.wait(LONG)
            promise.set_result(1)
            for future in adding:
                future.result(timeout=LONG)
            assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("waiting", ["ours", "standard wait", "standard as_completed", "first completed"])
def test_no_wake_up_is_lost(waiting: str) -> None:
    """The standard wait() and as_completed(), and result(), wake up for calls that end meanwhile."""
    with frequent_switches(), ThreadPool(2) as pool:
        for _ in range(1500):
            futures = [pool.submit(jobs.nothing) for _ in range(2)]
            if waiting == "ours":
                for future in futures:
                    future.result(timeout=LONG)
            elif waiting == "standard wait":
                assert not concurrent.futures.wait(futures, timeout=LONG).not_done
            elif waiting == "first completed":
                assert concurrent.futures.wait(futures, LONG, concurrent.futures.FIRST_COMPLETED).done
            else:
                assert set(concurrent.futures.as_completed(futures, timeout=LONG)) == set(futures)


def test_no_wake_up_is_lost_in_asyncio() -> None:
    """asyncio.wrap_future() and await lose no wake-up."""

    async def main(pool: ThreadPool) -> None:
        for index in range(1500):
            future = pool.submit(jobs.double, index)
            value = await (asyncio.wrap_future(future) if index % 2 else future)
            assert value == index * 2

    with frequent_switches(), ThreadPool(2) as pool:
        asyncio.run(asyncio.wait_for(main(pool), 60))


def test_a_signal_that_another_thread_is_given(pool: ThreadPool) -> None:
    """Ctrl-C ends the main thread's wait even if the system tells another thread of it, and the wait goes on after."""
    promise: Future[int] = Future()

    def interrupt() -> None:
        while not promise.entries():  # not before the main thread waits
            threading.Event().wait(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    interrupting = pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        promise.result(timeout=LONG)
    assert interrupting.exception(timeout=LONG) is None
    assert promise.entries() == []
    pool.submit(promise.set_result, 1)
    assert promise.result() == 1


def test_many_threads_wait_for_one() -> None:
    """All threads that wait for one future in different ways are woken."""
    with frequent_switches(), ThreadPool(16) as pool:
        for _ in range(20):
            promise: Future[int] = Future()
            meet = threading.Barrier(17)

            def look(how: int, promise=promise, meet=meet) -> bool:  # type: ignore[no-untyped-def]
                meet.wait(LONG)
                if how % 4 == 0:
                    return promise.result(LONG) == 1
                if how % 4 == 1:
                    return promise.exception(LONG) is None
                if how % 4 == 2:
                    return bool(concurrent.futures.wait([promise], LONG).done)
                return next(concurrent.futures.as_completed([promise], LONG)) is promise

            looking = [pool.submit(look, how) for how in range(16)]
            meet.wait(LONG)
            promise.set_result(1)
            assert all(future.result(timeout=LONG) for future in looking)


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_await(pool: ThreadPool) -> None:
    """A future can be awaited: for its value, and for its error."""

    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await pool.submit(jobs.divide, 1, 0)
        return await pool.submit(jobs.double, 2)

    assert asyncio.run(main()) == 4


def test_await_cancelled(held: Held) -> None:
    """Awaiting a cancelled future is cancelled; cancelling who awaits cancels a queued call."""

    async def main() -> None:
        gone: Future[int] = Future()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        queued = held.pool.submit(jobs.nothing)
        waiting = asyncio.ensure_future(asyncio.wrap_future(queued))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)  # a turn of the loop, to tell
        assert queued.cancelled()

    asyncio.run(main())


def test_run_in_executor(pool: ThreadPool) -> None:
    """loop.run_in_executor() takes our pools as they are."""

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, jobs.double, 2)

    assert asyncio.run(main()) == 4


def test_loop_closed_before_the_end(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    """A call that ends after the loop that waited for it was closed costs a line in the log at most."""

    async def main() -> None:
        asyncio.wrap_future(held.future)

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(main())
        held.go.set()
        assert held.future.result(timeout=LONG) == "held"
        assert held.pool.submit(jobs.double, 2).result(timeout=LONG) == 4


# -- memory -----------------------------------------------------------------------------------------------------------


class Big:
    """Something whose end can be seen."""


def test_arguments_are_dropped(pool: ThreadPool) -> None:
    """A future that has ended keeps neither its function nor its arguments alive."""
    with without_gc():
        argument = Big()
        ref = weakref.ref(argument)
        future = pool.submit(lambda x: x is not None, argument)
        del argument
        assert future.result(timeout=LONG)
        pool.submit(jobs.nothing).result(timeout=LONG)  # the worker is done with the one before
        pool.submit(jobs.nothing).result(timeout=LONG)
        assert ref() is None


def test_results_are_freed(pool: ThreadPool) -> None:
    """A result dies with its future, without the cyclic garbage collector."""
    with without_gc():
        future = pool.submit(Big)
        ref = weakref.ref(future.result(timeout=LONG))
        del future
        pool.submit(jobs.nothing).result(timeout=LONG)
        pool.submit(jobs.nothing).result(timeout=LONG)
        assert ref() is None


@pytest.mark.parametrize("look", ["result", "exception", "then", "catch", "gather", "await"])
def test_errors_are_freed(pool: ThreadPool, look: str) -> None:
    """An error, its traceback and what its frames hold die with the future, without the cyclic garbage collector."""

    class BigError(Exception):
        pass

    def fail(_: object) -> None:
        raise BigError

    async def awaited(future: Future[Any]) -> None:
        try:
            await future
        except BigError:
            pass
        finally:
            del future  # the error's traceback refers to this frame

    with without_gc():
        argument = Big()
        ref = weakref.ref(argument)
        future: Future[Any] | None = pool.submit(fail, argument)
        del argument
        if look == "result":
            for _ in range(2):
                with suppress(BigError):
                    future.result(timeout=LONG)
        elif look == "exception":
            future.exception(timeout=LONG)
        elif look == "then":
            future.then(str).then(str).exception(timeout=LONG)
        elif look == "catch":
            future.catch(str).result(timeout=LONG)
        elif look == "gather":
            gather(future).exception(timeout=LONG)
        else:
            asyncio.run(awaited(future))
        del future
        for _ in range(3):
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert ref() is None


def test_chain_is_freed(pool: ThreadPool) -> None:
    """The futures of a chain that has ended are freed without the cyclic garbage collector."""
    with without_gc():
        first = pool.submit(jobs.double, 1)
        second = first.then(jobs.double)
        third = second.catch(str)
        refs = [weakref.ref(future) for future in (first, second, third)]
        assert third.result(timeout=LONG) == 4
        del first, second, third
        for _ in range(3):
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert [ref() for ref in refs] == [None] * 3


def test_intermediate_values_are_freed(pool: ThreadPool) -> None:
    """The value of a link is freed when the next has used it, though the end of the chain is held."""
    with without_gc():
        refs: list[weakref.ref[Big]] = []

        def make(_: object) -> Big:
            big = Big()
            refs.append(weakref.ref(big))
            return big

        end = pool.submit(jobs.nothing).then(make).then(lambda _: "done")
        assert end.result(timeout=LONG) == "done"
        for _ in range(3):
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert refs[0]() is None


def test_waiters_leave_a_long_lived_future() -> None:
    """Waiting in vain leaves nothing behind in a future that lives long."""
    promise: Future[int] = Future()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            promise.result(timeout=0)
    assert promise.entries() == []
    assert promise._waiters == []


def test_memory_of_a_pending_call(held: Held) -> None:
    """A pending call takes at most 1,000 bytes."""
    import tracemalloc

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        futures = [held.pool.submit(jobs.nothing) for _ in range(5000)]
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (after - before) / len(futures) < 1000
    for future in futures:
        future.cancel()


# -- what a user may do inside user code ------------------------------------------------------------------------------


class Submitter:
    """Submits when it dies."""

    def __init__(self, pool: ThreadPool, seen: list[Future[int]]) -> None:
        self.pool = pool
        self.seen = seen

    def __del__(self) -> None:
        self.seen.append(self.pool.submit(jobs.double, 4).then(jobs.double))


def test_del_that_submits(pool: ThreadPool) -> None:
    """An argument whose __del__ submits, on a worker or in cancel(), does no harm."""
    seen: list[Future[int]] = []
    pool.submit(jobs.same, Submitter(pool, seen)).exception(timeout=LONG)
    with Held() as held:
        held.pool.submit(jobs.same, Submitter(pool, seen)).cancel()
    for _ in range(3):
        pool.submit(jobs.nothing).result(timeout=LONG)
    assert [future.result(timeout=LONG) for future in seen] == [16] * len(seen)
    assert seen


def test_then_inside_then(pool: ThreadPool) -> None:
    """A continuation may wait for what it chains, on its own pool."""

    def inner(x: int) -> int:
        return pool.submit(jobs.double, x).then(jobs.double).result(timeout=LONG)

    with ThreadPool(1) as one:
        assert one.submit(jobs.double, 1).then(inner).result(timeout=LONG) == 8
        assert one.submit(jobs.double, 1).then(lambda x: one.submit(jobs.double, x).result()).result(LONG) == 4
