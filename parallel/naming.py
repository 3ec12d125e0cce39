"""
How a declared function carries the name of its plain one, and is found again by it, from a pickle.

Nothing here has state.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import FunctionType
from typing import Any, cast

from parallel.context import Named, module_of, name_of


def dress(declared: Named, fn: Callable[..., Any]) -> None:
    """Give *declared* the name, documentation and attributes of *fn*, but none that hide what it has itself."""
    functools.update_wrapper(cast(Any, declared), fn, updated=())
    kind = type(declared)
    attributes = vars(declared)
    qualname = name_of(fn).partition(":")[2]
    attributes.setdefault("__module__", module_of(fn))
    attributes.setdefault("__qualname__", qualname)
    attributes.setdefault("__name__", qualname.rpartition(".")[2])
    if type(fn) is FunctionType:
        attributes.update((name, value) for name, value in vars(fn).items() if not hasattr(kind, name))


def resolve(module: str, qualname: str) -> object:
    """Return what a name means now, before it binds to anything; None if nothing."""
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part, None)
    return found


def find_again(module: str, qualname: str) -> object:
    """Find a declared function by its name, from its pickle."""
    import_module(module)
    found = resolve(module, qualname)
    if not isinstance(found, Named):
        raise AttributeError(f"module {module!r} has no declared function {qualname!r}, found {found!r}")
    return found
