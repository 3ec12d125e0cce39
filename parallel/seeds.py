"""
What a map draws: one independent random generator per item, whatever the pool, the chunks and the workers.

    seed=42 ──▶ read_seed() ──▶ Draws, one per chunk ──▶ item(i), before each item ──▶ rng(), in the item's function

Guarantees:
- Item i draws the same numbers in every run with the same seed, in a later attempt too: each begins anew.
- Who doesn't ask for a generator pays a few nanoseconds an item: it is made when it is first asked for.
- A generator is one item's alone. A call that is made in an item's function gets none, wherever it runs: whether it
  runs before or after what the function draws next is chance, and so would be the numbers.

State: `_DRAWS` is per context, so that coroutines that run interleaved don't meet. A `Draws` is changed by the thread,
or the coroutine, that goes through its chunk. Calls that are made in an item have a copy of its context: they are told
apart by `_runner`.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast, overload

from parallel import context
from parallel.checks import described
from parallel.context import RUNNING, this
from parallel.errors import NoTaskError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

Seed: TypeAlias = "int | Sequence[int]"
"""What a map is given: an integer of at least 0, of any size, or several, as `numpy.random.SeedSequence` takes them."""


def read_seed(value: object) -> int | tuple[int, ...]:
    """
    Read a seed.

    >>> read_seed(42), read_seed([42, 7])
    (42, (42, 7))

    Returns:
        It, made of nothing but integers: it can travel.

    Raises:
        TypeError: *value* is no integer and no sequence of integers.
        ValueError: It is empty, or an integer is less than 0.
    """
    several = _is_sequence(value)
    found = cast("Sequence[object]", value) if several else (value,)
    error = TypeError if any(isinstance(each, bool) for each in found) else ValueError
    try:
        numbers = tuple(map(operator.index, cast("Sequence[int]", found)))  # numpy's integers are welcome
    except TypeError:
        numbers, error = (), TypeError
    if error is TypeError or not numbers or min(numbers) < 0:
        raise error(f"seed: expected integers from 0 on, such as 42 or [42, 7], found {described(value)}")
    return numbers if several else numbers[0]


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


class Draws:
    """
    What the items of one chunk draw: entered around the chunk, by who runs it, and told of each item.

        with Draws(seed) as draws:
            for index, item in chunk:
                draws.item(index)
                fn(item)

    It is entered in the call that runs the chunk; of coroutines that run interleaved, each enters one of its own.

    Args:
        seed: What `read_seed` returned.
    """

    __slots__ = ("_index", "_made", "_outer", "_runner", "_seed")

    def __init__(self, seed: int | tuple[int, ...]) -> None:
        self._seed = seed
        self._index: int | None = None  # None: no item runs
        self._made: dict[object, Any] = {}  # what the item has asked for, by what made it
        self._runner: object = None  # what runs the chunk, see `_runner`

    def __enter__(self) -> Self:
        self._runner = _runner()
        self._outer: Token[Draws | None] = _DRAWS.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _DRAWS.reset(self._outer)
        self._index = self._runner = None  # contexts that calls have copied may keep this one for long
        self._made = {}

    def item(self, index: int) -> None:
        """Note that an attempt at the item of that number begins."""
        self._index = index
        if self._made:
            self._made = {}

    def made_by(self, make: Callable[[int | tuple[int, ...], int], T]) -> T:
        """
        Return the item's generator that *make* makes from the seed and the item's number, the same one each time.

        Raises:
            NoTaskError: This code runs in none of its items.
        """
        index, made = self._index, self._made
        if index is None or self._runner is not _runner():
            raise NoTaskError(_NOT_SEEDED)
        found: T | None = made.get(make)
        return made.setdefault(make, make(self._seed, index)) if found is None else found


@contextmanager
def seeded(seed: int | tuple[int, ...], first: int, fn: Callable[[Any], T]) -> Generator[Callable[[Any], T]]:
    """
    Have a function draw: it is called once with each item of a chunk, in order.

    Args:
        seed: What `read_seed` returned.
        first: The index of the first item.
        fn: The function of one item.
    """
    with Draws(seed) as draws:
        numbers = count(first)

        def draw(item: Any) -> T:
            draws.item(next(numbers))
            return fn(item)

        yield draw


_DRAWS: ContextVar[Draws | None] = ContextVar("parallel.draws", default=None)
"""What the chunk draws that is gone through here; None: there is none, or it has no seed."""

_NOT_SEEDED = (
    "no item of a map with a seed is running here: rng() is for the function of a map such as "
    "`@parallel_map(seed=42)`, not for calls that it makes nor for threads that it starts"
)


@overload
def rng() -> np.random.Generator: ...
@overload
def rng(kind: type[Random], /) -> Random: ...
def rng(kind: type[Random] | None = None, /) -> np.random.Generator | Random:
    """
    Return the random generator of the item that this function was called with, in a map that has a seed.

        @parallel_map(seed=42)
        def hits(draws: int) -> int:
            x, y = parallel.rng().random((2, draws))
            return int((x * x + y * y < 1).sum())

    Which numbers it draws is told by the seed and the item's place in the input alone. In one item it is one object,
    however often it is asked for; a second attempt at the item begins anew.

    Args:
        kind: `random.Random` for one of the standard library. By default it is numpy's, as `numpy.random.default_rng`
            makes it from `SeedSequence(seed, spawn_key=(i,))`. What is drawn never hangs on what is installed.

    Raises:
        NoTaskError: No item of a map with a seed is running here; calls that are made in its function have no share in
            its generator.
        ModuleNotFoundError: numpy is not installed.
        TypeError: *kind* is something else.
    """
    if kind is not None and kind is not Random:
        raise TypeError(f"expected `random.Random`, or nothing for a generator of numpy, found {described(kind)}")
    draws = _DRAWS.get()
    if draws is None:
        raise NoTaskError(_NOT_SEEDED)
    return draws.made_by(_of_numpy) if kind is None else draws.made_by(_of_python)


def _of_numpy(seed: int | tuple[int, ...], index: int) -> np.random.Generator:
    try:
        from numpy.random import SeedSequence, default_rng  # optional, and 100 ms
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "rng() makes a generator of numpy, which is not installed: install it with `pip install numpy`, or ask for "
            "one of the standard library with `rng(random.Random)`",
            name=error.name,
        ) from error
    return default_rng(SeedSequence(seed, spawn_key=(index,)))


def _of_python(seed: int | tuple[int, ...], index: int) -> Random:
    from hashlib import sha256  # loads OpenSSL

    numbers = seed if isinstance(seed, tuple) else (seed,)
    text = f"{','.join(f'{each:x}' for each in numbers)}/{index:x}"  # hexadecimal: of any length
    return Random(int.from_bytes(sha256(text.encode("ascii")).digest(), "big"))


def _runner() -> object:
    """
    Return what runs the present code: in a call that is made here, it is another one.

    A worker of a process pool is that itself, on its main thread: what is run inline there has a waiter of its own.
    """
    worker = this.worker
    if worker is None:
        return RUNNING.get()
    if context.in_worker_process and threading.current_thread() is threading.main_thread():
        return worker
    return worker.running if worker.running is not None else RUNNING.get()
