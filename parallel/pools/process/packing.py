"""
What a submit makes of a call: what brings it to a worker, whichever that will be.

    fn ──▶ find() ──▶ Known: by reference where a worker can look it up, else by value ─┐
    arguments ──▶ atoms as they are, anything else pickled, a parcel if it is large ────┴──▶ Packed

A call that can't be pickled has an outcome of its own instead. Pickling runs user code, so whatever comes out of it
ends the call only; except a Ctrl-C that comes while the code here runs, which is the caller's.

State: the tables of functions, changed by single atomic steps: two threads may make a `Known` of the same, and the last
one stays.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from contextvars import Context
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from parallel.context import name_of, plain_function
from parallel.outcomes import Outcome
from parallel.pools.process.buffers import has_large_bytes
from parallel.pools.process.carrying import Carrier, Values
from parallel.pools.process.constants import Constant, Sharing, met
from parallel.pools.process.costs import Known
from parallel.pools.process.parcels import Parcel, encode_arguments
from parallel.pools.process.pickling import are_atoms, dumps
from parallel.pools.process.references import refer
from parallel.pools.process.replies import cant_travel
from parallel.pools.process.segments import Store
from parallel.pools.process.wire import are_small_atoms

Item: TypeAlias = tuple[Any, ...] | bytes | Parcel
"""The arguments, as `wire` has them; or with large data, or constants: see `baggage`."""

FEW: Final = 1000
"""Functions that are remembered for the short way. A program with more of them looks them up anew now and then."""


class Packed(tuple[Known, Item]):
    """
    A call that can travel: the work of its future.

    A type of its own, as whoever finds a bare tuple there takes it for a function and its arguments.
    """

    __slots__ = ()

    @property
    def known(self) -> Known:
        """Its function."""
        return self[0]

    @property
    def name(self) -> str:
        """The name of its function."""
        return self[0].name


class Packer:
    """
    Makes the calls of one pool.

    Attributes:
        known: The functions by their numbers on the wire.
    """

    def __init__(self, main_by_value: bool, store: Store, carrier: Carrier | None = None) -> None:
        """
        Make one that has packed nothing.

        Args:
            main_by_value: No worker can import `__main__`.
            store: Where large data is written.
            carrier: Knows the context variables that travel with a call; None: none do.
        """
        self._main_by_value = main_by_value
        self._store = store
        self._carrier = carrier
        self._numbers = itertools.count(1)
        self.known: dict[int, Known] = {}
        self._recent: dict[int, Known] = {}  # by the identity of their functions, which may have died meanwhile
        self._by_reference: dict[bytes, Known] = {}
        self._by_code: WeakKeyDictionary[CodeType, Known] = WeakKeyDictionary()

    def pack_quickly(
        self, fn: Callable[..., Any], args: tuple[Any, ...], context: Context | None = None
    ) -> Packed | None:
        """Pack a call if that runs no code of the user's: a function that was called before, with atoms."""
        known = self._recent.get(id(fn))
        if known is None or known.reference is None or not known.reference.leads_to(fn):
            return None
        if args and not are_small_atoms(args):
            return None
        if self._carrier is not None and self._carrier.values(context) is not None:
            return None
        return Packed((known, args))

    def pack(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context | None = None
    ) -> Packed | Outcome:
        """
        Return the call, or how it ended if it can't be sent.

        Args:
            fn: What is called.
            args: With what.
            kwargs: Likewise, by name.
            context: Where the call is made; None: here.
        """
        values = None if self._carrier is None else self._carrier.values(context)
        plain: Any = fn if type(fn) is FunctionType else plain_function(fn)
        if type(plain) is MethodType:
            # By its function, which may be sent by reference: the method's name may be bound to a task.
            plain, args = plain.__func__, (plain.__self__, *args)
        known = self._find(plain)
        if known is None:
            return self._pack_by_value(plain, args, kwargs, values)
        if not kwargs and values is None and are_small_atoms(args):
            return Packed((known, args))
        return self._packed(known, args, kwargs, values)

    def _find(self, plain: Any) -> Known | None:
        """Return what a function is known as; None if it has to travel by value."""
        reference = refer(plain, self._main_by_value)
        if reference is None:
            return None
        known = self._by_reference.get(reference.key)
        if known is None or known.reference is not reference:
            # The same function, if its name was bound to another one meanwhile: its number and cost stay.
            number = next(self._numbers) if known is None else known.number
            cost = 0 if known is None else known.cost
            known = Known(number, reference, reference.name)
            known.cost = cost
            self.known[number] = self._by_reference[reference.key] = known
        if len(self._recent) >= FEW:
            self._recent.clear()
        self._recent[id(plain)] = known
        return known

    def _pack_by_value(
        self, plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values | None
    ) -> Packed | Outcome:
        known = self._known_by_code(plain)
        try:
            function = dumps(plain, self._main_by_value)
        except BaseException as error:  # the user's __reduce__ runs here
            return _unsendable(f"the function {known.name}", error)
        return self._packed(known, (function, *args), kwargs, values)

    def _packed(
        self, known: Known, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values | None
    ) -> Packed | Outcome:
        try:
            return Packed((known, self._item(args, kwargs, values)))
        except BaseException as error:  # as above
            return _unsendable(f"the arguments of {known.name}", error)

    def _item(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values | None) -> Item:
        packed: bytes | Parcel
        if values is not None:
            packed = encode_arguments(args, kwargs, self._main_by_value, self._store, values)
        elif not kwargs and are_atoms(args) and not has_large_bytes(args, 1):
            packed = pickle.dumps((args, kwargs), pickle.HIGHEST_PROTOCOL)
        else:
            packed = encode_arguments(args, kwargs, self._main_by_value, self._store)
        constants = met()  # those of a function that travels by value as well
        return Sharing(packed, constants) if constants else packed

    def constant(self, value: object) -> Constant:
        """Pack what many calls share. What pickling it raises, comes out."""
        return Constant(value, self._main_by_value, self._store)

    def _known_by_code(self, plain: Any) -> Known:
        """Return what a function that travels by value costs: closures of one code share that, others are new."""
        if type(plain) is not FunctionType:
            return Known(0, None, name_of(plain))
        known = self._by_code.get(plain.__code__)
        if known is None:
            known = Known(next(self._numbers), None, name_of(plain))
            self.known[known.number] = self._by_code[plain.__code__] = known
        return known


def _unsendable(what: str, error: BaseException) -> Outcome:
    met()  # what it has of them is not needed
    if came_from_outside(error):
        raise error
    return (None, cant_travel(what, error, "send what it is made from, or something that can be pickled"), None)


def came_from_outside(error: BaseException) -> bool:
    """Tell whether this is a Ctrl-C that came while code of this library ran, rather than out of the user's."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return str(module).startswith(("parallel.pools.process.", "parallel.pools.distant."))
