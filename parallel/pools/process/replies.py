"""
What the pool makes of a worker's answer: the outcome of the call.

Nothing here raises: a value or an exception that can't be loaded is the outcome of its own call. Nothing has state.
Loading runs user code; it is done with no lock held.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Protocol

from parallel.chunks import Done
from parallel.errors import RemoteError, RemoteTraceback, SerializationError
from parallel.outcomes import Outcome
from parallel.pools.process.buffers import load, load_what_can_be
from parallel.pools.process.failures import InWords, load_error, load_words
from parallel.pools.process.parcels import Received
from parallel.pools.process.pickling import dumps
from parallel.pools.process.wire import FAILED, NOT_FOUND, POSTED, RESULT, UNREADABLE, UNSENDABLE, Part
from parallel.salvage import Unloadable, refuse_gaps

_WHAT: Final = {
    NOT_FOUND: (
        "the function {}",
        "define it at the top level of a module that a worker can import, outside `if __name__ == '__main__':`",
    ),
    UNREADABLE: ("the arguments of {}", "they were pickled, but a worker can't load them"),
    UNSENDABLE: ("the value of {}", "return what it is made from, or something that can be pickled"),
}
"""What it is that can't travel, and what to do about it."""


class Arrivals(Protocol):
    """Where large data comes in: the baggage of a worker."""

    def receive(self, posted: tuple[Any, ...], large: Part, /) -> Received:
        """Return what `load` makes the value of, of a result that was posted; see `Baggage.receive`."""
        ...


_NO_OTHER: Final[Mapping[int, str]] = {}


def outcome_of(
    name: str, result: tuple[Any, ...], large: Part, baggage: Arrivals, advice: Mapping[int, str] = _NO_OTHER
) -> Outcome:
    """
    Return how the call of the function *name* ended.

    Args:
        name: That of the function.
        result: What the worker sent, if it was no atom.
        large: What came with it, for the place that holds None.
        baggage: What else comes from that worker.
        advice: What to do about what can't travel, by the kind of the result, where that is otherwise than usual.
    """
    kind, *parts = result
    if kind in (RESULT, POSTED):
        return _value(name, result, large, baggage)
    error = error_of(*parts)
    if kind != FAILED:
        what, usual = _WHAT[kind]
        error = cant_travel(what.format(name), error, advice.get(kind, usual))
    return (None, error, None)


def _value(name: str, result: tuple[Any, ...], large: Part, baggage: Arrivals) -> Outcome:
    """Return the value that has come; of many items, all that can be loaded."""
    received: Received | None = None
    try:
        if result[0] == POSTED:
            received = baggage.receive(result[1:], large)
        else:
            received = (large if result[1] is None else result[1], [], 0)
        return (load(*received), None, None)
    except BaseException as problem:  # the value's own code runs here
        done = None if received is None else _salvaged(received)
        return (done, None if done else _unloadable(name, problem), None)


def _salvaged(received: Received) -> Done | None:
    """Return what can be loaded of a chunk; None if that is not what has come, or nothing can be made of it."""
    try:
        done = load_what_can_be(*received)
        return done.only_sound(_refuse_gaps, Unloadable) if type(done) is Done else None
    except BaseException:  # as above
        return None


def _refuse_gaps(value: object) -> None:
    refuse_gaps(value, partial(dumps, main_by_value=False))


def _unloadable(name: str, problem: BaseException) -> SerializationError:
    return cant_travel(f"the value of {name}", problem, "it can't be loaded here")


def error_of_item(name: str, sent: tuple[Any, ...] | Unloadable) -> BaseException:
    """Return the exception of an item of a chunk: what its function has raised, or that its value can't travel."""
    if isinstance(sent, Unloadable):
        return _unloadable(name, sent.error)
    first, second, *kind = sent
    error = error_of(first, second)
    if not kind:
        return error
    what, advice = _WHAT[kind[0]]
    return cant_travel(what.format(name), error, advice)


def error_of(first: bytes, second: bytes) -> BaseException:
    """Return the exception that a worker sent, its remote traceback as its cause; a stand-in if it can't be loaded."""
    words = load_words(second)
    try:
        error = load_error(first)
    except BaseException:  # its own code runs here; or it could not be pickled, and there is nothing to load
        error = RemoteError(words.type_name, words.message, words.traceback)
    _tell_of_origin(error, words)
    return error


def cant_travel(what: str, error: BaseException, advice: str) -> SerializationError:
    """Make the error of a call for which something can't travel, because of *error*."""
    try:
        why = f"{type(error).__name__}: {error}"
    except BaseException as problem:  # its text is made by user code
        why = f"{type(error).__name__}, whose text can't be made: {type(problem).__name__}"
    failure = SerializationError(what, why, advice)
    failure.__cause__ = error
    return failure


def _tell_of_origin(error: BaseException, words: InWords) -> None:
    # By the base's own setter, as the exception may be frozen.
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(words.traceback))
    if words.notes and not getattr(error, "__notes__", None):
        BaseException.__setattr__(error, "__notes__", list(words.notes))
