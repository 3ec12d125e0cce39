"""
Calls under terms: timeout, deadline, retry, handlers, cancellation and context, on each kind of pool.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextvars import ContextVar, copy_context
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NoReturn

import jobs
import pytest
from jobs import AT_ONCE, frequent_switches, without_gc
from pools.process_jobs import wait_until

from parallel import (
    ConfigError,
    Future,
    PoolShutdownError,
    Registry,
    Retry,
    SerializationError,
    Task,
    TaskTimeoutError,
    UnknownPoolError,
    WorkerDiedError,
    checkpoint,
    completed,
    current_task,
    failed,
    sleep,
    task,
    unresolved,
    using,
)
from parallel.context import WITHIN, Within

LONG = 30  # seconds; only a deadlock takes so long
SHORT = 0.03  # seconds that a body overruns which waits for an event
POOLS: dict[str, Any] = {
    "pools": {
        "one": {"kind": "thread", "max_workers": 1},
        "two": {"kind": "thread", "max_workers": 2},
        "inline": {"kind": "inline"},
        "processes": {"kind": "process", "max_workers": 1},
    }
}
ANY_KIND = pytest.mark.parametrize("pool", ["one", "loop", "inline", "processes"])
HERE = pytest.mark.parametrize("pool", ["one", "loop", "inline"])  # kinds whose functions see the test's objects
VARIABLE: ContextVar[str] = ContextVar("test_call.VARIABLE", default="unset")


async def for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """A registry with a pool of each kind."""
    with using(POOLS) as made:
        yield made


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """An event on which bodies wait, set at the end."""
    event = threading.Event()
    yield event
    event.set()


def declared(fn: Callable[..., Any], pool: str, **options: Any) -> Task[..., Any]:
    """Declare *fn* for a pool; for the loop, what it does on the loop."""
    return task(pool=pool, **options)(jobs.to_async(fn) if pool == "loop" else fn)


def failing(times: int, error: type[BaseException] = OSError) -> tuple[Callable[[], int], list[int]]:
    """Make a function that fails so often, then returns how often it was called; and the list of its calls."""
    calls: list[int] = []

    def run() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error(len(calls))
        return len(calls)

    return run, calls


def idle(registry: Registry) -> None:
    """Wait until a pool's own accounts say that nothing runs."""
    for pool in registry.open_pools():
        pool.idle()


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("timeout", "soon", ValueError),
        ("timeout", True, TypeError),
        ("timeout", 0, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", math.nan, ValueError),
        ("deadline", [], TypeError),
        ("deadline", "5 parsecs", ValueError),
        ("retry", 3, TypeError),
        ("retry", {"attempts": 3}, TypeError),
        ("limit", 0, ValueError),
        ("limit", True, TypeError),
        ("limit", 1.5, TypeError),
        ("rate", "often", ValueError),
        ("rate", 5, TypeError),
        ("rate", "0/s", ValueError),
        ("priority", "high", TypeError),
        ("priority", True, TypeError),
        ("on_success", "print", ValueError),
        ("on_failure", 5, TypeError),
        ("pool", "", ValueError),
    ],
)
def test_wrong_option(option: str, value: Any, kind: type[Exception]) -> None:
    """A wrong option is an error at decoration and in options() that names the task, the option and the value."""
    with pytest.raises(kind, match=f"jobs:double: {option}"):
        task(**{option: value})(jobs.double)
    with pytest.raises(kind, match=f"jobs:local_double: {option}"):
        jobs.local_double.options(**{option: value})


def test_unknown_option() -> None:
    """An unknown option is a TypeError that suggests the nearest."""
    with pytest.raises(TypeError, match="timeout"):
        task(timeuot=5)(jobs.double)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("timeout = 'soon'", "soon"),
        ("timeout = true", "true|True"),
        ("limit = 2.7", "2.7"),
        ("limit = 0", "0"),
        ("rate = 'often'", "often"),
        ("priority = 'high'", "high"),
        ("timeuot = 5", "timeuot"),
        ("retry = 3", "3"),
        ("retry = { attempts = 0 }", "attempts"),
        ("retry = { on = 'OsError' }", "OsError"),
        ("on_failure = 'page'", "page"),
    ],
)
def test_wrong_option_in_a_file(tmp_path: Path, line: str, found: str) -> None:
    """A wrong option in a file is found when that is read, with the task's key and what was found."""
    file = tmp_path / "parallel.toml"
    file.write_text(f'[tasks."jobs:*"]\n{line}\n')
    with pytest.raises(ConfigError, match="jobs:") as caught:
        Registry(file)
    assert found.split("|")[0] in str(caught.value) or found.split("|")[-1] in str(caught.value)


def test_unknown_pool_names_the_task() -> None:
    """A pool that isn't there is told with the name of the task."""
    with pytest.raises(UnknownPoolError, match=r"jobs:double.*known: "):
        task(pool="gpu")(jobs.double)(1)


@pytest.mark.parametrize(
    "options",
    [
        {"on_success": "jobs:missing"},
        {"on_failure": "no.such.module:attribute"},
        {"on_success": "jobs:PATIENCE"},
        {"retry": {"on": "jobs:missing"}},
        {"retry": {"on": "jobs:double"}},
    ],
)
def test_import_string_that_names_nothing(options: Any) -> None:
    """An import string of a file that names nothing fails the call that needs it, with the task's key."""
    with using({"tasks": {"jobs:local_double": options}}), pytest.raises(ConfigError, match="jobs:local_double"):
        jobs.local_double(1)


# -- where options come from ------------------------------------------------------------------------------------------


def test_options_of_a_file_win(go: threading.Event) -> None:
    """A file's timeout holds in place of the decorator's, and options() win over both."""
    wait = task(pool="one", timeout=LONG)(go.wait)
    with using({**POOLS, "tasks": {wait.name: {"timeout": "30ms"}}}):
        with pytest.raises(TaskTimeoutError, match=r"0\.03 s"):
            wait().result(LONG)
        with pytest.raises(TaskTimeoutError, match=r"0\.02 s"):
            wait.options(timeout="20ms")().result(LONG)
        go.set()
        assert wait.options(timeout=math.inf)().result(LONG) is True


def test_infinite_times_are_none() -> None:
    """`inf` switches a timeout and a deadline off."""
    quick = task(pool="one", timeout=SHORT, deadline=SHORT)(jobs.double)
    with using({**POOLS, "tasks": {"jobs:double": {"timeout": "inf", "deadline": "inf"}}}):
        future: Any = quick(2)
        assert future.terms.lane is None
        assert future.deadline is None
        assert future.result(LONG) == 4


def test_retry_of_a_file() -> None:
    """A retry table of a file is used, its exceptions by name."""
    run, calls = failing(2)
    again = task(pool="one")(run)
    with using({**POOLS, "tasks": {again.name: {"retry": {"on": "OSError", "attempts": 3, **AT_ONCE}}}}):
        assert again().result(LONG) == 3
    assert len(calls) == 3


def test_options_change_nothing_of_the_arguments() -> None:
    """A function with parameters that are called as options are gets its arguments."""
    fn = task(pool="one", timeout=LONG, priority=1)(jobs.takes_words)
    assert fn(timeout=1, priority=2, key=3, pool=4, fn=5).result(LONG)["timeout"] == 1


# -- timeout ----------------------------------------------------------------------------------------------------------


@ANY_KIND
def test_quick_enough(pool: str) -> None:
    """A call that ends in time is none the worse for its timeout, deadline and retry."""
    fn = declared(jobs.double, pool, timeout=LONG, deadline=LONG, retry=Retry(), limit=5, rate="1000/s", priority=3)
    assert [fn(i).result(LONG) for i in range(5)] == [0, 2, 4, 6, 8]


def test_thread_overruns(go: threading.Event) -> None:
    """A call that overruns on a thread fails at once; its worker is replaced, and its late result dropped."""
    slow = task(pool="one", timeout=SHORT)(go.wait)
    future = slow()
    with pytest.raises(TaskTimeoutError, match=r"wait ran longer than its timeout of 0.03 s") as caught:
        future.result(LONG)
    assert isinstance(caught.value, TimeoutError)
    with Registry(POOLS):
        pass
    assert task(pool="one")(jobs.double)(2).result(LONG) == 4
    go.set()
    with pytest.raises(TaskTimeoutError):
        future.result(LONG)


def test_straggler_is_counted(registry: Registry, go: threading.Event) -> None:
    """stats() counts the stragglers; when the body ends its place is given back, and the pool is as before."""
    pool = registry.pool("one")
    gone = threading.Event()

    def body() -> None:
        go.wait(LONG)
        gone.set()

    slow = task(pool="one", timeout=SHORT)(body)
    slow().exception(LONG)
    assert pool.stats().stragglers == 1
    assert pool.submit(jobs.double, 1).result(LONG) == 2  # by another thread
    assert pool.stats().workers == 2
    go.set()
    assert gone.wait(LONG)
    pool.shutdown()
    stats = pool.stats()
    assert (stats.stragglers, stats.running, stats.queued) == (0, 0, 0)


def test_idle_and_shutdown_dont_wait_for_stragglers(registry: Registry, go: threading.Event) -> None:
    """A straggler is no call that a shutdown waits for."""
    slow = task(pool="two", timeout=SHORT)(go.wait)
    futures = [slow() for _ in range(3)]
    assert all(isinstance(future.exception(LONG), TaskTimeoutError) for future in futures)
    registry.pool("two").idle()
    registry.shutdown()
    assert not go.is_set()


def test_too_many_stragglers(registry: Registry, go: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past their cap the pool fails loudly: the queued calls and those to come."""
    monkeypatch.setattr("parallel.pools.crew.MAX_STRAGGLERS", 2)
    slow = task(pool="one", timeout=SHORT)(go.wait)
    futures = [slow() for _ in range(5)]
    errors = [type(future.exception(LONG)).__name__ for future in futures]
    assert errors.count("TaskTimeoutError") == 3
    assert errors.count("PoolBrokenError") == 2
    with pytest.raises(Exception, match="overrun"):
        slow()


def test_coroutine_overruns() -> None:
    """A coroutine that overruns is cancelled, and its `finally` is run."""
    cleaned = threading.Event()

    @task(timeout=SHORT)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    with pytest.raises(TaskTimeoutError):
        slow().result(LONG)
    assert cleaned.wait(LONG)


def test_coroutine_that_swallows_the_cancellation() -> None:
    """What a coroutine returns after its timeout is dropped; its place is free when it has ended."""
    seen: list[str] = []

    @task(timeout=SHORT, limit=1)
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("asked")
        return "late"

    with pytest.raises(TaskTimeoutError):
        stubborn().result(LONG)
    assert isinstance(stubborn().exception(LONG), TaskTimeoutError)
    assert seen[:1] == ["asked"]


def test_process_overruns(registry: Registry) -> None:
    """A call that overruns in a process costs that worker its life, and no other call its result."""
    with jobs.Gate() as gate:
        slow = task(pool="processes", timeout=0.5)(jobs.wait_at)
        pid = task(pool="processes")(jobs.pid)
        before = pid().result(LONG)
        late = slow(gate.address)
        after = pid()
        with pytest.raises(TaskTimeoutError):
            late.result(LONG)
        assert after.result(LONG) != before


def test_own_timeout_error_is_its_own() -> None:
    """A TimeoutError that the function raises itself, or one of result(timeout), is no TaskTimeoutError."""
    with jobs.Held() as held, pytest.raises(TimeoutError) as caught:
        held.future.result(0)
    assert not isinstance(caught.value, TaskTimeoutError)
    error = task(pool="one", timeout=LONG)(jobs.raises)(TimeoutError("mine")).exception(LONG)
    assert type(error) is TimeoutError


def test_inline_overruns_when_it_ends() -> None:
    """An inline call that has overrun fails when it ends: its caller is on its thread."""

    def body() -> None:
        while not current_task().cancelled:
            time.sleep(0)

    future = task(pool="inline", timeout=SHORT)(body)()
    assert future.done()
    assert isinstance(future.exception(), TaskTimeoutError)


@pytest.mark.parametrize("pool", ["one", "inline"])
def test_what_follows_a_timeout_runs_off_the_timer(pool: str) -> None:
    """Callbacks and handlers of a call that overran don't run on the timer's thread."""
    names: list[str] = []
    told = threading.Semaphore(0)

    def note(_: object) -> None:
        names.append(threading.current_thread().name)
        told.release()

    future = task(pool=pool, timeout=SHORT, on_failure=note)(lambda: sleep(LONG))()
    future.add_done_callback(note)
    future.catch(note)
    assert all(told.acquire(timeout=LONG) for _ in range(3))
    assert not any("timer" in name for name in names)


def test_timeout_is_no_waiting_time(go: threading.Event) -> None:
    """A timeout bounds the running time: the time in a queue doesn't count."""
    block = task(pool="one")(go.wait)()
    queued = task(pool="one", timeout=SHORT)(jobs.double)(1)
    with pytest.raises(TimeoutError) as caught:
        queued.result(3 * SHORT)
    assert not isinstance(caught.value, TaskTimeoutError)
    go.set()
    assert queued.result(LONG) == 2
    assert block.result(LONG)


@pytest.mark.parametrize("pool", ["two", "loop"])
def test_timeouts_that_race_with_ends(registry: Registry, pool: str) -> None:
    """However close end and timeout are, each call ends, and the pool's accounts are right in the end."""
    quick = declared(time.sleep, pool, timeout=0.0005, limit=3)
    with frequent_switches():
        futures = [quick(0.0005) for _ in range(300)]
        ends = [future.exception(LONG) for future in futures]
    assert {type(end) for end in ends} <= {type(None), TaskTimeoutError}
    idle(registry)
    wait_until(lambda: not registry.pool(pool).stats().stragglers)
    stats = registry.pool(pool).stats()
    assert (stats.stragglers, stats.running, stats.queued) == (0, 0, 0)
    patient = quick.options(timeout=LONG)
    assert [patient(0).result(LONG) for _ in range(5)] == [None] * 5  # the places are all there


# -- deadline ---------------------------------------------------------------------------------------------------------


def test_deadline_in_the_queue(go: threading.Event) -> None:
    """A call that is still queued at its deadline fails, and is never run."""
    seen: list[int] = []
    block = task(pool="one")(go.wait)()
    late = task(pool="one", deadline=SHORT)(seen.append)(1)
    with pytest.raises(TaskTimeoutError, match=r"did not end within its deadline of 0\.03 s"):
        late.result(LONG)
    go.set()
    assert block.result(LONG)
    assert task(pool="one")(jobs.double)(1).result(LONG) == 2
    assert seen == []


def test_deadline_of_a_running_thread(go: threading.Event) -> None:
    """A body that runs at its deadline is asked to stop, and its worker replaced."""
    asked = threading.Event()

    def body() -> None:
        try:
            sleep(LONG)
        except CancelledError:
            asked.set()
            raise

    future = task(pool="one", deadline=SHORT)(body)()
    assert isinstance(future.exception(LONG), TaskTimeoutError)
    assert asked.wait(LONG)
    assert not future.cancelled()


def test_deadline_of_a_coroutine() -> None:
    """A coroutine is cancelled at its deadline."""
    cleaned = threading.Event()

    @task(deadline=SHORT)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    assert isinstance(slow().exception(LONG), TaskTimeoutError)
    assert cleaned.wait(LONG)


def test_deadline_of_a_process() -> None:
    """A process is killed at the deadline of its call."""
    with jobs.Gate() as gate:
        pid = task(pool="processes")(jobs.pid)
        before = pid().result(LONG)
        late = task(pool="processes", deadline=0.5)(jobs.wait_at)(gate.address)
        assert isinstance(late.exception(LONG), TaskTimeoutError)
        assert pid().result(LONG) != before


def test_deadline_before_the_arguments() -> None:
    """The deadline runs while arguments are waited for; those that serve nobody else are cancelled."""
    argument: Future[int] = Future()
    late = task(pool="one", deadline=SHORT)(jobs.double).submit(argument)
    assert isinstance(late.exception(LONG), TaskTimeoutError)
    assert argument.cancelled()


def test_deadline_of_an_inline_call_in_every_state() -> None:
    """An inline call ends at its deadline: before its arguments are there, in a back-off, and after its body."""
    slow = task(pool="inline", deadline=SHORT)
    waits = slow(jobs.double).submit(Future())
    assert isinstance(waits.exception(LONG), TaskTimeoutError)
    retried = task(pool="inline", deadline=0.2, retry=Retry(wait_initial=0.1, wait_max=0.1, wait_jitter=0))(jobs.divide)
    assert isinstance(retried(1, 0).exception(LONG), ZeroDivisionError)  # no time is left for another attempt
    ran = slow(lambda: sleep(LONG))()
    assert isinstance(ran.exception(LONG), TaskTimeoutError)


def test_nested_call_inherits_the_deadline(go: threading.Event) -> None:
    """A nested call ends with its parent's deadline, wherever it is."""
    nested: list[Future[Any]] = []

    def parent() -> None:
        nested.append(task(pool="two")(go.wait)())
        nested.append(task(pool="two", deadline=LONG)(go.wait)())
        nested.append(task(for_ever)())
        nested.append(task(pool="one")(jobs.double).submit(Future()))
        go.wait(LONG)

    future = task(pool="one", deadline=0.1)(parent)()
    assert isinstance(future.exception(LONG), TaskTimeoutError)
    assert len(nested) == 4
    assert all(isinstance(each.exception(LONG), TaskTimeoutError) for each in nested)


def test_nested_deadline_can_be_shorter_only() -> None:
    """What is left of the deadline is told inside; a nested call has the less of the two."""

    def left() -> float | None:
        return current_task().deadline

    inner = task(pool="two")(left)

    def outer() -> list[float | None]:
        return [left(), inner().result(LONG), inner.options(deadline=5)().result(LONG)]

    lefts = task(pool="one", deadline=20)(outer)().result(LONG)
    assert lefts[0] >= lefts[1] > 10
    assert 0 < lefts[2] <= 5
    lefts = task(pool="one", deadline=2)(outer)().result(LONG)
    assert all(0 < each <= 2 for each in lefts)
    assert task(pool="one")(left)().result(LONG) is None


def test_handlers_have_no_deadline() -> None:
    """Declared handlers don't inherit the deadline: it is over when they are most needed."""
    lefts: list[Any] = []
    told = threading.Event()

    def handler(error: BaseException) -> None:
        lefts.append(task(pool="two")(lambda: current_task().deadline)().result(LONG))
        told.set()

    task(pool="one", deadline=SHORT, on_failure=handler)(lambda: sleep(LONG))().exception(LONG)
    assert told.wait(LONG)
    assert lefts == [None]


def test_deadline_leaves_no_time_for_another_attempt() -> None:
    """A back-off that would end after the deadline isn't begun; the error's note says so."""
    retry = Retry(wait_initial=10, wait_max=10)
    error = task(pool="one", deadline=5, retry=retry)(jobs.divide)(1, 0).exception(LONG)
    assert isinstance(error, ZeroDivisionError)
    assert "deadline of 5s leaves no time" in error.__notes__[0]


# -- retry ------------------------------------------------------------------------------------------------------------


@HERE
def test_tried_again_until_it_works(pool: str) -> None:
    """A call that fails is tried again, and ends with the first value."""
    run, calls = failing(3)
    assert declared(run, pool, retry=Retry(OSError, **AT_ONCE))().result(LONG) == 4
    assert len(calls) == 4


@HERE
def test_last_error_tells_of_the_attempts(pool: str) -> None:
    """When no attempt is left the last error comes out, with a note."""
    run, calls = failing(9)
    fn = declared(run, pool, retry=Retry(OSError, attempts=3, **AT_ONCE))
    error = fn().exception(LONG)
    assert isinstance(error, OSError)
    assert error.args == (3,)
    assert error.__notes__ == [f"3 attempts of {fn.name}; before this: 2 x OSError"]
    assert len(calls) == 3


def test_process_is_tried_again(tmp_path: Path) -> None:
    """A call that kills its worker, or fails there, is tried again if its retry says so."""
    path = tmp_path / "attempts"

    def dies_twice() -> int:
        with path.open("a") as file:
            file.write("x")
        size = path.stat().st_size
        if size == 1:
            os._exit(3)
        if size == 2:
            raise OSError("not yet")
        return size

    on = (WorkerDiedError, OSError)
    assert task(pool="processes", retry=Retry(on, **AT_ONCE))(dies_twice)().result(LONG) == 3
    path.unlink()
    assert isinstance(task(pool="processes", retry=Retry(OSError))(dies_twice)().exception(LONG), WorkerDiedError)


def test_killed_process_is_tried_again() -> None:
    """A timeout in a process is an error like others for its retry: the worker is gone."""
    with jobs.Gate() as gate:
        slow = task(pool="processes", timeout=0.3, retry=Retry(attempts=2, **AT_ONCE))(jobs.wait_at)
        error = slow(gate.address).exception(LONG)
    assert isinstance(error, TaskTimeoutError)
    assert "2 attempts" in error.__notes__[0]


def test_soft_timeout_is_retried_only_if_named(go: threading.Event) -> None:
    """A body that may still run is not tried again, unless `on` names TaskTimeoutError."""
    begun: list[int] = []

    def body() -> int:
        begun.append(1)
        if len(begun) % 2:
            go.wait(LONG)
        return len(begun)

    slow = task(pool="one", timeout=SHORT)(body)
    assert isinstance(slow.options(retry=Retry(**AT_ONCE))().exception(LONG), TaskTimeoutError)
    assert len(begun) == 1
    begun.clear()
    assert slow.options(retry=Retry(TaskTimeoutError, **AT_ONCE))().result(LONG) == 2


def test_inline_timeout_is_retried_if_named() -> None:
    """An inline call that has overrun is tried again after its body has ended, if `on` names TaskTimeoutError."""
    begun: list[int] = []

    def body() -> int:
        begun.append(1)
        if len(begun) == 1:
            sleep(LONG)
        return len(begun)

    slow = task(pool="inline", timeout=SHORT, retry=Retry(TaskTimeoutError, **AT_ONCE))
    assert slow(body)().result(LONG) == 2


def test_coroutine_timeout_is_retried() -> None:
    """A coroutine is over with its timeout, so it is tried again as after other errors."""
    begun: list[int] = []

    @task(timeout=SHORT, retry=Retry(**AT_ONCE))
    async def slow() -> int:
        begun.append(1)
        if len(begun) == 1:
            await asyncio.Event().wait()
        return len(begun)

    assert slow().result(LONG) == 2


@HERE
def test_function_says_what_is_retried(pool: str) -> None:
    """A function says yes, no, or how many seconds to wait; it may block, and runs on no engine's own thread."""
    run, _ = failing(3)
    names: list[str] = []

    def judge(error: Exception) -> float | bool:
        names.append(threading.current_thread().name)
        return 0.001 if error.args[0] == 1 else error.args[0] == 2

    error = declared(run, pool, retry=Retry(judge, **AT_ONCE))().exception(LONG)
    assert isinstance(error, OSError)
    assert error.args == (3,)
    assert len(names) == 3
    assert not any("loop" in name or "timer" in name for name in names)


@HERE
@pytest.mark.parametrize("answer", ["soon", None, -1, math.inf, math.nan, [], 10**400])
def test_nonsense_of_the_function(pool: str, answer: Any) -> None:
    """Another answer is a TypeError that tells it; the error that it was asked about is its context."""
    run, _ = failing(1)
    error = declared(run, pool, retry=Retry(lambda _: answer))().exception(LONG)
    assert isinstance(error, TypeError)
    assert isinstance(error.__context__, OSError)


@HERE
def test_function_that_raises(pool: str) -> None:
    """What the function raises fails the call; the error that it was asked about is its context."""
    run, _ = failing(1)

    def judge(_: Exception) -> NoReturn:
        raise KeyError("who?")

    error = declared(run, pool, retry=Retry(judge))().exception(LONG)
    assert isinstance(error, KeyError)
    assert isinstance(error.__context__, OSError)


def test_function_that_raises_the_same() -> None:
    """A function that raises the very error again fails the call with it."""
    assert isinstance(task(pool="one", retry=Retry(jobs.raises))(jobs.divide)(1, 0).exception(LONG), ZeroDivisionError)


@HERE
def test_frozen_error_gets_its_note(pool: str) -> None:
    """An exception whose attributes can't be set is retried, and told of, as others are."""
    error = declared(jobs.raise_frozen, pool, retry=Retry(attempts=2, **AT_ONCE))().exception(LONG)
    assert isinstance(error, jobs.FrozenError)
    assert "2 attempts" in error.__notes__[0]


@pytest.mark.parametrize(
    ("pool", "kind"),
    [  # an interrupt elsewhere is for the program, or for the loop
        ("one", KeyboardInterrupt),
        ("one", SystemExit),
        ("one", CancelledError),
        ("loop", CancelledError),
        ("inline", CancelledError),
    ],
)
def test_what_is_no_failure_is_not_retried(pool: str, kind: type[BaseException]) -> None:
    """Interrupts and cancellations are not retried by default."""
    run, calls = failing(1, kind)
    future = declared(run, pool, retry=Retry(**AT_ONCE))()
    with pytest.raises(kind):
        future.result(LONG)
    assert len(calls) == 1


def test_retry_has_a_timeout_of_its_own() -> None:
    """No attempt begins later than the retry's timeout after the first; the note says so."""
    retry = Retry(timeout=5, wait_initial=10, wait_max=10)
    error = task(pool="one", retry=retry)(jobs.divide)(1, 0).exception(LONG)
    assert error is not None
    assert error.__notes__[0].startswith("1 attempt of ")
    assert "the retry's timeout of 5s leaves no time" in error.__notes__[0]


def test_back_off_holds_no_worker() -> None:
    """Between attempts the worker does something else, and the place under a limit is free."""
    run, _ = failing(1)
    again = task(pool="one", limit=1, retry=Retry(wait_initial=10, wait_max=10, wait_jitter=0, timeout=None))(run)
    waiting = again()
    assert again.options(retry=Retry(attempts=1))().result(LONG) == 2
    assert waiting.cancel()


def test_value_that_cannot_travel() -> None:
    """Arguments that can't travel fail their call, and give its places back."""
    fn = task(pool="processes", limit=1, retry=Retry(ZeroDivisionError))(jobs.double)
    for _ in range(3):
        with pytest.raises(SerializationError):
            fn(jobs.Unpicklable()).result(LONG)
    assert fn(2).result(LONG) == 4


def test_no_memory_of_failures() -> None:
    """A call that is retried for ever keeps no error that is over."""
    kept: list[Any] = []

    class Error(Exception):
        def __init__(self) -> None:
            kept.append(weakref.ref(self))

    def body() -> int:
        if len(kept) < 50:
            raise Error
        return sum(ref() is not None for ref in kept)

    with without_gc():
        assert task(pool="one", retry=Retry(attempts=None, **AT_ONCE))(body)().result(LONG) <= 3


# -- handlers ---------------------------------------------------------------------------------------------------------


@ANY_KIND
def test_declared_handlers(pool: str) -> None:
    """on_success gets the value, on_failure the error; once a call, not once an attempt."""
    seen: list[Any] = []
    told = threading.Semaphore(0)

    def note(end: object) -> None:
        seen.append(end)
        told.release()

    fn = declared(jobs.divide, pool, on_success=note, on_failure=note, retry=Retry(attempts=2, **AT_ONCE))
    assert fn(4, 2).result(LONG) == 2
    assert told.acquire(timeout=LONG)
    error = fn(1, 0).exception(LONG)
    assert told.acquire(timeout=LONG)
    assert seen == [2, error]


def test_handlers_of_a_file() -> None:
    """A file names handlers by import strings."""
    jobs.INITIALIZED.clear()
    with using({**POOLS, "tasks": {"jobs:divide": {"on_success": "jobs:remember", "on_failure": "jobs:remember"}}}):
        fn = task(pool="one")(jobs.divide)
        fn(4, 2).result(LONG)
        error = fn(1, 0).exception(LONG)
    assert [2, error] == jobs.INITIALIZED
    jobs.INITIALIZED.clear()


def test_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler raises is logged, and changes nothing of the call."""
    told = threading.Event()

    def handler(_: object) -> NoReturn:
        told.set()
        raise ValueError("no pager")

    with using(POOLS):
        assert task(pool="one", on_success=handler)(jobs.double)(2).result(LONG) == 4
        assert told.wait(LONG)
    assert "no pager" in caplog.text


def test_handler_that_is_a_coroutine_function_or_a_task() -> None:
    """A handler may be an `async def`, which is run to its end, or a task, which is called."""
    seen: list[int] = []

    async def note(value: int) -> None:
        await asyncio.sleep(0)
        seen.append(value)

    with using(POOLS):
        task(pool="one", on_success=note)(jobs.double)(1)
        task(pool="one", on_success=task(pool="one")(seen.append))(jobs.double)(2)
    assert sorted(seen) == [2, 4]


def test_no_handler_for_a_cancelled_call(go: threading.Event) -> None:
    """A call that was cancelled has neither a value nor an error."""
    seen: list[object] = []
    with using(POOLS):
        block = task(pool="one")(go.wait)()
        future = task(pool="one", on_success=seen.append, on_failure=seen.append)(jobs.double)(1)
        assert future.cancel()
        go.set()
        assert block.result(LONG)
    assert seen == []


# -- context ----------------------------------------------------------------------------------------------------------


@HERE
def test_context_is_copied_at_submission(pool: str, go: threading.Event) -> None:
    """A call sees the variables as they were at its submission, in each attempt; what it sets stays inside."""
    seen: list[str] = []

    def body() -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set("inside")
        if len(seen) < 2:
            raise OSError

    def run() -> None:
        VARIABLE.set("then")
        future = declared(body, pool, retry=Retry(**AT_ONCE), timeout=LONG)()
        VARIABLE.set("later")
        future.result(LONG)
        assert VARIABLE.get() == "later"

    copy_context().run(run)
    assert seen[0] == "then"


@HERE
def test_context_after_the_arguments(pool: str) -> None:
    """A call that waits for its arguments sees the variables as they were when it was made."""
    argument: Future[int] = Future()

    def run() -> Future[Any]:
        VARIABLE.set("made")
        return declared(lambda _: VARIABLE.get(), pool).submit(argument)

    future = copy_context().run(run)
    argument.set_result(1)
    assert future.result(LONG) == "made"


@HERE
def test_registry_and_group_travel(registry: Registry, pool: str) -> None:
    """The registry and the group of a block are those of the calls that its calls make."""

    class Group:
        limits = None

        def __init__(self) -> None:
            self.adopted: list[Any] = []

        def adopt(self, future: Any, /) -> None:
            self.adopted.append(future)

    group = Group()
    inner = task(pool="two")(lambda: current_task().pool)
    outer = declared(lambda: inner(), pool)

    def run() -> Future[Any]:
        WITHIN.set(Within(registry, group))
        return outer()

    nested = copy_context().run(run).result(LONG)
    assert nested.result(LONG) == "thread pool 'two'"
    assert len(group.adopted) == 2


def test_group_that_is_closed() -> None:
    """What a group raises that takes no more calls comes out of the call itself."""

    class Closed:
        limits = None

        def adopt(self, future: Any, /) -> NoReturn:
            raise RuntimeError("closed")

    def run() -> None:
        WITHIN.set(Within(None, Closed()))
        with pytest.raises(RuntimeError, match="closed"):
            jobs.local_double(1)

    copy_context().run(run)


# -- cancellation -----------------------------------------------------------------------------------------------------


def test_cancel_while_its_arguments_are_waited_for() -> None:
    """A call that waits for its arguments can be cancelled; those that serve nobody else are cancelled."""
    argument: Future[int] = Future()
    shared: Future[int] = Future()
    shared.add_done_callback(id)
    future = task(pool="one")(jobs.same)(argument, [shared])
    assert future.cancel()
    assert future.cancelled()
    assert argument.cancelled()
    assert not shared.done()


@pytest.mark.parametrize("pool", ["one", "loop", "processes"])
def test_cancel_while_parked_at_a_limit(registry: Registry, pool: str) -> None:
    """A call that waits for a place can be cancelled, and frees what it holds at once."""
    with jobs.Gate() as gate:
        fn = task(pool=pool, limit=1)(jobs.to_thread(jobs.wait_at) if pool == "loop" else jobs.wait_at)
        first = fn(gate.address)
        gate.arrived()
        value = jobs.Weird()
        parked, last = fn(gate.address, value), fn(gate.address, 3)
        ref = weakref.ref(value)
        del value
        assert parked.cancel()
        assert parked.cancelled()
        assert ref() is None
        gate.open()
        assert last.result(LONG) == 3
        assert first.result(LONG) is None
    registry.shutdown()
    assert registry._desk is not None
    assert registry._desk.counts().queued == 0


@pytest.mark.parametrize("pool", ["one", "loop"])
def test_cancel_in_a_back_off(registry: Registry, pool: str) -> None:
    """A call in a back-off can be cancelled: it is not tried again."""
    run, calls = failing(9)
    tried = threading.Event()

    def judge(_: Exception) -> float:
        tried.set()
        return 20.0

    future = declared(run, pool, retry=Retry(judge, timeout=None))()
    assert tried.wait(LONG)
    assert future.cancel() or future.cancel()
    with pytest.raises(CancelledError):
        future.result(LONG)
    registry.shutdown()
    assert len(calls) == 1


def test_cancel_in_the_queue(go: threading.Event) -> None:
    """A queued call is cancelled at once, and its arguments are freed."""
    block = task(pool="one")(go.wait)()
    value = jobs.Weird()
    ref = weakref.ref(value)
    future = task(pool="one", timeout=LONG)(jobs.same)(value)
    del value
    assert future.cancel()
    assert ref() is None
    go.set()
    assert block.result(LONG)


def test_cancel_a_running_thread() -> None:
    """A running call on a thread is asked, cancel() says False; one that stops by checkpoint() is cancelled."""
    begun = threading.Event()

    def body() -> None:
        begun.set()
        while True:
            checkpoint()

    future = task(pool="one", retry=Retry(**AT_ONCE), timeout=LONG)(body)()
    assert begun.wait(LONG)
    assert future.cancel() is False
    with pytest.raises(CancelledError):
        future.result(LONG)


def test_cancel_a_running_thread_that_goes_on(go: threading.Event) -> None:
    """One that doesn't look ends as it does; one that fails then is not tried again."""
    begun = threading.Barrier(3)
    calls: list[int] = []

    def body(fails: bool) -> str:
        calls.append(1)
        begun.wait(LONG)
        assert go.wait(LONG)
        if fails:
            raise OSError
        return "done"

    fn = task(pool="two", retry=Retry(**AT_ONCE))(body)
    good, bad = fn(False), fn(True)
    begun.wait(LONG)
    assert not good.cancel(running=True)
    assert not bad.cancel()
    go.set()
    assert good.result(LONG) == "done"
    with pytest.raises(CancelledError):
        bad.result(LONG)
    assert len(calls) == 2


@pytest.mark.parametrize("options", [{}, {"timeout": LONG, "limit": 1, "retry": Retry()}])
def test_cancel_a_running_coroutine(options: Any) -> None:
    """A running coroutine is cancelled, the future at once; its `finally` is run, and holds its place till then."""
    begun = threading.Event()
    cleaned: list[str] = []

    @task(**options)
    async def body(first: bool) -> str:
        if not first:
            return cleaned[-1]
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("clean")
        return "never"

    future = body(True)
    assert begun.wait(LONG)
    assert future.cancel() is True
    assert future.cancelled()
    if options:
        assert body(False).result(LONG) == "clean"


@pytest.mark.parametrize("options", [{}, {"timeout": LONG, "limit": 1, "retry": Retry()}])
def test_cancel_a_running_process(options: Any) -> None:
    """A running process is asked only, unless it may be killed: then its worker is replaced."""
    with jobs.Gate() as gate:
        pid = task(pool="processes")(jobs.pid)
        before = pid().result(LONG)
        future = task(pool="processes", **options)(jobs.wait_at)(gate.address)
        gate.arrived()
        assert future.cancel() is False
        assert future.cancel(running=True) is True
        assert future.cancelled()
        assert pid().result(LONG) != before


def test_cancel_a_straggler(go: threading.Event) -> None:
    """A call whose body still runs has ended: cancel() says False, and changes nothing."""
    future = task(pool="one", timeout=SHORT)(go.wait)()
    assert isinstance(future.exception(LONG), TaskTimeoutError)
    assert future.cancel() is False
    assert not future.cancelled()


@ANY_KIND
def test_cancel_an_ended_call(pool: str) -> None:
    """A call that has ended can't be cancelled."""
    future = declared(jobs.double, pool, timeout=LONG)(1)
    assert future.result(LONG) == 2
    assert future.cancel(running=True) is False


@pytest.mark.parametrize("pool", ["two", "loop"])
def test_cancellations_that_race(registry: Registry, pool: str) -> None:
    """Whenever a cancellation comes, the call ends, and its place is given back."""
    fn = declared(jobs.nothing, pool, limit=2, retry=Retry(**AT_ONCE), timeout=LONG)
    with frequent_switches():
        for _ in range(100):
            futures = [fn() for _ in range(5)]
            for future in futures[1:4]:
                future.cancel()
            for future in futures:
                try:
                    future.result(LONG)
                except CancelledError:
                    assert future.cancelled()
    assert fn().result(LONG) is None


# -- the ends of things -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["one", "loop", "processes", "inline"])
def test_shutdown_waits_for_every_state(pool: str) -> None:
    """A shutdown runs what it has accepted: in a back-off, parked at a limit and at a rate, queued."""
    run, _ = failing(2)
    with using(POOLS):
        futures = [declared(jobs.double, pool, limit=1, rate="3/50ms")(i) for i in range(6)]
        if pool != "processes":
            retry = Retry(wait_initial=0.02, wait_max=0.02, wait_jitter=0)
            futures.append(declared(run, pool, retry=retry, limit=1)())
    assert [future.result(0) for future in futures[:6]] == [0, 2, 4, 6, 8, 10]
    if pool != "processes":
        assert futures[6].result(0) == 3


@pytest.mark.parametrize("pool", ["one", "loop"])
def test_shutdown_cancels_every_state(pool: str) -> None:
    """With cancel_futures all that has not been started is cancelled, and nothing hangs."""
    run, _ = failing(9)
    begun = threading.Event()
    go = threading.Event()

    def body() -> str:
        begun.set()
        assert go.wait(LONG)
        return "ran"

    with using(POOLS) as registry:
        on_thread = jobs.to_thread(body) if pool == "loop" else body
        retried = declared(run, pool, retry=Retry(wait_initial=20, wait_max=20, wait_jitter=0))()
        wait_until(lambda: registry._desk is not None and registry._desk.counts().queued)
        limited = task(pool=pool, limit=1)(on_thread)
        runs = limited()
        assert begun.wait(LONG)
        parked = limited()
        throttled = declared(jobs.nothing, pool, rate="1/h")
        queued, waiting = throttled(), throttled()
        threading.Timer(0.05, go.set).start()
        registry.shutdown(cancel_futures=True)
    assert runs.result(LONG) == "ran"
    for future in [retried, parked, waiting]:
        assert future.cancelled()
    assert queued.done()


def test_pool_that_is_shut_in_a_back_off(registry: Registry) -> None:
    """An attempt for which there is no pool any more fails the call."""
    run, _ = failing(1)
    future = task(pool="one", retry=Retry(wait_initial=0.05, wait_max=0.05, wait_jitter=0))(run)()
    registry.pool("one").shutdown()
    assert isinstance(future.exception(LONG), PoolShutdownError | OSError)


Runner = Callable[..., CompletedProcess[str]]


def test_exit_with_calls_in_every_state(run_script: Runner) -> None:
    """A program that ends runs what it has accepted: parked, in a back-off, queued; stragglers don't hold it up."""
    script = r"""
import sys, threading
from parallel import Retry, TaskTimeoutError, task

tries = []

@task(retry=Retry(wait_initial=0.05, wait_max=0.05))
def flaky():
    tries.append(1)
    if len(tries) < 3:
        raise OSError
    sys.stdout.write("retried\n")

@task(limit=1)
def limited(i):
    sys.stdout.write(f"limited {i}\n")

@task(rate="1/50ms")
def rated(i):
    sys.stdout.write(f"rated {i}\n")

@task(timeout=0.03)
def stuck():
    threading.Event().wait()

try:
    stuck().result()
except TaskTimeoutError:
    print("stuck")
flaky()
for i in range(3):
    limited(i)
    rated(i)
"""
    out = run_script(script).stdout.splitlines()
    expected = ["stuck", "retried", *(f"{kind} {i}" for kind in ["limited", "rated"] for i in range(3))]
    assert sorted(out) == sorted(expected)


def test_ctrl_c_with_calls_in_every_state(run_script: Runner) -> None:
    """After a Ctrl-C that nobody handles, what runs is asked to stop, the rest cancelled, and the program ends."""
    script = """
import threading
from parallel import Retry, sleep, task

@task(retry=Retry(wait_initial=100, wait_max=100, timeout=None))
def flaky():
    raise OSError

@task(limit=1)
def limited():
    sleep(100)

@task(rate="1/h")
def rated():
    pass

@task(timeout=0.03)
def stuck():
    threading.Event().wait()

futures = [flaky(), limited(), limited(), rated(), rated(), stuck()]
futures[-1].exception()
print("ready", flush=True)
threading.Event().wait()
"""
    error = run_script(script, interrupt_at="ready", status=None).stderr
    assert "Fatal" not in error  # as after the abortion of a program that hangs
    assert error.rstrip().endswith("KeyboardInterrupt")


def test_fork_with_calls_in_every_state(in_fork: Callable[..., Any], go: threading.Event) -> None:
    """In a forked child the calls of the parent end with an error, and new ones find limits, timers and gates free."""
    limited = task(pool="one", limit=1)(lambda event=None: event and event.wait(LONG))
    timed = task(pool="two", timeout=LONG, deadline=LONG, retry=Retry())(jobs.double)
    running, parked = limited(go), limited()
    assert timed(1).result(LONG) == 2

    def child() -> list[Any]:
        return [type(parked.exception(LONG)).__name__, limited().result(LONG), timed(2).result(LONG)]

    assert in_fork(child) == ["ForkedError", None, 4]
    go.set()
    assert running.result(LONG)
    assert parked.result(LONG) is None


# -- memory -----------------------------------------------------------------------------------------------------------


def test_arguments_are_freed_after_a_timeout(go: threading.Event) -> None:
    """When a timeout has passed and the straggler has ended, nothing refers to the arguments any more."""
    gone = threading.Event()

    class Value:
        pass

    def body(value: Value) -> None:
        go.wait(LONG)

    with without_gc():
        value = Value()
        weakref.finalize(value, gone.set)
        future = task(pool="one", timeout=SHORT, retry=Retry(), deadline=LONG)(body)(value)
        del value
        assert isinstance(future.exception(LONG), TaskTimeoutError)
        assert not gone.is_set()
        go.set()
        assert gone.wait(LONG)


@HERE
def test_arguments_are_freed_at_the_end(pool: str) -> None:
    """A call that has ended, after whatever attempts, keeps nothing of its arguments, nor does its future itself."""
    gone = threading.Event()

    class Value:
        pass

    calls: list[int] = []

    def body(value: Value) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise OSError
        return 1

    with without_gc():
        value = Value()
        weakref.finalize(value, gone.set)
        fn = declared(body, pool, timeout=LONG, deadline=LONG, retry=Retry(**AT_ONCE), limit=1, rate="1000/s")
        future = fn(value)
        assert future.result(LONG) == 1
        del value
        assert gone.wait(LONG)
        ended = threading.Event()
        weakref.finalize(future, ended.set)
        del future
        assert ended.wait(LONG)


def test_memory_stays_flat() -> None:
    """Many calls with timeouts and deadlines leave nothing behind."""
    import tracemalloc

    fn = task(pool="two", timeout=LONG, deadline=LONG)(jobs.nothing)

    def rounds(count: int) -> None:
        for _ in range(count):
            for future in [fn() for _ in range(500)]:
                future.result(LONG)

    rounds(4)
    tracemalloc.start()
    try:
        rounds(2)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        rounds(20)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 300_000


def test_result_given_to_a_task() -> None:
    """Futures among the arguments are waited for, and those marked as unresolved are passed."""
    fn = task(pool="one", timeout=LONG)(jobs.same)
    passed = completed(5)
    args, kwargs = fn(completed(1), [completed(2), 3], x=unresolved(passed)).result(LONG)
    assert args == (1, [2, 3])
    assert kwargs["x"] is passed
    error = ValueError("no")
    assert fn(failed(error)).exception(LONG) is error
