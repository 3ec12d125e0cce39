"""
Load a pickle though some of what is in it can't be loaded: for the values of many items, of which one is bad.

    data ──▶ load_around() ──▶ the value, an `Unloadable` in the place of each object whose loading raised
                                   └──▶ refuse_gaps(part) raises what had been raised, if there is one in that part

The objects are made by the interpreter's own unpickler in Python, as that in C can't be told to go on. It takes fifty
times as long, and runs the code of the objects once more: it is for what has failed.

Nothing here has state.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from io import BytesIO
from pickle import _Unpickler as PythonUnpickler  # pyright: ignore[reportPrivateUsage]  # it has no other name
from typing import Any, Final, NoReturn, SupportsIndex, TypeAlias

_Step: TypeAlias = Callable[[Any], None]


class Unloadable:
    """
    Stands where an object could not be loaded.

    Attributes:
        error: What its loading raised.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __setstate__(self, state: object) -> None:
        """Take what would have been the object's, and forget it."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be pickled: so one is found, however deep in a value it is."""
        raise _GapError(self.error)


class _GapError(BaseException):
    """There is an `Unloadable` in what is being pickled."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def load_around(
    data: bytes | memoryview,
    buffers: Iterable[Any] = (),
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """
    Un-pickle a value as far as that can be done.

    Args:
        data: Its pickle.
        buffers: What had left it.
        persistent_load: As that of an unpickler; None: nothing asks for it.
    """
    return _Around(data, buffers, persistent_load).load()


def refuse_gaps(value: object, dumps: Callable[[object], object] = pickle.dumps) -> None:
    """
    Raise what has been raised as a part of *value* was loaded.

    Args:
        value: What `load_around` returned, or a part of that.
        dumps: Pickles it: what fails at that counts as well, as nobody can say then what is in it.
    """
    try:
        dumps(value)
    except _GapError as gap:
        error = gap.error
    else:
        return
    raise error


class _Around(PythonUnpickler):
    """Goes on after what can't be loaded."""

    stack: list[Any]  # both have no types elsewhere
    memo: dict[int, Any]

    def __init__(
        self, data: bytes | memoryview, buffers: Iterable[Any], persistent_load: Callable[[Any], Any] | None
    ) -> None:
        super().__init__(BytesIO(data), buffers=buffers)
        self._persistent_load = persistent_load

    def persistent_load(self, pid: Any) -> Any:
        """Return what left by that number."""
        return super().persistent_load(pid) if self._persistent_load is None else self._persistent_load(pid)

    def find_class(self, module: str, name: str) -> Any:
        """Return what has that name; a gap, if there is no such thing here."""
        try:
            return super().find_class(module, name)
        except BaseException as error:  # importing a module runs its code
            return Unloadable(error)


def _makes(step: _Step, takes: int) -> _Step:
    """Return a step that makes an object of the topmost so many things on the stack, or else a gap."""

    def tried(unpickler: _Around) -> None:
        below = len(unpickler.stack) - takes
        made_of = unpickler.stack[below:]
        try:
            step(unpickler)
        except BaseException as error:  # the object's own code runs there
            maker = made_of[0]
            unpickler.stack[below:] = [maker if isinstance(maker, Unloadable) else Unloadable(error)]

    return tried


def _fills(step: _Step) -> _Step:
    """Return a step that fills the object on top of the stack, or else makes it a gap, wherever it is known already."""

    def tried(unpickler: _Around) -> None:
        try:
            step(unpickler)
        except BaseException as error:  # as above
            bad, gap = unpickler.stack[-1], Unloadable(error)
            unpickler.stack[-1] = gap
            for key, known in unpickler.memo.items():
                if known is bad:
                    unpickler.memo[key] = gap

    return tried


_MAKE: Final = {pickle.REDUCE: 2, pickle.NEWOBJ: 2, pickle.NEWOBJ_EX: 3}
_FILL: Final = (
    pickle.BUILD,
    pickle.APPEND,
    pickle.APPENDS,
    pickle.SETITEM,
    pickle.SETITEMS,
    pickle.ADDITEMS,
)

_Around.dispatch = {
    **PythonUnpickler.dispatch,
    **{code[0]: _makes(PythonUnpickler.dispatch[code[0]], takes) for code, takes in _MAKE.items()},
    **{code[0]: _fills(PythonUnpickler.dispatch[code[0]]) for code in _FILL},
}
