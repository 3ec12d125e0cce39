"""
`@task`: declares a function, and refuses what can't be declared.

    @task(pool="io") ──▶ _declare ──▶ Task, or StaticTask or ClassTask over such methods

Nothing here has state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from parallel.checks import did_you_mean
from parallel.context import Declared, name_of
from parallel.errors import UnsuitableFunctionError
from parallel.options import Said, TaskOptions, declared_options
from parallel.tasks import ClassTask, StaticTask, Task

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator(Protocol):
    """What `task(...)` with options returns."""

    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(**said: Unpack[Said]) -> TaskDecorator: ...
def task(fn: Any = None, /, **said: Unpack[Said]) -> Any:
    """
    Declare a function: calling it submits the call to a pool and returns a `Future`.

    Works with and without parentheses, on functions, methods, `async def`, classes and other callables, and over
    `@staticmethod` and `@classmethod`. The configuration's `[tasks."module:qualname"]` wins over what is said here.

    Durations are seconds, a `timedelta` or a string such as `250ms` or `5m`.

    Args:
        fn: The function.
        pool: The pool to run in, by name; None: `threads`, and `loop` for `async def`.
        timeout: How long one attempt may run. What runs longer fails with `TaskTimeoutError`: a coroutine is cancelled,
            a process killed; a function on a thread is asked to stop, and its thread replaced.
        deadline: How long the whole call may take from now on, with waiting and all attempts, and with the calls that
            its function makes.
        retry: What is tried again, how often, and after which waits.
        limit: The most calls of this task at a time, in this process.
        rate: The most calls of it that start in a period, such as `100/min`.
        priority: Calls of a higher one start first; 0 is usual.
        idempotent: Whether it does no harm to run a call twice. One whose worker process died in it is run again then,
            by another one, before it fails: twice at most, and the time of its attempt begins anew.
        on_success: Called with each value; or its import string. What it raises is logged.
        on_failure: Called with each error, as *on_success*.

    Raises:
        UnsuitableFunctionError: *fn* is a generator function.
        TypeError, ValueError: An option is of another type, or has a value that it can't have; it names the task.
    """
    for name in said.keys() - _OPTIONS:
        raise TypeError(f"task() has no option {name!r}{did_you_mean(name, _OPTIONS)}; known: {', '.join(_OPTIONS)}")
    if fn is None:
        return functools.partial(declare, said=said)
    return declare(fn, said)


_OPTIONS: Final = list(Said.__annotations__)


def declare(fn: Any, said: Said, otherwise: TaskOptions | None = None) -> Task[..., Any]:
    """Make a task; *otherwise* holds for it if nobody says anything else, None: what holds for its kind of function."""
    kind: type[Task[..., Any]] = Task
    if isinstance(fn, staticmethod):
        kind, fn = StaticTask, cast(Any, fn).__func__
    elif isinstance(fn, classmethod):
        kind, fn = ClassTask, cast(Any, fn).__func__
    plain = _checked(fn)
    return cast("Callable[..., Task[..., Any]]", kind)(plain, declared_options(name_of(plain), **said), otherwise)


def _checked(fn: Any) -> Callable[..., Any]:
    """Refuse what can't be a task."""
    if isinstance(fn, Declared):
        raise TypeError(f"{fn!r} is declared already; use its options() to change how it runs")
    if not callable(fn):
        hint = f"; did you mean task(pool={fn!r})?" if isinstance(fn, str) else ""
        raise TypeError(f"only something callable can be declared, found {fn!r}{hint}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise UnsuitableFunctionError(
            name_of(fn), "is a generator function, whose values come one by one: return a list, or declare its parts"
        )
    return cast("Callable[..., Any]", fn)
