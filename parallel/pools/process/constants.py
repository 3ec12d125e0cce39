"""
Constants: objects that many calls share, written once, and sent to each worker once.

    Constant(value, store) ──▶ a parcel, once
        pickled among the arguments of a call: its number only; the call's item becomes `Sharing`, by `met`
        with the first such call to a worker: introduce() ──▶ (number, parcel) ──▶ learn() ──▶ the object
        it has died ─────────────────────────▶ gone ────────▶ [number, …] ───────▶ unlearn()

A worker maps a constant when it hears of it, and loads it when a call first asks for it. Its calls share the object, as
threads would: what one writes into it, its later calls on that worker see; no other worker does, nor the pool's
process. The value is that of the moment in which the constant was made.

State: of an `Introductions`, changed by the thread that may send to that worker, except `gone`, by single atomic
steps; of a `Constants`, the worker's one thread's; `_met`, per thread.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn, TypeAlias

from parallel.pools.process.buffers import load
from parallel.pools.process.parcels import Parcel, Posted, encode, post, receive
from parallel.pools.process.passages import News, Passage
from parallel.pools.process.segments import Store

Introduction: TypeAlias = tuple[int, Posted]
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
        packed = encode(value, main_by_value, store)
        self.packed = packed if isinstance(packed, Parcel) else Parcel(packed, None, (), 0)

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        _met.constants.append(self)
        return _constant, (self.number,)


class _Met(threading.local):
    """The constants that this thread has pickled, since somebody asked."""

    def __init__(self) -> None:
        self.constants: list[Constant] = []


_met = _Met()


def met() -> list[Constant]:
    """Return the constants that this thread has pickled since the last time: what it has packed needs them."""
    constants = _met.constants
    if constants:
        _met.constants = []
    return constants


class Sharing(Parcel):
    """
    A parcel that needs constants.

    Attributes:
        constants: They live as long as it, and so do the workers' copies.
    """

    __slots__ = ("constants",)

    def __init__(self, packed: bytes | Parcel, constants: list[Constant]) -> None:
        if isinstance(packed, Parcel):
            super().__init__(packed.data, packed.lease, packed.sizes, packed.whole)
        else:
            super().__init__(packed, None, (), 0)
        self.constants = constants


class Introductions:
    """
    Which constants a worker knows, as its pool sees it.

    Attributes:
        gone: Those that no call can ask for any more: to be told to the worker, after `forget`.
    """

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Constant]] = {}
        self.gone = News()

    def introduce(self, constants: Iterable[Constant], passage: Passage) -> list[Introduction]:
        """Return what is to stand in the next message to the worker, before the calls that have *constants*."""
        introductions: list[Introduction] = []
        for constant in constants:
            if constant.number not in self._known:
                self._known[constant.number] = weakref.ref(constant, _Farewell(constant.number, self.gone))
                introductions.append((constant.number, post(constant.packed, passage)))
        return introductions

    def forget(self, gone: Iterable[int]) -> None:
        """Forget constants that are gone."""
        for number in gone:
            self._known.pop(number, None)


class _Farewell:
    """Notes that a constant has died."""

    __slots__ = ("gone", "number")

    def __init__(self, number: int, gone: News) -> None:
        self.number = number
        self.gone = gone

    def __call__(self, constant: weakref.ref[Constant]) -> None:
        self.gone.note(self.number)


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

    def _receive(self, what: Posted) -> Callable[[], Any]:
        """Take out of the passage what has come for a constant: descriptors are received in the order of messages."""
        try:
            return partial(load, *receive(what, self._passage))
        except (OSError, EOFError, MemoryError) as error:
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
    if not _here:
        raise RuntimeError("a constant of a process pool is known to the pool's workers only")
    return _here[0].find(number)
