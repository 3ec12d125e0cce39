"""
Constants: objects that many calls share, written once, and sent to each worker once.

    Constant(value, store) ──▶ a parcel, once
        among the arguments of a call: its number only
        with the first such call to a worker: introduce() ──▶ (number, parcel) ──▶ learn() ──▶ the object
        it has died ─────────────────────────▶ gone() ──────▶ [number, …] ───────▶ unlearn()

A worker maps a constant when it hears of it, and loads it when a call first asks for it. Its calls share the object, as
threads would: what one writes into it, its later calls on that worker see; no other worker does, nor the pool's
process. The value is that of the moment in which the constant was made.

State: of an `Introductions`, changed by the thread that may send to that worker, except `_gone`, by single atomic
steps; of a `Constants`, the worker's one thread's.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn, TypeAlias

from parallel.pools.process.buffers import load
from parallel.pools.process.parcels import Parcel, Posted, encode, post, receive
from parallel.pools.process.passages import Passage
from parallel.pools.process.pickling import loads
from parallel.pools.process.segments import Store

Introduction: TypeAlias = tuple[int, bytes | Posted]
"""The number of a constant, and what it is."""

_number = itertools.count(1).__next__


class Constant:
    """An object as it is now. It may be given to any call of its pool instead of the object."""

    __slots__ = ("__weakref__", "number", "packed")

    def __init__(self, value: object, main_by_value: bool, store: Store) -> None:
        """
        Pack *value*; what pickling it raises, comes out.

        Args:
            value: Anything.
            main_by_value: No worker can import `__main__`.
            store: That of the pool.
        """
        self.number = _number()
        self.packed: bytes | Parcel = encode(value, main_by_value, store)

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return _constant, (self.number,)


class Introductions:
    """Which constants a worker knows, as its pool sees it."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Constant]] = {}
        self._gone: deque[int] = deque()

    def introduce(self, constants: Iterable[Constant], passage: Passage) -> list[Introduction]:
        """Return what is to stand in the next message to the worker, before the calls that have *constants*."""
        introductions: list[Introduction] = []
        for constant in constants:
            if constant.number not in self._known:
                self._known[constant.number] = weakref.ref(constant, _Farewell(constant.number, self._gone))
                packed = constant.packed
                introductions.append((constant.number, post(packed, passage) if isinstance(packed, Parcel) else packed))
        return introductions

    def gone(self) -> list[int]:
        """Return the constants that no call can ask for any more: to be told to the worker."""
        numbers: list[int] = []
        while self._gone:
            number = self._gone.popleft()
            self._known.pop(number, None)
            numbers.append(number)
        return numbers


class _Farewell:
    """Notes that a constant has died."""

    __slots__ = ("gone", "number")

    def __init__(self, number: int, gone: deque[int]) -> None:
        self.number = number
        self.gone = gone

    def __call__(self, constant: weakref.ref[Constant]) -> None:
        self.gone.append(self.number)


class Constants:
    """The constants that a worker knows."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._sent: dict[int, Callable[[], Any]] = {}  # how to load those that were not asked for yet
        self._loaded: dict[int, Any] = {}
        _here.clear()
        _here.append(self)

    def learn(self, introductions: Iterable[Introduction]) -> None:
        """Note what the pool says before calls that have constants."""
        for number, what in introductions:
            self._sent[number] = self._receive(what)

    def _receive(self, what: bytes | Posted) -> Callable[[], Any]:
        """Take out of the passage what has come for a constant: descriptors are received in the order of messages."""
        if isinstance(what, bytes):
            return partial(loads, what)
        try:
            return partial(load, *receive(what, self._passage))
        except (OSError, EOFError) as error:
            return partial(_fail, error)

    def unlearn(self, numbers: Iterable[int]) -> None:
        """Drop what no call will ask for."""
        for number in numbers:
            self._sent.pop(number, None)
            self._loaded.pop(number, None)

    def find(self, number: int) -> Any:
        """Return a constant; what loading it raises, comes out."""
        if number not in self._loaded:
            self._loaded[number] = self._sent[number]()
            del self._sent[number]
        return self._loaded[number]


def _fail(error: Exception) -> NoReturn:
    raise error


_here: list[Constants] = []
"""Those of this process, if it is a worker."""


def _constant(number: int) -> Any:
    """Return a constant, in a worker. Its name is in pickles: both sides have the same version."""
    return _here[0].find(number)
