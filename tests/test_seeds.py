"""
What a map draws: a generator per item, whatever runs it.
"""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from random import Random
from subprocess import CompletedProcess
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seed_jobs import draw, drawn, drawn_interleaved, nested, refused, refused_helped, refused_within

from parallel import Future, InlinePool, LoopPool, NoTaskError, ProcessPool, Registry, ThreadPool, rng
from parallel.seeds import Draws, read_seed

ITEMS = range(20)
EXPECTED = drawn(42, ITEMS)
FIRST_TWO = [0x46E018F12538EAA7, 0x7B79138D5A15ADB2]
"""What item 0 draws under the seed 42; no release may change it."""


def test_items_draw_the_same_in_every_version() -> None:
    """What an item draws is written down here: no release may change it."""
    with Draws(42) as draws:
        draws.item(7)
        assert [rng(Random).random(), rng(Random).randrange(1000)] == [0.6041422510052771, 472]


def test_items_are_independent() -> None:
    """Items, and seeds, differ in what they draw."""
    assert len({*EXPECTED, *drawn(43, ITEMS)}) == 2 * len(ITEMS)


@given(st.lists(st.integers(1, 19), max_size=5))
def test_chunks_make_no_difference(cuts: list[int]) -> None:
    """However the items are cut into chunks, each draws the same."""
    bounds = sorted({0, *cuts, 20})
    assert [number for chunk in pairwise(bounds) for number in drawn(42, range(*chunk))] == EXPECTED


@pytest.mark.parametrize("kind", [InlinePool, ThreadPool, ProcessPool])
def test_pools_make_no_difference(kind: Callable[[], ThreadPool]) -> None:
    """Workers of any kind, and any number of them, draw the same."""
    with kind() as pool:
        chunks = [pool.submit(drawn, 42, ITEMS[at : at + 7]) for at in range(0, 20, 7)]
        assert [number for chunk in chunks for number in chunk.result()] == EXPECTED


def test_interleaved_coroutines_draw_apart() -> None:
    """Coroutines that take turns on one thread each have the generator of their item."""
    with LoopPool() as pool:
        future: Future[list[int]] = pool.submit(drawn_interleaved, 42, ITEMS)
        assert future.result() == EXPECTED
    assert asyncio.run(drawn_interleaved(42, ITEMS)) == EXPECTED


def test_one_object_in_an_item() -> None:
    """In one item it is one generator, also in a function that runs in a copy of its context."""
    with Draws(42) as draws:
        draws.item(0)
        assert rng(Random) is rng(Random) is contextvars.copy_context().run(rng, Random)
        first = rng(Random)
        draws.item(1)
        assert rng(Random) is not first


def test_a_second_attempt_draws_the_same() -> None:
    """An attempt at the same item begins anew."""
    with Draws(42) as draws:
        draws.item(3)
        first = draw()
        draws.item(3)
        assert draw() == first


@pytest.mark.parametrize("kind", ["inline", "thread"])
@pytest.mark.parametrize("outer", [InlinePool, ThreadPool, ProcessPool])
def test_a_nested_call_has_no_share(outer: Callable[[], ThreadPool], kind: str) -> None:
    """A call made in an item gets no generator, wherever it runs, and changes nothing of what the item draws."""
    with outer() as pool:
        first, why, second = pool.submit(refused_within, kind).result()
    assert (first, second) == tuple(FIRST_TWO)
    assert "no item of a map with a seed is running here" in why


@pytest.mark.parametrize("name", ["workers", "processes"])
def test_a_helped_call_has_no_share(name: str) -> None:
    """A call that its waiter runs itself gets none either."""
    pools = {"workers": {"kind": "thread", "max_workers": 1}, "processes": {"kind": "process", "max_workers": 1}}
    with Registry({"pools": pools}) as registry:
        first, why, second = registry.pool(name).submit(refused_helped, name).result()
    assert (first, second) == tuple(FIRST_TWO)
    assert "not for calls that it makes" in why


def test_a_nested_map_has_its_own() -> None:
    """A chunk inside an item draws by its own seed, and the item goes on where it was."""
    first, inner, second = nested()
    assert [first, second] == FIRST_TWO
    assert inner == drawn(43, range(3))


def test_outside_of_a_seeded_map() -> None:
    """Where no item of a seeded map runs, it says so."""
    with pytest.raises(NoTaskError, match=r"@parallel_map\(seed=42\)"):
        rng()
    with Draws(42):
        assert refused()  # no item yet
    with InlinePool() as pool:
        assert pool.submit(refused).result()


def test_what_outlives_its_chunk() -> None:
    """A context that an item has left behind draws nothing any more."""
    with Draws(42) as draws:
        draws.item(0)
        left = contextvars.copy_context()
        assert not left.run(refused)
    assert left.run(refused)


def test_a_thread_of_ones_own() -> None:
    """A thread that an item of a pool starts has no share, whether or not it inherits the context."""
    found: list[str] = []

    def item() -> None:
        with Draws(42) as draws:
            draws.item(0)
            thread = threading.Thread(target=contextvars.copy_context().run, args=(lambda: found.append(refused()),))
            thread.start()
            thread.join()

    with ThreadPool(1) as pool:
        pool.submit(item).result()
    assert found != [""]


def test_numpy() -> None:
    """By default it is numpy's own generator of the item's place."""
    numpy = pytest.importorskip("numpy")
    with Draws(42) as draws:
        draws.item(2**40)
        sequence = numpy.random.SeedSequence(42, spawn_key=(2**40,))
        assert rng().integers(2**62) == numpy.random.default_rng(sequence).integers(2**62)
        assert rng() is rng()
    with Draws((2**70, 0)) as draws:
        draws.item(0)
        sequence = numpy.random.SeedSequence([2**70, 0], spawn_key=(0,))
        assert rng().random() == numpy.random.default_rng(sequence).random()


def test_numpy_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numpy its generator is refused, and told what there is instead."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.setitem(sys.modules, "numpy.random", None)
    with Draws(42) as draws:
        draws.item(0)
        with pytest.raises(ModuleNotFoundError, match=r"`pip install numpy`.*`rng\(random\.Random\)`"):
            rng()
        assert draw() == FIRST_TWO[0]


def test_numpy_is_not_loaded_before(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """Who draws with the standard library, or not at all, loads nothing of numpy."""
    run_script(
        dedent("""
        import sys
        from random import Random
        from parallel import rng
        from parallel.seeds import Draws
        with Draws(42) as draws:
            draws.item(0)
            rng(Random)
        assert "numpy" not in sys.modules
        """)
    )


@pytest.mark.parametrize(("said", "read"), [(0, 0), (2**200, 2**200), ([1, 2], (1, 2)), (range(2), (0, 1))])
def test_seeds(said: object, read: object) -> None:
    """An integer of any size, or a sequence of integers, and what is read can travel."""
    assert read_seed(said) == read
    assert pickle.loads(pickle.dumps(read_seed(said))) == read


def test_numpy_integers_are_seeds() -> None:
    """What acts as an integer is one."""
    numpy = pytest.importorskip("numpy")
    assert read_seed(numpy.uint32(42)) == 42
    assert type(read_seed(numpy.int64(42))) is int


@pytest.mark.parametrize(
    ("said", "error", "found"),
    [
        (-1, ValueError, "integer -1"),
        ([], ValueError, r"array \[\]"),
        ([1, -1], ValueError, r"array \[1, -1\]"),
        (True, TypeError, "boolean True"),
        ([1, False], TypeError, r"array \[1, False\]"),
        (4.2, TypeError, "float 4.2"),
        ("42", TypeError, "string '42'"),
        (b"42", TypeError, "bytes b'42'"),
        (None, TypeError, "nothing"),
        ({1, 2}, TypeError, r"set \{1, 2\}"),
    ],
)
def test_wrong_seeds(said: object, error: type[Exception], found: str) -> None:
    """Anything else is told as what it is."""
    with pytest.raises(error, match=rf"seed: expected integers from 0 on, such as 42 or \[42, 7\], found {found}$"):
        read_seed(said)


def test_a_wrong_seed_that_is_long() -> None:
    """One of more digits than Python writes is told as well."""
    with pytest.raises(ValueError, match="found integer too long to be written"):
        read_seed(-(10**5000))


def test_a_wrong_kind() -> None:
    """What is asked for is one of two kinds."""
    with pytest.raises(TypeError, match=r"expected `random\.Random`.* found"):
        rng(int)  # type: ignore[arg-type]  # that is the test


def test_long_seeds() -> None:
    """A seed may have more digits than Python writes."""
    assert drawn(10**5000, [0]) != drawn(10**5000 + 1, [0])
    assert drawn((1, 2), [0]) != drawn((12,), [0]) == drawn(12, [0])  # type: ignore[arg-type]  # the job takes fewer
