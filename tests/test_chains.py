"""
Chains: what their errors show, their limits and shields, and tasks that are chained before they are called.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import jobs
import pytest
from jobs import Held, without_gc

from parallel import (
    Future,
    InlinePool,
    LoopPool,
    ProcessPool,
    Task,
    TaskTimeoutError,
    ThreadPool,
    completed,
    context,
    failed,
    gather,
    sleep,
    task,
    using,
    wait,
)

LONG = 30  # seconds; only a deadlock takes so long


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


@task
def fetch(x: int) -> str:
    """Return *x* as text."""
    return str(x)


@task
def parse(text: str) -> int:
    """Fail."""
    return jobs.raises(ValueError(text))


@task
def save(x: int) -> None:
    """Do nothing."""


def caught(future: Future[Any]) -> BaseException:
    """Return what result() raises."""
    try:
        future.result(timeout=LONG)
    except BaseException as error:
        return error
    finally:
        del future
    raise AssertionError("it has a value")


# -- the note with the chain ------------------------------------------------------------------------------------------


def test_note() -> None:
    """An error tells where it was raised, and in which chain, once, however often and wherever it is asked for."""
    second = fetch(1).then(parse)
    third = second.then(save)
    for _ in range(2):
        for future in (third, second, third.finally_(jobs.nothing), gather(third)):
            error = caught(future)
            assert error.__notes__ == ["in parse, of the chain fetch → parse → save"]
            assert future.exception() is error


@pytest.mark.parametrize("look", [lambda future: future.exception(), lambda future: asyncio.run(_awaited(future))])
def test_note_of_other_looks(look: Callable[[Future[Any]], BaseException]) -> None:
    """The note is there for whoever looks."""
    future = fetch(1).then(parse)
    assert look(future).__notes__ == ["in parse, of the chain fetch → parse"]


async def _awaited(future: Future[Any]) -> BaseException:
    try:
        await future
    except ValueError as error:
        return error
    raise AssertionError


def test_note_in_catch() -> None:
    """The function of catch() sees the note as well."""
    notes = fetch(1).then(parse).then(save).catch(lambda error: error.__notes__)
    assert notes.result(timeout=LONG) == ["in parse, of the chain fetch → parse → save"]


def test_no_note_without_a_chain(pool: ThreadPool) -> None:
    """A single call, a promise and a failed future have none."""
    promise = Future[int]()
    promise.set_exception(ValueError())
    for future in (pool.submit(jobs.divide, 1, 0), parse("x"), promise, failed(ValueError()), promise.shield()):
        assert not hasattr(caught(future), "__notes__")


def test_names_in_a_note() -> None:
    """Functions, partials, classes, methods and chains of tasks are told by their names, without modules."""
    future = completed(1).then(partial(jobs.add, b=1)).then(str).then(fetch.then(int)).then(Fails().now)
    assert caught(future).__notes__ == ["in Fails.now, of the chain add → str → fetch → int → Fails.now"]


class Fails:
    """It does."""

    def now(self, _: object) -> None:
        """Fail."""
        raise KeyError


def test_note_of_a_long_chain() -> None:
    """Of a long chain the first and the last stages are told, and only they are kept."""
    start = Future[int]()
    future: Future[int] = start
    for _ in range(1000):
        future = future.then(jobs.double)
    future = future.then(lambda _: jobs.raises(ValueError()))
    start.set_result(0)
    (note,) = caught(future).__notes__
    assert note.partition("of the chain ")[2].count("double") == 7
    assert "double → … → double" in note
    assert len(future.__dict__["_chain"]) < 12


@pytest.mark.parametrize("make", [jobs.FalsyError, jobs.FrozenError, jobs.WeirdError, lambda: BadNotesError()])
def test_hard_errors(make: Callable[[], BaseException]) -> None:
    """An error that is false, frozen, weird, or keeps notes of its own kind, comes out as it is."""
    error = make()
    assert caught(completed(1).then(str).then(lambda _: jobs.raises(error))) is error
    assert caught(failed(error).then(str).then(str).finally_(jobs.nothing)) is error


class BadNotesError(Exception):
    """Its notes are no list."""

    __notes__ = 5  # type: ignore[assignment]


def test_an_error_raised_again(pool: ThreadPool) -> None:
    """An error that passes through a second chain keeps its first note."""

    def outer() -> object:
        return fetch(1).then(parse).result()

    error = caught(pool.submit(outer).then(str).catch(KeyError, str))
    assert error.__notes__ == ["in parse, of the chain fetch → parse"]


# -- tracebacks -------------------------------------------------------------------------------------------------------


def shown_by(future: Future[Any]) -> list[str]:
    """Return the functions in the traceback that result() shows, from the one that asks."""
    for _ in range(2):
        error = caught(future)
    frames = traceback.extract_tb(error.__traceback__)
    del error
    assert [frame.name for frame in frames[:2]] == ["caught", "result"]
    assert all("/parallel/parallel/" not in frame.filename for frame in frames[2:])
    assert all(frame.filename == __file__ or "tests/jobs" in frame.filename for frame in frames[2:]), frames
    return [frame.name for frame in frames[2:]]


async def fail_async(x: object) -> None:
    """Fail, after a turn of the loop."""
    await asyncio.sleep(0)
    raise ValueError(x)


def fail(x: object = None) -> None:
    """Fail."""
    raise ValueError(x)


def fail_inside(future: Future[Any]) -> None:
    """Fail as *future* does."""
    future.result(timeout=LONG)


def test_traceback_of_a_call(pool: ThreadPool) -> None:
    """It shows the frames of the user's, whatever the call runs on."""
    assert shown_by(pool.submit(fail)) == ["fail"]
    assert shown_by(pool.submit(fail_async, 1)) == ["fail_async"]
    assert shown_by(InlinePool().submit(fail)) == ["fail"]
    assert shown_by(InlinePool().submit(fail_async, 1)) == ["fail_async"]
    with LoopPool() as loop:
        assert shown_by(loop.submit(fail_async, 1)) == ["fail_async"]


def test_traceback_of_a_process() -> None:
    """The frames of another process are in the text of the cause, and they are the user's too."""
    with ProcessPool(1) as pool:
        future = pool.submit(jobs.divide, 1, 0)
        assert shown_by(future) == []
        cause = str(caught(future).__cause__)
    assert "in divide" in cause
    assert "/parallel/pools/" not in cause


def test_traceback_of_a_chain(pool: ThreadPool) -> None:
    """Nor are there any of the library's after links of all kinds."""
    assert shown_by(pool.submit(jobs.nothing).then(fail).then(str).finally_(jobs.nothing)) == ["fail"]
    assert shown_by(completed(1).then(fail).catch(KeyError, str)) == ["fail"]
    assert shown_by(failed(KeyError()).catch(fail)) == ["fail"]
    assert shown_by(completed(1).finally_(fail)) == ["fail"]
    assert shown_by(completed(1).then(lambda _: pool.submit(fail))) == ["fail"]
    assert shown_by(completed(1).then(fail_async)) == ["fail_async"]
    assert shown_by(gather(pool.submit(fail), completed(1))) == ["fail"]
    assert shown_by(parse.then(save)("x")) == ["parse", "raises"]
    assert shown_by(pool.submit(fail).with_timeout(LONG).shield()) == ["fail"]


def test_traceback_of_a_nested_call() -> None:
    """A call that waits for another shows its own frames, then those of the other: helped, lent or on a loop."""
    with ThreadPool(1) as pool:
        assert shown_by(pool.submit(lambda: fail_inside(pool.submit(fail)))) == ["<lambda>", "fail_inside", "fail"]
        assert shown_by(pool.submit(lambda: fail_inside(pool.submit(str).then(fail)))) == [
            "<lambda>",
            "fail_inside",
            "fail",
        ]


def test_traceback_of_await(pool: ThreadPool) -> None:
    """`await future` adds one line of the library's."""

    async def main() -> list[str]:
        try:
            await pool.submit(fail)
        except ValueError as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise AssertionError

    assert asyncio.run(main()) == ["main", "__await__", "fail"]


def test_traceback_of_a_wait_that_fails(pool: ThreadPool, held: Held) -> None:
    """An error of the library's own ends with the user's line that called it."""
    error = caught(pool.submit(lambda: held.future.result(timeout=0)))
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names == ["caught", "result", "<lambda>"]


# -- errors one after the other ---------------------------------------------------------------------------------------


def test_an_error_in_catch_and_finally() -> None:
    """What is raised while an error is handled has that as its context, as in `except` and `finally`."""
    first, second = KeyError("first"), ValueError("second")
    for tie in (
        lambda future: future.catch(lambda _: jobs.raises(second)),
        lambda future: future.finally_(lambda: jobs.raises(second)),
        lambda future: future.finally_(lambda: failed(second)),
    ):
        second.__context__ = None
        assert caught(tie(failed(first))) is second
        assert second.__context__ is first


def test_an_error_that_is_raised_again() -> None:
    """The very error, raised again, is not its own context, nor does a ring come about."""
    error = ValueError()
    assert caught(failed(error).catch(jobs.raises)) is error
    assert error.__context__ is None
    outer = KeyError()
    outer.__context__ = error
    caught(failed(outer).catch(lambda _: jobs.raises(error)))
    assert error.__context__ is None


# -- with_timeout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.001, timedelta(milliseconds=1), "1ms"])
def test_with_timeout(seconds: Any, held: Held) -> None:
    """It fails after so long, with an error that tells what was waited for."""
    future = held.pool.submit(jobs.double, 1).with_timeout(seconds)
    with pytest.raises(TaskTimeoutError) as caught:
        future.result(timeout=LONG)
    assert str(caught.value) == "double was not there after 0.001 s (with_timeout)"


def test_with_timeout_tells_the_chain(held: Held) -> None:
    """It names a task, or a chain."""
    assert "test_chains:fetch was" in str(caught(_held_fetch(held).with_timeout(0.001)))
    assert str(caught(_held_fetch(held).then(save).with_timeout(0.001))).startswith("fetch → save was not there")
    assert str(caught(Future[int]().with_timeout(0.001))).startswith("a future was not there")


def _held_fetch(held: Held) -> Future[str]:
    return fetch.submit(held.future)  # type: ignore[arg-type]  # it is not for its value


def test_with_timeout_in_time(pool: ThreadPool, held: Held) -> None:
    """What ends in time is passed on, and nothing is left of the timer."""
    future = held.pool.submit(jobs.double, 1).with_timeout(LONG)
    held.go.set()
    assert future.result(timeout=LONG) == 2
    assert not future.entry.cancel()  # type: ignore[attr-defined]
    assert isinstance(caught(pool.submit(fail).with_timeout("1m")), ValueError)
    assert completed(1).with_timeout(0.001).result(timeout=0) == 1
    assert completed(1).then(str).with_timeout("inf").result(timeout=LONG) == "1"


def test_with_timeout_cancels(held: Held) -> None:
    """What it waited for is cancelled, up the chain."""
    first = held.pool.submit(jobs.double, 1)
    future = first.then(str).with_timeout(0.001)
    assert isinstance(caught(future), TaskTimeoutError)
    wait([first], timeout=LONG)
    assert first.cancelled()


def test_with_timeout_leaves_what_serves_others(held: Held) -> None:
    """What somebody else waits for goes on, and the source forgets the one that gave up."""
    first = held.pool.submit(jobs.double, 1)
    other = first.then(str)
    future = first.with_timeout(0.001)
    assert isinstance(caught(future), TaskTimeoutError)
    gone = weakref.ref(future)
    with without_gc():
        del future
        settled = threading.Event()
        completed(1).then(lambda _: settled.set())
        assert settled.wait(LONG)
    held.go.set()
    assert other.result(timeout=LONG) == "2"
    assert gone() is None


def test_with_timeout_stops_a_coroutine() -> None:
    """A running coroutine is cancelled."""
    stopped = threading.Event()

    async def sleep() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            stopped.set()

    with LoopPool() as loop:
        assert isinstance(caught(loop.submit(sleep).with_timeout(0.01)), TaskTimeoutError)
        assert stopped.wait(LONG)


def test_with_timeout_is_cancelled(held: Held) -> None:
    """Cancelling it cancels what it waits for, and drops the timer's entry."""
    first = held.pool.submit(jobs.double, 1)
    future = first.with_timeout(LONG)
    assert future.cancel()
    assert first.cancelled()
    assert not future.entry.cancel()  # type: ignore[attr-defined]


def test_with_timeout_without_a_holder() -> None:
    """It fails though nobody holds it but a callback."""
    failed_with: list[BaseException] = []
    called = threading.Event()
    future = Future[int]().with_timeout(0.01)
    future.on_failure(lambda error: (failed_with.append(error), called.set()))
    del future
    assert called.wait(LONG)
    assert isinstance(failed_with[0], TaskTimeoutError)


@pytest.mark.parametrize("wrong", [0, -1, "soon", None, float("nan")])
def test_with_timeout_of_no_duration(wrong: Any) -> None:
    """What is no duration is refused at once, and nothing is tied."""
    future = Future[int]()
    with pytest.raises((TypeError, ValueError)):
        future.with_timeout(wrong)
    assert "_end" not in future.__dict__


def test_gather_with_timeout(held: Held) -> None:
    """A combination that takes too long cancels its parts."""
    first, second = held.pool.submit(int), held.pool.submit(int)
    assert isinstance(caught(gather(first, second).with_timeout(0.001)), TaskTimeoutError)
    wait([first, second], timeout=LONG)
    assert first.cancelled()
    assert second.cancelled()


# -- shield -----------------------------------------------------------------------------------------------------------


def test_shield(held: Held) -> None:
    """Cancelling it, or what follows it, doesn't reach the call."""
    first = held.pool.submit(jobs.double, 1)
    assert first.shield().cancel()
    assert first.shield().then(str).then(str).cancel()
    shielded = first.shield()
    assert not first.cancelled()
    held.go.set()
    assert first.result(timeout=LONG) == 2
    assert shielded.result(timeout=LONG) == 2


def test_shield_passes_all_on(held: Held) -> None:
    """The end of the call is that of the shield: a value, an error, a cancellation."""
    assert completed(1).shield().result(timeout=0) == 1
    assert isinstance(caught(failed(KeyError()).shield()), KeyError)
    first = held.pool.submit(int)
    shielded = first.shield()
    first.cancel()
    assert isinstance(caught(shielded), CancelledError)
    assert shielded.cancelled()


def test_shield_and_timeout(held: Held) -> None:
    """A limit on a shield cancels nothing behind it."""
    first = held.pool.submit(jobs.double, 1)
    assert isinstance(caught(first.shield().with_timeout(0.001)), TaskTimeoutError)
    assert not first.cancelled()
    held.go.set()
    assert first.result(timeout=LONG) == 2


def test_waiting_for_oneself(pool: ThreadPool) -> None:
    """A continuation that returns what waits for it fails, however long the way round."""
    for tie in (Future[Any].shield, lambda future: future.then(str), lambda future: gather(future, completed(1))):
        later: list[Future[Any]] = []
        start = Future[int]()
        future = start.then(lambda _, later=later: later[0])  # type: ignore[misc]
        later.append(tie(future))
        start.set_result(1)
        assert "waits for it" in str(caught(future))


# -- chains of tasks --------------------------------------------------------------------------------------------------

safe = parse.catch(ValueError, str)
always = fetch.finally_(jobs.nothing)


def test_catch_of_a_task() -> None:
    """Task.catch() takes the errors that Future.catch() would take."""
    assert safe("x").result(timeout=LONG) == "x"
    assert parse.catch(repr)("x").result(timeout=LONG) == "ValueError('x')"
    assert parse.catch((KeyError, ValueError), repr)("x").result(timeout=LONG) == "ValueError('x')"
    assert isinstance(caught(parse.catch(KeyError, repr)("x")), ValueError)
    assert fetch.catch(repr)(1).result(timeout=LONG) == "1"
    assert fetch.then(parse).catch(repr).then(len)(1).result(timeout=LONG) == len("ValueError('1')")


def test_finally_of_a_task() -> None:
    """Task.finally_() calls its function in any case, and its own error wins."""
    called: list[int] = []
    assert fetch.finally_(lambda: called.append(1))(1).result(timeout=LONG) == "1"
    assert isinstance(caught(parse.finally_(lambda: called.append(2))("x")), ValueError)
    assert isinstance(caught(fetch.finally_(partial(jobs.raises, KeyError()))(1)), KeyError)
    assert called == [1, 2]


def test_local() -> None:
    """local() does the same here and now, on this thread."""
    here = threading.current_thread()
    assert task(threading.current_thread).then(lambda thread: thread is here).local()
    assert safe.local("x") == "x"
    assert always.local(1) == "1"
    assert fetch.then(parse).catch(repr).then(len).local(1) == len("ValueError('1')")
    with pytest.raises(ValueError):
        parse.catch(KeyError, repr).local("x")
    with pytest.raises(KeyError) as caught:
        parse.finally_(partial(jobs.raises, KeyError())).local("x")
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(KeyError) as caught:
        parse.catch(lambda _: jobs.raises(KeyError())).local("x")
    assert isinstance(caught.value.__context__, ValueError)


def test_local_with_coroutines() -> None:
    """local() runs coroutines, and waits for futures, of all stages."""
    assert jobs.loop_double.then(jobs.async_double).local(1) == 4
    assert parse.catch(jobs.async_double).catch(TypeError, lambda _: jobs.loop_double(2)).local("x") == 4
    assert fetch.finally_(partial(jobs.async_double, 1)).local(1) == "1"


def test_async_stages() -> None:
    """Stages may be coroutine functions; what they do in catch() and finally_() is waited for."""
    order: list[str] = []

    async def note() -> None:
        await asyncio.sleep(0)
        order.append("noted")

    async def tell(error: Exception) -> str:
        await asyncio.sleep(0)
        return str(error)

    chain = parse.catch(tell).finally_(note)
    assert chain("x").result(timeout=LONG) == "x"
    assert chain.local("x") == "x"
    assert order == ["noted", "noted"]


def test_chains_map_and_submit() -> None:
    """A chain maps, takes futures, and is a stage of others."""
    assert safe.map(["a", "b"]).result(timeout=LONG) == ["a", "b"]
    assert safe.submit(fetch(1)).result(timeout=LONG) == "1"
    assert fetch.then(safe).then(len)(10).result(timeout=LONG) == 2
    assert fetch.then(safe).then(len).local(10) == 2
    assert isinstance(safe, Task)


def test_name_of_a_chain() -> None:
    """A chain is called after its stages."""
    assert fetch.then(parse).name == "fetch → parse"
    assert fetch.then(parse).catch(KeyError, repr).finally_(jobs.nothing).name == "fetch → parse → repr → nothing"
    assert repr(fetch.then(safe)) == "<Task fetch → parse → str>"


@pytest.mark.parametrize("chain", [safe, always, fetch.then(parse).catch(repr)], ids=lambda chain: chain.name)
def test_chains_travel(chain: Any) -> None:
    """A chain is pickled as its stages, and is the same afterwards."""
    again = pickle.loads(pickle.dumps(chain))
    assert again.name == chain.name
    assert again.local(1) == chain.local(1)
    assert again == chain
    assert hash(again) == hash(chain)
    assert again != fetch.then(str)


def test_chains_run_elsewhere() -> None:
    """A chain that is sent to a process, lambdas and all, does its work there."""
    with using({"pools": {"processes": {"max_workers": 1}}}):
        assert jobs.apply(parse.catch(lambda error: str(error) * 2), "x").result(timeout=LONG) == "xx"
        assert jobs.remote_double.then(jobs.remote_double).catch(repr)(1).result(timeout=LONG) == 4


class Shop:
    """A class with chains."""

    def __init__(self, rate: int) -> None:
        self.rate = rate

    @task
    def price(self, x: int) -> int:
        """Return the price."""
        return x * self.rate

    @task
    @classmethod
    def named(cls, x: int) -> str:
        """Return the class's name and *x*."""
        return f"{cls.__name__} {x}"

    label = price.then(str)
    shout = named.then(str.upper)


def test_bound_chains() -> None:
    """A chain in a class binds as its first task does; one of a bound task is bound."""
    shop = Shop(3)
    assert shop.label(2).result(timeout=LONG) == "6"
    assert shop.label.local(2) == "6"
    assert Shop.label(shop, 2).result(timeout=LONG) == "6"
    assert shop.shout(1).result(timeout=LONG) == "SHOP 1"
    assert Shop.shout(1).result(timeout=LONG) == "SHOP 1"
    assert shop.price.catch(repr).finally_(jobs.nothing).map([1, 2]).result(timeout=LONG) == [3, 6]
    assert shop.label == shop.label
    assert shop.label != Shop(3).label
    assert pickle.loads(pickle.dumps(shop.label)).local(2) == "6"


@pytest.mark.parametrize("wrong", [(5,), (ValueError,), (ValueError, 5), (5, str), ("ValueError", str)])
def test_wrong_stages(wrong: tuple[Any, ...]) -> None:
    """What can't be a stage is refused when the chain is made."""
    with pytest.raises(TypeError):
        parse.catch(*wrong)
    with pytest.raises(TypeError):
        fetch.finally_(5)  # type: ignore[arg-type]


def test_very_long_chain_of_tasks() -> None:
    """A chain of 5,000 stages runs, and so does its local(): no recursion."""
    chain: Any = fetch.then(int)
    for _ in range(5000):
        chain = chain.then(abs)
    assert chain(1).result(timeout=LONG) == 1
    assert chain.local(1) == 1


# -- groups -----------------------------------------------------------------------------------------------------------


class Group:
    """A group that notes, or refuses, what it is to adopt."""

    limits = None

    def __init__(self, refuses: type[Exception] | None = None) -> None:
        self.adopted: list[Future[Any]] = []
        self._refuses = refuses

    def adopt(self, future: Future[Any]) -> None:
        """Note *future*."""
        if self._refuses is not None:
            raise self._refuses
        self.adopted.append(future)

    def __enter__(self) -> Group:
        self._token = context.WITHIN.set(context.entered(group=self))
        return self

    def __exit__(self, *_: object) -> None:
        context.WITHIN.reset(self._token)


TIES: list[Callable[[Future[Any]], Future[Any]]] = [
    lambda future: future.then(str),
    lambda future: future.catch(str),
    lambda future: future.finally_(str),
    lambda future: future.shield(),
    lambda future: future.with_timeout(LONG),
    lambda future: gather(future),
]


@pytest.mark.parametrize("tie", TIES)
def test_a_group_adopts(tie: Callable[[Future[Any]], Future[Any]]) -> None:
    """What is chained or combined in a group's block belongs to the group."""
    source = Future[int]()
    with Group() as group:
        target = tie(source)
    assert group.adopted == [target]
    source.set_result(1)
    wait([target], timeout=LONG)


@pytest.mark.parametrize("tie", TIES)
def test_a_group_that_has_closed(tie: Callable[[Future[Any]], Future[Any]]) -> None:
    """One that refuses leaves nothing tied."""
    source = Future[int]()
    with Group(refuses=RuntimeError), pytest.raises(RuntimeError):
        tie(source)
    assert "_end" not in source.__dict__


def raise_other(_: object) -> None:
    """Raise what can be referred to weakly."""
    jobs.raise_other_arguments()


def test_no_error_is_kept(pool: ThreadPool) -> None:
    """An error of a link is freed with the chain, without the cyclic garbage collector, however it was looked at."""
    with without_gc():
        for tie in (
            lambda future: future.then(raise_other),
            lambda future: future.then(fail).catch(raise_other),
            lambda future: future.then(fail).finally_(jobs.raise_other_arguments),
            lambda future: future.then(raise_other).with_timeout(LONG).shield(),
            lambda future: future.then(lambda _: pool.submit(jobs.raise_other_arguments)),
        ):
            end = tie(pool.submit(jobs.same))
            gone = threading.Event()
            weakref.finalize(end.exception(timeout=LONG), gone.set)
            with suppress(Exception):
                end.result()
            del end, tie
            assert gone.wait(LONG)


# -- continuations that make calls ------------------------------------------------------------------------------------


@task(limit=1)
def count_down(n: int, how: str) -> int:
    """Wait for the next of its kind, which a continuation calls."""
    if n == 0:
        return 0
    ways: dict[str, Callable[[], Future[int]]] = {
        "then": lambda: completed(n - 1).then(lambda n: count_down(n, how)),
        "task": lambda: completed(n - 1).then(partial(count_down, how=how)),
        "catch": lambda: failed(ValueError()).catch(ValueError, lambda _: count_down(n - 1, how)),
        "finally": lambda: completed(n - 1).finally_(lambda: count_down(n - 1, how)),
        "shield": lambda: completed(n - 1).then(lambda n: count_down(n, how)).shield(),
        "gather": lambda: gather(completed(n - 1).then(lambda n: count_down(n, how))).then(lambda all: all[0]),
    }
    return ways[how]().result() + 1


@pytest.mark.parametrize("how", ["then", "task", "catch", "finally", "shield", "gather"])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_place_is_lent_to_what_a_continuation_calls(how: str, workers: int) -> None:
    """A body that waits for a chain lends its place to a call that is made later, in the chain."""
    with using({"pools": {"threads": {"kind": "thread", "max_workers": workers}}}):
        assert count_down(10, how).result(timeout=LONG) == 10


# -- continuations that are cancelled while they run ------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["then", "catch", "finally_"])
def test_a_continuation_that_stops_because_it_was_cancelled(tie: str, caplog: pytest.LogCaptureFixture) -> None:
    """One that runs is asked to stop, as a call is; if it does, it is cancelled, and nothing is reported."""
    running, done = threading.Event(), threading.Event()

    def stops(*_: object) -> None:
        running.set()
        try:
            sleep(LONG)
        finally:
            done.set()

    source: Future[Any] = failed(ValueError()) if tie == "catch" else completed(1)
    future: Future[Any] = getattr(source, tie)(stops)
    behind = future.catch(lambda error: error)
    assert running.wait(LONG)
    assert not future.cancel()
    wait([behind], timeout=LONG)
    assert done.is_set()
    assert future.cancelled()
    assert behind.cancelled()
    assert not caplog.records
