"""
What a submit makes of a call: the frame that brings it to a worker.

A call that can't be pickled has an outcome of its own instead. Pickling runs user code, so whatever comes out of it
ends the call only; except a Ctrl-C that comes while the code here runs, which is the caller's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from parallel.context import name_of, plain_function
from parallel.outcomes import Outcome
from parallel.pools.process.peer import Call
from parallel.pools.process.pickling import dumps, dumps_arguments
from parallel.pools.process.references import refer
from parallel.pools.process.replies import cant_travel
from parallel.pools.process.wire import CALL, CALL_VALUE, pack


class Packer:
    """Makes the calls of one pool, and numbers them."""

    def __init__(self, main_by_value: bool) -> None:
        self._main_by_value = main_by_value
        self._number = itertools.count(1).__next__

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | Outcome:
        """Return the call, or how it ended if it can't be sent."""
        plain: Any = fn if type(fn) is FunctionType else plain_function(fn)
        if type(plain) is MethodType:
            # By its function, which may be sent by reference: the method's name may be bound to a task.
            plain, args = plain.__func__, (plain.__self__, *args)
        reference = refer(plain, self._main_by_value)
        if reference is not None:
            name, kind, function = reference.name, CALL, reference.key
        else:
            name, kind = name_of(plain), CALL_VALUE
            try:
                function = dumps(plain, self._main_by_value)
            except BaseException as error:  # the user's __reduce__ runs here
                return _unsendable(f"the function {name}", error)
        try:
            arguments = dumps_arguments(args, kwargs, self._main_by_value)
        except BaseException as error:  # as above
            return _unsendable(f"the arguments of {name}", error)
        number = self._number()
        return Call(name, number, pack(kind, number, function, arguments))


def _unsendable(what: str, error: BaseException) -> Outcome:
    if isinstance(error, KeyboardInterrupt) and _came_from_outside(error):
        raise error
    return (None, cant_travel(what, error, "send what it is made from, or something that can be pickled"), None)


def _came_from_outside(error: KeyboardInterrupt) -> bool:
    """Tell whether it came while code of this library ran, rather than out of the user's."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return str(module).startswith("parallel.pools.process.")
