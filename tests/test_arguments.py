"""
A call's arguments: futures among them are waited for, and their values passed.
"""

from __future__ import annotations

import concurrent.futures
from collections import OrderedDict, namedtuple
from concurrent.futures import CancelledError
from typing import Any

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Held

from parallel import Future, completed, failed, result_of, task, unresolved, using, wait

LONG = 30  # seconds; only a deadlock takes so long
Point = namedtuple("Point", "x y")


@task
def same(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments."""
    return args, kwargs


@task(pool="one")
def in_one(*args: Any) -> tuple[Any, ...]:
    """Return the arguments, from the pool of one thread."""
    return args


ONE = {"pools": {"one": {"kind": "thread", "max_workers": 1}}}


def test_future_at_the_top_level() -> None:
    """Futures among positional and keyword arguments become values."""
    assert same(completed(1), 2, three=completed(3)).result(timeout=LONG) == ((1, 2), {"three": 3})


def test_future_one_level_down() -> None:
    """So do those in a list, tuple or dict, whose other items stay as they are."""
    value = object()
    call = same([completed(1), value], (completed(2),), {"k": completed(3), "l": value}, kw=[completed(4)])
    assert call.result(timeout=LONG) == (([1, value], (2,), {"k": 3, "l": value}), {"kw": [4]})


def test_futures_deeper_down_stay() -> None:
    """Futures two levels down, or in containers of other types, are passed as they are."""
    future = completed(1)
    deep: list[Any] = [[[future]], Point(future, 1), OrderedDict(k=future), {future}, frozenset([future])]
    for argument in deep:
        ((found,), _) = same(argument).result(timeout=LONG)
        assert found is argument


def test_arguments_are_not_copied_without_futures() -> None:
    """A list without futures is passed itself."""
    items, table = [1, 2], {"a": 1}
    args, kwargs = same(items, kw=table).result(timeout=LONG)
    assert args[0] is items
    assert kwargs["kw"] is table


def test_list_with_futures_is_not_changed() -> None:
    """The caller's own list keeps its futures."""
    items = [completed(1)]
    assert same(items).result(timeout=LONG) == (([1],), {})
    assert isinstance(items[0], Future)


def test_unresolved() -> None:
    """unresolved() passes the future itself, at the top level and one level down."""
    future = completed(1)
    args, kwargs = same(unresolved(future), [unresolved(future), future], k=unresolved(future)).result(timeout=LONG)
    assert args[0] is future
    assert args[1] == [future, 1]
    assert kwargs["k"] is future


def test_result_of() -> None:
    """result_of() is for the type checker: the function gets the value."""
    assert same(result_of(completed(1))).result(timeout=LONG) == ((1,), {})


def test_standard_futures() -> None:
    """Futures of the standard library are waited for as well."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        assert same(executor.submit(jobs.double, 2)).result(timeout=LONG) == ((4,), {})


def test_value_that_is_a_future_again() -> None:
    """A future's value that is itself a list or future is passed as it is, not looked into."""
    inner = completed(1)
    outer = Future[Any]()
    outer.set_result([inner])
    args, _ = same(outer).result(timeout=LONG)
    assert args[0][0] is inner


def test_failed_argument() -> None:
    """A failed argument fails the call with the same exception, and the function is not called."""
    called: list[object] = []
    error = jobs.FalsyError()
    call = task(called.append)(failed(error))
    assert call.exception(timeout=LONG) is error
    assert called == []


def test_cancelled_argument() -> None:
    """A cancelled argument cancels the call and what follows it."""
    gone: Future[int] = Future()
    call = same(gone, 1)
    after = call.then(str)
    gone.cancel()
    assert not wait([after], timeout=LONG).not_done
    assert call.cancelled()
    assert after.cancelled()


def test_failed_argument_leaves_the_others() -> None:
    """When one argument fails, the others are not cancelled, and when one is cancelled neither."""
    for end in (lambda future: future.set_exception(ValueError()), lambda future: future.cancel()):
        one, other = Future[int](), Future[int]()
        call = same(one, other)
        end(one)
        assert not wait([call], timeout=LONG).not_done
        assert not other.cancelled()


def test_holds_no_worker_while_it_waits() -> None:
    """A call that waits for its arguments leaves the pool of one thread free."""
    with using(ONE):
        promise: Future[int] = Future()
        waiting = [in_one(promise) for _ in range(5)]
        assert in_one(1).result(timeout=LONG) == (1,)
        promise.set_result(2)
        assert [call.result(timeout=LONG) for call in waiting] == [(2,)] * 5


def test_cancel_a_call_that_waits() -> None:
    """A call that waits for its arguments can be cancelled, and cancels what only it waited for."""
    with Held() as held:
        mine, shared = held.pool.submit(jobs.nothing), held.pool.submit(jobs.double, 1)
        other = shared.then(jobs.double)
        call = same(mine, shared)
        assert call.cancel()
        assert mine.cancelled()
        assert not shared.cancelled()
        held.go.set()
        assert other.result(timeout=LONG) == 4


def test_the_same_future_twice() -> None:
    """One future in several places has its value in all of them."""
    promise: Future[int] = Future()
    call = same(promise, [promise], k=promise)
    promise.set_result(1)
    assert call.result(timeout=LONG) == ((1, [1]), {"k": 1})


def test_context_at_the_call() -> None:
    """A call that waited for its arguments sees the context variables as they were at the call."""
    promise: Future[int] = Future()
    jobs.VARIABLE.set("at the call")
    call = task(lambda _: jobs.variable())(promise)
    jobs.VARIABLE.set("later")
    promise.set_result(1)
    assert call.result(timeout=LONG) == "at the call"


def test_error_of_the_pool_comes_out_of_the_future() -> None:
    """If the pool refuses the call once its arguments are there, its future fails."""
    with using(ONE) as registry:
        promise: Future[int] = Future()
        call = in_one(promise)
        in_one(1).result(timeout=LONG)
        registry.pool("one").shutdown()
        promise.set_result(1)
        assert isinstance(call.exception(timeout=LONG), RuntimeError)


def test_long_row_of_calls() -> None:
    """5,000 calls that each wait for the one before come to an end."""
    with using(ONE):
        add = task(pool="one")(jobs.add)
        call: Future[int] = add(0)
        for _ in range(5_000):
            call = add(call)
        assert call.result(timeout=60) == 5_001


def test_a_tree_of_calls() -> None:
    """Calls of calls of calls, all made at once, come to an end."""
    add = task(jobs.add)
    level: list[Future[int]] = [completed(1) for _ in range(256)]
    while len(level) > 1:
        level = [add(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    assert level[0].result(timeout=LONG) == 256


def test_argument_that_comes_late() -> None:
    """A call whose argument never comes hangs nobody but who waits for it without a timeout."""
    promise: Future[Any] = Future()
    call = same(promise)
    after = call.then(lambda value: value)
    with pytest.raises(TimeoutError):
        after.result(timeout=0.01)
    promise.set_result(1)
    assert after.result(timeout=LONG) == ((1,), {})


LEAVES = st.integers() | st.booleans() | st.none() | st.text(max_size=3)
ARGUMENTS = st.lists(
    LEAVES
    | st.lists(LEAVES, max_size=3)
    | st.tuples(LEAVES, LEAVES)
    | st.dictionaries(st.text(max_size=2), LEAVES, max_size=3),
    max_size=5,
)


def hidden(value: Any, random: Any, promises: list[tuple[Future[Any], Any]]) -> Any:
    """Put futures in the place of some values."""

    def one(item: Any) -> Any:
        if random.random() < 0.5:
            return item
        future: Future[Any] = Future()
        promises.append((future, item))
        return future

    if type(value) is list:
        return [one(item) for item in value]
    if type(value) is tuple:
        return tuple(one(item) for item in value)
    if type(value) is dict:
        return {key: one(item) for key, item in value.items()}
    return one(value)


@settings(max_examples=60, deadline=None)
@given(ARGUMENTS, st.dictionaries(st.sampled_from(["self", "fn", "pool", "timeout"]), LEAVES), st.randoms())
def test_any_arguments_with_any_futures(args: list[Any], kwargs: dict[str, Any], random: Any) -> None:
    """Whatever values are replaced by futures, the function gets the values in their places."""
    promises: list[tuple[Future[Any], Any]] = []
    call = same(
        *(hidden(arg, random, promises) for arg in args),
        **{key: hidden(value, random, promises) for key, value in kwargs.items()},
    )
    random.shuffle(promises)
    for promise, value in promises:
        promise.set_result(value)
    found_args, found_kwargs = call.result(timeout=LONG)
    assert found_args == tuple(args)
    assert found_kwargs == kwargs


def test_arguments_are_dropped_after_a_cancellation() -> None:
    """Cancelled while it waits, a call leaves the promise free of it."""
    promise: Future[int] = Future()
    keep = promise.then(jobs.double)
    call = same(promise)
    assert call.cancel()
    with pytest.raises(CancelledError):
        call.result()
    promise.set_result(1)
    assert keep.result(timeout=LONG) == 2
