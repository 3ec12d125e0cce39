"""
A chain that is run here and now: what `then`, `catch` and `finally_` do, without futures, one stage after the other.

Coroutines, and futures that a stage returns, are waited for. Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from parallel.context import Declared
from parallel.coroutines import run_coroutine
from parallel.links import awaited, is_awaitable
from parallel.outcomes import Outcome, failure, happened_during
from parallel.states import is_future

Tie: TypeAlias = tuple[str, tuple[Any, ...]]
"""The name of a method of futures that chains, and its arguments; the last one is the function, or task."""


def run_here(first: Callable[[], Any], ties: Iterable[Tie]) -> Any:
    """Run *first*, and then what is tied to it; return the value at the end, or raise the error."""
    end = _attempt(first)
    for how, stage in ties:
        end = _HOW[how](end, *stage)
    value, error, record = end
    if error is None:
        return value
    try:
        raise error if record is None else BaseException.with_traceback(error, record.traceback)
    finally:
        del end, error, record  # the error refers to this frame: break the cycle


def _then(end: Outcome, fn: Callable[[Any], Any]) -> Outcome:
    return _attempt(fn, end[0]) if end[1] is None else end


def _catch(end: Outcome, types: tuple[type[BaseException], ...], fn: Callable[[Any], Any]) -> Outcome:
    error = end[1]
    if error is None or not any(caught in type(error).__mro__ for caught in types):
        return end
    return _told_of(error, _attempt(fn, error))


def _finally(end: Outcome, fn: Callable[[], object]) -> Outcome:
    result = _told_of(end[1], _attempt(fn))
    return end if result[1] is None else result


_HOW: Final[Mapping[str, Callable[..., Outcome]]] = {"then": _then, "catch": _catch, "finally_": _finally}


def _attempt(fn: Callable[..., Any], *args: object) -> Outcome:
    """Call *fn*, of a task the plain function, and wait for what it returns, if that can be waited for."""
    stage: Any = fn
    try:
        value: Any = stage.local(*args) if isinstance(fn, Declared) else stage(*args)
        if is_future(value):
            value = value.result()
        elif is_awaitable(value):
            value = run_coroutine(awaited(value))
    except BaseException as error:
        return failure(error, stage)
    finally:
        del fn, args, stage  # an error refers to this frame: keep nothing alive from here
    return (value, None, None)


def _told_of(before: BaseException | None, result: Outcome) -> Outcome:
    """Have the error in *result*, if there is one, tell of the one *before* it."""
    error = result[1]
    if before is not None and error is not None and error is not before:
        happened_during(error, before)
    return result
