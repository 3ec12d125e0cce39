"""
How an exception leaves a worker: pickled if that works, and always in words.

    error ──▶ first part:  the exception, pickled; empty if it would not come out of that as it is
          └─▶ second part: its type, text, traceback and notes, as strings: these always travel

Whether it comes out is tried here, in the worker: an exception whose constructor takes other arguments than it hands
to its base can be pickled, but not loaded; it is rebuilt without its constructor then. The traceback is formatted here
too, as it can't travel itself; the frames of this library are left out.

Nothing here has state of its own, and nothing sets an attribute of an exception: it may be frozen.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Iterator
from contextlib import suppress
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, NamedTuple

from parallel.pools.process.pickling import dumps, loads

_OURS = (
    "parallel.pools.process.",
    "parallel.pools.distant.",
    "parallel.chunks",
    "parallel.seeds",
    "parallel.coroutines",
    "asyncio.",
    "contextlib",
)


class InWords(NamedTuple):
    """
    An exception as strings.

    Attributes:
        type_name: Its type, `module:qualname`.
        message: Its text.
        traceback: Its traceback and those of its causes, as the interpreter would have printed them.
        notes: What `add_note` added.
    """

    type_name: str
    message: str
    traceback: str
    notes: tuple[str, ...]


def pack_error(error: BaseException, main_by_value: bool) -> tuple[bytes, bytes]:
    """Return the two parts of the frame that brings *error* to the pool."""
    return _pickled(error, main_by_value), pickle.dumps(tuple(_in_words(error)))


def load_words(part: bytes | memoryview) -> InWords:
    """Return the words of the second part."""
    return InWords(*loads(part))


def load_error(part: bytes | memoryview) -> BaseException:
    """
    Return the exception of the first part.

    Raises:
        EOFError: It is empty. Besides, whatever the loading of the exception raises.
    """
    error, args = loads(part)
    # A constructor that builds its text would have built it twice.
    BaseException.args.__set__(error, args)  # type: ignore[attr-defined]  # a descriptor, which frozen ones can't stop
    return error  # type: ignore[no-any-return]


def _pickled(error: BaseException, main_by_value: bool) -> bytes:
    for packed in ((_alone(error), error.args), (_Rebuilt(error), error.args)):
        try:
            data = dumps(packed, main_by_value)
            if type(load_error(data)) is type(error):
                return data
        except BaseException:  # whatever the exception's own code does: this way it can't travel
            continue
    return b""


def _alone(error: BaseException) -> object:
    """
    Return what pickles as the exception alone, without its causes and tracebacks: these travel in words.

    Dask and Parsl bring tblib, which has all exceptions of their process pickled with them.
    """
    reducer = copyreg.dispatch_table.get(type(error))
    return _Alone(error) if getattr(reducer, "__module__", None) == "tblib.pickling_support" else error


class _Alone:
    """Pickles as an exception that nobody has registered a way for."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


class _Rebuilt:
    """
    Pickles as an exception that the standard way fails to load: its constructor takes other arguments than `args`, or
    its class forbids to set attributes. The constructor isn't called; all that it had set is filled in directly.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        members: dict[str, Any] = {}
        for name, member in _members(type(error)):
            with suppress(AttributeError):  # some are only there when set
                members[name] = member.__get__(error)
        return _rebuild, (type(error), error.args, members, dict(vars(error)))


def _rebuild(
    cls: type[BaseException], args: tuple[Any, ...], members: dict[str, Any], fields: dict[str, Any]
) -> BaseException:
    error = cls.__new__(cls, *args)
    for name, member in _members(cls):
        if name in members:
            with suppress(AttributeError):  # some can only be read
                member.__set__(error, members[name])
    vars(error).update(fields)
    return error


def _members(cls: type[BaseException]) -> Iterator[tuple[str, Any]]:
    """Yield what a builtin base keeps besides `args`: the `errno` of an OSError, the `name` of an ImportError."""
    for base in cls.__mro__:
        if base.__module__ == "builtins" and base is not BaseException:
            for name, member in vars(base).items():
                if isinstance(member, MemberDescriptorType | GetSetDescriptorType) and not name.startswith("_"):
                    yield name, member


def _in_words(error: BaseException) -> InWords:
    cls = type(error)
    try:
        message = str(error)
    except BaseException as problem:  # the text is made by user code
        message = f"<its text can't be made: {type(problem).__name__}>"
    try:
        notes = tuple(str(note) for note in getattr(error, "__notes__", ()))
    except BaseException:  # somebody put something else there
        notes = ()
    return InWords(f"{cls.__module__}:{cls.__qualname__}", message, _traceback_text(error), notes)


def _traceback_text(error: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception(type(error), error, _users_part(error.__traceback__)))
    except BaseException as problem:  # formatting calls user code as well
        return f"{type(error).__qualname__}: <its traceback can't be made: {type(problem).__name__}>\n"


def _users_part(traceback: TracebackType | None) -> TracebackType | None:
    """Skip the frames between the worker's loop and the user's function."""
    while traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith(_OURS):
        traceback = traceback.tb_next
    return traceback
