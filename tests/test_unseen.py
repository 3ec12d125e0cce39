"""
Failures that nobody has looked at: what counts as a look, and how the others are reported.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import queue
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from contextlib import suppress
from subprocess import CompletedProcess
from textwrap import dedent
from typing import Any, NoReturn

import jobs
import pytest
from jobs import Held, frequent_switches, without_gc

from parallel import (
    Future,
    LoopPool,
    PoolFullError,
    Registry,
    ThreadPool,
    UnobservedErrorWarning,
    as_completed,
    completed,
    failed,
    first,
    gather,
    parallel_map,
    race,
    settle,
    task,
    unseen,
    using,
    wait,
)

LONG = 30  # seconds; only a deadlock takes so long
Runner = Callable[..., CompletedProcess[str]]


class Reports(logging.Handler):
    """What is logged, as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put(record)

    def next(self) -> logging.LogRecord:
        """Wait for the next one."""
        return self._records.get(timeout=LONG)

    def up_to_now(self) -> list[logging.LogRecord]:
        """Return all that come of what was dropped before: reports are made in that order."""
        last = Future[None]()
        last.set_exception(EOFError("the last one"))
        del last
        records: list[logging.LogRecord] = []
        while True:
            record = self.next()
            assert record.exc_info is not None
            if isinstance(record.exc_info[1], EOFError):
                return records
            records.append(record)


@pytest.fixture
def reports() -> Iterator[Reports]:
    """What is reported in this test; what others have dropped is told before."""
    logger = logging.getLogger("parallel")
    handler = Reports()
    logger.addHandler(handler)
    handler.up_to_now()
    yield handler
    handler.up_to_now()
    logger.removeHandler(handler)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


def ended(future: Future[Any]) -> Future[Any]:
    """Wait until *future* has ended, without a look at how, and until no thread holds it."""
    wait([future], timeout=LONG)
    return future


@task
def parse(text: str) -> int:
    """Return the number in *text*."""
    return int(text)


@parallel_map(pool="threads")
def parse_all(text: str) -> int:
    """Return the number in *text*."""
    return int(text)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_a_dropped_failure_is_logged(pool: ThreadPool, reports: Reports) -> None:
    """It is an error of the logger `parallel`, with the function's name and the user's traceback."""
    pool.submit(jobs.divide, 1, 0)
    record = reports.next()
    assert (record.name, record.levelno) == ("parallel", logging.ERROR)
    assert record.getMessage() == "jobs:divide has failed, and nobody has looked at the error"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert [frame.name for frame in traceback.extract_tb(record.exc_info[2])] == ["divide"]
    assert reports.up_to_now() == []


def test_it_is_told_where_a_task_was_called(reports: Reports) -> None:
    """The report of a task names it, and the line that called it."""
    parse("x")
    line = sys._getframe().f_lineno - 1
    assert reports.next().getMessage() == (
        f"{__name__}:parse has failed, and nobody has looked at the error (called at {__file__}:{line})"
    )


CALLS: list[Callable[[], object]] = [
    lambda: parse.submit("x"),
    lambda: parse.map(["x"]),
    lambda: parse.then(str)("x"),
    lambda: parse.then(str).submit("x"),
    lambda: parse.then(str).then(len).map(["x"]),
    lambda: parse_all(["x"]),
    lambda: parse_all.submit("x"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("pool", ["threads", "inline"])
def test_it_is_told_where_a_method_called(call: Callable[[], object], pool: str, reports: Reports) -> None:
    """However a task is called, the report names the user's line."""
    configuration = {"pools": {"inline": {"kind": "inline"}}, "tasks": {f"{__name__}:*": {"pool": pool}}}
    with using(configuration):
        call()
        gc.collect()  # see `test_failures_of_all_kinds_of_pools`
        place = f"(called at {__file__}:{call.__code__.co_firstlineno}"
        assert place in reports.next().getMessage()


def test_it_is_told_in_which_chain(reports: Reports) -> None:
    """The report of a chain names it, and the stage that failed, and where its first task was called."""
    parse.then(str).then(jobs.raises)("1")
    line = sys._getframe().f_lineno - 1
    message = reports.next().getMessage()
    assert message.startswith("jobs:raises has failed")
    assert f"called at {__file__}:{line}; of the chain parse → str → raises" in message


def test_it_is_told_on_a_thread_of_ours(reports: Reports) -> None:
    """Nothing is told in a destructor: the handlers of logs run on a thread for it."""
    parse("x")
    assert reports.next().threadName == "parallel-unseen"


def test_a_chain_is_told_once(pool: ThreadPool, reports: Reports) -> None:
    """A failure that has passed on to many futures is told when the last of them is dropped."""
    start = Future[int]()
    ends = [start.then(str), start.then(str).finally_(jobs.nothing), start.catch(KeyError, str)]
    start.set_exception(ValueError())
    for end in ends:
        ended(end)
    del start, end
    while len(ends) > 1:
        ends.pop()
        assert reports.up_to_now() == []
    ends.pop()
    assert len(reports.up_to_now()) == 1


@pytest.mark.parametrize("make", [jobs.FalsyError, jobs.FrozenError, jobs.WeirdError, jobs.interrupt, jobs.leave])
def test_all_kinds_of_errors_are_told(make: Callable[[], Any], pool: ThreadPool, reports: Reports) -> None:
    """False, frozen and weird errors are reported, and so is what would end a program."""
    pool.submit(lambda: jobs.raises(make()))
    record = reports.next()
    assert record.exc_info is not None
    assert record.exc_info[1] is not None


def test_failures_of_all_kinds_of_pools(reports: Reports) -> None:
    """It doesn't matter where a call has run."""
    for kind in ("thread", "inline", "process", "loop"):
        with using({"pools": {"here": {"kind": kind}}}) as registry:
            registry.pool("here").submit(jobs.async_double if kind == "loop" else jobs.double, None)
        gc.collect()  # the frames of an inline call know its future, by way of those that made it
        record = reports.next()
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], TypeError), kind


def test_a_promise_is_told_of(reports: Reports) -> None:
    """A future made by hand that was ended with an error is as any other."""
    promise = Future[int]()
    promise.set_exception(ValueError("by hand"))
    del promise
    assert reports.next().getMessage() == "a call has failed, and nobody has looked at the error"


def test_failed_is_not_told_of(reports: Reports) -> None:
    """Who makes a failed future has the error; but who gets it passed on is expected to look."""
    failed(ValueError())
    assert reports.up_to_now() == []
    ended(failed(ValueError()).then(str))
    assert len(reports.up_to_now()) == 1
    ended(completed(1).then(lambda _: failed(ValueError())))
    assert len(reports.up_to_now()) == 1


def test_cancelled_futures_are_not_told_of(held: Held, reports: Reports) -> None:
    """A cancellation is no failure: of a queued call, of a promise, of a running coroutine."""
    running = threading.Event()

    async def sleep() -> None:
        running.set()
        try:
            await asyncio.sleep(LONG)
        finally:
            raise ValueError  # its future has ended before: there is nobody to tell

    held.pool.submit(jobs.divide, 1, 0).cancel()
    Future[int]().cancel()
    with LoopPool() as pool:
        call = pool.submit(sleep)
        assert running.wait(LONG)
        call.cancel()
    del call
    assert reports.up_to_now() == []


def test_what_is_held_is_not_told_of(pool: ThreadPool, reports: Reports) -> None:
    """As long as somebody holds the future, it may still be looked at."""
    future = ended(pool.submit(jobs.divide, 1, 0))
    assert reports.up_to_now() == []
    assert isinstance(future.exception(), ZeroDivisionError)
    del future
    assert reports.up_to_now() == []


def test_one_that_dies_in_a_cycle(reports: Reports) -> None:
    """A future that the cyclic garbage collector frees is reported as well."""
    with without_gc():
        future: Any = Future()
        future.myself = future
        future.set_exception(ValueError())
        del future
        assert reports.up_to_now() == []
        gc.collect()
        assert len(reports.up_to_now()) == 1


# -- what is a look ---------------------------------------------------------------------------------------------------


def _result(future: Future[int]) -> None:
    with pytest.raises(ValueError):
        future.result(timeout=LONG)


def _await(future: Future[int]) -> None:
    async def main() -> None:
        with pytest.raises(ValueError):
            await future

    asyncio.run(main())


def _call_back(future: Future[int]) -> None:
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert called.wait(LONG)


LOOKS: list[Callable[[Future[int]], object]] = [
    _result,
    _await,
    _call_back,
    lambda future: future.exception(timeout=LONG),
    lambda future: future.then(str).exception(timeout=LONG),
    lambda future: future.on_failure(jobs.same),
    lambda future: ended(future.catch(str)),
    lambda future: ended(future.catch(ValueError, str).then(len)),
    lambda future: settle(future).result(timeout=LONG),
    lambda future: gather(future, return_exceptions=True).result(timeout=LONG),
    lambda future: gather(future, completed(1)).exception(timeout=LONG),
    lambda future: race(future).exception(timeout=LONG),
    lambda future: first(future, completed(1)).result(timeout=LONG),
    lambda future: first(future).exception(timeout=LONG),
    lambda future: future.shield().exception(timeout=LONG),
    lambda future: parse.submit(future).exception(timeout=LONG),  # type: ignore[arg-type]  # it never comes to that
]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
def test_looks(look: Callable[[Future[int]], object], late: bool, pool: ThreadPool, reports: Reports) -> None:
    """What is looked at, before the end or after it, is not reported."""
    go = threading.Event()
    future = pool.submit(lambda: (go.wait(LONG), int("x"))[1])
    if late:
        go.set()
        ended(future)
    threading.Timer(0.001, go.set).start()
    look(future)
    ended(future)
    del future
    assert reports.up_to_now() == []


NO_LOOKS: list[Callable[[Future[int]], object]] = [
    lambda future: future.done(),
    lambda future: (future.cancelled(), future.running(), repr(future)),
    lambda future: future.cancel(),
    lambda future: future.on_success(jobs.same),
    lambda future: concurrent.futures.wait([future]),
    lambda future: list(as_completed([future])),
    lambda future: list(as_completed([future, completed(1)])),
    lambda future: [wait([future], return_when=how) for how in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION)],
    lambda future: ended(future.then(str)),
    lambda future: ended(future.catch(KeyError, str)),
    lambda future: ended(future.finally_(jobs.nothing)),
    lambda future: ended(gather(future, completed(1))),
    lambda future: ended(future.with_timeout(LONG)),
    lambda future: ended(completed(1).then(lambda _: future)),
    lambda future: ended(jobs.local_double.submit(future)),
]


@pytest.mark.parametrize("look", NO_LOOKS)
def test_what_is_no_look(look: Callable[[Future[int]], object], pool: ThreadPool, reports: Reports) -> None:
    """What is only waited for, or passed on, is reported, and once."""
    future = ended(pool.submit(int, "x"))
    look(future)
    del future
    assert len(reports.up_to_now()) == 1


def test_an_error_that_takes_the_place_of_another(reports: Reports) -> None:
    """Of an error, and the one raised while it was handled, the second is reported, and it tells of the first."""
    ended(failed(KeyError("one")).catch(lambda _: jobs.raises(ValueError("two"))))
    ended(failed(KeyError("one")).then(str).finally_(lambda: jobs.raises(ValueError("two"))))
    for record in (reports.next(), reports.next()):
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)
        assert isinstance(record.exc_info[1].__context__, KeyError)
    assert reports.up_to_now() == []


def test_the_others_of_a_gather(pool: ThreadPool, reports: Reports) -> None:
    """gather() passes on the first failure, which is reported; those that come later are not."""
    go = threading.Event()
    slow = pool.submit(lambda: (go.wait(LONG), 1 // 0))
    both = gather(pool.submit(int, "x"), slow)
    ended(both)
    del both
    assert len(reports.up_to_now()) == 1
    go.set()
    ended(slow)
    del slow
    assert reports.up_to_now() == []


def test_one_failure_that_comes_to_a_gather_twice(pool: ThreadPool, reports: Reports) -> None:
    """A failure that decides a gather() is to be looked at there, though it reaches another member as well."""
    source = Future[int]()
    both = gather(source, source.then(str))
    source.set_exception(ValueError())
    ended(both)
    del both, source
    assert len(reports.up_to_now()) == 1


# -- what is done about it --------------------------------------------------------------------------------------------


def fail(number: int = 0) -> NoReturn:
    """Fail."""
    raise ValueError(number)


def _fail_in(registry: Registry, pool: str = "threads") -> None:
    wait([registry.pool(pool).submit(fail)], timeout=LONG)


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_ignore(pool: str, reports: Reports) -> None:
    """With `ignore` nothing is said, wherever the call has run."""
    with using({"unobserved": "ignore"}) as registry:
        _fail_in(registry, pool)
    assert reports.up_to_now() == []


def test_warn() -> None:
    """With `warn` it is a warning at the line of the call."""
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with warnings.catch_warnings(), using({"unobserved": "warn"}):
        warnings.simplefilter("always")
        warnings.showwarning = lambda *args: told.put(args)
        parse("x")
        line = sys._getframe().f_lineno - 1
        message, category, file, number, *_ = told.get(timeout=LONG)
    assert category is UnobservedErrorWarning
    assert (file, number) == (__file__, line)
    assert "parse has failed" in str(message)
    assert "ValueError: invalid literal" in str(message)


def test_a_warning_that_is_an_error(reports: Reports) -> None:
    """A warning that is turned into an error is logged: it can't be raised where anybody could catch it."""
    with using({"unobserved": "warn"}):
        parse("x")
        record = reports.next()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], UnobservedErrorWarning)


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_raise(pool: str, reports: Reports) -> None:
    """With `raise` the end of the registry's block raises all of them; another registry's go their own way."""
    with (
        pytest.raises(ExceptionGroup, match="2 calls have failed") as caught,
        using({"unobserved": "raise"}) as registry,
    ):
        _fail_in(registry, pool)
        _fail_in(registry, pool)
    assert [type(error) for error in caught.value.exceptions] == [ValueError, ValueError]
    assert "nobody has looked" in caught.value.exceptions[0].__notes__[0]
    assert reports.up_to_now() == []
    registry.shutdown()  # once only


def test_raise_does_not_hide_an_error() -> None:
    """An error that leaves the block is raised, not the group; that is raised by a shutdown."""
    registry = Registry({"unobserved": "raise"})
    with pytest.raises(KeyError), registry:
        _fail_in(registry)
        raise KeyError
    with pytest.raises(ExceptionGroup):
        registry.shutdown()


def test_raise_without_waiting() -> None:
    """A shutdown that doesn't wait raises nothing; one that does, later, raises."""
    registry = Registry({"unobserved": "raise"})
    with using(registry):
        _fail_in(registry)
        registry.shutdown(wait=False)
    with pytest.raises(ExceptionGroup):
        registry.shutdown()


def test_a_handler_that_fails(pool: ThreadPool, reports: Reports, capsys: pytest.CaptureFixture[str]) -> None:
    """A handler of logs that raises doesn't keep the next failure from being reported."""

    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise KeyError

    broken = Broken()
    logging.getLogger("parallel").addHandler(broken)
    try:
        assert len([pool.submit(fail) for _ in range(3)]) == 3
        told = [reports.next() for _ in range(3)]
    finally:
        logging.getLogger("parallel").removeHandler(broken)
    assert len(told) == 3
    reports.up_to_now()


# -- what is left of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["log", "warn", "ignore"])
def test_nothing_is_kept(how: str, run_script: Runner) -> None:
    """After its report an error is gone, with what its frames hold, without the cyclic garbage collector."""
    script = f"""
        import gc, threading, weakref
        from parallel import task, using

        class Thing:
            pass

        gone = threading.Event()

        @task
        def fail():
            thing = Thing()
            weakref.finalize(thing, gone.set)
            raise ValueError

        gc.disable()
        with using({{"unobserved": {how!r}}}):
            fail().then(str).finally_(print)
            assert gone.wait({LONG})
        """
    assert ("ValueError" in run_script(dedent(script)).stderr) == (how != "ignore")  # pytest would keep what is logged


def test_a_looked_at_failure_is_freed_at_once(pool: ThreadPool) -> None:
    """Nor is one kept that was looked at."""
    before = set(unseen._unseen)
    with without_gc():
        future = pool.submit(jobs.raise_other_arguments).then(str)
        error = future.exception(timeout=LONG)
        gone = threading.Event()
        weakref.finalize(error, gone.set)
        del future, error
        assert gone.wait(LONG)
    assert not set(unseen._unseen) - before


def test_many_at_once(pool: ThreadPool, reports: Reports) -> None:
    """All are reported, however many are dropped at once, and by whatever threads."""
    with frequent_switches():
        for number in range(500):
            pool.submit(fail, number)
        told = [reports.next() for _ in range(500)]
    errors = [record.exc_info[1] for record in told if record.exc_info is not None]
    assert sorted(error.args[0] for error in errors if error is not None) == list(range(500))


def test_a_look_that_races(pool: ThreadPool, reports: Reports) -> None:
    """Whoever looks in the very moment of the end has looked."""
    with frequent_switches():
        for _ in range(300):
            future = pool.submit(fail)
            with suppress(ValueError):
                future.result(timeout=LONG)
            other = pool.submit(fail)
            gather(other, future, return_exceptions=True).result(timeout=LONG)
            del future, other
    assert reports.up_to_now() == []


def test_a_forked_child_does_not_report(in_fork: Callable[..., Any]) -> None:
    """What has failed in the parent is the parent's; the child reports its own."""
    future = Future[None]()
    future.set_exception(KeyError("the parent's"))

    def child() -> list[str]:
        nonlocal future
        reports = Reports()
        logging.getLogger("parallel").addHandler(reports)
        future = Future()
        mine = Future[None]()
        mine.set_exception(ValueError())
        del mine
        return [type(record.exc_info[1]).__name__ for record in reports.up_to_now() if record.exc_info is not None]

    assert in_fork(child) == ["ValueError"]
    future.exception()


# -- at the exit of the interpreter -----------------------------------------------------------------------------------

SCRIPT = """
    from parallel import ThreadPool, configure, task

    configure({{"unobserved": {how!r}}})

    @task
    def fail(text):
        raise ValueError(text)

    held = fail("held")
    fail("dropped")
    seen = fail("seen")
    seen.exception()
    fail("last").then(print)
    """


def test_log_at_exit(run_script: Runner) -> None:
    """What is held, dropped, or still in flight at the exit is reported."""
    err = run_script(dedent(SCRIPT.format(how="log"))).stderr
    for text in ("held", "dropped", "last"):
        assert err.count(f"ValueError: {text}") == 1
    assert "seen" not in err


def test_ignore_at_exit(run_script: Runner) -> None:
    """With `ignore` the exit says nothing."""
    assert run_script(dedent(SCRIPT.format(how="ignore"))).stderr == ""


def test_raise_at_exit(run_script: Runner) -> None:
    """With `raise` all are printed at the exit, whose status is 1; handlers and buffers have had their turn."""
    script = (
        SCRIPT.format(how="raise")
        + """
    import atexit, sys
    atexit.register(sys.stdout.write, "handler")
    """
    )
    result = run_script(dedent(script), status=1)
    assert result.stdout == "handler"
    assert "ExceptionGroup: 3 calls have failed, and nobody has looked at the error" in result.stderr
    for text in ("held", "dropped", "last"):
        assert f"ValueError: {text}" in result.stderr


def test_raise_at_exit_with_nothing_to_raise(run_script: Runner) -> None:
    """With `raise`, and all looked at, the exit is an orderly one."""
    script = """
        from parallel import configure, task

        configure({"unobserved": "raise"})
        task(int)("x").exception()
        """
    assert run_script(dedent(script)).stderr == ""


def test_what_a_call_raises_is_not_told_of_as_well(reports: Reports) -> None:
    """Who makes a call that is refused gets the error, which nobody else could look at."""
    pools = {"full": {"kind": "thread", "max_workers": 1, "max_pending": 1, "on_full": "raise"}}
    with using({"pools": pools}), Held() as held:
        calls = [task(pool="full")(held.go.wait)(LONG)]
        while len(calls) < 10:
            try:
                calls.append(task(pool="full", limit=9)(jobs.nothing)())
            except PoolFullError:
                break
        else:
            pytest.fail("it took all")
        assert not reports.up_to_now()
        held.go.set()


def test_no_line_of_ours_is_told(reports: Reports) -> None:
    """A task that a chain has called was called by no line of the user's; the chain is told instead."""
    (completed("no number").then(str.strip).then(parse),)
    message = reports.next().getMessage()
    assert "called at" not in message
    assert "strip → parse" in message


def test_a_handler_that_raises(reports: Reports) -> None:
    """What a declared handler raises is logged with the task's name."""
    task(on_success=jobs.raise_other_arguments)(jobs.double)(1).result(timeout=LONG)
    record = reports.next()
    assert "on_success" in record.getMessage()
    assert "jobs:double" in record.getMessage()
