"""
What may be said about a map: seeds, progress, times as multiples of the median, and all of it where it is declared.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import LONG
from pools.process_jobs import wait_until

from parallel import (
    Halt,
    NoTaskError,
    Progress,
    Registry,
    Retry,
    TaskTimeoutError,
    UnrecordableError,
    parallel_map,
    rng,
    task,
    using,
)

KINDS = ["thread", "process", "inline", "loop"]

pytestmark = pytest.mark.usefixtures("kinds")


def draw(x: int) -> tuple[int, int]:
    """Draw a number."""
    return x, rng(random.Random).getrandbits(64)


async def draw_later(x: int) -> tuple[int, int]:
    """Draw one after others have had their turn."""
    await asyncio.sleep(0)
    return x, rng(random.Random).getrandbits(64)


def draw_sum(x: int, y: int, *, plus: int) -> tuple[int, int]:
    """Draw with two arguments and a constant."""
    return x + y + plus, rng(random.Random).getrandbits(64)


def nap(seconds: float) -> float:
    """Take so long."""
    time.sleep(seconds)
    return seconds


async def nap_later(seconds: float) -> float:
    """Take so long, on a loop."""
    await asyncio.sleep(seconds)
    return seconds


def fail_at_first(folder: str, x: int) -> int:
    """Fail in the first attempt."""
    file = Path(folder, str(x))
    if not file.exists():
        file.touch()
        raise ConnectionError(x)
    return x


def counted(folder: str, x: int, *, plus: int = 0) -> int:
    """Note each execution."""
    with open(Path(folder, "runs"), "a", encoding="utf-8") as file:
        file.write(".")
    return x + plus


def drawn_and_counted(folder: str, x: int) -> tuple[int, int]:
    """Note each execution, and draw."""
    return counted(folder, x), rng(random.Random).getrandbits(64)


def runs(folder: Path) -> int:
    """Return how many executions have been noted, and forget them."""
    file = folder / "runs"
    count = len(file.read_text()) if file.exists() else 0
    file.unlink(missing_ok=True)
    return count


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_make_the_same_everywhere() -> None:
    """What an item draws hangs on the seed and its index: not on the pool, the chunks or the terms."""
    ways: list[Any] = [
        (task(pool=kind)(draw), {"chunksize": chunksize}) for kind in KINDS[:3] for chunksize in (None, 1, 7, 100)
    ]
    ways += [(task(pool="thread", timeout=LONG)(draw), {}), (task(pool="process", retry=Retry(OSError))(draw), {})]
    ways += [(task(pool="loop")(draw_later), {}), (task(pool="thread")(draw), {"timeout": "99x median"})]
    expected = task(pool="inline")(draw).map(range(40), seed=42).result(LONG)
    assert len({number for _, number in expected}) == 40
    for fn, said in ways:
        assert fn.map(range(40), seed=42, **said).result(LONG) == expected
        assert list(fn.stream(iter(range(40)), seed=42, **said)) == expected
    assert task(pool="thread")(draw).map(range(40), seed=43).result(LONG) != expected
    assert task(pool="thread")(draw).map(range(40), seed=[42, 7]).result(LONG) != expected


@pytest.mark.parametrize("kind", KINDS[:3])
def test_seeds_with_arguments(kind: str) -> None:
    """Rows and constants go with seeds."""
    fn = task(pool=kind)(draw_sum)
    expected = [number for _, number in task(pool="inline")(draw).map(range(9), seed=1).result(LONG)]
    for one in (fn, fn.options(timeout=LONG)):
        values = one.map(range(9), range(9), constants={"plus": 1}, seed=1).result(LONG)
        assert values == [(2 * x + 1, number) for x, number in enumerate(expected)]
        rows = [(x, x) for x in range(9)]
        assert one.map(rows, unpack=True, constants={"plus": 1}, seed=1).result(LONG) == values


def test_no_seed() -> None:
    """Without a seed there is nothing to draw from."""
    for kind in KINDS[:3]:
        with pytest.raises(NoTaskError, match="seed"):
            task(pool=kind)(draw).map([1]).result(LONG)


@pytest.mark.parametrize("seed", [-1, 1.5, "x", True, []])
def test_wrong_seeds(seed: Any) -> None:
    """A seed that is none is refused where the map is made."""
    with pytest.raises((TypeError, ValueError), match="seed"):
        task(pool="thread")(draw).map([1], seed=seed)


def test_retries_draw_anew(tmp_path: Path) -> None:
    """A second attempt at an item draws what the first one would have drawn."""

    def draw_at_last(x: int) -> int:
        number = rng(random.Random).getrandbits(64)
        fail_at_first(str(tmp_path), x)
        return number

    retry = Retry(ConnectionError, attempts=2, wait_initial=0, wait_max=0, wait_jitter=0)
    found = task(pool="thread")(draw_at_last).map(range(5), seed=7, retry=retry).result(LONG)
    assert found == [number for _, number in task(pool="inline")(draw).map(range(5), seed=7).result(LONG)]


# -- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[:3])
def test_progress_is_told(kind: str) -> None:
    """A function gets the numbers, the last time when all have ended."""
    told: list[Progress] = []
    fn = task(pool=kind)(nap)
    assert fn.map([0.001] * 30, progress=told.append).result(LONG) == [0.001] * 30
    assert (told[-1].done, told[-1].failed, told[-1].total) == (30, 0, 30)
    told.clear()
    assert list(fn.stream((0.001 for _ in range(30)), progress=told.append)) == [0.001] * 30
    assert (told[-1].done, told[-1].total) == (30, None)
    told.clear()
    assert list(fn.stream((0.001 for _ in range(30)), progress=told.append, total=30)) == [0.001] * 30
    assert told[-1].total == 30


def test_progress_of_failures() -> None:
    """Failed items are counted; a map that fails tells of that at once, while others still run."""
    told: list[Progress] = []
    free = threading.Event()

    def odd_fails(x: int) -> int:
        if x == 4:
            free.wait(LONG)
        if x % 2:
            raise ValueError(x)
        return x

    fn = task(pool="thread")(odd_fails)
    free.set()
    assert fn.map(range(10), errors="skip", progress=told.append).result(LONG) == [0, 2, 4, 6, 8]
    assert (told[-1].done, told[-1].failed) == (10, 5)
    free.clear()
    with pytest.raises(ValueError, match="1"):
        fn.map([4, 1], chunksize=1, progress=told.append).result(LONG)
    assert told[-1].failed == 1
    free.set()


def test_progress_can_be_asked_for() -> None:
    """Without a display, a map tells its numbers to who asks."""
    free = threading.Event()

    def wait(x: int) -> int:
        if x:
            assert free.wait(LONG)
        return x

    future = task(pool="thread")(wait).map([0, 1, 2], chunksize=1)
    wait_until(lambda: future.progress.done == 1)
    assert (future.progress.total, future.progress.failed) == (3, 0)
    assert future.progress.workers >= 1
    free.set()
    assert future.result(LONG) == [0, 1, 2]
    assert future.progress.done == 3
    stream = task(pool="thread")(wait).stream([0, 0])
    assert list(stream) == [0, 0]
    assert stream.progress.done == 2


def test_progress_on_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    """Where nobody looks there are lines, with the function's name or a label."""
    task(pool="thread")(nap).map([0] * 5, progress=True).result(LONG)
    task(pool="thread")(nap).map([0] * 5, progress="naps").result(LONG)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("nap: 5/5 (100%)")
    assert second.startswith("naps: 5/5 (100%)")


def test_wrong_progress(tmp_path: Path) -> None:
    """What can't be shown is refused, and leaves the journal free."""
    journal = tmp_path / "j.sqlite"
    with pytest.raises(TypeError, match="progress: expected"):
        task(pool="thread")(nap).map([0], progress=3, journal=journal)  # type: ignore[call-overload]  # that is the point
    assert task(pool="thread")(nap).map([0], journal=journal).result(LONG) == [0]


def test_unused_stream_lets_go(tmp_path: Path) -> None:
    """A stream that is closed, or forgotten, before its first value keeps neither its journal nor its display."""
    told: list[Progress] = []
    journal = tmp_path / "j.sqlite"
    fn = task(pool="thread")(nap)
    with fn.stream([0], journal=journal, progress=told.append):
        pass
    assert len(told) == 1
    fn.stream([0], journal=journal)
    assert list(fn.stream([0], journal=journal)) == [0]


# -- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_times_the_median(kind: str) -> None:
    """Who takes many times as long as the rest is ended, though it began before any other had ended."""
    long = 60.0 if kind == "process" else 3.0  # a thread can't be ended
    items = [long, *[0.002] * 30]
    began = time.monotonic()
    found = task(pool=kind)(nap).map(items, timeout="5x median", errors="collect").result(LONG)
    assert time.monotonic() - began < long
    assert isinstance(found[0].error, TaskTimeoutError)
    assert [one.value for one in found[1:]] == items[1:]


def test_times_the_median_on_a_loop() -> None:
    """Coroutines are watched likewise."""
    found = task(pool="loop")(nap_later).map([LONG, *[0.002] * 30], timeout="5x median", errors="collect").result(LONG)
    assert isinstance(found[0].error, TaskTimeoutError)
    assert all(one.ok for one in found[1:])


def test_times_that_are_usual() -> None:
    """A moment more is nobody's end; and with few items there is no middle."""
    fn = task(pool="thread")(nap)
    assert fn.map([0.0] * 20 + [0.05], timeout="1.5x median").result(LONG)[-1] == 0.05
    assert fn.map([0.2, 0.0], timeout="2x median").result(LONG) == [0.2, 0.0]


def test_timeout_and_retry_of_a_map(tmp_path: Path) -> None:
    """They may be said about a map, and count for each item."""
    found = task(pool="process")(nap).map([0, 60.0, 0], timeout=0.5, errors="collect").result(LONG)
    assert [one.ok for one in found] == [True, False, True]
    retry = Retry(ConnectionError, attempts=2, wait_initial=0, wait_max=0, wait_jitter=0)
    fn = task(pool="process")(fail_at_first)
    assert fn.map([str(tmp_path)] * 4, range(4), retry=retry).result(LONG) == [0, 1, 2, 3]


@pytest.mark.parametrize("timeout", ["median", "0x median", "1x median", "-3x median", "x median", "infx median"])
def test_wrong_multiples(timeout: str) -> None:
    """A multiple that is none is refused, with what was found."""
    with pytest.raises(ValueError, match="3x median"):
        task(pool="thread")(nap).map([0], timeout=timeout)


def test_chains_have_none() -> None:
    """A chain has no item of its own that could draw, or overrun."""
    chain = task(pool="thread")(nap).then(nap)
    for said in ({"seed": 1}, {"timeout": "3x median"}, {"timeout": 3}):
        with pytest.raises(TypeError, match="chain"):
            chain.map([0.0], **said)  # type: ignore[arg-type]  # one after the other


# -- where it is declared ---------------------------------------------------------------------------------------------


@parallel_map(pool="thread", seed=42, errors="skip", chunksize=3)
def declared(x: int) -> int:
    """Draw; 3 fails."""
    if x == 3:
        raise ValueError(x)
    return rng(random.Random).getrandbits(64)


@parallel_map(pool="process", timeout="5x median", errors="skip")
def bounded(seconds: float) -> float:
    """Take so long."""
    time.sleep(seconds)
    return seconds


def test_declared() -> None:
    """What is said where a map is declared counts for each; what is said at the call wins."""
    expected = [number for _, number in task(pool="inline")(draw).map(range(6), seed=42).result(LONG)]
    del expected[3]
    assert declared(range(6)).result(LONG) == expected
    assert list(declared.stream(range(6))) == expected
    assert declared.options(pool="process")(range(6)).result(LONG) == expected
    assert declared(range(3), seed=43).result(LONG) != expected[:3]
    assert declared.options(seed=43)(range(3)).result(LONG) == declared(range(3), seed=43).result(LONG)
    assert [one.ok for one in declared(range(5), errors="collect").result(LONG)] == [True, True, True, False, True]
    with pytest.raises(ValueError, match="3"):
        declared(range(5), errors="raise").result(LONG)
    assert bounded([60.0, *[0.0] * 30]).result(LONG) == [0.0] * 30


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"chunk_size": 3}, TypeError, "no option 'chunk_size'"),
        ({"seed": -1}, ValueError, "seed"),
        ({"errors": "ignore"}, ValueError, "errors: expected"),
        ({"timeout": "0x median"}, ValueError, "median"),
        ({"timeout": "5 parsecs"}, ValueError, "timeout"),
    ],
)
def test_wrong_declarations(said: Any, error: type[Exception], words: str) -> None:
    """A mistake is told where it is made."""
    with pytest.raises(error, match=words):
        parallel_map(**said)(nap)


# -- journals ---------------------------------------------------------------------------------------------------------


def test_journal_of_other_constants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was recorded with other constants is not taken for what they give now; both can be had again."""
    fn = task(pool="thread")(counted)
    folders, journal = [str(tmp_path)] * 3, tmp_path / "j.sqlite"
    with caplog.at_level(logging.WARNING, "parallel"):
        assert fn.map(folders, range(3), constants={"plus": 1}, journal=journal).result(LONG) == [1, 2, 3]
        assert fn.map(folders, range(3), constants={"plus": 2}, journal=journal).result(LONG) == [2, 3, 4]
    assert "constants or seed" in caplog.text
    assert runs(tmp_path) == 6
    assert fn.map(folders, range(3), constants={"plus": 1}, journal=journal).result(LONG) == [1, 2, 3]
    assert runs(tmp_path) == 0


def test_journal_of_other_seeds(tmp_path: Path) -> None:
    """What an item drew is found again for the same seed and place only."""
    fn = task(pool="thread")(drawn_and_counted)
    journal = tmp_path / "j.sqlite"

    def drawn(items: list[int], seed: int, key: Any = None) -> list[tuple[int, int]]:
        return fn.map([str(tmp_path)] * len(items), items, seed=seed, journal=journal, key=key).result(LONG)

    first = drawn([1, 2, 3], 42)
    assert drawn([1, 2, 3], 42) == first
    assert runs(tmp_path) == 3
    assert drawn([1, 2, 3], 43) != first
    assert runs(tmp_path) == 3
    moved = drawn([3, 2, 1], 42)
    assert runs(tmp_path) == 2
    assert moved[1] == first[1]
    assert [number for _, number in moved] == [number for _, number in first]
    keyed = drawn([1, 2], 42, key=lambda folder, x: x)
    assert drawn([1, 2], 42, key=lambda folder, x: x) == keyed == first[:2]


def test_journal_of_unknown_constants(tmp_path: Path) -> None:
    """Constants that nobody can compare are refused, with a way out."""
    fn: Any = task(pool="thread")(counted)
    with pytest.raises(UnrecordableError, match=r"constants.*per_worker"):
        fn.map(["x"], [1], constants={"plus": threading.Lock()}, journal=tmp_path / "j.sqlite")


# -- what a review has found ------------------------------------------------------------------------------------------


def test_leaving_a_stream_ends_it_at_once(kinds: Registry, tmp_path: Path) -> None:
    """Who leaves the loop leaves no work behind, without help by the collector, and the journal is free."""
    gc.disable()
    try:
        free = threading.Event()

        def wait(x: int) -> int:
            if x:
                free.wait(LONG)
            return x

        fn = task(pool="thread")(wait)
        for value in fn.stream(range(100), chunksize=1, journal=tmp_path / "j.sqlite"):
            assert value == 0
            break
        free.set()
        assert list(fn.stream([0], journal=tmp_path / "j.sqlite")) == [0]
        wait_until(lambda: kinds.pool("thread").counts()[1:3] == (0, 0))
        assert kinds.pool("thread").stats().done < 20
    finally:
        gc.enable()


def test_items_before_an_error_of_the_source() -> None:
    """What an iterable gave before it failed is handed out, however many were read together."""

    def source() -> Iterator[float]:
        yield from [0.0] * 50
        raise OSError("no more")

    for said in ({}, {"chunksize": 100}):
        stream = task(pool="thread")(nap).stream(source(), **said)  # type: ignore[arg-type]  # one after the other
        seen: list[float] = []
        with pytest.raises(OSError, match="no more"):
            seen.extend(stream)
        assert seen == [0.0] * 50


def test_stream_in_its_own_registry() -> None:
    """Who asks for the values may be in another registry: the calls go where the stream was made."""
    fn = task(pool="only here", timeout=LONG)(nap)
    with Registry({"pools": {"only here": {"kind": "thread"}}}) as other, using(other):
        stream = fn.stream([0.0] * 5)
        with using({"pools": {}}):
            assert list(stream) == [0.0] * 5


def test_rows_that_are_iterators(tmp_path: Path) -> None:
    """A row is read once, with a journal too."""
    fn = task(pool="thread")(counted)
    rows = [iter((str(tmp_path), x)) for x in range(3)]
    assert fn.map(rows, unpack=True, journal=tmp_path / "j.sqlite").result(LONG) == [0, 1, 2]
    found = fn.map([(str(tmp_path), 1), 3], unpack=True, errors="collect", timeout=LONG).result(LONG)  # type: ignore[list-item]
    assert [one.ok for one in found] == [True, False]


def test_early_values_are_bounded() -> None:
    """A stream whose first item takes long doesn't read an endless source meanwhile."""
    free = threading.Event()
    given = itertools.count()

    def wait(x: int) -> int:
        if x == 0:
            assert free.wait(LONG)
        return x

    def source() -> Iterator[int]:
        for x in given:
            if x > 40_000:
                free.set()
            yield x

    stream = task(pool="thread")(wait).stream(source(), chunksize=10)
    timer = threading.Timer(0.5, free.set)
    timer.start()
    assert list(itertools.islice(stream, 5)) == [0, 1, 2, 3, 4]
    stream.close()
    timer.cancel()
    timer.join()
    assert next(given) < 40_000


def test_progress_that_exits() -> None:
    """A function that is told of the progress ends nothing, whatever it raises."""

    def leave(progress: Progress) -> None:
        raise SystemExit(3)

    assert task(pool="thread")(nap).map([0.0] * 3, progress=leave).result(LONG) == [0.0] * 3


def test_exit_in_an_item() -> None:
    """`sys.exit()` costs its item on threads as well."""

    def leave(x: int) -> int:
        if x == 1:
            raise SystemExit(3)
        return x

    for kind in ("thread", "inline"):
        found = task(pool=kind)(leave).map(range(3), errors="collect").result(LONG)
        assert [one.ok for one in found] == [True, False, True]


def test_failed_map_lets_go_of_its_journal(tmp_path: Path) -> None:
    """Who is told of the failure may open the journal anew."""

    def odd_waits(x: int) -> int:
        if x == 0:
            time.sleep(0.3)
        if x == 1:
            raise ValueError(x)
        return x

    fn = task(pool="thread")(odd_waits)
    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            fn.map(range(3), chunksize=1, journal=tmp_path / "j.sqlite", resume="failed").result(LONG)


def test_notes_of_one_error() -> None:
    """An exception that many items raise says where it came from last, once."""
    error = ValueError("the same")

    def fail(x: int) -> int:
        raise error

    task(pool="thread")(fail).map(range(5), errors="collect").result(LONG)
    assert len(error.__notes__) == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"halt": "now"}, TypeError),
        ({"halt": ("soon", 3)}, TypeError),
        ({"constants": [1]}, TypeError),
        ({"journal": ""}, ValueError),
    ],
)
def test_wrong_values(said: Any, error: type[Exception]) -> None:
    """What no map can have is refused, with what was found."""
    with pytest.raises(error, match=f"{next(iter(said))}: expected"):
        task(pool="thread")(nap).map([0.0], **said)


def test_items_without_a_key(tmp_path: Path) -> None:
    """An item that nobody can tell from others costs itself."""
    items: list[Any] = [1, threading.Lock(), 2]
    fn: Any = task(pool="thread")(type)
    found = fn.map(items, errors="collect", journal=tmp_path / "j.sqlite").result(LONG)
    assert [one.ok for one in found] == [True, False, True]
    assert isinstance(found[1].error, UnrecordableError)


def test_pool_that_takes_few() -> None:
    """A pool that refuses more than it may hold gets as many as it takes."""
    pools = {"few": {"kind": "thread", "max_workers": 2, "max_pending": 1, "on_full": "raise"}}
    with Registry({"pools": pools}) as few, using(few):
        assert task(pool="few")(nap).map([0.001] * 50).result(LONG) == [0.001] * 50
        assert list(task(pool="few")(nap).stream([0.001] * 50)) == [0.001] * 50


def test_end_of_a_source(tmp_path: Path) -> None:
    """What a generator does at its end is done when the stream is closed, or the map has failed."""
    ended: list[str] = []

    def source(name: str) -> Iterator[float]:
        try:
            while True:
                yield 0.0
        finally:
            ended.append(name)

    stream = task(pool="thread")(nap).stream(source("stream"))
    assert next(stream) == 0.0
    stream.close()
    assert ended == ["stream"]


def test_halt_of_an_unknown_number() -> None:
    """One failure is no share of items whose number nobody knows."""

    def fail_first(x: int) -> int:
        if x == 0:
            raise ValueError(x)
        return x

    found = task(pool="thread")(fail_first).map(iter(range(30)), errors="skip", halt=Halt("now", "10%")).result(LONG)
    assert found == list(range(1, 30))


# -- slow sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["map", "stream", "as they come"])
def test_values_do_not_wait_for_a_slow_source(way: str) -> None:
    """What has ended is handed out before the source has given many more."""
    given = 0

    def slowly() -> Iterator[float]:
        nonlocal given
        for _ in range(12):
            time.sleep(0.02)
            given += 1
            yield 0.0

    fn = task(pool="thread")(nap)
    values: Any = {
        "map": lambda: fn.map(slowly()),
        "stream": lambda: fn.stream(slowly()),
        "as they come": lambda: fn.map(slowly()).as_completed(),
    }[way]()
    next(iter(values))
    assert given <= 4
    seen = [given for _ in values]
    assert len(seen) >= 11
    assert seen != [12] * len(seen)
