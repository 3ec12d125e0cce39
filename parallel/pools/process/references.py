"""
How functions travel: by reference where both sides can look them up, else by value.

    refer(fn) ──▶ b"1:shop.images:resize" ──▶ resolve() ──▶ the function, found once, then cached
                    │ what is bound to that name, unwrapped so many times

A decorated function can't be pickled by the standard library: its name is bound to the decorator's object. The
reference says how often that object is to be unwrapped (`__wrapped__`) to get to the function itself. It holds the
module, so two functions of one name in two modules, or in two classes, never mix.

State: `_referred` in the pool's process, `_resolved` in the worker's: caches, changed by single atomic steps.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Mapping
from typing import Any, Final

from parallel.pools.process.pickling import MAIN, lookup

DEEPEST: Final = 100
"""Unwrappings after which a chain of `__wrapped__` is taken for endless. Picked by feel: decorators are fewer."""


class Reference:
    """
    Where a function can be looked up.

    Attributes:
        name: `module:qualname`, for messages.
        key: What is sent.
    """

    __slots__ = ("_bound", "_function", "_own_name", "_space", "key", "name")

    def __init__(self, fn: Any, module: str, unwrapped: int) -> None:
        qualname: str = fn.__qualname__
        parent, _, own_name = qualname.rpartition(".")
        self.name = f"{module}:{qualname}"
        self.key = f"{unwrapped}:{module}:{qualname}".encode()
        self._function = weakref.ref(fn)
        self._space: Mapping[str, Any] = vars(lookup(module, parent) if parent else sys.modules[module])
        self._own_name = own_name
        self._bound = self._space.get(own_name)

    def leads_to(self, fn: object) -> bool:
        """Tell whether this is the reference of *fn*, and its name has not been bound to something else since."""
        return self._function() is fn and self._space.get(self._own_name) is self._bound


_referred: dict[int, Reference] = {}
_resolved: dict[bytes, Any] = {}


def refer(fn: Any, main_by_value: bool) -> Reference | None:
    """
    Say where a worker finds *fn*, None if it has to travel by value.

    Args:
        fn: A function or a class; other callables have no reference.
        main_by_value: No worker can import `__main__`.
    """
    known = _referred.get(id(fn))
    if known is not None and known.leads_to(fn):
        return known
    try:
        reference = _find(fn, main_by_value)
    except (AttributeError, KeyError, TypeError):  # it has no name, its name is not there, or no weak references
        reference = None
    if reference is None:
        return None
    _referred[id(fn)] = reference
    weakref.finalize(fn, _referred.pop, id(fn), None).atexit = False
    return reference


def resolve(key: bytes) -> Any:
    """
    Return what a reference leads to in this process, its module imported if need be.

    Raises:
        ImportError, AttributeError: It leads nowhere here. Besides, whatever the import of the module raises.
    """
    found = _resolved.get(key)
    if found is None:
        unwrapped, module, qualname = key.decode().split(":")
        importlib.import_module(module)
        found = lookup(module, qualname)
        for _ in range(int(unwrapped)):
            found = found.__wrapped__
        _resolved[key] = found
    return found


def forget(package: str) -> None:
    """Find anew, in this process, what references into a top-level package lead to: another version of it has come."""
    for key in list(_resolved):
        module = key.decode().split(":")[1]
        if module.partition(".")[0] == package:
            _resolved.pop(key, None)


def _find(fn: Any, main_by_value: bool) -> Reference | None:
    module: str = fn.__module__
    if module in MAIN and (main_by_value or _typed_in(fn)):
        return None
    found = lookup(module, fn.__qualname__)
    for unwrapped in range(DEEPEST):
        if found is fn:
            return Reference(fn, module, unwrapped)
        found = found.__wrapped__
    return None


def _typed_in(fn: object) -> bool:
    """Tell whether *fn* of `__main__` was typed in at a prompt, after `python -i`: the file doesn't have it."""
    code = getattr(fn, "__code__", None)
    return code is not None and code.co_filename.startswith("<")
