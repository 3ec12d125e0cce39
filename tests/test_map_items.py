"""
Items of a map that are unlike the others: values that can't be loaded, futures, coroutines; and what they are called.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools.process_jobs import PATIENCE

from parallel import SerializationError, Task, current_task, task
from parallel.pools.process.pickling import dumps
from parallel.salvage import load_around, refuse_gaps

KINDS = ["thread", "process", "inline"]

pytestmark = pytest.mark.usefixtures("kinds")

HOME = os.getpid()


# -- values that can't be loaded --------------------------------------------------------------------------------------


class Unruly:
    """Can be pickled; whether it can be loaded is said by how, and by where."""

    def __init__(self, number: int, how: str, home: int = HOME) -> None:
        self.number = number
        self.how = how
        self.home = home

    def _refuse(self) -> None:
        if os.getpid() == self.home:
            raise ValueError(f"not {self.number}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unruly) and (self.number, self.how) == (other.number, other.how)

    def __hash__(self) -> int:
        return hash((self.number, self.how))

    def __reduce__(self) -> tuple[Any, ...]:
        plain = (Unruly, (self.number, "", self.home))
        if self.how == "state":
            return (*plain, {"how": "state"})
        if self.how == "function":
            return _made_at_home, (self.number, self.home)
        if self.how == "items":
            return _Picky, (), None, iter([self.number])
        return plain

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._refuse()
        vars(self).update(state)


def _made_at_home(number: int, home: int) -> Unruly:
    made = Unruly(number, "function", home)
    made._refuse()
    return made


class _Picky(list[int]):
    """Takes no items."""

    def extend(self, items: Any) -> None:
        """Refuse."""
        raise TypeError(f"no {items}")

    append = extend


WAYS = ["state", "function", "items"]


def counted(item: tuple[int, str, str, int]) -> Any:
    """Note the execution in a file; every fifth value can't be loaded in a certain process."""
    number, how, file, home = item
    with Path(file).open("a", encoding="utf-8") as log:
        log.write(f"{number}\n")
    value = Unruly(number, how if number % 5 == 3 else "", home)
    return {"deep": [(value, value)], "number": number}


def large_too(item: tuple[int, str, str, int]) -> Any:
    """The same, with something beside it that travels in shared memory."""
    return counted(item), bytes([item[0]]) * (1 << 19)


def slowly_too(item: tuple[int, str, str, int]) -> Any:
    """The same, in a time that is worth a note on the board; the last one kills its worker."""
    if item[0] == 19:
        os.kill(os.getpid(), 9)
    time.sleep(0.001)
    return counted(item)


@pytest.mark.parametrize("fn", [counted, large_too, slowly_too])
@pytest.mark.parametrize("how", WAYS)
def test_a_value_that_cannot_be_loaded(fn: Callable[..., Any], how: str, tmp_path: Path) -> None:
    """It is the failure of its item alone: the others of the chunk have their values, and none is run again."""
    file = tmp_path / "runs"
    items = [(number, how, str(file), os.getpid()) for number in range(20)]
    ends = task(pool="process")(fn).map(items, errors="collect", chunksize=10).result(PATIENCE)
    ends = ends[:19]  # of the last one, a death may be the failure
    for number, end in enumerate(ends):
        if number % 5 == 3:
            assert isinstance(end.error, SerializationError)
            assert f"value of {__name__}:{fn.__name__}" in str(end.error)
            assert "can't be loaded here" in str(end.error)
            assert end.error.__notes__[0].startswith(f"in item {number} of {__name__}:{fn.__name__}: ({number}, ")
        else:
            value: Any = end.value
            value = value[0] if fn is large_too else value
            assert value == {"deep": [(Unruly(number, ""),) * 2], "number": number}
    runs = Counter(file.read_text("utf-8").split())
    assert {runs[str(number)] for number in range(19)} == {1}


class Plain:
    """Any object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.value == other.value

    def __hash__(self) -> int:
        return hash(Plain)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(), inner, max_size=3)
        | inner.map(Plain)
    ),
    max_leaves=12,
)


@given(st.lists(VALUES | st.sampled_from(WAYS).map(lambda how: [Plain(Unruly(1, how))]), max_size=8))
def test_what_can_be_loaded_is_as_it_was(values: list[Any]) -> None:
    """Whatever has no gap is equal to what was pickled; a gap is found however deep it lies."""
    loaded = load_around(dumps(values, main_by_value=False))
    assert len(loaded) == len(values)
    for value, back in zip(values, loaded, strict=True):
        if isinstance(value, list) and value and type(value[0]) is Plain and type(value[0].value) is Unruly:
            with pytest.raises((ValueError, TypeError), match=r"not 1|no "):
                refuse_gaps(back)
        else:
            refuse_gaps(back)
            assert back == value


def test_what_is_not_there() -> None:
    """A class that can't be found leaves a gap; what else is made of it does too."""
    data = pickle.dumps([Plain(1), Plain(2), 3]).replace(b"Plain", b"Plane")
    one, two, three = load_around(data)
    assert three == 3
    for gap in (one, two):
        with pytest.raises(AttributeError, match="Plane"):
            refuse_gaps(gap)


# -- futures among the items ------------------------------------------------------------------------------------------


def late(x: int) -> int:
    """Return it after a while; five fails."""
    time.sleep(0.01)
    if x == 5:
        raise KeyError(x)
    return x


def add(x: int, y: int = 0) -> int:
    """Return the sum."""
    return x + y


@pytest.mark.parametrize("kind", KINDS)
def test_futures_among_the_items(kind: str) -> None:
    """They are waited for, as those among the arguments of a call are; one that has failed costs its item."""
    ask = task(pool="thread")(late)
    items = [ask(x) if x % 3 == 2 else x for x in range(20)]
    ends = task(pool=kind)(add).map(items, errors="collect").result(PATIENCE)
    assert [end.value for end in ends] == [None if x == 5 else x for x in range(20)]
    assert isinstance(ends[5].error, KeyError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_futures_among_the_arguments_of_items(kind: str, chunksize: int | None) -> None:
    """The same with several iterables, with rows, and one level down in a list."""
    ask, plus = task(pool="thread")(late), task(pool=kind)(add)
    assert plus.map([ask(1), 2, ask(3)], range(3), chunksize=chunksize).result(PATIENCE) == [1, 3, 5]
    assert plus.map([(ask(1), 5), (2, ask(6))], unpack=True, chunksize=chunksize).result(PATIENCE) == [6, 8]
    assert task(pool=kind)(sum).map([[ask(1), 2], [3, 4]], chunksize=chunksize).result(PATIENCE) == [3, 7]
    assert list(plus.stream((ask(x) for x in range(4)), constants={"y": 1}, chunksize=chunksize)) == [1, 2, 3, 4]


# -- functions that return coroutines ---------------------------------------------------------------------------------


async def doubled(x: int) -> int:
    """Return it twice; four fails."""
    await asyncio.sleep(0)
    if x == 4:
        raise KeyError(x)
    return 2 * x


def always(x: int) -> Coroutine[Any, Any, int]:
    """Return a coroutine, though it is no coroutine function."""
    return doubled(x)


def sometimes(x: int) -> Any:
    """Return one for odd items, and for four."""
    return doubled(x) if x % 2 or x == 4 else x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunksize", [None, 5])
def test_coroutines_are_awaited(kind: str, chunksize: int | None) -> None:
    """No coroutine comes out as a value; what it raises is its item's failure."""
    for fn, expected in ((always, [0, 2, 4, 6, None, 10]), (sometimes, [0, 2, 2, 6, None, 10])):
        mapped: Task[[int], Any] = task(pool=kind)(fn)
        ends = mapped.map(range(6), errors="collect", chunksize=chunksize).result(PATIENCE)
        assert [end.value for end in ends] == expected
        assert isinstance(ends[4].error, KeyError)


# -- what they are called ---------------------------------------------------------------------------------------------


def called(x: int) -> str:
    """Return the name of the call."""
    return current_task().name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [{}, {"seed": 1}, {"timeout": "3x median"}, {"timeout": 60}])
def test_the_name_of_an_item(kind: str, said: dict[str, Any]) -> None:
    """Inside, it is that of the function, however items are sent."""
    named = task(pool=kind)(called)
    assert set(named.map(range(5), **said).result(PATIENCE)) == {named.name}
