"""
`@parallel_map` and `ParallelMap[P, R]`: a function of one item, declared to be called with many.

    thumbnail(paths) ──▶ one call per item ──▶ MapFuture: the list of all values, or one by one, in input order
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from inspect import iscoroutinefunction
from types import CoroutineType
from typing import Any, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from parallel.combine import Settled
from parallel.context import Declared
from parallel.declaring import declare, task
from parallel.futures import Future
from parallel.naming import dress, find_again, resolve
from parallel.options import Said, TaskOptions
from parallel.streams import (
    MapCommon,
    MapFuture,
    MapOptions,
    MapSaid,
    Stream,
    StreamCommon,
    StreamSaid,
    check_said,
    is_of_median,
)
from parallel.tasks import Task, caller

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
A_contra = TypeVar("A_contra", contravariant=True)
B_contra = TypeVar("B_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class OfOne(Protocol[A_contra, T]):
    """What maps over one iterable: it can be called with one item."""

    def submit(self, item: A_contra, /) -> Future[T]:
        """Call the function with one item."""
        ...


class OfTwo(Protocol[A_contra, B_contra, T]):
    """What maps over two iterables: it can be called with an item of each."""

    def submit(self, item: A_contra, other: B_contra, /) -> Future[T]:
        """Call the function with one pair of items."""
        ...


class OfMany(Protocol[T]):
    """What maps over any number of iterables."""

    @property
    def submit(self) -> Callable[..., Future[T]]:
        """Call the function with an item of each."""
        ...


class MapMethod(Protocol[A_contra, Q, R_co]):
    """What binds to an object: a map whose function takes it first."""

    def local_one(self, obj: A_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co:
        """Run the function here and now."""
        ...


class ParallelMap(Declared, Generic[P, R]):
    """
    A function declared to run over many items, each in a call of its own.

    Args:
        task: The task of one item.
        said: What is said about each map; what is said where it is called wins.

    Attributes:
        task: The same.
    """

    def __init__(self, task: Task[P, R], said: MapSaid | None = None) -> None:
        dress(self, task.__wrapped__)
        self.__wrapped__ = task.__wrapped__
        self.task = task
        self._said: MapSaid = said or {}

    @property
    def name(self) -> str:
        """Its name, `module:qualname`, what `[tasks."…"]` patterns are matched with."""
        return self.task.name

    @property
    def said(self) -> MapSaid:
        """What its declaration says about each map."""
        return self._said.copy()

    @overload
    def __call__(self: OfOne[A, T], items: Iterable[A], /, **said: Unpack[MapSaid]) -> MapFuture[T]: ...
    @overload
    def __call__(
        self: OfTwo[A, B, T], items: Iterable[A], more: Iterable[B], /, **said: Unpack[MapSaid]
    ) -> MapFuture[T]: ...
    @overload  # more are not checked
    def __call__(
        self: OfMany[T],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        /,
        *more: Iterable[Any],
        **said: Unpack[MapSaid],
    ) -> MapFuture[T]: ...
    @overload
    def __call__(
        self: OfMany[T],
        *iterables: Iterable[Any],
        constants: Mapping[str, object],
        unpack: bool = False,
        **said: Unpack[MapSaid],
    ) -> MapFuture[T]: ...
    @overload
    def __call__(
        self: OfMany[T], rows: Iterable[Iterable[Any]], /, *, unpack: Literal[True], **said: Unpack[MapSaid]
    ) -> MapFuture[T]: ...
    @overload
    def __call__(
        self: OfOne[A, T], items: Iterable[A], /, *, errors: Literal["collect"], **said: Unpack[MapCommon]
    ) -> MapFuture[Settled[T]]: ...
    @overload
    def __call__(
        self: OfMany[T],
        *iterables: Iterable[Any],
        errors: Literal["collect"],
        constants: Mapping[str, object] = ...,
        unpack: bool = False,
        **said: Unpack[MapCommon],
    ) -> MapFuture[Settled[T]]: ...
    def __call__(self: Any, *iterables: Iterable[Any], **said: Any) -> MapFuture[Any]:
        """
        Call the function with each item, or each tuple of items of several iterables; the shortest ends it.

        Args:
            iterables: What it is called with.
            said: See `MapSaid`, and `constants`, `unpack`; `errors="collect"` gives a `Settled` for each item.

        Returns:
            The future of the list of all values, in input order; iterating it yields them as they come. The first
            item that fails fails the whole, unless *errors* says otherwise.

        Raises:
            What an iterable raises at once, and what calling the task raises.
        """
        return MapFuture(self.task, caller(), iterables, {**self._said, **said})

    @overload
    def stream(self: OfOne[A, T], items: Iterable[A], /, **said: Unpack[StreamSaid]) -> Stream[T]: ...
    @overload
    def stream(
        self: OfTwo[A, B, T], items: Iterable[A], more: Iterable[B], /, **said: Unpack[StreamSaid]
    ) -> Stream[T]: ...
    @overload  # more are not checked
    def stream(
        self: OfMany[T],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        /,
        *more: Iterable[Any],
        **said: Unpack[StreamSaid],
    ) -> Stream[T]: ...
    @overload
    def stream(
        self: OfMany[T],
        *iterables: Iterable[Any],
        constants: Mapping[str, object],
        unpack: bool = False,
        **said: Unpack[StreamSaid],
    ) -> Stream[T]: ...
    @overload
    def stream(
        self: OfMany[T], rows: Iterable[Iterable[Any]], /, *, unpack: Literal[True], **said: Unpack[StreamSaid]
    ) -> Stream[T]: ...
    @overload
    def stream(
        self: OfOne[A, T], items: Iterable[A], /, *, errors: Literal["collect"], **said: Unpack[StreamCommon]
    ) -> Stream[Settled[T]]: ...
    @overload
    def stream(
        self: OfMany[T],
        *iterables: Iterable[Any],
        errors: Literal["collect"],
        constants: Mapping[str, object] = ...,
        unpack: bool = False,
        **said: Unpack[StreamCommon],
    ) -> Stream[Settled[T]]: ...
    def stream(self: Any, *iterables: Iterable[Any], **said: Any) -> Stream[Any]:
        """Call the function with each item, and return an iterator over the values; see `Task.stream`."""
        return Stream(self.task, caller(), iterables, {**self._said, **said})

    @overload  # pyright infers CoroutineType for `async def`, mypy Coroutine
    def submit(self: ParallelMap[P, CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self: ParallelMap[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function with one item, as a task is called."""
        return self.task.call_from(caller(), args, kwargs)

    def local_one(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the plain function on one item, here and now."""
        return self.task.local(*args, **kwargs)

    def local(self, *iterables: Iterable[Any]) -> list[R]:
        """Run the plain function over the items here and now, one after the other."""
        one: Callable[..., R] = self.task.local
        return [one(*items) for items in zip(*iterables, strict=False)]

    def options(self, **said: Unpack[MapOptions]) -> Self:
        """
        Make the same map with other options.

        Args:
            said: As for `parallel_map`; what is left out stays as it is.
        """
        of_one, of_all = _divided(said)
        return type(self)(self.task.options(**of_one), {**self._said, **of_all})

    @overload  # over a class method, by way of the class
    def __get__(self: MapMethod[type[S], Q, T], obj: None, owner: type[S]) -> ParallelMap[Q, T]: ...
    @overload  # by way of the class
    def __get__(self, obj: None, owner: type | None = None) -> Self: ...
    @overload  # over a class method, by way of an object
    def __get__(self: MapMethod[type[S], Q, T], obj: S, owner: type | None = None) -> ParallelMap[Q, T]: ...
    @overload
    def __get__(self: MapMethod[S, Q, T], obj: S, owner: type | None = None) -> ParallelMap[Q, T]: ...
    @overload  # over a static method
    def __get__(self, obj: object, owner: type | None = None) -> Self: ...
    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """Bind the map to an object, as a function is."""
        bound: Any = self.task.__get__(obj, owner)
        return self if bound is self.task else ParallelMap(bound, self._said)

    def __repr__(self) -> str:
        return f"<ParallelMap {self.name}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        qualname: str = cast(Any, self).__qualname__
        if resolve(self.__module__, qualname) is self:
            return find_again, (self.__module__, qualname)
        return self.reduce_by_value()

    def reduce_by_value(self) -> tuple[Any, ...]:
        """Return the task, which travels in its own way."""
        return type(self), (self.task, self._said)


class MapDecorator(Protocol):
    """What `parallel_map(...)` with options returns."""

    def __call__(self, fn: Callable[P, R], /) -> ParallelMap[P, R]: ...


@overload
def parallel_map(fn: Callable[P, R], /) -> ParallelMap[P, R]: ...
@overload
def parallel_map(**said: Unpack[MapOptions]) -> MapDecorator: ...
def parallel_map(fn: Any = None, /, **said: Unpack[MapOptions]) -> Any:
    """
    Declare a function of one item: calling it with an iterable calls it with each item, and returns a `MapFuture`.

    Works with and without parentheses, on all that `task` works on.

    Args:
        fn: The function; of several iterables it gets one item each.
        said: As for `task`, for the call of one item each; the pool is by default `processes`, and `loop` for
            `async def`. Besides, what may be said about a map where it is called: see `MapSaid`.

    Raises:
        TypeError, ValueError: One of them is unknown, of another type, or has a value that it can't have.
    """
    if fn is None:
        task(**_divided(said)[0])  # an unknown option is to be told here
        return functools.partial(_declare, said=said)
    return _declare(fn, said=said)


def _declare(fn: Any, /, *, said: MapOptions) -> ParallelMap[..., Any]:
    plain = getattr(fn, "__func__", fn)
    of_one, of_all = _divided(said)
    otherwise = TaskOptions(pool="loop" if iscoroutinefunction(plain) else "processes")
    return ParallelMap(declare(fn, of_one, otherwise), of_all)


def _divided(said: MapOptions) -> tuple[Said, MapSaid]:
    """Divide what is said into that about the call of an item, and that about a map."""
    of_all: dict[str, Any] = {
        name: value
        for name, value in said.items()
        if name in MapSaid.__annotations__ and (name not in Said.__annotations__ or is_of_median(value))
    }
    check_said(of_all)
    of_one: dict[str, Any] = {name: value for name, value in said.items() if name not in of_all}
    return cast(Said, of_one), cast(MapSaid, of_all)
