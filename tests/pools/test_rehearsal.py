"""
Inline pools that check pickles: what comes out of them is what comes out of a pool of processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jobs
import pytest
import seed_jobs
from pools import process_jobs
from pools.process_jobs import PATIENCE

from parallel import InlinePool, ProcessPool, Registry, Retry, SerializationError, task, using
from parallel.errors import RemoteTraceback


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    """An inline pool that checks pickles."""
    with InlinePool(check_pickle=True) as pool:
        yield pool


def told(error: BaseException | None) -> tuple[object, ...]:
    """Return what can be told of an error: its type, text, notes and traceback, and that of its cause."""
    if error is None:
        return ()
    cause = error.__cause__
    text = cause.text if isinstance(cause, RemoteTraceback) else told(cause)
    return type(error), str(error), getattr(error, "__notes__", []), vars(error), repr(error.__context__), text


class Plain:
    """Has a method."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def count(self) -> int:
        """Count."""
        return len(self.parts)


def local_class() -> object:
    """Return an object of a class that can't be imported."""

    class Local:
        """Made in a function."""

    return Local()


FAILING: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "argument that can't be pickled": (jobs.double, (threading.Lock(),)),
    "argument that raises": (jobs.double, (process_jobs.RaisesInReduce(ValueError),)),
    "argument that exits": (jobs.double, (process_jobs.RaisesInReduce(SystemExit),)),
    "argument that interrupts": (jobs.double, (process_jobs.RaisesInReduce(KeyboardInterrupt),)),
    "argument that can't be loaded": (jobs.double, (process_jobs.Explosive(ValueError("bad luck")),)),
    "argument that interrupts its loading": (jobs.double, (process_jobs.Explosive(KeyboardInterrupt()),)),
    "method of what can't be pickled": (Plain(threading.Lock()).count, ()),
    "function that holds a lock": (partial(jobs.double, threading.Lock()), ()),
    "wrong arguments": (jobs.double, (1, 2, 3)),
    "value that can't be pickled": (jobs.make_unpicklable, ()),
    "value that can't be loaded": (process_jobs.make_explosive, (ValueError("late"),)),
    "value too large": (process_jobs.make_too_much, ()),
    "error": (jobs.divide, (1, 0)),
    "error of other arguments": (jobs.raise_other_arguments, ()),
    "error that can't be pickled": (jobs.raise_unpicklable, ()),
    "error that is frozen": (jobs.raise_frozen, ()),
    "error that is false": (jobs.raise_falsy, ()),
    "error that builds its text": (process_jobs.raise_http, (404,)),
    "error with notes and causes": (process_jobs.raise_noted, ()),
    "error without text": (process_jobs.raise_textless, ()),
    "exit": (jobs.leave, ()),
}


def test_fails_as_in_a_process(pool: InlinePool) -> None:
    """What can't travel, and what is raised, is the very error of a pool of processes: type, text, notes and cause."""
    with ProcessPool(1) as processes:
        there = {name: processes.submit(fn, *args).exception(PATIENCE) for name, (fn, args) in FAILING.items()}

    for name, (fn, args) in FAILING.items():
        assert there[name] is not None, name
        assert told(pool.submit(fn, *args).exception()) == told(there[name]), name


def test_errors_travel_alone(run_script: Callable[..., Any]) -> None:
    """They do so too where tblib has been asked to pickle all exceptions with their causes, as Dask and Parsl do."""
    said = run_script("""
from tblib import pickling_support
pickling_support.install()
import jobs
from parallel import ProcessPool

def fail():
    try:
        raise KeyError("first")
    except KeyError:
        raise ValueError("second")

if __name__ == "__main__":
    with ProcessPool(1, "fork") as pool:
        errors = [pool.submit(fail).exception(), pool.submit(jobs.raise_other_arguments).exception()]
    for error in errors:
        print(type(error).__name__, error.__context__, type(error.__cause__).__name__, "first" in str(error.__cause__))
""").stdout.splitlines()
    assert said == ["ValueError None RemoteTraceback True", "OtherArgumentsError None RemoteTraceback False"]


@pytest.mark.parametrize("value", [1, "x", b"y" * 300_000, bytearray(300_000), [1, {2: (3,)}], None, Plain, print])
def test_values_travel(value: Any, pool: InlinePool) -> None:
    """What travels comes out the same, large data too."""
    assert pool.submit(jobs.same, value, key=value).result() == ((value,), {"key": value})


def test_functions_that_travel_by_value(pool: InlinePool) -> None:
    """Lambdas, closures and classes of functions travel, as they are at the time of the call."""
    made = pool.submit(lambda: lambda x: x + 1).result()

    assert made(1) == 2
    assert type(pool.submit(jobs.same, local_class()).result()[0][0]).__name__ == "Local"


def test_a_function_gets_copies(pool: InlinePool) -> None:
    """What a function does to its arguments, or its closure, is not seen outside, and its value is a copy."""
    mine: list[int] = []
    inner: list[int] = []

    def append(to: list[int]) -> list[int]:
        inner.append(1)
        to.append(1)
        return to

    assert pool.submit(append, mine).result() == [1]
    assert (mine, inner) == ([], [])


def test_arrays_travel(pool: InlinePool) -> None:
    """Large arrays come as writable copies."""
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(100_000)

    def fill(given: Any) -> Any:
        given += 1
        return given

    assert pool.submit(fill, array).result().sum() == 100_000
    assert array.sum() == 0


def test_coroutines(pool: InlinePool) -> None:
    """A coroutine function is run to its end, and its value travels."""

    async def make() -> threading.Lock:
        return threading.Lock()

    assert pool.submit(jobs.async_double, [1]).result() == [1, 1]  # type: ignore[comparison-overlap]
    with pytest.raises(SerializationError, match=r"the value of .*make"):
        pool.submit(make).result()


def test_each_attempt_gets_a_copy() -> None:
    """A call that is tried again is loaded anew, and was packed once, as in a process."""

    @task(pool="i", retry=Retry(on=ZeroDivisionError, attempts=3, **jobs.AT_ONCE))
    def grow(given: list[int]) -> list[int]:
        given.append(1)
        raise ZeroDivisionError(len(given))

    with using({"pools": {"i": {"kind": "inline", "check_pickle": True}}}):
        error = grow([]).exception()

    assert isinstance(error, ZeroDivisionError)
    assert error.args == (1,)
    assert "3 attempts" in error.__notes__[0]


@pytest.fixture
def both() -> Iterator[Registry]:
    """A registry with both kinds."""
    pools = {"inline": {"kind": "inline", "check_pickle": True}, "process": {"kind": "process", "max_workers": 1}}
    with using({"pools": pools}) as registry:
        yield registry


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("fn", "items"),
    [
        (jobs.double, [1, threading.Lock(), 3]),
        (lambda x: jobs.Unpicklable() if x == 2 else x, [1, 2, 3]),
        (partial(jobs.divide, 1), [1, 0, 2]),
        (jobs.raises, [ValueError("a"), jobs.UnpicklableError("b"), SystemExit(3)]),
    ],
)
def test_maps(fn: Callable[..., Any], items: list[Any]) -> None:
    """The items of a map fail one by one, as in a pool of processes."""
    ends = [
        [(end.error and told(end.error), end.value) for end in task(fn, pool=pool).map(items, errors="collect")]
        for pool in ("inline", "process")
    ]

    assert ends[0] == ends[1]
    assert any(error for error, _ in ends[0])


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("pool", ["inline", "process"])
def test_constants_of_maps(pool: str) -> None:
    """Constants travel once: the calls of a map share a copy of them; one that can't travel is the map's error."""

    @task(pool=pool)
    def count(_: int, seen: list[int]) -> int:
        seen.append(1)
        return len(seen)

    seen: list[int] = []
    assert list(count.map(range(3), constants={"seen": seen})) == [1, 2, 3]
    assert seen == []
    with pytest.raises(TypeError, match="pickle"):
        count.map(range(3), constants={"seen": threading.Lock()})  # type: ignore[call-overload]


@pytest.mark.usefixtures("both")
def test_seeded_maps_streams_and_chains() -> None:
    """Maps with seeds, streams and chains work through checked pools, and draw what they draw elsewhere."""
    drawn = [
        task(lambda _: seed_jobs.draw(), pool=pool).map(range(5), seed=7).result() for pool in ("inline", "process")
    ]
    double = task(jobs.double, pool="inline")

    assert drawn[0] == drawn[1]
    assert list(double.stream(range(3))) == [0, 2, 4]
    assert double.then(double)([1]).result() == [1, 1, 1, 1]


def test_only_a_bool() -> None:
    """Anything but a bool is refused."""
    with pytest.raises(TypeError, match="check_pickle must be a bool, found 'yes'"):
        InlinePool(check_pickle="yes")  # type: ignore[arg-type]


def test_heavy_rooms_come_late(run_script: Callable[..., Any]) -> None:
    """A pool that checks nothing loads nothing of the kind that does."""
    run_script(
        "import sys; from parallel import InlinePool; assert InlinePool().submit(abs, -1).result() == 1\n"
        "assert not [name for name in sys.modules if name.startswith(('parallel.pools.process', 'multiprocessing'))]"
    )
