"""
Packets: calls that travel by somebody else's means, and what comes back.

    fn, arguments ──▶ pack_call() ──▶ Letter ──▶ addressed() ──▶ Packet ──▶ (the engine's own way) ──▶ worker
    value ──▶ Bundle ──▶ in an Answer ──▶ outcome_of() ──▶ value

What a worker can import travels by reference, anything else by value; what `__main__` defines by value, as no worker of
somebody else's imports that. What is large lies beside the pickle: whoever pickles a bundle with protocol 5, and takes
buffers out of band, copies none of it again.

What many calls need, such as the constants of a map, is a `Supply`: it travels once to each process. A packet names
those that it needs; a worker that lacks one says so, and is sent the packet again with what it lacks.

State: `_met`, per thread. Packing runs the user's code; no lock is held.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping
from contextvars import Context
from pickle import PickleBuffer
from types import MethodType
from typing import Any, Final, NamedTuple, SupportsIndex, TypeAlias, cast

from parallel.context import name_of, plain_function
from parallel.outcomes import Outcome
from parallel.pools.distant.uploads import Upload
from parallel.pools.process.buffers import has_large_bytes, load
from parallel.pools.process.carrying import Carrier
from parallel.pools.process.packing import came_from_outside
from parallel.pools.process.parcels import Received, pickled_apart
from parallel.pools.process.pickling import dumps
from parallel.pools.process.references import refer
from parallel.pools.process.replies import cant_travel
from parallel.pools.process.replies import outcome_of as outcome_of_result
from parallel.pools.process.wire import NOT_FOUND, UNREADABLE, Part

ORIGIN: Final = os.urandom(8).hex()
"""This process, among all that send packets; a forked child's is another one: see `origin`."""

BY_VALUE: Final = True
"""What `__main__` defines travels so: see `dumps`."""

NEEDS: Final = -1
"""The kind of an answer that names the supplies that the worker lacks; the other kinds are those of `wire`."""

_FORMAT: Final = 5
"""The first protocol of pickle that takes buffers out of band."""

Answer: TypeAlias = tuple[Any, ...]
"""
What comes back: `(NEEDS, keys)`, `(POSTED, bundle)`, or the kind of a failure and its two parts; see `failures`.
"""

_numbers = itertools.count(1)


def origin() -> str:
    """Name this process, as no other is named, on no other machine either."""
    return f"{ORIGIN}-{os.getpid()}"


class Bundle:
    """
    A value that is packed, as it was at that moment.

    Args:
        data: Its pickle.
        parts: What lies beside it: buffers, then `bytes`.
        whole: How many of the parts were `bytes`.
        frozen: Whether each of the others was read-only.
    """

    __slots__ = ("data", "frozen", "parts", "whole")

    def __init__(self, data: bytes, parts: tuple[Any, ...], whole: int, frozen: tuple[bool, ...]) -> None:
        self.data = data
        self.parts = parts
        self.whole = whole
        self.frozen = frozen

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.data) + sum(memoryview(part).nbytes for part in self.parts)

    def load(self) -> Any:
        """Return the value; what loading it raises, comes out."""
        return load(*self.received())

    def received(self) -> Received:
        """Return what `load` takes. What was writable is so again: by a copy, where it has come read-only."""
        views = [memoryview(part) for part in self.parts]
        for index, is_frozen in enumerate(self.frozen):
            if views[index].readonly and not is_frozen:
                views[index] = memoryview(bytearray(views[index]))
        return self.data, views, self.whole

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        parts = tuple(map(PickleBuffer, self.parts)) if int(protocol) >= _FORMAT else tuple(map(bytes, self.parts))
        return Bundle, (self.data, parts, self.whole, self.frozen)


def bundle(value: object, depth: int = 1, *, takes_bytes: bool | None = None) -> Bundle:
    """
    Pack *value*; what pickling it raises, comes out.

    Args:
        value: Anything.
        depth: How deep to look for large `bytes` in it.
        takes_bytes: Whether there are such; None: if it is such itself.
    """
    at_once = has_large_bytes(value, 0) if takes_bytes is None else takes_bytes
    data, leaving = pickled_apart(value, at_once, depth, BY_VALUE)
    buffers = leaving.buffers
    whole = leaving.whole if leaving.takes_bytes else []
    parts = (*map(bytes, buffers), *(each if type(each) is bytes else bytes(each) for each in whole))
    return Bundle(data, parts, len(whole), tuple(view.readonly for view in buffers))


class Supply:
    """
    A value as it is now, which many calls need: the value itself among the arguments of a call, once it is there.

    Attributes:
        key: Names it, in whatever process.
        bundle: The value.
    """

    __slots__ = ("__weakref__", "bundle", "key")

    def __init__(self, value: object) -> None:
        self.key = f"{origin()}-{next(_numbers)}"
        self.bundle = bundle(value)

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        _met.supplies.append(self)
        return _supplied, (self.key,)


def _supplied(key: str) -> Any:
    """Return what a supply stands for, in a worker. The name of this is in pickles."""
    return _stock[0](key)


_stock: Final[list[Callable[[str], Any]]] = []
"""How a worker finds a supply; see `worker`."""


def set_stock(find: Callable[[str], Any]) -> None:
    """Say how supplies are found in this process, a worker."""
    _stock[:] = [find]


class _Met(threading.local):
    """The supplies that this thread has pickled, since somebody asked."""

    def __init__(self) -> None:
        self.supplies: list[Supply] = []


_met = _Met()


class Letter(tuple[str, bytes, bool, Bundle, tuple[Supply, ...]]):
    """
    A call that can travel: its name, the function, whether that is by value, the arguments, and what it needs.

    The work of its future; a type of its own, as whoever finds a bare tuple there takes it for a function and its
    arguments.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name of its function."""
        return self[0]

    @property
    def supplies(self) -> tuple[Supply, ...]:
        """What it needs besides."""
        return self[4]


class Facts(NamedTuple):
    """
    What a function can ask about its call.

    Attributes:
        id: Its number in the process that it comes from.
        attempt: Which attempt this is.
        seconds: After which it has to have ended, from its arrival on; None: it has no deadline.
        budget: Of a piece of a map: nanoseconds after which no other item is begun.
        is_timed: It has a timeout, which counts from when it is told to begin.
    """

    id: int
    attempt: int
    seconds: float | None
    budget: int
    is_timed: bool


class Packet(NamedTuple):
    """
    A call on its way.

    Attributes:
        number: Which one it is, of its origin.
        origin: The process that it comes from.
        setup: The key of the supply that says how its calls are run.
        needs: The keys of what else it needs.
        line: Tells its origin what becomes of it meanwhile; None: nothing does.
        name: That of its function.
        function: A reference, or the function itself, pickled.
        by_value: Whether it is the function itself.
        arguments: What it is called with: `(args, kwargs)`, and the values of context variables, if any are sent.
        facts: What it can ask.
    """

    number: int
    origin: str
    setup: str
    needs: tuple[str, ...]
    line: Any
    name: str
    function: bytes
    by_value: bool
    arguments: Bundle
    facts: Facts


class Setup(NamedTuple):
    """
    How the calls of one pool are run, in each process.

    Attributes:
        label: What messages call the pool.
        pool: A name that no other pool has; another configuration changes nothing about it.
        configuration: That of its registry, pickled; None: it has none.
        initializer: Called once in each process, before the first call, and what with; None: nothing is. A bundle of
            its own, as its module may be among the uploads.
        uploads: Modules that are to be there.
        path: Where modules are looked for besides, as workers on the machine of the sender can; empty: nowhere.
    """

    label: str
    pool: str
    configuration: bytes | None
    initializer: Bundle | None
    uploads: tuple[Upload, ...]
    path: tuple[str, ...]


def pack_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Context,
    carrier: Carrier | None,
    name: str | None = None,
) -> Letter | Outcome:
    """
    Return the call, or how it ended if it can't be sent.

    Args:
        fn: What is called.
        args: With what.
        kwargs: Likewise, by name.
        context: Where the call is made.
        carrier: Knows the context variables that travel with it; None: none do.
        name: What the call is called; None: as its function.
    """
    plain: Any = plain_function(fn)
    if type(plain) is MethodType:
        # By its function, which may be sent by reference: the method's name may be bound to a task.
        plain, args = plain.__func__, (plain.__self__, *args)
    reference = refer(plain, BY_VALUE)
    name = name or (name_of(plain) if reference is None else reference.name)
    what = f"the function {name}"
    try:
        function = dumps(plain, BY_VALUE) if reference is None else reference.key
        what = f"the arguments of {name}"
        values = None if carrier is None else carrier.values(context)
        at_once = has_large_bytes(args, 1) or bool(kwargs and has_large_bytes(kwargs, 1))
        said = (args, kwargs) if values is None else (args, kwargs, values)
        arguments = bundle(said, depth=3, takes_bytes=at_once)
    except BaseException as error:  # the user's __reduce__ runs here
        _take_met()
        if came_from_outside(error):
            raise
        return (None, cant_travel(what, error, "send what it is made from, or something that can be pickled"), None)
    return Letter((name, function, reference is None, arguments, _take_met()))


def _take_met() -> tuple[Supply, ...]:
    """Return the supplies that this thread has pickled since the last time."""
    supplies = _met.supplies
    if supplies:
        _met.supplies = []
    return tuple(dict.fromkeys(supplies))


def outcome_of(name: str, answer: Answer) -> Outcome:
    """Return how the call of the function *name* ended. Loading its value runs the user's code."""
    return outcome_of_result(name, answer, b"", _ARRIVALS, _ADVICE)


_LACKS: Final = "install it there, or name its package in `upload`"
_ADVICE: Final[Mapping[int, str]] = {
    NOT_FOUND: f"if the worker lacks a module, or has another version of it: {_LACKS}",
    UNREADABLE: f"they were pickled, but the worker can't load them; if it lacks a module: {_LACKS}",
}
"""What to do about what a worker can't load: this library has not started it, so it need not have what is here."""


class _Arrivals:
    """Where a value arrives: all of it is there."""

    def receive(self, posted: tuple[Any, ...], large: Part) -> Received:
        """Return what `load` takes."""
        return cast(Bundle, posted[0]).received()


_ARRIVALS: Final = _Arrivals()
