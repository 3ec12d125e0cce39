"""
What a test-suite gets: inline mode, and registries that tell what they leave behind.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from pools import process_jobs
from pools.process_jobs import wait_until

from parallel import (
    Future,
    InlinePool,
    Retry,
    SerializationError,
    TaskGroup,
    TaskTimeoutError,
    configure,
    gather,
    parallel_map,
    task,
    using,
)
from parallel.context import current_registry
from parallel.errors import LeakError
from parallel.testing import fresh, inline

pytestmark = pytest.mark.usefixtures("nowhere")

PATIENCE = 30.0  # seconds; only a deadlock takes so long
SOON = 0.2  # seconds that are enough for a leak to be one
POOLS = ["threads", "processes", "loop"]
SEEN: list[str] = []


def note(text: object) -> object:
    """Note that this runs, and where."""
    here = threading.current_thread()
    SEEN.append(f"{text}" if here is threading.main_thread() else f"{text} on {here.name}")
    return text


async def note_later(text: object) -> object:
    """Do the same in a coroutine."""
    await asyncio.sleep(0)
    return note(text)


@pytest.fixture(autouse=True)
def seen() -> list[str]:
    """What was noted, nothing at first."""
    SEEN.clear()
    return SEEN


# -- inline -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_calls_run_where_they_are_made(pool: str, seen: list[str]) -> None:
    """In the block every pool runs its calls on the caller, in the program's order, and starts no thread."""
    with inline() as registry:
        before = threading.active_count()
        assert isinstance(registry.pool(pool), InlinePool)
        note("first")
        assert task(note_later if pool == "loop" else note, pool=pool)("call").done()
        note("last")
        assert threading.active_count() == before

    assert seen == ["first", "call", "last"]


def test_afterwards_all_is_as_before() -> None:
    """After the block, calls go to the pools again."""
    name = task(jobs.thread_name)
    with inline():
        assert name().result() == "MainThread"
    assert name().result(PATIENCE) != "MainThread"


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("delay", [0, 0.003])
def test_maps_and_streams_in_order(pool: str, delay: float, seen: list[str]) -> None:
    """Items are read and run one after the other, on the caller, however long the one or the other takes."""
    one = task(note_later if pool == "loop" else note, pool=pool)

    def source() -> Iterator[int]:
        for number in range(20):
            time.sleep(delay)  # slow sources, and calls, are sent in other ways
            note(f"read {number}")
            yield number

    with inline():
        assert list(one.map(source())) == list(range(20))
        assert seen == [text for number in range(20) for text in (f"read {number}", f"{number}")]
        seen.clear()
        for value in one.stream(source()):
            note(f"got {value}")
        assert seen == [text for number in range(20) for text in (f"read {number}", f"{number}", f"got {number}")]


def test_items_that_take_unequal_times(seen: list[str]) -> None:
    """Items that take long after short ones keep the order too."""

    @parallel_map
    def one(number: int) -> None:
        time.sleep(0.03 if number > 200 else 0)
        note(number)

    with inline():
        one(range(210)).result()

    assert seen == [f"{number}" for number in range(210)]


def test_a_map_stops_at_its_first_failure(seen: list[str]) -> None:
    """What comes after an item that fails is not begun, as in a plain loop; a stream goes no further than its loop."""

    def one(number: int) -> int:
        note(number)
        return 1 // (5 - number)

    with inline():
        with pytest.raises(ZeroDivisionError):
            task(one).map(range(10)).result()
        assert seen == ["0", "1", "2", "3", "4", "5"]
        seen.clear()
        for value in task(one).stream(range(10)):
            if value:
                break
        assert [*seen] == ["0", "1", "2", "3", "4"]


def test_chains_and_groups_in_order(seen: list[str]) -> None:
    """Chains, of futures and of tasks, combinations and groups run in the order of the program."""
    first, second = task(note, pool="threads"), task(note, pool="processes")
    with inline():
        first("a").then(second).finally_(lambda: note("b"))
        first.then(second).map(["c", "d"]).result()
        gather(first("e"), second(first("f"))).result()
        with TaskGroup():
            first("g")
            second("h")

    assert seen == ["a", "a", "b", "c", "c", "d", "d", "e", "f", "f", "g", "h"]


def test_coroutines(seen: list[str]) -> None:
    """Coroutines run to their end where they are called, in coroutines too; their loops have a thread of their own."""

    @task
    async def outer() -> list[object]:
        return [await task(note_later)("inner"), note("after")]

    async def main() -> list[object]:
        async with TaskGroup():
            return await outer()

    with inline():
        assert outer().result() == ["inner", "after"]
        assert seen == ["inner on parallel-inline-loop", "after"]
        assert asyncio.run(main()) == ["inner", "after"]


def test_the_rules_of_tasks_hold() -> None:
    """Retries with their waits, timeouts and limits are those of the tasks, and of the file."""
    tries: list[float] = []

    @task(retry=Retry(on=OSError, attempts=3, wait_initial=0.02, wait_jitter=0))
    def fail() -> None:
        tries.append(time.monotonic())
        raise OSError

    @task(limit=1, timeout=0.01)
    def overrun() -> None:
        time.sleep(0.02)

    rules = {"tasks": {f"{__name__}:*": {"retry": {"on": ["OSError"], "attempts": 2, "wait_initial": 0}}}}
    with inline():
        assert isinstance(fail().exception(), OSError)
        assert len(tries) == 3
        assert tries[1] - tries[0] >= 0.02
        assert isinstance(overrun().exception(), TaskTimeoutError)
    with inline(rules):
        assert isinstance(fail().exception(), OSError)
    assert len(tries) == 5


def test_sources(nowhere: Path) -> None:
    """The configuration is a mapping, a file's path, or what is found; each of its pools is there, no other."""
    (nowhere / "parallel.toml").write_text('[pools.io]\nkind = "thread"')
    (nowhere / "other.toml").write_text('[pools.gpu]\nkind = "process"')
    built_in = {"threads", "processes", "loop"}

    for source, name in [(None, "io"), (nowhere / "other.toml", "gpu"), ({"pools": {"x": {"kind": "loop"}}}, "x")]:
        with inline(source) as registry:
            assert {*registry.config.pools} == built_in | {name}
            assert {pool.kind for pool in registry.config.pools.values()} == {"inline"}


def test_other_threads_too() -> None:
    """A thread that the program starts is in the block as well; one that is in another block is not."""
    names: list[str] = []

    def work() -> None:
        names.append(task(jobs.thread_name)().result(PATIENCE))
        with using({"pools": {"threads": {"kind": "thread", "thread_name_prefix": "own"}}}):
            names.append(task(jobs.thread_name)().result(PATIENCE))

    with inline():
        thread = threading.Thread(target=work, name="mine")
        thread.start()
        thread.join()

    assert names == ["mine", "own_0"]


def test_a_program_that_configures_itself() -> None:
    """`configure()` in the block changes what holds after it, and nothing in it."""
    with inline():
        configure({"pools": {"threads": {"kind": "thread", "thread_name_prefix": "own"}}})
        assert task(jobs.thread_name)().result() == "MainThread"
    assert task(jobs.thread_name)().result(PATIENCE) == "own_0"


def test_blocks_in_blocks() -> None:
    """The innermost block counts."""
    with inline() as outer:
        with inline() as inner:
            assert current_registry() is inner
        assert current_registry() is outer


@pytest.mark.parametrize(("pool", "fails"), [("threads", False), ("processes", True), ("loop", False)])
def test_check_pickle(pool: str, fails: bool) -> None:
    """With *check_pickle*, what would travel is checked, and nothing else."""
    fn = jobs.to_async(jobs.same) if pool == "loop" else jobs.same
    with inline(check_pickle=True):
        error = task(fn, pool=pool)(threading.Lock()).exception()
    assert isinstance(error, SerializationError) == fails


def test_check_pickle_of_the_file() -> None:
    """An inline pool that checks goes on checking."""
    with inline({"pools": {"x": {"kind": "inline", "check_pickle": True}}}):
        assert isinstance(task(jobs.same, pool="x")(threading.Lock()).exception(), SerializationError)


# -- fresh ------------------------------------------------------------------------------------------------------------


def leaks(body: Callable[[], object], source: dict[str, object] | None = None, patience: float = SOON) -> list[str]:
    """Return what *body* leaves behind."""
    try:
        with fresh(source, patience=patience):
            body()
    except LeakError as error:
        return list(error.left)
    return []


def test_nothing_is_left() -> None:
    """Pools of all kinds, and calls that are still queued at the end, are no leak: they are run, and shut down."""
    done: list[int] = []

    def body() -> None:
        for pool in ("threads", "processes"):
            task(jobs.double, pool=pool)(2).then(done.append)
        task(jobs.async_double)(2).then(done.append)

    assert leaks(body, patience=PATIENCE) == []
    assert done == [4, 4, 4]


def test_a_registry_of_its_own(nowhere: Path) -> None:
    """It is the current one, for other threads too, with the configuration that is found."""
    (nowhere / "parallel.toml").write_text('[pools.io]\nkind = "thread"')
    with fresh() as registry:
        assert current_registry() is registry
        assert "io" in registry.config.pools
        with jobs.Held() as held:  # a pool of somebody else
            assert held.pool.submit(jobs.nothing).done() is False
    assert registry.is_shut


def test_a_call_that_still_runs() -> None:
    """A call that doesn't end is named, with its thread and the place where it was called; nobody waits for it."""
    go = threading.Event()
    stuck = task(go.wait, pool="threads")
    try:
        left = leaks(lambda: (stuck(), stuck.options(pool="one")()), {"pools": {"one": {"kind": "thread"}}})
    finally:
        go.set()

    assert len(left) == 4
    assert left[0].startswith("threading:Event.wait still runs in thread pool 'threads' (called at ")
    assert f"{Path(__file__).name}:" in left[0]
    assert left[1] == "thread 'parallel-threads_0' of thread pool 'threads' is still there"


def test_a_call_that_has_overrun() -> None:
    """A call that goes on after its timeout is named, if it does for long."""
    go = threading.Event()

    def body() -> None:
        with pytest.raises(TaskTimeoutError):
            task(go.wait, timeout=0.01)().result()

    try:
        assert "threading:Event.wait still runs in thread pool 'threads'" in leaks(body)[0]
    finally:
        go.set()
    brief = task(time.sleep, timeout=0.01)
    assert leaks(lambda: brief(0.1).exception(), patience=PATIENCE) == []


def test_calls_that_wait() -> None:
    """Calls behind one that doesn't end are counted, and cancelled."""
    go = threading.Event()
    futures: list[Future[bool]] = []
    wait = task(go.wait)
    try:
        pools = {"pools": {"threads": {"kind": "thread", "max_workers": 1}}}
        left = leaks(lambda: futures.extend(wait() for _ in range(3)), pools)
    finally:
        go.set()
    assert left[1] == "2 calls wait in thread pool 'threads'"
    assert [future.cancelled() for future in futures[1:]] == [True, True]


def test_a_worker_process() -> None:
    """A worker process that runs a call is named, and ended."""
    pids: list[int] = []
    pools = {"pools": {"processes": {"kind": "process", "max_workers": 1}}}
    with jobs.Gate() as gate:

        def body() -> None:
            pids.append(task(jobs.pid, pool="processes")().result(PATIENCE))
            task(jobs.wait_at, pool="processes")(gate.address)
            gate.arrived()

        left = leaks(body, pools)

    assert left[0].startswith("jobs:wait_at still runs in process pool 'processes' (called at ")
    assert f"worker process {pids[0]} of process pool 'processes' is still there" in left
    assert process_jobs.is_gone(pids[0])


def test_a_coroutine() -> None:
    """A coroutine that doesn't end is named, and cancelled."""
    ends: list[str] = []

    @task
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    left = leaks(forever)
    assert "forever still runs in loop pool 'loop'" in left[0]
    wait_until(lambda: ends == ["cancelled"])


def test_a_call_between_two_attempts() -> None:
    """A call that waits for its next attempt is counted."""
    retry = Retry(on=ZeroDivisionError, attempts=2, wait_initial=5, wait_jitter=0)
    left = leaks(lambda: task(jobs.divide, retry=retry)(1, 0))
    assert left == ["1 call waits in no pool: for a place, or for their next attempt"]


@pytest.mark.parametrize("pool", ["threads", "processes"])
@pytest.mark.parametrize("held", [True, False])
def test_a_failure_that_nobody_looked_at(pool: str, held: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A call that has failed, and at whose error nobody has looked, is named; it isn't reported again."""
    futures: list[Future[float]] = []

    def body() -> None:
        future = task(jobs.divide, pool=pool)(1, 0)
        if held:
            futures.append(future)
        with pytest.raises(ZeroDivisionError):
            task(jobs.divide, pool=pool)(1, 0).result(PATIENCE)

    left = leaks(body, patience=PATIENCE)

    assert len(left) == 1
    assert left[0].startswith("jobs:divide has failed, and nobody has looked at the error (called at ")
    assert left[0].endswith("ZeroDivisionError: division by zero")
    # Garbage of other tests may be collected, and reported, at any time.
    assert [text for text in caplog.messages if __file__ in text] == []


def test_failures_that_are_ignored() -> None:
    """With `unobserved = "ignore"` they are no leak."""
    assert leaks(lambda: task(jobs.divide)(1, 0), {"unobserved": "ignore"}) == []


def test_failures_of_before() -> None:
    """What had failed before the block began is no leak of it."""
    earlier = task(jobs.divide)(1, 0)
    wait_until(earlier.done)
    assert leaks(task(jobs.nothing)) == []
    assert isinstance(earlier.exception(), ZeroDivisionError)


def test_an_error_of_the_block_comes_first() -> None:
    """What the block raises comes out, with what is left behind in a note."""
    with pytest.raises(LookupError) as caught, fresh():
        task(jobs.divide)(1, 0)
        raise LookupError
    assert "jobs:divide has failed" in caught.value.__notes__[0]


def test_a_leak_does_not_hang_the_exit(run_script: Callable[..., Any]) -> None:
    """A program whose block has left a call behind that never ends, ends all the same."""
    run_script(
        "import threading\nfrom parallel import task\nfrom parallel.errors import LeakError\n"
        "from parallel.testing import fresh\n"
        "try:\n    with fresh({}, patience=0.1):\n        task(threading.Event().wait)()\n"
        "except LeakError as error:\n    assert len(error.left) == 2\n"
    )
