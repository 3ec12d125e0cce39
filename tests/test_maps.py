"""
Maps of all kinds of pools: what comes out, in which order, what a failure does, and how far the input is read.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import LONG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel import (
    Halt,
    JournalLockedError,
    MapHaltedError,
    Registry,
    SerializationError,
    Settled,
    Task,
    TaskTimeoutError,
    WorkerDiedError,
    gather,
    task,
    using,
)

KINDS = ["thread", "process", "inline"]

pytestmark = pytest.mark.usefixtures("kinds")


def double(x: int) -> int:
    """Return twice *x*."""
    return 2 * x


def odd_fails(x: int) -> int:
    """Fail for odd numbers."""
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def nap(seconds: float) -> float:
    """Take so long."""
    time.sleep(seconds)
    return seconds


def noted(x: int, folder: str) -> int:
    """Note that the body has run; 13 kills the worker."""
    with open(Path(folder, str(x)), "a", encoding="utf-8") as file:
        file.write(".")
    if x == 13:
        os._exit(3)
    time.sleep(0.001)
    return x


def unsendable(x: int) -> Any:
    """Return what can't travel for 3."""
    return threading.Lock() if x == 3 else x


def scaled(x: int, factor: int, *, plus: int = 0) -> int:
    """Use constants."""
    return x * factor + plus


async def later(x: int) -> int:
    """Return twice *x*, after a moment."""
    await asyncio.sleep(0.001)
    return 2 * x


by_kind = pytest.mark.parametrize("kind", KINDS)


@by_kind
@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 100, 3000])
def test_all_values(kind: str, chunksize: int | None, count: int) -> None:
    """However they are divided, the values are those of the plain map, in input order."""
    fn = task(pool=kind)(double)
    expected = [2 * x for x in range(count)]
    assert fn.map(range(count), chunksize=chunksize).result(LONG) == expected
    assert list(fn.map(iter(range(count)), chunksize=chunksize)) == expected
    assert list(fn.stream(iter(range(count)), chunksize=chunksize)) == expected
    assert sorted(fn.stream(range(count), ordered=False, chunksize=chunksize)) == expected
    assert sorted(fn.map(range(count), chunksize=chunksize).as_completed()) == list(enumerate(expected))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 40)),
    st.sampled_from(["skip", "collect"]),
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.none() | st.integers(1, 20),
)
def test_as_the_plain_map(
    kind: str, items: list[int], errors: str, chunksize: int | None, ordered: bool, buffersize: int | None
) -> None:
    """Whatever is said, what comes out is what a loop with the same rules gives."""
    fn: Any = task(pool=kind)(odd_fails)
    said = {"errors": errors, "chunksize": chunksize}
    shown = [repr(each) for each in fn.stream(iter(items), ordered=ordered, buffersize=buffersize, **said)]
    ends = [Settled(x, None) if x % 2 == 0 else Settled(None, ValueError(f"{x} is odd")) for x in items]
    expected = [repr(end) for end in ends] if errors == "collect" else [repr(end.value) for end in ends if end.ok]
    assert (shown if ordered else sorted(shown)) == (expected if ordered else sorted(expected))
    assert [repr(each) for each in fn.map(items, **said).result(LONG)] == expected


@by_kind
def test_first_error_ends_it(kind: str) -> None:
    """By default the first error is that of the whole, and says which item it is about; what was before comes out."""
    fn = task(pool=kind)(odd_fails)
    with pytest.raises(ValueError, match="is odd") as caught:
        fn.map([0, 2, 4, 5, 6]).result(LONG)
    assert caught.value.__notes__ == [f"in item 3 of {__name__}:odd_fails: 5"]
    came: list[int] = []
    with pytest.raises(ValueError, match="5 is odd"):
        came.extend(fn.stream([0, 2, 4, 5, 6]))
    assert came == [0, 2, 4]


@pytest.mark.parametrize(("fail", "least"), [(3, 3), ("10%", 10)])
@pytest.mark.parametrize("when", ["soon", "now"])
def test_halt(fail: int | str, least: int, when: Any) -> None:
    """So many failures end what goes on after each of them."""
    fn = task(pool="thread")(odd_fails)
    with pytest.raises(MapHaltedError, match=r"of \d+ items have failed") as caught:
        fn.map(range(100), errors="skip", chunksize=1, halt=Halt(when, fail)).result(LONG)
    assert least <= caught.value.failed < 50
    assert isinstance(caught.value.__cause__, ValueError)
    came = fn.stream(range(100), errors="skip", chunksize=1, halt=Halt(when, fail))
    with pytest.raises(MapHaltedError):
        list(came)
    assert len(fn.map(range(4), errors="skip", halt=Halt(when, 3)).result(LONG)) == 2


@pytest.mark.parametrize("chunksize", [None, 50])
def test_death_costs_one_item(chunksize: int | None, tmp_path: Path) -> None:
    """A worker that dies in an item costs that one; each body has run once, those of its chunk mates too."""
    fn = task(pool="process")(noted)
    constants = {"folder": str(tmp_path)}
    ends = fn.map(range(60), errors="collect", constants=constants, chunksize=chunksize).result(LONG)
    assert [end.value for end in ends if end.ok] == [x for x in range(60) if x != 13]
    assert isinstance(ends[13].error, WorkerDiedError)
    assert ends[13].error.task == f"{__name__}:noted"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(x): "." for x in range(60)}


def test_value_that_can_not_travel() -> None:
    """It costs its item."""
    ends = task(pool="process")(unsendable).map(range(10), errors="collect", chunksize=10).result(LONG)
    assert [end.value for end in ends if end.ok] == [x for x in range(10) if x != 3]
    assert isinstance(ends[3].error, SerializationError)


def test_item_that_can_not_travel() -> None:
    """It costs itself."""
    items: list[Any] = [*range(5), threading.Lock(), *range(5)]
    ends = task(pool="process")(repr).map(items, errors="collect", chunksize=11).result(LONG)
    assert [end.ok for end in ends] == [not isinstance(item, type(threading.Lock())) for item in items]
    assert isinstance(ends[5].error, SerializationError)


def test_long_items_hold_up_nobody() -> None:
    """What waits in a chunk behind a long item is given to others."""
    fn = task(pool="process")(nap)
    fn.map([0] * 2000).result(LONG)
    began = time.monotonic()
    assert fn.map([0.5, *[0.001] * 30], chunksize=31).result(LONG)[0] == 0.5
    assert time.monotonic() - began < 30  # it ends; how fast is for the benchmarks
    came = fn.map([0.5, *[0.001] * 30], chunksize=31).as_completed()
    assert next(came)[0] == 0  # a chunk is looked at when its first item has ended


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_coroutines(kind: str) -> None:
    """An `async` function is called for each item by itself, many at a time on a loop."""
    fn = task(pool=kind)(later)
    assert fn.map(range(200)).result(LONG) == [2 * x for x in range(200)]
    assert list(fn.stream(range(200))) == [2 * x for x in range(200)]


@by_kind
def test_constants_and_rows(kind: str) -> None:
    """Constants go to each item by name; rows are arguments; several iterables are one argument each."""
    fn = task(pool=kind)(scaled)
    assert fn.map(range(5), constants={"factor": 3}).result(LONG) == [0, 3, 6, 9, 12]
    assert fn.map([(1, 2), (3, 4)], unpack=True).result(LONG) == [2, 12]
    assert fn.map([1, 2], [3, 4], constants={"plus": 1}).result(LONG) == [4, 9]
    assert list(fn.stream([1, 2], itertools.count(3), constants={"plus": 1})) == [4, 9]
    with pytest.raises(ValueError, match="zip"):
        fn.map([1, 2], [3], strict=True).result(LONG)


@by_kind
def test_terms_of_each_item(kind: str, kinds: Registry) -> None:
    """A timeout is each item's own, and so is a retry."""
    if kind == "inline":
        pytest.skip("nobody can stop the caller")
    long, timeout = (60, 3) if kind == "process" else (1, 0.2)
    fn = task(pool=kind, timeout=timeout)(nap)
    ends = fn.map([0, long, 0], errors="collect").result(LONG)
    assert [type(end.error) for end in ends] == [type(None), TaskTimeoutError, type(None)]


def counting(read: list[int], count: int | None = None) -> Iterator[int]:
    """Count, and note how far."""
    for number in itertools.count() if count is None else range(count):
        read.append(number)
        yield number


@by_kind
def test_stream_reads_as_far_as_its_window(kind: str) -> None:
    """An endless input is read a little ahead, and no more once nobody asks."""
    read: list[int] = []
    stream = task(pool=kind)(double).stream(counting(read), buffersize=10)
    assert read == []
    assert list(itertools.islice(stream, 25)) == [2 * x for x in range(25)]
    assert 25 <= len(read) <= 36
    stream.close()
    assert list(stream) == []
    assert len(read) <= 36


def test_stream_that_is_left() -> None:
    """Leaving the loop, or dropping it, ends the reading and the calls, and keeps nothing."""
    read: list[int] = []
    for value in task(pool="thread")(double).stream(counting(read)):
        if value > 10:
            break
    gc.collect()
    so_far = len(read)
    time.sleep(0.05)
    assert len(read) == so_far
    items = [Marked(), Marked()]
    refs = [weakref.ref(item) for item in items]
    stream = task(pool="thread")(repr).stream(iter(items))
    next(stream)
    del items, stream
    gc.collect()
    deadline = time.monotonic() + LONG
    while any(ref() is not None for ref in refs):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        gc.collect()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_what_has_ended_is_let_go(kind: str) -> None:
    """A map that is over is in no cycle: its values go with the last who holds it."""
    fn = task(pool=kind)(double)
    gc.collect()
    gc.disable()
    try:
        values = fn.map(range(100))
        values.result(LONG)
        ref = weakref.ref(values)
        del values
        deadline = time.monotonic() + LONG
        while ref() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        gc.enable()


class Marked:
    """Something that can be referred to weakly."""


def test_input_that_raises() -> None:
    """What came before comes out of a stream first; a map fails with it."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("disk")

    came: list[int] = []
    with pytest.raises(OSError, match="disk"):
        came.extend(task(pool="thread")(double).stream(items()))
    assert came == [0, 2, 4, 6, 8]
    with pytest.raises(OSError, match="disk"):
        task(pool="thread")(double).map(items()).result(LONG)


def test_async_for() -> None:
    """Maps and streams can be awaited and looped over by coroutines."""

    async def run() -> tuple[Any, ...]:
        fn: Task[[int], int] = task(pool="thread")(double)
        streamed = [value async for value in fn.stream(range(50))]
        mapped = [value async for value in fn.map(range(50))]
        return streamed, mapped, await fn.map(range(50))

    expected = [2 * x for x in range(50)]
    assert asyncio.run(run()) == (expected, expected, expected)


def test_cancel() -> None:
    """A map that is cancelled begins nothing more; what follows is cancelled too."""
    read: list[int] = []
    values = task(pool="thread")(nap).map(0.01 for _ in counting(read))
    follows = values.then(len)
    assert values.cancel()
    assert values.cancelled()
    assert follows.exception(LONG) is not None if not follows.cancelled() else True
    so_far = len(read)
    time.sleep(0.1)
    assert len(read) <= so_far + 1


def test_nested() -> None:
    """A map in an item's function ends, with one worker too."""
    with Registry({"pools": {"threads": {"kind": "thread", "max_workers": 1}}}) as one, using(one):
        assert task(inner_total).map(range(4)).result(LONG) == [0, 6, 12, 18]
        assert gather(task(inner_total)(3)).result(LONG) == (18,)


def inner_total(x: int) -> int:
    """Map inside of an item."""
    return sum(task(double).map([x, x, x])) + sum(task(double).stream([x, x, x])) - 6 * x


def test_pipeline() -> None:
    """A chain of tasks streams: each stage in its pool, in order, an item's error its own."""
    chain = task(pool="thread")(odd_fails).then(task(pool="loop")(later)).then(task(pool="process")(double))
    assert list(chain.stream([0, 2, 4])) == [0, 8, 16]
    assert list(chain.stream(range(6), errors="skip")) == [0, 8, 16]
    assert list(itertools.islice(chain.stream(itertools.count(0, 2)), 3)) == [0, 8, 16]


def test_shutdown_runs_maps_dry() -> None:
    """A registry that is shut down ends the maps that it has accepted, to their last item."""
    with Registry({"pools": {"threads": {"kind": "thread", "max_workers": 2}}}) as own, using(own):
        values = task(nap).map([0.002] * 100, chunksize=1)
    assert len(values.result(0)) == 100


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ({"chunksize": 0}, ValueError, "chunksize: expected an integer of at least 1, found integer 0"),
        ({"errors": "ignore"}, ValueError, "errors: expected 'raise', 'collect' or 'skip', found string 'ignore'"),
        ({"halt": Halt("soon", "ten")}, ValueError, "halt: expected a number of failures, or a share such as '10%'"),
        ({"halt": Halt("later", 1)}, ValueError, "halt: expected 'soon' or 'now'"),  # type: ignore[arg-type]  # it is wrong
        ({"chunk_size": 3}, TypeError, "a map has no option 'chunk_size'"),
        ({"strict": 1}, TypeError, "strict: expected a boolean, found integer 1"),
        ({"unpack": "rows"}, TypeError, "unpack: expected a boolean, found string 'rows'"),
        ({"key": 5}, TypeError, "key: expected a function, found integer 5"),
    ],
)
def test_what_can_not_be_said(said: dict[str, Any], error: type[Exception], told: str) -> None:
    """It is refused where it is said."""
    make: Callable[..., Any] = task(pool="thread")(double).map
    with pytest.raises(error, match=told.replace("(", r"\(")):
        make([1], **said)


def test_what_a_map_needs() -> None:
    """Items, and for a stream a word on their order that can be understood."""
    doubled: Any = task(pool="thread")(double)
    with pytest.raises(TypeError, match="expected an iterable at least, found none"):
        doubled.map()
    with pytest.raises(TypeError, match="ordered: expected a boolean, found string 'no'"):
        doubled.stream([1], ordered="no")


def test_an_item_that_cannot_travel() -> None:
    """Its error names the function, and what to do; the others of its chunk go on."""
    items: list[Any] = [1, threading.Lock(), 3]
    ends = task(pool="process")(double).map(items, errors="collect", chunksize=3).result(LONG)
    assert [end.value for end in ends] == [2, None, 6]
    assert str(ends[1].error).startswith(f"the arguments of {__name__}:double can't travel between processes: ")
    assert isinstance(ends[1].error.__cause__, TypeError)


# -- the journal ------------------------------------------------------------------------------------------------------


def counted(x: int, folder: str) -> int:
    """Note that the body has run; fail for 13 as long as it is told to."""
    with open(Path(folder, str(x)), "a", encoding="utf-8") as file:
        file.write(".")
    if x == 13 and not Path(folder, "mended").exists():
        raise ValueError("13")
    return x


def runs(folder: Path) -> dict[int, int]:
    """Return how often the bodies have run."""
    return {int(path.name): len(path.read_text()) for path in folder.iterdir() if path.name.isdigit()}


@by_kind
@pytest.mark.parametrize("chunksize", [None, 7])
def test_journal(kind: str, chunksize: int | None, tmp_path: Path) -> None:
    """What has ended in one run is not run again in the next; with `resume="failed"`, what has failed is."""
    fn = task(pool=kind)(counted)
    folder = tmp_path / "runs"
    folder.mkdir()
    said: Any = {"constants": {"folder": str(folder)}, "journal": tmp_path / "journal.sqlite", "chunksize": chunksize}
    first = fn.map(range(20), errors="collect", **said).result(LONG)
    assert [end.ok for end in first] == [x != 13 for x in range(20)]
    again = fn.map(range(30), errors="collect", **said).result(LONG)
    assert [end.value for end in again] == [x if x != 13 else None for x in range(30)]
    assert str(again[13].error) == "13"
    assert runs(folder) == dict.fromkeys(range(30), 1)
    (folder / "mended").touch()
    assert list(fn.stream(range(30), **said, resume="failed")) == list(range(30))
    assert runs(folder) == {x: 2 if x == 13 else 1 for x in range(30)}
    assert fn.map(range(3), **said, resume=False).result(LONG) == [0, 1, 2]
    assert runs(folder)[0] == 2


def test_journal_of_equal_items(tmp_path: Path) -> None:
    """Equal items are different ones; each position has its value."""
    fn = task(pool="thread")(double)
    for _ in range(2):
        assert fn.map([1, 1, 2, 1], journal=tmp_path / "j").result(LONG) == [2, 2, 4, 2]


def test_journal_by_key(tmp_path: Path) -> None:
    """A key stands for the item."""
    fn = task(pool="thread")(double)
    assert fn.map([10, 21], journal=tmp_path / "j", key=lambda x: x % 10).result(LONG) == [20, 42]
    assert fn.map([30, 41], journal=tmp_path / "j", key=lambda x: x % 10).result(LONG) == [20, 42]


def test_journal_of_values_that_can_not_be_kept(tmp_path: Path) -> None:
    """A value that can't be recorded is its item's failure; the others are recorded."""
    fn = task(pool="thread")(unsendable)
    ends = fn.map(range(5), errors="collect", journal=tmp_path / "j").result(LONG)
    assert [end.ok for end in ends] == [True, True, True, False, True]


def test_two_runs_of_one_journal(tmp_path: Path) -> None:
    """The second one is refused, and told who has it."""
    fn = task(pool="thread")(nap)
    first = fn.map([0.2], journal=tmp_path / "j")
    with pytest.raises(JournalLockedError):
        fn.map([0.1], journal=tmp_path / "j")
    assert first.result(LONG) == [0.2]
    assert fn.map([0.2], journal=tmp_path / "j").result(LONG) == [0.2]
    with pytest.raises(ValueError, match="expected only beside one"):
        fn.map([1], resume="failed")


def tiny_or_deadly(x: int, folder: str) -> int:
    """Take next to nothing; 5,000 notes that it has begun, and kills the worker."""
    if x == 5000:
        with open(Path(folder, "begun"), "a", encoding="utf-8") as file:
            file.write(".")
        os._exit(3)
    return x


def test_death_among_tiny_items(tmp_path: Path) -> None:
    """A death costs the one item also where so many run together that nobody knows at first which it was."""
    fn = task(pool="process")(tiny_or_deadly)
    found = fn.map(range(20_000), constants={"folder": str(tmp_path)}, errors="collect").result(LONG)
    assert [index for index, one in enumerate(found) if not one.ok] == [5000]
    assert isinstance(found[5000].error, WorkerDiedError)
    assert [one.value for one in found if one.ok] == [x for x in range(20_000) if x != 5000]
    assert len((tmp_path / "begun").read_text()) <= 2


def stops(x: int) -> int:
    """Raise what `map` takes for its own end, for some."""
    if x % 1000 == 999:
        raise StopIteration(x)
    return x


@by_kind
def test_stop_iteration_is_a_failure(kind: str) -> None:
    """An item that raises StopIteration fails; those behind it are run."""
    found = task(pool=kind)(stops).map(range(5000), errors="collect").result(LONG)
    assert [index for index, one in enumerate(found) if isinstance(one.error, StopIteration)] == [
        *range(999, 5000, 1000)
    ]
    assert [one.value for one in found if one.ok] == [x for x in range(5000) if x % 1000 != 999]


def spaced(items: range) -> Iterator[int]:
    """Yield items; every so often the next one takes a while."""
    for item in items:
        if item % 50 == 0:
            time.sleep(0.002)
        yield item


def uneven(item: int) -> int:
    """Return it; for a few, after longer than a piece may take."""
    if item % 97 == 13:
        time.sleep(0.03)
    return item


@by_kind
def test_a_slow_source_and_pieces_that_come_back(kind: str, kinds: Registry) -> None:
    """What has ended before its turn doesn't keep back what goes before it."""
    assert list(task(pool=kind)(uneven).stream(spaced(range(3_000)))) == list(range(3_000))
