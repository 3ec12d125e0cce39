"""
TaskGroup: a block that no call made inside it outlives.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import random
import re
import signal
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NoReturn

import jobs
import pytest
import trio
from interrupts import CtrlC, returns_in_time
from jobs import Held, frequent_switches, without_gc

from parallel import (
    DeadlockError,
    Future,
    GroupClosedError,
    Registry,
    TaskGroup,
    TaskTimeoutError,
    ThreadPool,
    as_completed,
    completed,
    configure,
    detached,
    first,
    gather,
    members,
    parallel_map,
    race,
    settle,
    task,
    using,
)
from parallel.context import WITHIN
from parallel.current import sleep as nap
from parallel.runs import current_run

LONG = jobs.PATIENCE
KINDS = ["threads", "inline", "loop", "processes"]


@task
def double(x: int) -> int:
    return x * 2


@task
def fail(x: object = "bad") -> int:
    raise ValueError(x)


@task
def meet(event: threading.Event) -> str:
    assert event.wait(LONG)
    return "met"


@task
def ring(event: threading.Event) -> None:
    event.set()


@task
def until_asked(begun: threading.Event | None = None) -> None:
    """Run until asked to stop, then stop."""
    run = current_run()
    assert run is not None
    if begun is not None:
        begun.set()
    assert run.pause(LONG)
    raise CancelledError


@task
def tree(depth: int) -> None:
    """Make calls that make calls, and wait for none."""
    if depth:
        tree(depth - 1)
        tree(depth - 1)


@task
async def sleep() -> None:
    await asyncio.sleep(LONG)


@parallel_map(pool="threads")
def half(x: int) -> int:
    return 2 // x


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    """One worker process, and an inline pool."""
    configure({"pools": {"processes": {"kind": "process", "max_workers": 1}, "inline": {"kind": "inline"}}})
    yield


@pytest.fixture
def one() -> Iterator[Registry]:
    """A registry in which threads have one worker."""
    with using({"pools": {"threads": {"kind": "thread", "max_workers": 1}}}) as registry:
        yield registry


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nobody time: what a thread has made is judged when it says so."""
    monkeypatch.setattr(members, "GRACE", LONG)
    monkeypatch.setattr("parallel.company.GRACE", LONG)


def texts(group: BaseExceptionGroup[Any]) -> list[str]:
    return sorted(str(error) for error in group.exceptions)


def wait_for(group: TaskGroup) -> None:
    """Wait until the body of a group's block has ended, and the block waits."""
    while group._bell is None:  # nothing tells others
        threading.Event().wait(0.001)


def ended(group: TaskGroup) -> int:
    """How many members have ended, all having done so."""
    match = re.search(r"\[0 running or queued, (\d+) ended\]", repr(group))
    assert match
    return int(match[1])


# -- the block --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_every_kind(kind: str) -> None:
    """When the block has ended, the calls of every kind of pool have."""
    call: Any = jobs.loop_double if kind == "loop" else jobs.remote_double if kind == "processes" else double
    with TaskGroup() as group:
        futures = [call.options(pool=kind)(x) for x in range(20)]
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == list(range(0, 40, 2))
    assert ended(group) == 20


def test_the_block_waits() -> None:
    """A block whose body has come to its end waits for its calls."""
    event = threading.Event()
    with TaskGroup():
        met = meet(event)
        double(1).then(lambda _: event.set())
    assert met.done()
    assert event.is_set()


def test_an_empty_block() -> None:
    """A block without calls ends at once."""
    with TaskGroup() as group:
        pass
    assert ended(group) == 0


def test_calls_made_by_its_calls() -> None:
    """A call made by a call of the group, or by what follows one, belongs to it too."""
    with TaskGroup() as group:
        tree(7)
        double(1).then(lambda _: tree(3))
    assert ended(group) == 255 + 2 + 15


def test_calls_made_in_a_copied_context() -> None:
    """A thread that runs in a copy of the body's context makes calls of the group."""
    event = threading.Event()
    with TaskGroup() as group:
        thread = threading.Thread(target=copy_context().run, args=(meet, event))
        thread.start()
        thread.join()
        ring(event)
    assert ended(group) == 2


def test_calls_after_and_around() -> None:
    """Calls made before and after the block don't belong to it."""
    event = threading.Event()
    before = meet(event)
    with TaskGroup() as group:
        double(1)
    after = double(2)
    assert ended(group) == 1
    assert not before.done()
    event.set()
    assert gather(before, after).result(LONG) == ("met", 4)


def test_links_and_combinations_belong_to_it() -> None:
    """What follows a call is a member as well: the block waits for it too."""
    with TaskGroup() as group:
        follows = gather(double(1), double(2)).then(sum).finally_(lambda: None)
    assert follows.done()
    assert follows.result() == 6
    assert ended(group) == 5


def test_arguments_that_are_futures(one: Registry) -> None:
    """A call that waits for a future among its arguments holds the block."""
    with TaskGroup():
        last = double.submit(double.submit(double(1)))
    assert last.done()
    assert last.result() == 8


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_maps(kind: str) -> None:
    """A map belongs to the group: its items, and its future."""
    with TaskGroup():
        local = half.options(pool="threads")(range(1, 50))
        by_task = double.map(range(50))
        remote = jobs.squares(range(50)) if kind == "processes" else jobs.thread_squares(range(50))
    assert local.done()
    assert by_task.done()
    assert remote.done()
    assert remote.result()[-1] == 49 * 49


def test_on_the_only_worker(one: Registry) -> None:
    """A block inside a call of the pool's only worker helps with its calls instead of starving."""

    @task
    def outer(depth: int) -> int:
        with TaskGroup():
            calls = [double(x) for x in range(3)]
            deeper = outer(depth - 1) if depth else None
        return sum(call.result() for call in calls) + (deeper.result() if deeper else 0)

    with TaskGroup():
        total = outer(5)
    assert total.result() == 36


def test_blocks_deeper_than_help(one: Registry) -> None:
    """Blocks in calls, deeper than a worker helps, lend their places."""

    @task
    def outer(depth: int) -> int:
        with TaskGroup():
            deeper = outer(depth - 1) if depth else None
        return 1 + (deeper.result() if deeper else 0)

    assert outer(40).result(LONG) == 41


def test_repr() -> None:
    """The text of a group tells its state and counts its calls."""
    event = threading.Event()
    group = TaskGroup()
    assert repr(group) == "<TaskGroup new [0 running or queued, 0 ended]>"
    with group:
        double(1).result()
        meet(event)
        assert repr(group) == "<TaskGroup open [1 running or queued, 1 ended]>"
        group.cancel()
        assert repr(group).startswith("<TaskGroup cancelled [")
        assert group.cancelled
        event.set()
    assert repr(group).startswith("<TaskGroup closed [0 running or queued")


def test_once() -> None:
    """A group is good for one block."""
    group = TaskGroup()
    with group, pytest.raises(RuntimeError, match="entered before"):
        group.__enter__()
    with pytest.raises(RuntimeError, match="entered before"), group:
        raise AssertionError
    assert WITHIN.get() is None


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": "soon"}, ValueError),
        ({"limit": 0}, ValueError),
        ({"limit": "2"}, TypeError),
    ],
)
def test_wrong_arguments(said: dict[str, Any], error: type[Exception]) -> None:
    """A timeout that is no duration, and a limit that is no count, are refused by name."""
    with pytest.raises(error, match=next(iter(said))):
        TaskGroup(**said)


def test_timeout() -> None:
    """The timeout is the deadline of all calls in the block, unless there is an earlier one around it."""

    def deadline() -> Any:
        within = WITHIN.get()
        return within and within.deadline

    with TaskGroup(timeout="1m") as group:
        assert group.timeout == 60
        outer = deadline()
        with TaskGroup(timeout=3600):
            assert deadline() is outer
        with TaskGroup(timeout="inf"):
            assert deadline() is outer
        with TaskGroup(timeout=1):
            assert deadline().at < outer.at
        with TaskGroup():
            assert deadline() is outer
        with detached():
            assert deadline() is None
    assert deadline() is None


def test_limit() -> None:
    """The limit is what the calls ask for a place."""
    assert TaskGroup().limits is None
    group = TaskGroup(limit=2)
    assert group.limit == 2
    assert group.limits is not None
    assert group.limits.limit == 2


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure(kind: str) -> None:
    """The block raises the failure of a call, of whatever kind, in a group."""
    call: Any = jobs.to_async(jobs.raises) if kind == "loop" else jobs.raises
    with pytest.raises(ExceptionGroup, match="unhandled errors in a TaskGroup") as caught, TaskGroup():
        task(pool=kind)(call)(ValueError("bad"))
    assert texts(caught.value) == ["bad"]


def test_the_first_failure_cancels_the_rest(one: Registry) -> None:
    """What is queued is cancelled, what runs is asked to stop; their cancellations are no errors."""
    with using({"pools": {"threads": {"kind": "thread", "max_workers": 2}}}):
        begun = threading.Event()
        with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
            running = until_asked(begun)
            assert begun.wait(LONG)
            failing = fail()
            queued = [until_asked() for _ in range(20)]
    assert texts(caught.value) == ["bad"]
    assert caught.value.exceptions[0] is failing.exception()
    assert running.cancelled()
    assert all(call.cancelled() for call in queued)
    assert group.cancelled
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_all_failures() -> None:
    """All failures are raised, each once, however many futures share it; with the traceback of the call."""
    begun = threading.Barrier(3)

    @task
    def together(x: int) -> NoReturn:
        begun.wait(LONG)
        raise ValueError(x)

    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        calls: list[Future[int]] = [together(x) for x in range(3)]
        calls[0].then(str)
        calls[0].then(repr)
    assert texts(caught.value) == ["0", "1", "2"]
    for error in caught.value.exceptions:
        names = []
        frame = error.__traceback__
        while frame is not None:
            names.append(frame.tb_frame.f_code.co_name)
            frame = frame.tb_next
        assert names == ["together"]


def test_a_failure_of_a_nested_call() -> None:
    """A call that a call of the group has made fails: so does the group."""

    @task
    def outer() -> None:
        fail("inner")

    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        outer()
    assert texts(caught.value) == ["inner"]


def test_a_failure_that_is_no_exception() -> None:
    """A failure that is no Exception makes it a BaseExceptionGroup."""
    with pytest.raises(BaseExceptionGroup) as caught, TaskGroup():
        task(jobs.leave)()
    assert not isinstance(caught.value, ExceptionGroup)
    assert isinstance(caught.value.exceptions[0], SystemExit)


def test_the_body_fails() -> None:
    """An error of the body cancels the calls, and is raised with theirs."""
    begun = threading.Event()

    @task
    def cleans_up_badly() -> None:
        with suppress(CancelledError):
            until_asked.local(begun)
        raise OSError("disk full")

    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        call = cleans_up_badly()
        assert begun.wait(LONG)
        raise KeyError("body")
    assert call.done()
    assert texts(caught.value) == ["'body'", "disk full"]


def test_the_body_raises_the_failure_of_a_call() -> None:
    """An error that came into the body from a call is raised once."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        fail().result()
    assert texts(caught.value) == ["bad"]


def test_looking_at_a_result_saves_nobody() -> None:
    """Who catches what result() raises has not taken the failure on: the group fails all the same."""
    with pytest.raises(ExceptionGroup), TaskGroup(), pytest.raises(ValueError, match="bad"):
        fail().result()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interruption_of_the_body(kind: type[BaseException], one: Registry) -> None:
    """KeyboardInterrupt and its like are raised themselves, when the calls have been cancelled and have ended."""
    begun = threading.Event()
    with pytest.raises(kind), TaskGroup():
        running, queued = until_asked(begun), double(1)
        assert begun.wait(LONG)
        raise kind
    assert running.cancelled()
    assert queued.cancelled()


def test_a_generator_that_is_closed() -> None:
    """A block in a generator ends with it."""

    def generate() -> Generator[Future[None]]:
        with TaskGroup():
            yield until_asked()

    generator = generate()
    call = next(generator)
    generator.close()
    assert call.cancelled()


def test_the_body_waits_for_what_is_cancelled(one: Registry) -> None:
    """A body that waits for a call that a failure cancels sees a CancelledError, which the block takes back."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        event = threading.Event()
        meet(event)
        fail()
        queued = double(1)
        event.set()
        with pytest.raises(CancelledError):
            while True:
                queued.result()
                queued = double(1)
        raise CancelledError
    assert texts(caught.value) == ["bad"]


def test_a_cancelled_call_is_no_failure() -> None:
    """A call that somebody cancels doesn't fail the group; a body that asks for its result does."""
    begun = threading.Event()
    with TaskGroup() as group:
        call = until_asked(begun)
        assert begun.wait(LONG)
        call.cancel()
        assert double(1).result() == 2
    assert call.cancelled()
    assert not group.cancelled
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        call.result()
    assert isinstance(caught.value.exceptions[0], CancelledError)


def test_errors_are_freed() -> None:
    """The errors die with the group of errors, without the cyclic garbage collector."""

    class BigError(Exception):
        pass

    @task
    def raise_big() -> NoReturn:
        raise BigError

    def go() -> weakref.ref[BaseException]:
        try:
            with TaskGroup():
                raise_big()
        except ExceptionGroup as group:
            return weakref.ref(group.exceptions[0])
        raise AssertionError

    with without_gc():
        assert freed(go())


def freed(ref: weakref.ref[Any]) -> bool:
    """Wait until what *ref* refers to is gone: the worker that ended the call may hold it for a moment."""
    deadline = time.monotonic() + LONG
    while ref() is not None and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    return ref() is None


# -- failures that are taken on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["threads", "inline", "loop"])
def test_catch(kind: str, no_grace: None) -> None:
    """A failure that a continuation takes on doesn't count, however early it came."""
    failing: Any = jobs.to_async(fail.__wrapped__) if kind == "loop" else fail.__wrapped__
    call = task(pool=kind)(failing)
    with frequent_switches():
        for _ in range(100):
            with TaskGroup() as group:
                caught = call().catch(ValueError, lambda _: "caught")
                passed = call().then(str).finally_(lambda: None).catch(lambda _: "caught")
            assert caught.result() == passed.result() == "caught"
            assert not group.cancelled


def test_catch_what_comes_out_of_a_catch() -> None:
    """What a continuation raises counts, and what it lets pass."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        fail("passed").catch(KeyError, str)
    assert texts(caught.value) == ["passed"]
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        fail().catch(lambda _: 1 // 0)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


@pytest.mark.parametrize("kind", ["threads", "inline"])
def test_combinations(kind: str, no_grace: None) -> None:
    """A failure that a combination takes on doesn't count, whichever of its calls fail before it is made."""
    bad, good = fail.options(pool=kind), double.options(pool=kind)
    for _ in range(50):
        with TaskGroup():
            settled = settle(bad(), good(1), bad())
            value = first(bad(), good(1))
            excused = gather(*[bad() for _ in range(30)], good(1), return_exceptions=True)
            caught = gather(good(1), bad(), bad()).catch(lambda _: ())
        assert [one.ok for one in settled.result()] == [False, True, False]
        assert value.result() == 2
        assert excused.result()[-1] == 2
        assert caught.result() == ()


def test_what_was_to_take_it_on_is_cancelled() -> None:
    """A failure that nothing takes on after all, as that was cancelled before, counts."""
    event = threading.Event()

    @task
    def late() -> NoReturn:
        assert event.wait(LONG)
        raise ValueError("late")

    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        failing: Future[int] = late()
        failing.then(str)
        failing.catch(str)
        group.cancel()
        failing.catch(str)
        event.set()
    assert texts(caught.value) == ["late"]


def test_what_loses_a_race() -> None:
    """A call that fails after its race has been won has been taken on: the race has a value."""
    event = threading.Event()

    @task
    def late() -> NoReturn:
        assert event.wait(LONG)
        raise ValueError("late")

    with TaskGroup():
        won = race(double(1), late())
        won.then(lambda _: event.set())
    assert won.result() == 2


def test_a_failed_combination() -> None:
    """A combination that fails counts, with one error."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        gather(double(1), fail())
    assert texts(caught.value) == ["bad"]


def test_taken_on_in_an_inner_block() -> None:
    """A continuation made in an inner block takes on the failure of a call of the outer one."""
    event = threading.Event()

    @task
    def late() -> NoReturn:
        assert event.wait(LONG)
        raise ValueError("late")

    with TaskGroup():
        call: Future[int] = late()
        with TaskGroup():
            caught = call.catch(lambda _: "caught")
            event.set()
    assert caught.result() == "caught"


def test_decided_by_waiting(no_grace: None, one: Registry) -> None:
    """A failure counts when the thread that made the call waits for another, which is cancelled then."""
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        failing = fail()
        failing.exception()
        assert until_asked().exception() is None
    assert texts(caught.value) == ["bad"]


def test_decided_by_the_end_of_the_call(no_grace: None) -> None:
    """A failure counts when the call has ended that made the failed one, and waits for nothing."""

    @task
    def outer() -> None:
        failing = fail()
        while not failing.done():
            threading.Event().wait(0.001)  # a wait that tells nobody

    stopped = threading.Event()
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        until_asked().add_done_callback(lambda _: stopped.set())
        outer()
        assert stopped.wait(LONG)
    assert texts(caught.value) == ["bad"]


def test_decided_by_time() -> None:
    """A failure counts after a while, if the thread that made the call neither chains to it nor waits."""
    stopped = threading.Event()
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        until_asked().add_done_callback(lambda _: stopped.set())
        fail()
        assert stopped.wait(LONG)
        with pytest.raises(CancelledError):
            double(1)
    assert texts(caught.value) == ["bad"]


def test_an_inline_call_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an inline call runs, what was made before it is not judged, whatever it waits for."""
    monkeypatch.setattr("parallel.company.GRACE", 0.1)  # a busy machine may stop for a while between two lines

    @task(pool="inline")
    def slow() -> int:
        threading.Event().wait(0.3)
        return double(1).result()

    with TaskGroup() as group:
        settled = settle(fail.options(pool="inline")(), slow(), fail())
        assert not group.cancelled
    assert [one.ok for one in settled.result()] == [False, True, False]


def test_decided_inside_an_inline_call() -> None:
    """What an inline call makes is judged at its end."""

    @task(pool="inline")
    def outer() -> None:
        fail.options(pool="inline")("inner")

    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        outer()
        assert group.cancelled
    assert texts(caught.value) == ["inner"]


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel(one: Registry) -> None:
    """cancel() cancels what is queued, asks what runs, and makes no error."""
    begun = threading.Event()
    with TaskGroup() as group:
        running, queued = until_asked(begun), double(1)
        chained = queued.then(str)
        assert begun.wait(LONG)
        group.cancel()
        with pytest.raises(CancelledError):
            queued.result()
        with pytest.raises(CancelledError, match="task group"):
            double(1)
        group.cancel()
    assert running.cancelled()
    assert chained.cancelled()


def test_cancel_ends_the_body_quietly() -> None:
    """The CancelledError that a cancelled group raises in its body is taken back by the block."""
    with TaskGroup() as group:
        group.cancel()
        double(1)
        raise AssertionError
    assert ended(group) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_cancel_from_a_member(kind: str) -> None:
    """A call, or what follows one, may cancel the group that it is in."""

    async def cancel() -> None:
        group.cancel()

    with TaskGroup() as group:
        waiting = until_asked()
        if kind == "processes":
            jobs.remote_double(1).then(lambda _: group.cancel())
        else:
            task(pool=kind)(cancel if kind == "loop" else group.cancel)()
    assert waiting.cancelled()


def test_cancel_while_the_block_waits() -> None:
    """A thread cancels a group whose body has ended."""
    begun = threading.Event()
    group = TaskGroup()

    def cancel() -> None:
        assert begun.wait(LONG)
        group.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with group:
        call = until_asked(begun)
    thread.join()
    assert call.cancelled()


def test_cancel_at_the_wrong_time() -> None:
    """Before and after the block cancel() does nothing."""
    group = TaskGroup()
    group.cancel()
    with group:
        call = double(1)
    group.cancel()
    assert call.result() == 2
    assert not group.cancelled


def test_errors_of_cancelled_calls() -> None:
    """What a call raises other than CancelledError, when it is asked to stop, is raised by the block."""
    begun = threading.Event()

    @task
    def cleans_up_badly() -> None:
        with suppress(CancelledError):
            until_asked.local(begun)
        raise OSError("disk full")

    with pytest.raises(ExceptionGroup) as caught, TaskGroup() as group:
        cleans_up_badly()
        assert begun.wait(LONG)
        group.cancel()
    assert texts(caught.value) == ["disk full"]


def test_links_in_a_cancelled_group() -> None:
    """A continuation made in a cancelled group is cancelled; a finally_ is run all the same."""
    event = threading.Event()
    ran = threading.Event()
    outside = meet(event)
    with TaskGroup() as group:
        group.cancel()
        chained = outside.then(str)
        outside.finally_(ran.set)
    assert chained.cancelled()
    event.set()
    assert ran.wait(LONG)


def test_what_others_wait_for_goes_on(one: Registry) -> None:
    """A failure cancels nothing that a future from outside the group waits for; cancel() does."""
    event = threading.Event()
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        meet(event)
        fail()
        wanted, lonely = double(1), double(2)
        chained = wanted.then(jobs.double)
        with detached():
            outside = chained.then(jobs.double)
        event.set()
    assert texts(caught.value) == ["bad"]
    assert outside.result(LONG) == 8
    assert lonely.cancelled()
    event.clear()
    with TaskGroup() as group:
        meet(event)
        call = double(1)
        with detached():
            outside = call.then(jobs.double)
        group.cancel()
        event.set()
    assert call.cancelled()
    assert outside.cancelled()


def test_cancelling_a_chain_inside(held: Held) -> None:
    """Being in a group keeps nothing from being cancelled: the end of a chain, and the rest of a gather."""
    with TaskGroup():
        source = held.pool.submit(jobs.nothing)
        assert source.then(str).cancel()
        assert source.cancelled()
        rest = held.pool.submit(jobs.nothing)
        gather(fail(), rest).catch(str).result()
        assert rest.cancelled()
        held.go.set()


def test_a_callback_that_raises(one: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that gets out of hand keeps no other call from being cancelled."""
    event = threading.Event()
    with TaskGroup() as group:
        meet(event)
        calls = [double(x) for x in range(5)]
        for call in calls:
            call.add_done_callback(lambda _: sys.exit(1))
        with pytest.raises(SystemExit):
            group.cancel()
        event.set()
    assert all(call.cancelled() for call in calls)


# -- closed, and detached ---------------------------------------------------------------------------------------------


def test_a_closed_group() -> None:
    """A call, a continuation or a block in the context of a group whose block has ended is refused."""
    refused: Any
    with TaskGroup():
        context = copy_context()
        call = double(1)
    for refused in (double, call.then, lambda _: TaskGroup().__enter__()):
        with pytest.raises(GroupClosedError, match="detached"):
            context.run(refused, str)

    def calls() -> int:
        with detached():
            return double(1).result()

    assert context.run(calls) == 2
    assert double(1).result() == 2


def test_a_straggler() -> None:
    """A thread that outlives the block can't make calls of the group."""
    left, closed = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def straggle() -> None:
        assert closed.wait(LONG)
        try:
            double(1)
        except GroupClosedError as error:
            errors.append(error)
        left.set()

    with TaskGroup():
        thread = threading.Thread(target=copy_context().run, args=(straggle,))
        thread.start()
    closed.set()
    assert left.wait(LONG)
    thread.join()
    assert errors


def test_detached() -> None:
    """A detached call outlives the block, and fails for itself; so do the calls that it makes."""
    event = threading.Event()
    with TaskGroup() as group:
        with detached():
            waiting, failing = meet(event), fail()
            made = task(lambda: meet(event))()
        group.cancel()
    assert ended(group) == 0
    assert not waiting.done()
    event.set()
    assert waiting.result(LONG) == made.result(LONG).result(LONG) == "met"
    assert isinstance(failing.exception(LONG), ValueError)


def test_detached_keeps_the_registry(one: Registry) -> None:
    """A detached call goes to the pools of the block's registry."""
    with TaskGroup(), detached():
        name = task(jobs.thread_name)()
    assert name.result(LONG) == "parallel-threads-0" or name.done()
    assert one.pool("threads").stats().done >= 1


def test_a_refused_call() -> None:
    """A call that its pool refuses leaves nothing to wait for."""
    pool = ThreadPool(1)
    pool.shutdown()
    with TaskGroup(), pytest.raises(RuntimeError, match="shut down"):
        pool.submit(jobs.nothing)


# -- nested -----------------------------------------------------------------------------------------------------------


def test_nested() -> None:
    """The calls of an inner block are its own."""
    with TaskGroup() as outer:
        double(1)
        with TaskGroup() as inner:
            double(2)
            double(3)
        assert ended(inner) == 2
        double(4)
    assert ended(outer) == 2


def test_an_inner_failure() -> None:
    """What an inner block raises is an error of the outer one's body; what the body handles isn't."""
    with TaskGroup() as outer:
        with pytest.raises(ExceptionGroup), TaskGroup():
            fail()
        assert not outer.cancelled
        double(1)
    with pytest.raises(ExceptionGroup) as caught, TaskGroup(), TaskGroup():
        fail()
    (inner_group,) = caught.value.exceptions
    assert isinstance(inner_group, ExceptionGroup)
    assert texts(inner_group) == ["bad"]


def test_an_outer_failure_cancels_the_inner_block() -> None:
    """When the outer group is cancelled the inner one is, and what comes after the inner block is not reached."""
    begun = threading.Event()
    with pytest.raises(ExceptionGroup) as caught, TaskGroup():
        late = double(1).then(lambda _: begun.wait(LONG) and fail.local("outer"))
        with TaskGroup() as inner:
            call = until_asked(begun)
        raise AssertionError("reached")
    assert texts(caught.value) == ["outer"]
    assert call.cancelled()
    assert inner.cancelled
    assert late.done()


def test_an_inner_block_in_a_call() -> None:
    """A block in a call of a group that is cancelled is cancelled, and so is the call."""
    begun = threading.Event()

    @task
    def outer() -> None:
        with TaskGroup():
            until_asked(begun)
        raise AssertionError("reached")

    with TaskGroup() as group:
        call = outer()
        assert begun.wait(LONG)
        group.cancel()
    assert call.cancelled()


def test_an_inner_block_of_a_cancelled_group() -> None:
    """No block begins in a cancelled group."""
    with TaskGroup() as group:
        group.cancel()
        with TaskGroup():
            raise AssertionError


# -- where the block can't wait ---------------------------------------------------------------------------------------


def test_on_the_thread_of_the_loop() -> None:
    """A `with` on the loop's thread, for calls of that loop, raises instead of hanging; `async with` is meant."""

    @task
    async def outer() -> None:
        with TaskGroup():
            sleep()

    with pytest.raises(DeadlockError, match="`async with`"):
        outer().result(LONG)


def interrupt_main(noticed: Callable[[float], bool]) -> None:
    """Send Ctrl-C to the main thread until *noticed*: one that comes as a thread falls asleep may stay unseen."""
    main = threading.main_thread().ident
    assert main is not None
    threading.Event().wait(0.05)  # by now it sleeps
    signal.pthread_kill(main, signal.SIGINT)
    while not noticed(1.0):
        signal.pthread_kill(main, signal.SIGINT)


def test_ctrl_c_while_the_block_waits() -> None:
    """A Ctrl-C cancels the calls, waits for them, and is raised."""

    @task
    def interrupt() -> None:
        wait_for(group)
        run = current_run()
        assert run is not None
        interrupt_main(run.pause)
        raise CancelledError

    with pytest.raises(KeyboardInterrupt), TaskGroup() as group:
        call = interrupt()
    assert call.cancelled()


def test_ctrl_c_in_the_body() -> None:
    """A Ctrl-C that comes while the body makes members leaves none to be waited for in vain."""
    promise: Future[int] = Future()
    promise.then(str)  # so that cancelling what is made in the block leaves it alone
    begun, over = threading.Semaphore(0), threading.Semaphore(0)

    def interrupt(main: int) -> None:
        for _ in range(200):
            assert begun.acquire(timeout=LONG)
            signal.pthread_kill(main, signal.SIGINT)
            while not over.acquire(timeout=1):
                signal.pthread_kill(main, signal.SIGINT)  # the one before came in a callback that swallowed it

    thread = threading.Thread(target=interrupt, args=[threading.get_ident()])
    thread.start()
    with frequent_switches(), without_gc():
        for _ in range(200):
            with pytest.raises(KeyboardInterrupt), TaskGroup() as group:
                begun.release()
                while True:
                    promise.then(str)
            over.release()
            ended(group)
    thread.join()


def test_a_second_ctrl_c() -> None:
    """A second one gives up waiting for calls that don't listen; those can't make calls of the group any more."""
    given_up = threading.Event()

    @task
    def deaf() -> None:
        wait_for(group)
        run = current_run()
        assert run is not None
        interrupt_main(run.pause)
        interrupt_main(given_up.wait)
        double(1)

    with pytest.raises(KeyboardInterrupt), TaskGroup() as group:
        call = deaf()
    assert repr(group) == "<TaskGroup closed [1 running or queued, 0 ended]>"
    given_up.set()
    assert isinstance(call.exception(LONG), GroupClosedError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork(in_fork: Callable[..., Any]) -> None:
    """A forked child doesn't wait for the calls of its parent."""
    event = threading.Event()

    def child() -> str:
        group.__exit__(None, None, None)
        return repr(group)

    with TaskGroup() as group:
        meet(event)
        assert in_fork(child) == "<TaskGroup closed [0 running or queued, 0 ended]>"
        event.set()


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_async_block() -> None:
    """`async with` waits for the calls without blocking its loop."""

    async def main() -> None:
        event = threading.Event()
        asyncio.get_running_loop().call_later(0.01, event.set)
        async with TaskGroup() as group:
            met = meet(event)
            assert await double(1) == 2
            half([1, 2])
        assert met.done()
        assert ended(group) == 5

    asyncio.run(main())


def test_async_block_in_a_call() -> None:
    """An `async with` in a call of the loop pool waits for calls of that loop."""

    @task
    async def outer(depth: int) -> int:
        below: list[Future[int]] = []
        async with TaskGroup():
            for _ in range(2 if depth else 0):
                below.append(outer(depth - 1))
        return 1 + sum([await one for one in below])

    assert outer(4).result(LONG) == 31


def test_a_failure_cancels_the_body() -> None:
    """A failure cancels the body of an `async with`, which need not wait for what never comes; its task goes on."""

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup():
                call = until_asked()
                fail()
                await asyncio.sleep(LONG)
        assert texts(caught.value) == ["bad"]
        assert call.cancelled()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(main())


def test_decided_by_a_turn_of_the_loop(no_grace: None) -> None:
    """In a coroutine a failure counts after a turn of the loop; what takes it on before that does so in time."""

    async def main() -> None:
        async with TaskGroup():
            settled = await settle(fail(), fail.options(pool="inline")(), double(1))
        assert [one.ok for one in settled] == [False, False, True]
        with pytest.raises(ExceptionGroup):
            async with TaskGroup():
                fail()
                await asyncio.sleep(LONG)
        with pytest.raises(ExceptionGroup):
            async with TaskGroup():
                fail.options(pool="inline")()
                await asyncio.sleep(LONG)

    asyncio.run(main())


def test_async_cancel() -> None:
    """cancel() cancels the body of an `async with` too; nothing is raised, and the task goes on."""

    async def main() -> None:
        async with TaskGroup() as group:
            call = until_asked()
            group.cancel()
            await asyncio.sleep(LONG)
        assert call.cancelled()
        async with TaskGroup() as group:
            call = until_asked()
            group.cancel()
            with pytest.raises(CancelledError):
                double(1)
            with pytest.raises(asyncio.CancelledError):
                await call
        async with TaskGroup() as group:
            task(group.cancel)()
            await asyncio.sleep(LONG)
        await asyncio.sleep(0)

    asyncio.run(main())


def test_the_async_body_fails() -> None:
    """An error of the body cancels the calls, and is raised in a group."""

    async def main() -> None:
        async with TaskGroup():
            calls.append(until_asked())
            raise KeyError("body")

    calls: list[Future[None]] = []
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert texts(caught.value) == ["'body'"]
    assert calls[0].cancelled()


@pytest.mark.parametrize("where", ["body", "end"])
def test_the_host_is_cancelled(where: str) -> None:
    """Cancelling the task that a block is in cancels the calls, waits for them, and is raised again."""

    async def host(begun: threading.Event) -> None:
        async with TaskGroup():
            calls.append(until_asked(begun))
            if where == "body":
                await asyncio.sleep(LONG)

    async def main() -> None:
        begun = threading.Event()
        host_task = asyncio.create_task(host(begun))
        await asyncio.to_thread(begun.wait, LONG)
        host_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await host_task
        assert host_task.cancelled()
        assert calls[-1].cancelled()

    calls: list[Future[None]] = []
    asyncio.run(main())


def test_a_timeout_around_the_block() -> None:
    """asyncio.timeout() around a block ends it, and sees its own cancellation."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), TaskGroup():
                call = until_asked()
                await asyncio.sleep(LONG)
        assert call.cancelled()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), TaskGroup():
                call = until_asked()
        assert call.cancelled()

    asyncio.run(main())


def test_the_host_is_cancelled_and_a_call_fails() -> None:
    """If a call fails while the task is being cancelled, the error is raised, and the cancellation comes after it."""
    begun = threading.Event()

    @task
    def cleans_up_badly() -> None:
        with suppress(CancelledError):
            until_asked.local(begun)
        raise OSError("disk full")

    async def host() -> str:
        try:
            async with TaskGroup():
                cleans_up_badly()
        except* OSError:
            pass
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            return "cancelled"
        raise AssertionError

    async def main() -> None:
        host_task = asyncio.create_task(host())
        await asyncio.to_thread(begun.wait, LONG)
        host_task.cancel()
        assert await host_task == "cancelled"

    asyncio.run(main())


def test_nested_async_blocks() -> None:
    """A failure of the outer group ends the inner block too, and only the outer one raises."""

    async def main() -> None:
        begun = threading.Event()
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup():
                double(1).then(lambda _: begun.wait(LONG) and fail.local("outer"))
                async with TaskGroup():
                    call = until_asked(begun)
                    await asyncio.sleep(LONG)
                raise AssertionError("reached")
        assert texts(caught.value) == ["outer"]
        assert call.cancelled()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    for _ in range(20):
        asyncio.run(main())


def test_a_plain_block_in_a_coroutine() -> None:
    """A `with` in a coroutine takes back the cancellation of a call that the body awaits, not that of its own task."""

    async def host(begun: threading.Event) -> None:
        with TaskGroup():
            call = until_asked(begun)
            await call

    async def main() -> None:
        begun = threading.Event()
        with TaskGroup() as group:
            call = until_asked(begun)
            assert begun.wait(LONG)
            group.cancel()
            await call
        begun.clear()
        host_task = asyncio.create_task(host(begun))
        await asyncio.to_thread(begun.wait, LONG)
        host_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await host_task

    asyncio.run(main())


def test_an_async_block_in_another_thread() -> None:
    """A block in a coroutine of a worker's own loop ends with the group around it."""
    begun = threading.Event()

    @task(pool="threads")
    async def outer() -> None:
        async with TaskGroup():
            until_asked(begun)
            await asyncio.sleep(LONG)
        raise AssertionError("reached")

    with TaskGroup() as group:
        call = outer()
        assert begun.wait(LONG)
        group.cancel()
    assert call.done()
    assert call.cancelled() or isinstance(call.exception(), asyncio.CancelledError)


def test_beside_a_task_group_of_asyncio() -> None:
    """It nests with the TaskGroup of asyncio, in both orders."""

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as tasks, TaskGroup():
                tasks.create_task(asyncio.sleep(LONG))
                fail()
        assert isinstance(caught.value.exceptions[0], ExceptionGroup)
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup():
                call = until_asked()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(raises())
        assert call.cancelled()

    async def raises() -> None:
        raise ValueError

    asyncio.run(main())


def test_outside_a_loop() -> None:
    """`async with` needs asyncio or trio."""
    group = TaskGroup()
    with pytest.raises(RuntimeError, match="neither asyncio nor trio"):
        group.__aenter__().send(None)


# -- trio -------------------------------------------------------------------------------------------------------------


def run_trio(main: Callable[[], Any]) -> Any:
    return trio.run(main, strict_exception_groups=True)


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await trio.sleep(0.001)  # trio.to_thread would leave a thread behind for a while


def test_trio_block() -> None:
    """`async with` works under trio: it waits, and a failure cancels its body."""

    async def main() -> None:
        async with TaskGroup() as group:
            call = double(1)
            assert await double(2) == 4
        assert ended(group) == 2
        assert call.result() == 2
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup():
                other = until_asked()
                fail()
                await trio.sleep(LONG)
        assert texts(caught.value) == ["bad"]
        assert other.cancelled()
        await trio.lowlevel.checkpoint()

    run_trio(main)


def test_trio_decides_by_a_turn(no_grace: None) -> None:
    """Under trio a failure counts after a turn of its loop."""

    async def main() -> None:
        async with TaskGroup():
            settled = await settle(fail(), fail.options(pool="inline")())
        assert len(settled) == 2
        with pytest.raises(ExceptionGroup):
            async with TaskGroup():
                fail()
                await trio.sleep(LONG)

    run_trio(main)


def test_trio_cancel() -> None:
    """cancel() under trio cancels the body quietly."""

    async def main() -> None:
        async with TaskGroup() as group:
            call = until_asked()
            group.cancel()
            await trio.sleep(LONG)
        assert call.cancelled()
        async with TaskGroup() as group:
            call = until_asked()
            group.cancel()
            await call

    run_trio(main)


@pytest.mark.parametrize("where", ["body", "end"])
def test_a_cancelled_scope_around(where: str) -> None:
    """Cancelling a scope around the block cancels the calls and waits for them."""

    async def main() -> None:
        begun = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel, begun, nursery)
            async with TaskGroup():
                call = until_asked(begun)
                if where == "body":
                    await trio.sleep(LONG)
            raise AssertionError("reached")
        assert call.cancelled()

    async def cancel(begun: threading.Event, nursery: trio.Nursery) -> None:
        await until(begun)
        nursery.cancel_scope.cancel()

    run_trio(main)


def test_trio_cancelled_and_a_call_fails() -> None:
    """Errors of calls that were cancelled with the scope around come out of it, without the cancellation."""
    begun = threading.Event()

    @task
    def cleans_up_badly() -> None:
        with suppress(CancelledError):
            until_asked.local(begun)
        raise OSError("disk full")

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with TaskGroup():
                cleans_up_badly()
                await until(begun)
                scope.cancel()

    with pytest.raises(BaseExceptionGroup) as caught:
        run_trio(main)
    assert caught.value.split(OSError)[1] is None


def test_nested_trio_blocks() -> None:
    """A failure of the outer group ends the inner block too."""

    async def main() -> None:
        begun = threading.Event()
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup():
                double(1).then(lambda _: begun.wait(LONG) and fail.local("outer"))
                async with TaskGroup():
                    call = until_asked(begun)
                    await trio.sleep(LONG)
                raise AssertionError("reached")
        assert texts(caught.value) == ["outer"]
        assert call.cancelled()

    for _ in range(20):
        run_trio(main)


# -- under load -------------------------------------------------------------------------------------------------------


def test_memory_is_flat() -> None:
    """Ended calls are let go of: a hundred thousand of them leave nothing in the group."""

    def make(count: int) -> None:
        for _ in range(count // 100):
            for future in as_completed([double(1) for _ in range(100)]):
                future.result()

    with TaskGroup() as group:
        make(1_000)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        make(20_000)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        make(79_000)
    assert ended(group) == 100_000
    assert after - before < 100_000


def test_calls_are_freed() -> None:
    """A call that has ended is freed at once, though its group is open, without the cyclic garbage collector."""
    with without_gc(), TaskGroup():
        future = double(1)
        future.result()
        ref = weakref.ref(future)
        del future
        assert freed(ref)


def test_stress() -> None:
    """Over 20,000 calls that fail, chain, nest and are cancelled at random, every block ends, after all its calls."""
    chance = random.Random(7)
    lock = threading.Lock()
    count = 0

    @task
    def work(depth: int, luck: float) -> float:
        nonlocal count
        with lock:
            count += 1
        for _ in range(depth):
            follow(work(depth - 1, chance.random()))
        if luck < 0.02:
            raise ValueError(luck)
        return luck

    def follow(call: Future[float]) -> Future[Any]:
        kind = chance.randrange(5)
        calls.append(call)
        if kind == 0:
            calls.append(call.catch(ValueError, lambda _: 0.0))
        elif kind == 1:
            calls.append(gather(call, double(1)).catch(lambda _: ()))
        elif kind == 2 and chance.random() < 0.05:
            call.cancel()
        return call

    with frequent_switches():
        rounds = 0
        while count < 20_000:
            calls: list[Future[Any]] = []
            rounds += 1
            with suppress(ExceptionGroup), TaskGroup() as group:
                for _ in range(20):
                    follow(work(3, chance.random()))
                if chance.random() < 0.2:
                    group.cancel()
            assert all(call.done() for call in calls)
            assert ended(group) >= len(calls) or group.cancelled
    assert rounds > 10


def test_stress_async() -> None:
    """The same in coroutines of asyncio: blocks beside each other on one loop."""
    chance = random.Random(7)

    async def block() -> None:
        try:
            async with TaskGroup() as group:
                for _ in range(5):
                    call = (fail if chance.random() < 0.05 else double)(1)
                    if chance.random() < 0.5:
                        await call
                    if chance.random() < 0.02:
                        group.cancel()
        except* ValueError:
            pass
        ended(group)

    async def main() -> None:
        for _ in range(40):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(20):
                    tasks.create_task(block())

    with frequent_switches():
        asyncio.run(main())


def test_a_standard_future_inside() -> None:
    """Futures of the standard library may feed what belongs to the group."""
    promise: concurrent.futures.Future[int] = concurrent.futures.Future()
    with TaskGroup():
        caught = gather(promise).catch(lambda _: "caught")
        promise.set_exception(ValueError())
    assert caught.result() == "caught"


@pytest.mark.parametrize("how", ["link", "combination", "slow link", "async"])
def test_the_timeout_bounds_links_and_combinations(how: str) -> None:
    """No member outlives the block's timeout, whatever kind of future it is; what runs is asked to stop."""
    promise = Future[int]()
    members: list[Future[Any]] = []

    def slow(_: object) -> None:
        nap(LONG)

    async def block() -> None:
        async with TaskGroup(timeout=0.05):
            members.append(promise.then(jobs.double))

    with pytest.raises(ExceptionGroup) as raised:
        if how == "async":
            asyncio.run(block())
        else:
            with TaskGroup(timeout=0.05):
                if how == "link":
                    members.append(promise.then(jobs.double))
                elif how == "combination":
                    members.append(gather(promise, completed(1)))
                else:
                    members.append(completed(1).then(slow))
    (error,) = raised.value.exceptions
    assert isinstance(error, TaskTimeoutError)
    assert (error.what, error.seconds) == ("deadline", 0.05)
    assert members[0].exception(timeout=LONG) is error


# -- interrupts --------------------------------------------------------------------------------------------------------

MADE: dict[str, Callable[[], object]] = {
    "call": lambda: double(1),
    "limited": lambda: task(limit=1, deadline=60)(jobs.double)(1),
    "process": lambda: task(pool="processes")(jobs.double)(1),
    "argument": lambda: double(double(1)),  # type: ignore[arg-type]  # a future
    "then": lambda: double(1).then(jobs.double),
    "with_timeout": lambda: double(1).with_timeout(60),
    "gather": lambda: gather(double(1), double(2)),
    "map": lambda: parallel_map(jobs.double)(range(3)),
    "inner": lambda: _inner_block(),
}


def _inner_block() -> None:
    with TaskGroup():
        double(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it comes into generators that close
@pytest.mark.parametrize("made", MADE)
def test_ctrl_c_at_each_point_of_a_block(made: str) -> None:
    """Wherever a Ctrl-C hits the thread that makes something in a block, that one ends."""
    left = number = 0

    def block() -> None:
        nonlocal left
        interrupted = suppress(KeyboardInterrupt, CancelledError, BaseExceptionGroup)
        with interrupted, TaskGroup(), CtrlC(number) as ctrl_c:
            try:
                MADE[made]()
            finally:
                left = ctrl_c.left

    MADE[made]()
    while left == 0:  # the place is there
        number += 1
        assert returns_in_time(block), f"the block hangs after a Ctrl-C at place {number}"
    assert number > 20
    threading._limbo.clear()  # type: ignore[attr-defined]  # what a Ctrl-C keeps from starting, CPython leaves there
