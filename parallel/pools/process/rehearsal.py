"""
Calls that run here as if they had travelled: packed and loaded as a pool of processes does it, each way.

    fn, arguments ──▶ packed ──▶ loaded: copies ──▶ the call, on the thread at hand ──▶ value or error
                                                            packed ──▶ loaded: a copy ◀──┘

What can't travel is the error that a pool of processes would give, made by the same rooms. A function that a worker
finds by its name is the function itself here; one that travels by value is a copy, each time anew.

State: `_shared`, changed by single atomic steps; of a `Shared`, the copy, loaded by the first who asks for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextvars import Context
from types import MethodType
from typing import Any, Final
from weakref import WeakValueDictionary

from parallel.context import plain_function
from parallel.coroutines import run_coroutine
from parallel.outcomes import Outcome, is_coroutine
from parallel.pools.process.failures import pack_error
from parallel.pools.process.packing import Item, Packed, Packer, came_from_outside
from parallel.pools.process.parcels import IN_BAND, Parcel, Posted, Received, encode, open_posted, receive
from parallel.pools.process.passages import Passage
from parallel.pools.process.pickling import dumps, loads, main_is_importable
from parallel.pools.process.replies import outcome_of
from parallel.pools.process.segments import Lease, Store
from parallel.pools.process.wire import FAILED, NOT_FOUND, POSTED, RESULT, UNREADABLE, UNSENDABLE, Part

_number = itertools.count(1).__next__


class Rehearsal:
    """Packs calls as a pool of processes does, for functions to be run here."""

    def __init__(self) -> None:
        self._main_by_value = not main_is_importable()
        self._store = _InBand(0)
        self._packer = Packer(self._main_by_value, self._store)

    def pack(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
    ) -> Rehearsed | Outcome:
        """Return the call, or how it ended if it can't be sent; see `Packer.pack`."""
        packed = self._packer.pack(fn, args, kwargs, context)
        if not isinstance(packed, Packed):
            return packed
        plain: Any = plain_function(fn)
        if type(plain) is MethodType:
            plain = plain.__func__  # as it was packed: the object is the first argument
        known, item = packed
        return Rehearsed(known.name, None if known.reference is None else plain, item, self._main_by_value, self._store)

    def share(self, value: object) -> Shared:
        """Return what stands for a value that many calls share. What pickling it raises, comes out."""
        return Shared(value, self._main_by_value)


class Rehearsed:
    """
    A call that was packed; each time that it is called, it is loaded and run.

    Attributes:
        name: That of its function.
    """

    def __init__(self, name: str, fn: Callable[..., Any] | None, item: Item, main_by_value: bool, store: Store) -> None:
        """
        Make one.

        Args:
            name: That of its function.
            fn: Its function, if that is found by its name; None: it stands before the arguments.
            item: Its arguments, packed.
            main_by_value: No worker could import `__main__`.
            store: Where nothing is written.
        """
        self.name = name
        self._fn = fn
        self._item = item
        self._main_by_value = main_by_value
        self._store = store

    def __call__(self) -> Any:
        """Run it on copies of its arguments, and return a copy of its value, or raise one of its error."""
        value, error, _ = outcome_of(self.name, self._result(), b"", _Arrivals())
        if error is None:
            return value
        try:
            raise error
        finally:
            del self, error  # it refers to this frame: break the cycle

    def _result(self) -> tuple[Any, ...]:
        """Do what a worker does with a call, and return what it would send; see `worker`."""
        problem = UNREADABLE
        try:
            args, kwargs = self._load()
            problem = NOT_FOUND
            fn, args = (loads(args[0]), args[1:]) if self._fn is None else (self._fn, args)
            problem = FAILED
            value: Any = fn(*args, **kwargs)
            if is_coroutine(value):
                value = run_coroutine(value)
            problem = UNSENDABLE
            packed = encode(value, self._main_by_value, self._store)
        except BaseException as error:
            if problem != FAILED and came_from_outside(error):
                raise
            return (problem, *pack_error(error, self._main_by_value))
        return (POSTED, *_posted(packed)) if isinstance(packed, Parcel) else (RESULT, packed)

    def _load(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        item = self._item
        if isinstance(item, tuple):
            return item, {}
        args, kwargs = open_posted(_posted(item), _NOWHERE) if isinstance(item, Parcel) else loads(item)
        return args, kwargs


class Shared:
    """A value as it is now, which many calls share: it is loaded once, and they see what each of them makes of it."""

    def __init__(self, value: object, main_by_value: bool) -> None:
        self._packed = dumps(value, main_by_value)
        self._copy: list[Any] = []
        self._number = _number()
        _shared[self._number] = self

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return copy_of, (self._number,)

    def copy(self) -> Any:
        """Return the copy; what loading it raises, comes out."""
        if not self._copy:
            self._copy.append(loads(self._packed))
        return self._copy[0]


_shared: Final[WeakValueDictionary[int, Shared]] = WeakValueDictionary()


def copy_of(number: int) -> Any:
    """Return the copy of the shared value with that number. The name of this is in pickles."""
    return _shared[number].copy()


class _InBand(Store):
    """A store without room: what is large stays with its pickle."""

    def write(self, parts: Sequence[memoryview]) -> Lease | None:
        return None


_NOWHERE: Final = Passage(None)
"""What comes in band comes by no passage."""


def _posted(parcel: Parcel) -> Posted:
    return parcel.data, IN_BAND, parcel.sizes, parcel.whole


class _Arrivals:
    """Where a value arrives that has not been anywhere."""

    def receive(self, posted: tuple[Any, ...], large: Part) -> Received:
        """Return what `load` makes the value of."""
        data, number, sizes, whole = posted
        return receive((data, number, sizes, whole), _NOWHERE)
