"""
`@per_worker`: what a worker makes once and keeps, such as a model or a connection.

    model() ──▶ the first time on this worker: made ──▶ kept ──▶ closed when the worker ends
         └────▶ from then on: the same one

A worker is a thread of a pool, a worker process, or the thread of an event loop, which all its coroutines share.
Elsewhere it is the thread at hand: what that has made is let go of when it ends, on the main thread at the exit.

State: what a thread keeps, its own alone: see `kept`.
"""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Generator, Iterator
from types import GeneratorType
from typing import Any, Generic, TypeVar, cast, overload

from parallel.context import Declared, Named, name_of
from parallel.errors import UnsuitableFunctionError
from parallel.kept import keep, kept
from parallel.naming import dress, find_again, resolve

T = TypeVar("T")

_numbers = itertools.count()


class PerWorker(Named, Generic[T]):
    """
    A function that is evaluated once on each worker; calling it returns what that one has.

    Args:
        fn: The function, without arguments. Of a generator, the first value is kept, and the rest runs at the end.
        key: What it is known by, also in other processes; None: a new one.
    """

    __wrapped__: Callable[[], Any]
    __name__: str
    __qualname__: str

    def __init__(self, fn: Callable[[], Any], key: str | None = None) -> None:
        dress(self, fn)
        self._name = name_of(fn)
        # A copy that travels by value is still the same resource; one that is declared twice is two.
        self._key = key or f"{self._name}#{os.getpid()}.{next(_numbers)}"

    def __call__(self) -> T:
        """
        Return the value of this worker, which is made the first time.

        Raises:
            RuntimeError: It is a generator that has ended without a value.
            Exception: What the function raises; the next call tries again.
        """
        found = kept(self._key)
        if found is None:
            found = keep(self._key, *self._make())
        return cast(T, found[0])

    def local(self) -> T:
        """Make one here and now that nobody keeps, nor closes."""
        return cast(T, self._make()[0])

    def _make(self) -> tuple[object, Callable[[], object] | None]:
        made: object = self.__wrapped__()
        if not isinstance(made, GeneratorType):
            return made, None
        rest = cast("Generator[object]", made)
        for value in rest:
            return value, lambda: _finish(self._name, rest)
        raise RuntimeError(f"{self._name} has ended without a value: it is to yield what workers keep")

    def __repr__(self) -> str:
        return f"<PerWorker {self._name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if resolve(self.__module__, self.__qualname__) is self:
            return find_again, (self.__module__, self.__qualname__)
        return self.reduce_by_value()

    def reduce_by_value(self) -> tuple[Any, ...]:
        """Return what pickle needs to make it again where its module can't be imported; it stays the same resource."""
        return PerWorker, (self.__wrapped__, self._key)


def _finish(name: str, rest: Generator[object]) -> None:
    """Run what a generator does after its value."""
    for _ in rest:
        rest.close()
        raise RuntimeError(f"{name} has yielded twice: a worker keeps one value of it")


@overload
def per_worker(fn: Callable[[], Generator[T, Any, Any]], /) -> PerWorker[T]: ...
@overload
def per_worker(fn: Callable[[], Iterator[T]], /) -> PerWorker[T]: ...
@overload
def per_worker(fn: Callable[[], T], /) -> PerWorker[T]: ...
def per_worker(fn: Callable[[], Any], /) -> PerWorker[Any]:
    """
    Declare a function that is evaluated once on each worker: a model, a connection, a table.

        @per_worker
        def connection() -> Iterator[Connection]:
            with connect("sources.sqlite") as connection:
                yield connection

        @task
        def load(path: Path) -> None:
            connection().execute(...)

    Called in a function that a pool runs, it returns that worker's value; two workers never share one. A coroutine
    loop is one worker. What a generator does after its `yield` is done when its worker ends, unless that is killed;
    what it raises there is logged.

    Raises:
        TypeError: *fn* is not callable.
        UnsuitableFunctionError: *fn* is a coroutine function, or takes arguments.
    """
    if isinstance(fn, Declared | PerWorker) or not callable(fn):
        raise TypeError(f"per_worker() takes a function, found {fn!r}")
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise UnsuitableFunctionError(name_of(fn), "is a coroutine function: a worker keeps what a plain one returns")
    if _needs_arguments(fn):
        raise UnsuitableFunctionError(name_of(fn), "takes arguments: a worker keeps one value of it, made without any")
    return PerWorker(fn)


def _needs_arguments(fn: Callable[..., Any]) -> bool:
    try:
        inspect.signature(fn).bind()
    except TypeError:
        return True
    except ValueError:  # a built-in that doesn't tell
        return False
    return False
