"""
Futures of several futures, and waiting for several.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError
from queue import SimpleQueue
from typing import Any

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Held, frequent_switches, without_gc

from parallel import (
    Future,
    LoopPool,
    ThreadPool,
    as_completed,
    completed,
    current_task,
    failed,
    first,
    gather,
    race,
    settle,
    wait,
)

LONG = 30  # seconds; only a deadlock takes so long
Combine = Callable[..., Future[Any]]


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


def cancelled() -> Future[Any]:
    """Make a cancelled future."""
    future: Future[Any] = Future()
    future.cancel()
    return future


def standard(value: Any = None, error: BaseException | None = None) -> concurrent.futures.Future[Any]:
    """Make an ended future of the standard library."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
    return future


# -- gather -----------------------------------------------------------------------------------------------------------


def test_gather_keeps_the_order(pool: ThreadPool) -> None:
    """The value is a tuple of all values, in the order given, whichever ends first."""
    promises = [Future[int]() for _ in range(5)]
    both = gather(*promises)
    for index in (3, 0, 4, 1, 2):
        assert not both.done()
        promises[index].set_result(index)
    assert both.result(timeout=LONG) == (0, 1, 2, 3, 4)


def test_gather_of_none() -> None:
    """Of no futures the value is an empty tuple, at once."""
    assert gather().result(timeout=LONG) == ()
    assert settle().result(timeout=LONG) == ()
    assert gather(return_exceptions=True).result(timeout=LONG) == ()


def test_gather_of_one_twice() -> None:
    """A future given twice has two places."""
    promise: Future[int] = Future()
    both = gather(promise, completed(2), promise)
    promise.set_result(1)
    assert both.result(timeout=LONG) == (1, 2, 1)


def test_gather_fails_with_the_first(held: Held) -> None:
    """The first failure is the result, and those that have not been started are cancelled."""
    queued = held.pool.submit(jobs.nothing)
    promise: Future[int] = Future()
    both = gather(held.future, queued, promise)
    error = ValueError()
    promise.set_exception(error)
    assert both.exception(timeout=LONG) is error
    assert queued.cancelled()
    assert not held.future.cancelled()


def test_gather_of_an_ended_failure(held: Held) -> None:
    """A failure that is there already cancels those that come after it too."""
    queued = held.pool.submit(jobs.nothing)
    assert isinstance(gather(failed(ValueError()), queued).exception(timeout=LONG), ValueError)
    assert queued.cancelled()


def test_gather_leaves_what_others_wait_for(held: Held) -> None:
    """A failure doesn't cancel what somebody else waits for."""
    queued = held.pool.submit(jobs.double, 1)
    other = queued.then(jobs.double)
    both = gather(queued, failed(ValueError()))
    assert isinstance(both.exception(timeout=LONG), ValueError)
    assert not queued.cancelled()
    held.go.set()
    assert other.result(timeout=LONG) == 4


def patient(begun: threading.Event, go: threading.Event) -> bool:
    """Run until asked to stop, or until *go* is set; return whether it was asked."""
    begun.set()
    here = current_task()
    for _ in range(LONG * 1000):
        if here.cancelled or go.wait(0.001):
            break
    return here.cancelled


def test_gather_asks_what_runs_to_stop(pool: ThreadPool) -> None:
    """A failure asks a running call on a thread to stop."""
    begun, go, promise = threading.Event(), threading.Event(), Future[int]()
    future = pool.submit(patient, begun, go)
    both = gather(future, promise)
    assert begun.wait(LONG)
    promise.set_exception(ValueError())
    assert isinstance(both.exception(timeout=LONG), ValueError)
    assert future.result(timeout=LONG)


def test_gather_asks_up_the_chain(pool: ThreadPool) -> None:
    """What runs for the others' sake alone is asked to stop as well; its continuation is cancelled."""
    begun, go, promise = threading.Event(), threading.Event(), Future[int]()
    future = pool.submit(patient, begun, go)
    end = future.then(jobs.same)
    both = gather(promise, end)
    assert begun.wait(LONG)
    promise.set_exception(ValueError())
    assert isinstance(both.exception(timeout=LONG), ValueError)
    assert end.cancelled()
    assert future.result(timeout=LONG)


@pytest.mark.parametrize("how", ["then", "callback", "wait"])
def test_gather_asks_nothing_that_others_wait_for(pool: ThreadPool, how: str) -> None:
    """A running call that somebody else waits for is not asked to stop."""
    begun, go, promise = threading.Event(), threading.Event(), Future[int]()
    future = pool.submit(patient, begun, go)
    both = gather(future, promise)
    values: SimpleQueue[bool] = SimpleQueue()
    if how == "then":
        future.then(values.put)
    elif how == "callback":
        future.add_done_callback(lambda ended: values.put(ended.result()))
    else:
        pool.submit(lambda: values.put(future.result(LONG)))
        while len(future.entries()) < 2:  # the tie of the gather, and who waits
            go.wait(0.001)
    assert begun.wait(LONG)
    promise.set_exception(ValueError())
    assert isinstance(both.exception(timeout=LONG), ValueError)
    go.set()
    assert values.get(timeout=LONG) is False


def test_gather_cancels_a_running_coroutine() -> None:
    """A failure cancels a running coroutine at once."""
    begun, promise = threading.Event(), Future[int]()

    async def rests() -> None:
        begun.set()
        await asyncio.Event().wait()

    with LoopPool() as loop:
        future = loop.submit(rests)
        both = gather(future, promise)
        assert begun.wait(LONG)
        promise.set_exception(ValueError())
        assert isinstance(both.exception(timeout=LONG), ValueError)
        assert future.cancelled()


def test_cancelling_a_gather_leaves_what_runs(pool: ThreadPool) -> None:
    """Who cancels the result cancels what is queued alone, as at the end of any chain."""
    begun, go = threading.Event(), threading.Event()
    future = pool.submit(patient, begun, go)
    both = gather(future, Future[int]())
    assert begun.wait(LONG)
    assert both.cancel()
    go.set()
    assert future.result(timeout=LONG) is False


def test_gather_cancels_one_given_twice(held: Held) -> None:
    """A future given twice to one gather() serves nobody else: it is cancelled by a failure too."""
    queued = held.pool.submit(jobs.nothing)
    promise: Future[int] = Future()
    both = gather(promise, queued, queued)
    promise.set_exception(ValueError())
    assert isinstance(both.exception(timeout=LONG), ValueError)
    assert queued.cancelled()


def test_gather_of_a_cancelled_one() -> None:
    """A cancelled future cancels the result."""
    promise: Future[int] = Future()
    both = gather(completed(1), promise)
    promise.cancel()
    assert both.cancelled()
    assert gather(cancelled(), completed(1)).cancelled()


def test_gather_cancelled_cancels_its_parts(held: Held) -> None:
    """Cancelling the result cancels what is queued and serves nobody else."""
    mine, shared = held.pool.submit(jobs.nothing), held.pool.submit(jobs.double, 1)
    other = shared.then(jobs.double)
    both = gather(held.future, mine, shared)
    assert both.cancel()
    assert mine.cancelled()
    assert not shared.cancelled()
    held.go.set()
    assert other.result(timeout=LONG) == 4


def test_gather_returns_exceptions() -> None:
    """With return_exceptions errors take the places of values; CancelledError stands for a cancellation."""
    error = jobs.FalsyError()
    good, bad, gone = gather(completed(1), failed(error), cancelled(), return_exceptions=True).result(timeout=LONG)
    assert (good, bad) == (1, error)
    assert isinstance(gone, CancelledError)


def test_gather_takes_standard_futures() -> None:
    """Futures of the standard library work as well, in one gather with ours."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        both = gather(executor.submit(jobs.double, 1), completed(2), standard(3))
        assert both.result(timeout=LONG) == (2, 2, 3)
    assert isinstance(gather(standard(error=KeyError()), completed(1)).exception(timeout=LONG), KeyError)
    gone: concurrent.futures.Future[int] = concurrent.futures.Future()
    both_gone = gather(gone)
    gone.cancel()
    gone.set_running_or_notify_cancel()
    assert both_gone.cancelled()


def test_gather_many(pool: ThreadPool) -> None:
    """20,000 futures are gathered."""
    futures = [pool.submit(jobs.double, index) for index in range(20_000)]
    assert gather(*futures).result(timeout=LONG) == tuple(range(0, 40_000, 2))


def test_gather_of_gathers(pool: ThreadPool) -> None:
    """A gather chains and nests as any future."""
    inner = [gather(*(pool.submit(jobs.double, x) for x in range(3))).then(sum) for _ in range(3)]
    assert gather(*inner).then(sum).result(timeout=LONG) == 18


def test_gather_of_values_that_compare_badly(pool: ThreadPool) -> None:
    """Values that can't be compared, hashed or asked for their truth are gathered."""
    values = [jobs.Weird() for _ in range(3)]
    for combine in (gather, settle, race, first):
        assert combine(*(pool.submit(lambda v=v: v) for v in values)).exception(timeout=LONG) is None
    errors = settle(*(failed(jobs.WeirdError()) for _ in values)).result(timeout=LONG)
    assert not any(one.ok for one in errors)


# -- settle, race, first ----------------------------------------------------------------------------------------------


def test_settle_never_fails() -> None:
    """settle() tells how each has ended, falsy errors included."""
    error = jobs.FalsyError()
    good, bad, gone = settle(completed(1), failed(error), cancelled()).result(timeout=LONG)
    assert good.ok
    assert (good.value, good.error, good.result()) == (1, None, 1)
    assert not bad.ok
    assert (bad.value, bad.error) == (None, error)
    with pytest.raises(jobs.FalsyError):
        bad.result()
    assert isinstance(gone.error, CancelledError)
    with pytest.raises(CancelledError):
        gone.result()


def test_settled_result_raises_its_own_error_again() -> None:
    """Asked twice, the result of a failed one raises the same error."""
    (bad,) = settle(failed(ValueError("x"))).result(timeout=LONG)
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            bad.result()


@pytest.mark.parametrize("how", ["value", "error", "cancelled"])
def test_race_takes_the_first_end(how: str) -> None:
    """race() ends as the first to end, in whatever way; the others go on."""
    slow, fast = Future[int](), Future[int]()
    winner = race(slow, fast)
    error = ValueError()
    {"value": lambda: fast.set_result(1), "error": lambda: fast.set_exception(error), "cancelled": fast.cancel}[how]()
    concurrent.futures.wait([winner], LONG)
    assert winner.cancelled() == (how == "cancelled")
    if how != "cancelled":
        assert winner.exception(timeout=LONG) is (error if how == "error" else None)
    assert not slow.done()
    slow.set_result(2)


def test_race_in_the_order_given() -> None:
    """Of several that have ended, the first given wins."""
    assert race(completed(1), failed(ValueError())).result(timeout=LONG) == 1


def test_first_takes_the_first_value() -> None:
    """first() passes over failures."""
    slow = Future[int]()
    winner = first(failed(ValueError()), cancelled(), slow)
    assert not winner.done()
    slow.set_result(3)
    assert winner.result(timeout=LONG) == 3


def test_first_of_failures() -> None:
    """If none succeeds, first() fails with a group of all errors, in the order given."""
    error = first(failed(ValueError()), cancelled(), failed(KeyError())).exception(timeout=LONG)
    assert isinstance(error, ExceptionGroup)
    assert [type(one) for one in error.exceptions] == [ValueError, CancelledError, KeyError]
    base = first(failed(SystemExit())).exception(timeout=LONG)
    assert isinstance(base, BaseExceptionGroup)
    assert not isinstance(base, ExceptionGroup)


@pytest.mark.parametrize("combine", [race, first])
def test_of_none_is_refused(combine: Combine) -> None:
    """Of no futures, race() and first() would never end: they are refused."""
    with pytest.raises(ValueError, match="at least one"):
        combine()


@pytest.mark.parametrize("combine", [gather, settle, race, first])
def test_cancelling_a_combination(combine: Combine, held: Held) -> None:
    """Cancelling any combination cancels what is queued for it alone."""
    queued = held.pool.submit(jobs.nothing)
    both = combine(held.future, queued)
    assert both.cancel()
    assert queued.cancelled()
    assert not held.future.cancelled()


@pytest.mark.parametrize("combine", [gather, settle, race, first])
def test_what_is_no_future(combine: Combine) -> None:
    """What is no future is refused with a TypeError that names it."""
    with pytest.raises(TypeError, match="5"):
        combine(completed(1), 5)


KINDS = st.sampled_from(["value", "error", "cancelled", "base", "falsy", "standard", "standard error"])


def made(kind: str, index: int, *, early: bool) -> tuple[concurrent.futures.Future[Any], Callable[[], object]]:
    """Make a future and what ends it."""
    future: Any = concurrent.futures.Future() if kind.startswith("standard") else Future()
    errors = {"error": ValueError(index), "base": SystemExit(index), "falsy": jobs.FalsyError(index)}
    error = errors.get(kind, KeyError(index))

    def end() -> None:
        if kind == "cancelled":
            future.cancel()
        elif future.set_running_or_notify_cancel():
            if kind in ("value", "standard"):
                future.set_result(index)
            else:
                future.set_exception(error)

    if early:
        end()
        return future, lambda: None
    return future, end


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(KINDS, st.booleans()), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_combinations_of_random_ends(parts: list[tuple[str, bool]], random: Any) -> None:
    """gather, settle, race and first of any mix of ends, in any order, do as a plain loop over the ends does."""
    pairs = [made(kind, index, early=early) for index, (kind, early) in enumerate(parts)]
    futures = [future for future, _ in pairs]
    order = [index for index, (_, early) in enumerate(parts) if early]
    late = [index for index, (_, early) in enumerate(parts) if not early]
    random.shuffle(late)
    told = settle(*futures)
    kept = gather(*futures, return_exceptions=True)
    gathered, winner, best = gather(*futures), race(*futures), first(*futures)
    for index in late:
        pairs[index][1]()
    everyone = [told, kept, gathered, winner, best]
    assert not concurrent.futures.wait([*everyone, *futures], LONG).not_done

    ends = {index: ("cancelled", None) if f.cancelled() else (f.exception(), f) for index, f in enumerate(futures)}
    settled = told.result()
    for index, one in enumerate(settled):
        if futures[index].cancelled():
            assert isinstance(one.error, CancelledError)
        else:
            assert one.error is futures[index].exception()
            assert one.ok == (one.error is None)
    assert len(kept.result()) == len(parts)
    in_order = [*order, *late]
    is_good = [not f.cancelled() and f.exception() is None for f in futures]
    if all(is_good):
        assert gathered.result() == tuple(range(len(parts)))
    else:
        one = next(index for index in in_order if not is_good[index])
        assert gathered.cancelled() == futures[one].cancelled()
        assert gathered.cancelled() or gathered.exception() is futures[one].exception()
    one = in_order[0]
    assert winner.cancelled() == futures[one].cancelled()
    if any(is_good):
        assert best.result() == next(index for index in in_order if is_good[index])
    else:
        group = best.exception()
        assert isinstance(group, BaseExceptionGroup)
        assert len(group.exceptions) == len(parts)
    del ends


# -- as_completed -----------------------------------------------------------------------------------------------------


def test_as_completed_in_the_order_of_the_ends() -> None:
    """Those that have ended come first, then each as it ends; each once, given twice or not."""
    one, two, three = Future[int](), completed(2), Future[int]()
    coming = as_completed([one, two, three, one])
    assert next(coming) is two
    three.set_exception(ValueError())
    assert next(coming) is three
    one.cancel()
    assert next(coming) is one
    assert list(coming) == []


def test_as_completed_times_out() -> None:
    """It raises TimeoutError when the last hasn't ended in time; the future goes on."""
    one, two = Future[int](), completed(2)
    coming = as_completed([one, two], timeout=0.01)
    assert next(coming) is two
    with pytest.raises(TimeoutError):
        next(coming)
    one.set_result(1)
    assert one.result() == 1


def test_as_completed_takes_any_iterable_and_standard_futures(pool: ThreadPool) -> None:
    """It takes a generator, and futures of the standard library."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        futures = [pool.submit(jobs.double, 1), executor.submit(jobs.double, 2)]
        assert sorted(future.result() for future in as_completed((f for f in futures), LONG)) == [2, 4]
    assert list(as_completed([])) == []


def test_as_completed_is_left_early(held: Held) -> None:
    """Leaving the loop early leaves nothing behind in the futures."""
    with without_gc():
        for future in as_completed([completed(1), held.future]):
            assert future.result() == 1
            break
        assert held.future.entries() == []


def test_as_completed_counts_from_the_call() -> None:
    """The time runs from the call of as_completed(); once it is up, what comes late can still be had."""
    promise: Future[int] = Future()
    coming = as_completed([promise, completed(1)], timeout=0)
    assert next(coming).result() == 1
    for _ in range(2):
        with pytest.raises(TimeoutError, match="1 futures"):
            next(coming)
    promise.set_result(2)
    assert next(coming) is promise
    with pytest.raises(StopIteration):
        next(coming)


def test_threads_share_one_as_completed(pool: ThreadPool) -> None:
    """Several threads share the arrivals: each future comes to one of them, and all of them end."""
    with frequent_switches(), ThreadPool(3) as others:
        for _ in range(50):
            coming = as_completed([pool.submit(jobs.double, x) for x in range(20)])
            found = [others.submit(lambda coming=coming: [one.result() for one in coming]) for _ in range(3)]
            assert sorted(x for part in gather(*found).result(timeout=LONG) for x in part) == list(range(0, 40, 2))


def test_as_completed_is_closed(held: Held) -> None:
    """close() ends the iteration for all who wait in it, and leaves the futures alone."""
    with ThreadPool(1) as other:
        coming = as_completed([held.future])
        waiting = other.submit(list, coming)
        while coming._roll._bell is None:
            threading.Event().wait(0.001)
        coming.close()
        assert waiting.result(timeout=LONG) == []
    assert held.future.entries() == []
    assert not held.future.done()


def test_as_completed_lets_go(pool: ThreadPool) -> None:
    """A future that has been yielded, and its value, are held no longer."""

    class Big:
        pass

    with without_gc():
        last: Future[int] = Future()
        coming = as_completed([last, *(pool.submit(Big) for _ in range(3))], timeout=LONG)
        refs = [weakref.ref(next(coming).result()) for _ in range(3)]
        for _ in range(3):
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert [ref() for ref in refs] == [None] * 3
        last.set_result(1)
        assert next(coming) is last


def test_standard_as_completed_lets_go(pool: ThreadPool) -> None:
    """So it is with the standard library's function over our futures."""

    class Big:
        pass

    with without_gc():
        last: Future[int] = Future()
        coming = concurrent.futures.as_completed([last, *(pool.submit(Big) for _ in range(3))], timeout=LONG)
        refs = [weakref.ref(next(coming).result()) for _ in range(3)]
        for _ in range(3):
            pool.submit(jobs.nothing).result(timeout=LONG)
        assert [ref() for ref in refs] == [None] * 3
        last.set_result(1)
        assert next(coming) is last


def test_as_completed_under_load() -> None:
    """Over many rounds of random ends, as_completed() yields every future once."""
    with frequent_switches(), ThreadPool(3) as pool:
        for _ in range(400):
            futures = [pool.submit(jobs.nothing) for _ in range(5)]
            assert set(as_completed(futures, timeout=LONG)) == set(futures)


# -- wait -------------------------------------------------------------------------------------------------------------


def test_wait_for_all(pool: ThreadPool) -> None:
    """wait() returns when all have ended, as the standard function does, in a named pair."""
    futures = [pool.submit(jobs.double, index) for index in range(10)]
    done, not_done = wait(futures, timeout=LONG)
    assert (done, not_done) == (set(futures), set())
    assert wait(futures).done == set(futures)
    assert wait([]) == (set(), set())


def test_wait_times_out() -> None:
    """What hasn't ended in time is in not_done."""
    one, two = Future[int](), completed(2)
    assert wait([one, two], timeout=0.01) == ({two}, {one})
    assert wait([one, two], timeout=0) == ({two}, {one})
    one.cancel()


@pytest.mark.parametrize("function", [wait, concurrent.futures.wait])
def test_wait_for_the_first(function: Callable[..., Any], pool: ThreadPool) -> None:
    """FIRST_COMPLETED returns at the first end, FIRST_EXCEPTION at the first failure, not at a cancellation."""
    one, two, three = Future[int](), Future[int](), Future[int]()
    waiting = pool.submit(function, [one, two, three], LONG, FIRST_COMPLETED)
    failing = pool.submit(function, [one, two, three], LONG, FIRST_EXCEPTION)
    one.set_result(1)
    assert one in waiting.result(timeout=LONG)[0]
    two.cancel()
    assert not failing.done()
    three.set_exception(jobs.FalsyError())
    assert set(failing.result(timeout=LONG)[0]) == {one, two, three}


def test_wait_with_wrong_words() -> None:
    """An unknown return_when is a ValueError that lists the known ones."""
    with pytest.raises(ValueError, match=ALL_COMPLETED):
        wait([completed(1)], return_when="SOMETIME")


@pytest.mark.parametrize("how", ["result", "settle", "as_completed"])
def test_waiting_for_thousands_of_races(how: str) -> None:
    """Combinations and promises that end while they are made lose no end."""
    with frequent_switches(), ThreadPool(2) as pool:
        for _ in range(700):
            futures = [pool.submit(jobs.nothing) for _ in range(3)]
            if how == "result":
                assert gather(*futures).result(timeout=LONG) == (None,) * 3
            elif how == "settle":
                assert all(one.ok for one in settle(*futures).result(timeout=LONG))
            else:
                assert first(*futures).then(lambda _, futures=futures: race(*futures)).result(timeout=LONG) is None


# -- in a worker, in a fork -------------------------------------------------------------------------------------------


def children(pool: ThreadPool, how: str) -> int:
    """Wait for two calls of the pool in which this runs."""
    futures = [pool.submit(jobs.double, x) for x in (1, 2)]
    if how == "gather":
        return sum(gather(*futures).result())
    if how == "wait":
        return sum(future.result() for future in wait(futures).done)
    if how == "as_completed":
        return sum(future.result() for future in as_completed(futures))
    if how == "race":
        race(*futures).result()
        return sum(future.result() for future in futures)
    if how == "standard wait":
        return sum(future.result() for future in concurrent.futures.wait(futures).done)
    return sum(future.result() for future in concurrent.futures.as_completed(futures))


@pytest.mark.parametrize("how", ["gather", "wait", "as_completed", "race", "standard wait", "standard as_completed"])
def test_two_parents_two_children(how: str) -> None:
    """Two parents that wait for their children, in a pool of two, finish; the standard functions count as waits."""
    pool = ThreadPool(2)
    meet = threading.Barrier(2)

    def parent() -> int:
        meet.wait(LONG)
        return children(pool, how)

    parents = [pool.submit(parent) for _ in range(2)]
    try:
        assert [future.result(timeout=5) for future in parents] == [6, 6]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a cancelled child lets its parent go on


@pytest.mark.parametrize("combine", [gather, settle, race, first])
def test_pending_in_a_forked_child(combine: Combine, held: Held, in_fork: Callable[..., Any]) -> None:
    """In a forked child a pending combination raises, mixed sources or not, instead of hanging."""
    with LoopPool() as loop:
        other = loop.submit(jobs.to_thread(held.go.wait), LONG)
        futures = [combine(held.future), combine(held.future, other), combine(held.future.then(str), other.then(str))]

        try:
            assert in_fork(lambda: [type(raised_by(future)).__name__ for future in futures]) == ["ForkedError"] * 3
            assert not any(future.done() for future in futures)
        finally:
            held.go.set()
        assert futures[1].exception(timeout=LONG) is None


def test_as_completed_in_a_forked_child(held: Held, pool: ThreadPool, in_fork: Callable[..., Any]) -> None:
    """An iteration begun before the fork raises at its pending futures, even if its lock was held, and doesn't hang."""
    coming = as_completed([completed(1), held.future])
    assert next(coming).result() == 1
    locked, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with coming._roll._lock:
            locked.set()
            assert forked.wait(LONG)

    holding = pool.submit(hold)
    assert locked.wait(LONG)
    try:
        assert in_fork(lambda: type(raised_by(next(coming))).__name__) == "ForkedError"
    finally:
        forked.set()
    assert holding.exception(timeout=LONG) is None
    held.go.set()
    assert next(coming).result() == "held"


def raised_by(future: Future[Any]) -> BaseException | None:
    """Return the error of a future that should have ended."""
    try:
        return future.exception(timeout=2)
    except TimeoutError as error:
        return error
