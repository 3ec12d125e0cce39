"""
How an exception leaves a worker: pickled if that works, and always in words.

    error ──▶ first part:  the exception, pickled; empty if it would not come out of that as it is
          └─▶ second part: its type, text, traceback and notes, as strings: these always travel

Whether it comes out is tried here, in the worker: an exception whose constructor takes other arguments than it hands
to its base can be pickled, but not loaded. The traceback is formatted here too, as it can't travel itself; the frames
of this library are left out.

Nothing here has state of its own, and nothing sets an attribute of an exception: it may be frozen.
"""

from __future__ import annotations

import pickle
from types import TracebackType
from typing import Any, NamedTuple

from parallel.pools.process.pickling import dumps, loads

_OURS = ("parallel.pools.process.", "parallel.coroutines", "asyncio.")


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
    for packed in ((error, error.args), (_Rebuilt(error), error.args)):
        try:
            data = dumps(packed, main_by_value)
            if type(load_error(data)) is type(error):
                return data
        except BaseException:  # whatever the exception's own code does: this way it can't travel
            continue
    return b""


class _Rebuilt:
    """
    Pickles as an exception whose class forbids to set attributes, so that the standard way to load it fails.

    Its constructor is called, and then its attributes are filled in directly.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        return _rebuild, (type(error), error.args, dict(vars(error)))


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    error = cls(*args)
    vars(error).update(fields)
    return error


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
