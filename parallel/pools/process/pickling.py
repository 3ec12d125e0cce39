"""
How values travel: the standard pickle, and cloudpickle for what that can't pickle.

    dumps ──▶ pickle, protocol 5 ──(can't)──▶ cloudpickle, loaded when first needed

The rule, the same for every start method:
- What a worker can import travels by reference; what it can't (a lambda, a closure, a class made in a function)
  travels by value, as it is at the time of the call.
- What `__main__` defines travels by reference, as the start of a worker imports it too: its classes are the same on
  both sides. Where no worker can import it (a prompt, a notebook, `python -c`), it travels by value.
- What multiprocessing knows how to send (connections, sockets) travels by its rules.
- Large buffers stay out of the pickle where the caller wants it so: see `buffers`.

Guarantee: no lock is held here; pickling runs user code.

State: the table of `_Pickler`, a copy of what is registered elsewhere, replaced as a whole when that has grown.
"""

from __future__ import annotations

import copyreg
import importlib
import os
import pickle
import sys
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, ClassVar, Final

from parallel.context import MAIN_FILE, Named
from parallel.pools.process.buffers import Leaving, reducers

loads = pickle.loads

MAIN: Final = ("__main__", "__mp_main__")
"""What the main module is called: in the program, and in a process that multiprocessing started, which has both."""

_NOT_THIS_WAY: Final = (pickle.PicklingError, TypeError, AttributeError)
"""What the standard pickle raises for what it can't pickle, and cloudpickle perhaps can."""


_ATOMS: Final = frozenset({int, float, str, bytes, bool, type(None)})
"""Types that need none of the rules: calls with nothing else are pickled in a third of the time."""


def dumps(value: object, main_by_value: bool, leaving: Leaving | None = None) -> bytes:
    """
    Pickle *value*.

    Args:
        value: Anything.
        main_by_value: No worker can import `__main__`.
        leaving: Takes what is large out of the pickle; None: nothing.
    """
    if type(value) in _ATOMS and leaving is None:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    try:
        data = _dumps(_standard_pickler(), value, leaving)
    except _NOT_THIS_WAY:
        return _dumps_by_value(main_by_value, value, leaving)
    if main_by_value and any(name.encode() in data for name in MAIN):
        return _dumps_by_value(main_by_value, value, leaving)
    return data


def are_atoms(values: Iterable[object]) -> bool:
    """Tell whether all of *values* are of types that need none of the rules."""
    return _ATOMS.issuperset(map(type, values))


def main_is_importable() -> bool:
    """Tell whether a worker can import this program's `__main__`: it has a name (`python -m`), or a file."""
    main = sys.modules["__main__"]
    if getattr(getattr(main, "__spec__", None), "name", None) is not None:
        return True
    path = getattr(main, "__file__", MAIN_FILE)
    return isinstance(path, str) and os.path.exists(path)


def lookup(module: str, qualname: str) -> Any:
    """
    Return what *qualname* names in a module that has been imported.

    Raises:
        KeyError, AttributeError: There is no such thing.
    """
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _dumps_by_value(main_by_value: bool, value: object, leaving: Leaving | None) -> bytes:
    if leaving is not None:
        leaving.clear()  # of what the first attempt has taken
    return _dumps(_value_pickler(main_by_value), value, leaving)


def _dumps(pickler: Any, value: object, leaving: Leaving | None) -> bytes:
    file = BytesIO()
    if leaving is None:
        making = pickler(file, pickle.HIGHEST_PROTOCOL)
    elif pickler is _Pickler and not leaving.takes_bytes:  # the usual case; by position, as that is faster by a quarter
        making = _Pickler(file, pickle.HIGHEST_PROTOCOL, True, leaving.take)
    elif leaving.takes_bytes:
        making = _asking(pickler)(file, pickle.HIGHEST_PROTOCOL, buffer_callback=leaving.take)
        making.leaving = leaving
    else:
        making = pickler(file, pickle.HIGHEST_PROTOCOL, buffer_callback=leaving.take)
    making.dump(value)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """The standard pickler, with multiprocessing's ways to send what needs more than bytes."""

    dispatch_table = {}  # noqa: RUF012  # a plain dict: asking a ChainMap for each object is slow
    seen: ClassVar[tuple[int, int, bool]] = (0, 0, False)


def _standard_pickler() -> type[_Pickler]:
    """Return the standard pickler, brought up to what `copyreg` and multiprocessing know by now."""
    extra: dict[type, Any] = getattr(ForkingPickler, "_extra_reducers")  # noqa: B009  # there is no public way to read it
    known = (len(extra), len(copyreg.dispatch_table), "numpy" in sys.modules)
    if known != _Pickler.seen:
        _Pickler.dispatch_table = {**reducers(), **copyreg.dispatch_table, **extra}
        _Pickler.seen = known
    return _Pickler


@cache
def _asking(pickler: Any) -> Any:
    """Make of a pickler one that asks about each object whether it leaves. That is slow: for values that need it."""

    class Asking(pickler):  # type: ignore[misc]  # whatever it is
        leaving: Leaving

        def persistent_id(self, obj: object) -> int | None:
            return self.leaving.persistent_id(obj)

    return Asking


@cache
def _value_pickler(main_by_value: bool) -> Any:
    """Make the pickler that sends by value what can't be imported; in a function, as few processes need cloudpickle."""
    # Typed as anything: cloudpickle has no types.
    cloudpickle: Any = importlib.import_module("cloudpickle")

    class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
        """cloudpickle, except that what `__main__` defines stays itself where the other side has it too."""

        @property
        def dispatch_table(self) -> dict[type, Any]:
            return {**_standard_pickler().dispatch_table, **cloudpickle.Pickler.dispatch_table, **reducers()}

        def reducer_override(self, obj: Any) -> Any:
            if not main_by_value and _is_of_main(obj):
                return NotImplemented
            if main_by_value and isinstance(obj, Named) and obj.__module__ in MAIN:
                return obj.reduce_by_value()
            inherited: Any = super()
            return inherited.reducer_override(obj)

    return ValuePickler


def _is_of_main(obj: object) -> bool:
    """Tell whether *obj* is a class or function that `__main__` has under its own name."""
    if not isinstance(obj, type | FunctionType) or obj.__module__ not in MAIN:
        return False
    try:
        return lookup(obj.__module__, obj.__qualname__) is obj
    except (KeyError, AttributeError):
        return False
