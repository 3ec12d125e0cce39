"""
Context variables that travel with calls: those that a pool's `context` names, where they have a value.

    submit ──▶ Carrier.values() ──▶ pickled beside the arguments ──▶ worker: enter(), in the context of the call

A call that finds none of them set travels as if the pool named none. In a worker a variable has what the call brought,
or its default: nothing stays from one call to the next.

State: none but what `_variable` has looked up.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import Context, ContextVar
from functools import cache
from typing import Any, TypeAlias

from parallel.imports import imported, is_import_string, with_colon

Values: TypeAlias = dict[str, object]
"""By the import strings of the variables."""


class Carrier:
    """
    Takes the values of variables along.

    Args:
        names: The import strings of the variables.

    Raises:
        TypeError, ValueError: *names* are no import strings, or one of them doesn't name a `ContextVar`.
        ImportError, AttributeError: One of them names nothing.
    """

    def __init__(self, names: Iterable[str]) -> None:
        if isinstance(names, str):
            raise TypeError(f"context must be a list of import strings, found the one string {names!r}")
        self._variables = [(name, _variable(name)) for name in names]

    def values(self, context: Context | None = None) -> Values | None:
        """Return the values that are set in *context*, or here; None if there are none."""
        values: Values = {}
        for name, variable in self._variables:
            value = variable.get(_UNSET) if context is None else context.get(variable, _UNSET)
            if value is not _UNSET:
                values[name] = value
        return values or None


_UNSET: Any = object()


def enter(values: Values) -> None:
    """
    In a worker, in the context of a call: set the variables.

    Raises:
        ImportError, AttributeError, ValueError: There is no such variable here.
    """
    for name, value in values.items():
        _variable(name).set(value)


@cache
def _variable(name: str) -> ContextVar[Any]:
    if not is_import_string(name):
        raise ValueError(
            f"context: expected import strings such as 'package.module:variable', found {name!r}{with_colon(name)}"
        )
    found = imported(name)
    if not isinstance(found, ContextVar):
        raise ValueError(f"context: {name!r} is expected to name a ContextVar, found {found!r}")
    return found  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
