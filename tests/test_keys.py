"""
Keys of items: canonical pickles, the digests of these, and counting equal ones.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel import keys
from parallel.keys import LENGTH, canonical, canonical_word, digests
from parallel.occurrences import Occurrences

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
items = st.recursive(
    hashable | st.sets(hashable, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hashable, inner, max_size=3),
    max_leaves=6,
)


def exact(value: object) -> object:
    """Return what is equal for two values if their types and the order of their dicts are the same as well."""
    if isinstance(value, tuple | list):
        return type(value), tuple(map(exact, value))
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(exact, value))
    if isinstance(value, dict):
        return dict, tuple((exact(key), exact(one)) for key, one in value.items())
    return type(value), repr(value)


@given(items, items)
def test_equal_items_alone_have_equal_pickles(one: object, other: object) -> None:
    """Two values have the same bytes if, and only if, they are equal, with the same types all the way down."""
    assert (canonical(one) == canonical(other)) == (exact(one) == exact(other))


@given(items)
def test_a_copy_is_the_same_item(value: object) -> None:
    """It doesn't matter which parts of a value are one object."""
    again = pickle.loads(pickle.dumps(value))
    assert canonical(again) == canonical(value)
    assert canonical((again, again)) == canonical((value, copy.deepcopy(value)))


@given(
    st.lists(hashable, max_size=8, unique=True).flatmap(lambda some: st.tuples(st.just(some), st.permutations(some)))
)
def test_the_order_of_a_set_does_not_matter(orders: tuple[list[object], list[object]]) -> None:
    """Sets with the same members are the same item, in whatever order they got them."""
    one, other = orders
    assert canonical([set(one)]) == canonical([set(other)])


def test_sets_are_the_same_in_every_process(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """The hashes of strings, which are others in each process, don't matter."""
    script = dedent("""
    from parallel.keys import canonical
    print(canonical([{"a", "b", "c", "d"}, frozenset({("x", 1), ("y", 2)}), {"k": {"l", "m"}}]).hex())
    """)
    told = {run_script(script, env={"PYTHONHASHSEED": seed}).stdout for seed in ("0", "1", "2")}
    assert len(told) == 1


def test_other_values() -> None:
    """What pickle takes is an item."""
    some = [
        Path("a/b"),
        date(2024, 2, 29),
        Decimal("1.0"),
        Decimal("1.00"),
        len,
        Counter("abc"),
        Ellipsis,
        1,
        1.0,
        True,
    ]
    assert len({canonical(one) for one in some}) == len(some)
    assert [canonical(one) for one in copy.deepcopy(some)] == [canonical(one) for one in some]


class Node:
    """Has itself in it."""

    def __init__(self) -> None:
        self.others: set[Node] = {self}
        self.all: list[object] = [self]


def test_cycles() -> None:
    """A value that has itself in it is an item, also by way of a set."""
    loop: list[object] = []
    loop.append(loop)
    assert canonical(loop) == canonical(loop) != canonical([[]])
    assert canonical(Node())


def test_endless_sharing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure that would be endless without a memo is pickled with one."""
    monkeypatch.setattr(keys, "MOST", 1 << 18)
    value: object = ["leaf"]
    for _ in range(100):
        value = [value, value]
    assert len(canonical(value)) < 10_000


def test_large_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value beyond the limit is an item as well."""
    monkeypatch.setattr(keys, "MOST", 1 << 10)
    value = [bytes(5_000), "x" * 5_000]
    assert canonical(value) == canonical(copy.deepcopy(value))


def test_what_can_not_be_pickled() -> None:
    """What pickle refuses is refused; nothing goes by value, as that is not the same in each run."""
    for value in (threading.Lock(), lambda: None):
        with pytest.raises(Exception, match=r"pickle"):
            canonical((value,))


def test_digests() -> None:
    """A digest is the first half of a SHA-256."""
    assert digests([b"a", b"b"]) == [hashlib.sha256(text).digest()[:LENGTH] for text in (b"a", b"b")]


words = st.recursive(st.text(max_size=3) | st.integers() | st.binary(max_size=3), lambda one: st.lists(one).map(tuple))


@given(words, words)
def test_words(one: object, other: object) -> None:
    """Two keys of the user's are the same if they are equal, and none is an item."""
    assert (canonical_word(one) == canonical_word(other)) == (one == other)
    assert canonical_word(one) != canonical(one)


@pytest.mark.parametrize("word", [None, 1.5, True, ["a"], ("a", None), (("a", {}),)], ids=repr)
def test_no_words(word: object) -> None:
    """All else is refused, with the words that are possible."""
    with pytest.raises(TypeError, match=r"key= returned .*a key is a str, an int, bytes, or a tuple of these"):
        canonical_word(word)


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"])), max_size=5))
def test_occurrences(batches: list[list[bytes]]) -> None:
    """Each gets the number of equal ones before it, however they are cut into batches."""
    counting = Occurrences()
    told = [count for batch in batches for count in counting.count(batch)]
    counting.close()
    flat = [one for batch in batches for one in batch]
    assert told == [flat[:place].count(one) for place, one in enumerate(flat)]


def test_many_occurrences() -> None:
    """More than one statement may ask for are counted too."""
    counting = Occurrences()
    some = digests(str(number).encode() for number in range(5_000))
    assert counting.count(some) == [0] * 5_000
    assert counting.count([*some[:10], b"new", *some]) == [1] * 10 + [0] + [2] * 10 + [1] * 4_990
    counting.close()
