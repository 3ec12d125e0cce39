"""
`@parallel_map`, `Task.map` and the future of many values.
"""

from __future__ import annotations

import inspect
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel import (
    InlinePool,
    MapFuture,
    ParallelMap,
    UnsuitableFunctionError,
    as_completed,
    completed,
    gather,
    parallel_map,
    task,
    using,
    wait,
)

LONG = 30  # seconds; only a deadlock takes so long
ONE = {"pools": {"threads": {"kind": "thread", "max_workers": 1}}}
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@parallel_map(pool="threads")
def shown(x: int, mark: str = "!") -> str:
    """Return *x* with a mark."""
    return f"{x}{mark}"


@parallel_map(pool="threads")
def divided(a: int, b: int) -> float:
    """Divide."""
    return a / b


@parallel_map
async def fetched(x: int) -> int:
    """Return twice *x*."""
    return await jobs.async_double(x)


class Shop:
    """A class with maps of all kinds."""

    def __init__(self, rate: int) -> None:
        self.rate = rate

    @parallel_map(pool="threads")
    def price(self, x: int) -> int:
        """Return the price."""
        return x * self.rate

    @parallel_map(pool="threads")
    @staticmethod
    def double(x: int) -> int:
        """Return twice *x*."""
        return x * 2

    @parallel_map(pool="threads")
    @classmethod
    def named(cls, x: int) -> str:
        """Return the class's name and *x*."""
        return f"{cls.__name__} {x}"


def test_values_in_input_order() -> None:
    """Calling gives a future of the list of all values, in input order; iterating gives them one by one."""
    values = shown(range(100))
    assert isinstance(values, MapFuture)
    assert values.result(timeout=LONG) == [f"{x}!" for x in range(100)]
    assert list(values) == values.result()
    assert list(values) == values.result()  # again
    assert len(values) == 100


def test_several_iterables() -> None:
    """Of several iterables the function gets one item each; the shortest ends it."""
    assert shown([1, 2, 3], "ab").result(timeout=LONG) == ["1a", "2b"]
    assert divided([4, 9], iter([2, 3])).result(timeout=LONG) == [2.0, 3.0]


def test_of_nothing() -> None:
    """Of no items the value is an empty list, at once; the future is still a future."""
    values = shown([])
    assert values.result(timeout=LONG) == []
    assert list(values) == []
    assert values.then(len).result(timeout=LONG) == 0
    assert gather(values).result(timeout=LONG) == ([],)
    assert bool(values)


def test_any_iterable() -> None:
    """Generators, sets and dicts are read once."""
    assert shown(x for x in (1, 2)).result(timeout=LONG) == ["1!", "2!"]
    assert sorted(shown({3, 4}).result(timeout=LONG)) == ["3!", "4!"]
    assert shown({5: "five"}).result(timeout=LONG) == ["5!"]


def test_what_is_not_iterable() -> None:
    """What can't be iterated over is a TypeError of the call."""
    with pytest.raises(TypeError):
        shown(5)  # type: ignore[call-overload]


def test_iterable_that_raises() -> None:
    """What the iterable raises fails the whole; it is not read any further, and the calls that wait are cancelled."""

    def items() -> Iterator[int]:
        yield 0
        raise OSError("disk")

    with using(ONE), jobs.Gate() as gate:
        held = task(jobs.wait_at)(gate.address)
        gate.arrived()
        ran: list[int] = []
        with pytest.raises(OSError, match="disk"):
            task(ran.append).map(items()).result(timeout=LONG)
        gate.open()
        held.result(timeout=LONG)
        assert shown.submit(1).result(timeout=LONG) == "1!"
        assert ran == []


def test_first_failure_is_the_result() -> None:
    """The first item that fails fails the whole; iterating raises at its place."""
    values = divided([4, 1, 3], [2, 0, 1])
    with pytest.raises(ZeroDivisionError):
        values.result(timeout=LONG)
    found = []
    with pytest.raises(ZeroDivisionError):
        for value in values:
            found.append(value)
    assert found == [2.0]


def test_failure_cancels_what_is_queued() -> None:
    """A failure cancels the items that have not been started; iterating tells why."""
    ran: list[int] = []

    def one(x: int) -> int:
        if x == 1:
            raise ValueError("one is bad")
        ran.append(x)
        return x

    with using(ONE), jobs.Gate() as gate:
        held = task(jobs.wait_at)(gate.address)
        gate.arrived()
        values = task(one).map(range(500))
        gate.open()
        with pytest.raises(ValueError, match="one is bad"):
            values.result(timeout=LONG)
        held.result(timeout=LONG)
        with pytest.raises(ValueError, match="one is bad"):
            list(values)
    assert len(ran) < 500


def test_falsy_failure() -> None:
    """A falsy exception fails the whole as any other."""
    with pytest.raises(jobs.FalsyError):
        task(lambda _: jobs.raise_falsy()).map([1]).result(timeout=LONG)


def test_cancel() -> None:
    """Cancelling the whole cancels the items that have not been started."""
    with using(ONE), jobs.Gate() as gate:
        held = task(jobs.wait_at)(gate.address)
        gate.arrived()
        values = shown(range(100))
        after = values.then(len)
        assert values.cancel()
        assert after.cancelled()
        with pytest.raises(CancelledError):
            next(iter(values))
        gate.open()
        held.result(timeout=LONG)


def test_leaving_a_loop_early() -> None:
    """Leaving a loop over it early cancels nothing."""
    values = shown(range(50))
    for value in values:
        assert value == "0!"
        break
    assert len(values.result(timeout=LONG)) == 50


def test_items_come_as_they_end() -> None:
    """Iterating yields a value though later ones are not there yet."""
    with jobs.Gate() as gate:
        values = task(lambda x: x if x == 0 else jobs.wait_at(gate.address, x)).map([0, 1])
        coming = iter(values)
        assert next(coming) == 0
        gate.arrived()
        assert not values.done()
        gate.open()
        assert next(coming) == 1


def test_chains_and_combines() -> None:
    """A map's future chains, combines and is waited for as any future; it can be an argument of a task."""
    values = shown(range(3))
    assert values.then(len).then(jobs.double).result(timeout=LONG) == 6
    assert gather(values, completed(1)).result(timeout=LONG) == (["0!", "1!", "2!"], 1)
    assert wait([values], timeout=LONG).done == {values}
    assert list(as_completed([values], timeout=LONG)) == [values]
    assert task(len)(shown(range(4))).result(timeout=LONG) == 4
    assert divided([1], [0]).catch(ZeroDivisionError, lambda _: []).result(timeout=LONG) == []


def test_local() -> None:
    """local() runs over the items here and now, and stops at the first error."""
    assert shown.local([1, 2]) == ["1!", "2!"]
    assert shown.local([1, 2], "ab") == ["1a", "2b"]
    assert parallel_map(lambda _: threading.current_thread()).local([1]) == [threading.current_thread()]
    with pytest.raises(ZeroDivisionError):
        divided.local([1], [0])


def test_submit_one() -> None:
    """submit() calls with one item, keywords included; futures among them are waited for."""
    assert shown.submit(1, mark="?").result(timeout=LONG) == "1?"
    assert shown.submit(completed(2)).result(timeout=LONG) == "2!"  # type: ignore[arg-type]
    words = {"timeout": 1, "priority": 2, "key": 3, "pool": 4, "fn": 5, "self": 6}
    assert parallel_map(pool="threads")(jobs.takes_words).submit(**words).result(timeout=LONG) == words


def test_keeps_name_docstring_and_signature() -> None:
    """A map has the function's name, docstring and signature of one item."""
    assert isinstance(shown, ParallelMap)
    assert shown.__name__ == "shown"
    assert shown.__doc__ == "Return *x* with a mark."
    assert list(inspect.signature(shown).parameters) == ["x", "mark"]
    assert "shown" in repr(shown)
    assert shown.name.endswith(":shown")


def test_default_pools() -> None:
    """Without a pool a map goes to processes, and an async def to the loop."""
    with using({"pools": {"processes": {"kind": "thread", "thread_name_prefix": "processes"}}}):
        names = parallel_map(lambda _: jobs.thread_name())([1, 2]).result(timeout=LONG)
        assert all(name.startswith("processes") for name in names)
        assert fetched([1, 2]).result(timeout=LONG) == [2, 4]


def test_options_and_routes() -> None:
    """options() and the configuration route a map as they do a task."""
    pools = {name: {"kind": "thread", "thread_name_prefix": name} for name in ("red", "blue")}
    where = parallel_map(pool="threads")(jobs.to_async(jobs.thread_name))
    with using({"pools": pools, "tasks": {"jobs:thread_name": {"pool": "red"}}}):
        named = parallel_map(pool="threads")(lambda _: jobs.thread_name())
        assert named.options(pool="blue")([1]).result(timeout=LONG)[0].startswith("blue")
        assert where.submit().result(timeout=LONG).startswith("red")


def test_methods_bind() -> None:
    """Methods, static methods and class methods bind as ever."""
    shop = Shop(3)
    assert shop.price([1, 2]).result(timeout=LONG) == [3, 6]
    assert shop.price.local([1]) == [3]
    assert shop.price.submit(2).result(timeout=LONG) == 6
    assert shop.double([1]).result(timeout=LONG) == Shop.double([1]).result(timeout=LONG) == [2]
    assert shop.named([1]).result(timeout=LONG) == Shop.named([1]).result(timeout=LONG) == ["Shop 1"]
    assert shop.price.options(pool="threads")([2]).result(timeout=LONG) == [6]


def test_bare_and_called_decorator() -> None:
    """@parallel_map, @parallel_map() and @parallel_map(pool=...) all declare; nonsense is refused."""
    inline = {"kind": "inline"}
    with using({"pools": {"processes": inline, "threads": inline}}):
        for decorate in (parallel_map, parallel_map(), parallel_map(pool="threads")):
            assert decorate(jobs.double)([1]).result(timeout=LONG) == [2]
    with pytest.raises(TypeError):
        parallel_map(chunks=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        parallel_map(5)  # type: ignore[call-overload]

    def values() -> Iterator[int]:
        yield 1

    with pytest.raises(UnsuitableFunctionError):
        parallel_map(values)


def test_pickles_by_reference() -> None:
    """A map pickles as its name; with options, or bound, it comes back with them."""
    assert pickle.loads(pickle.dumps(jobs.squares)) is jobs.squares
    again = pickle.loads(pickle.dumps(jobs.thread_squares.options(pool="processes")))
    assert again.local([3]) == [9]
    assert again.name == jobs.thread_squares.name


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_maps_in_processes(method: str) -> None:
    """A map runs in other processes, under every start method, and its errors come back."""
    with using({"pools": {"processes": {"kind": "process", "max_workers": 2, "mp_context": method}}}):
        assert jobs.squares(range(50)).result(timeout=LONG) == [x * x for x in range(50)]
        assert list(jobs.squares([1, 2])) == [1, 4]
        assert jobs.squares.submit(3).then(jobs.squares.submit).result(timeout=LONG) == 81
        with pytest.raises(TypeError):
            jobs.squares([1, "x"]).result(timeout=LONG)  # type: ignore[list-item]


def test_map_handed_to_a_pool() -> None:
    """pool.submit(map) runs the plain function of one item."""
    with InlinePool() as pool:
        plain: Any = shown
        assert pool.submit(plain, 1).result() == "1!"


def test_map_within_a_map() -> None:
    """A map whose function maps over the same pool comes to an end."""
    inner = parallel_map(pool="threads")(jobs.double)
    outer = parallel_map(pool="threads")(lambda x: sum(inner(range(x)).result()))
    with using({"pools": {"threads": {"kind": "thread", "max_workers": 2}}}):
        assert outer(range(20)).result(timeout=LONG) == [x * (x - 1) for x in range(20)]
        streamed = parallel_map(pool="threads")(lambda x: sum(inner(range(x))))
        assert streamed(range(20)).result(timeout=LONG) == [x * (x - 1) for x in range(20)]


def test_many_items() -> None:
    """10,000 items come back in order."""
    assert Shop.double(range(10_000)).result(timeout=LONG) == list(range(0, 20_000, 2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=12), st.lists(st.integers(-1, 1), max_size=12))
def test_like_the_built_in_map(left: list[int], right: list[int]) -> None:
    """Over any items a map does as the built-in one: the same values, and an error wherever that fails."""
    expected: list[float] = []
    fails = False
    for a, b in zip(left, right, strict=False):
        if b == 0:
            fails = True
            break
        expected.append(a / b)
    values = divided(left, right)
    found: list[float] = []
    try:
        for value in values:
            found.append(value)
    except ZeroDivisionError:
        assert fails
        assert found == expected[: len(found)]
        assert isinstance(values.exception(timeout=LONG), ZeroDivisionError)
    else:
        assert not fails
        assert found == expected == values.result(timeout=LONG)
