"""
`Task[P, R]`: a plain function that is declared to run in a pool, and chains of such.

    task(1, 2) ──▶ current registry ──▶ the task's pool there (looked up once) ──▶ Future

A task keeps its function's name, docstring and signature. It is sent to other processes by reference,
`module:qualname`, and runs there as the plain function.

State: what was looked up in the last registry, `_route`, shared with the bound copies of a task; see `editions`.
Nothing else changes after making.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextvars import copy_context
from importlib import import_module
from types import CodeType, CoroutineType, MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from parallel import trail
from parallel.chains import short_name
from parallel.chunks import Done, ItemCall, Manner, Seeding, run_item, run_item_later
from parallel.combine import Settled
from parallel.context import WITHIN, Declared, default_registry, name_of, plain_function
from parallel.editions import LookUp
from parallel.errors import PoolShutdownError
from parallel.flows import Piece, Route
from parallel.futures import Future, what_to_catch
from parallel.here import Tie, run_here
from parallel.lanes import Lane, LateLane
from parallel.limits import Limits
from parallel.naming import dress, find_again, resolve
from parallel.options import Rate, Said, Saying, TaskOptions, declared_options
from parallel.plans import Plan, drop
from parallel.pools.base import Counts, Pool
from parallel.registry import Registry
from parallel.routes import Chunks, Medians, Singles, constants_of
from parallel.seeds import seeded
from parallel.streams import MapCommon, MapFuture, MapSaid, Stream, StreamCommon, StreamSaid
from parallel.timer import TIMER
from parallel.traced import TracedFuture
from parallel.trail import note_call

if TYPE_CHECKING:
    from parallel.graphs import Graph

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
U = TypeVar("U")
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

_OTHERWISE: Final = (TaskOptions(pool="threads"), TaskOptions(pool="loop"))
"""What holds for plain functions, and for coroutine functions."""

SINGLES: Final = 1000
"""Items at most that are called one by one at a time: a loop may run any number, and each takes memory."""

Place: TypeAlias = tuple[CodeType, int]
"""Where a task is called: the caller's code, and the offset in it of the instruction that calls."""


class Method(Protocol[S_contra, Q, R_co]):
    """What binds to an object S: a task whose function takes it first. (mypy compares methods, not type arguments.)"""

    def local(self, obj: S_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co:
        """Run the function here and now."""
        ...


class Task(Declared, Generic[P, R]):
    """
    A declared function. Calling it submits the call and returns its `Future`.

    Arguments that are futures, at the top level or one level down in an exact list, tuple or dict, are waited for
    without holding a worker, and passed as values.

    Attributes:
        name: `module:qualname`, what `[tasks."…"]` patterns are matched with.
    """

    name: str
    __qualname__: str

    def __init__(self, fn: Callable[P, R], declared: TaskOptions, otherwise: TaskOptions | None = None) -> None:
        dress(self, fn)
        self.__wrapped__ = fn
        self._declared = declared
        self._otherwise = otherwise
        self._said = TaskOptions()
        self._object: tuple[Any, ...] = ()  # what it is bound to, or nothing
        self._lane: Lane | None = None  # what says how long its calls may run, in place of its options
        self._route = LookUp()
        self._limits: dict[int | Rate, Limits] = {}  # shared with its copies
        self.name = name_of(fn)

    # R is the raw return type: a coroutine for `async def`, unwrapped by the first two overloads.
    @overload  # pyright infers CoroutineType for `async def`, mypy Coroutine
    def __call__(self: Task[P, CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def __call__(self: Task[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """
        Submit the call to the task's pool.

        Raises:
            UnknownPoolError: No pool has the name that the task, or the configuration, gives.
            PoolShutdownError: The registry has been shut down.
            UnsuitableFunctionError: The pool can't run such a function.
        """
        # It is `call_from(caller(), args, kwargs)`, written out: the calls that this saves are a tenth of it.
        within = WITHIN.get()
        registry = cast(Registry, (within is not None and within.registry) or default_registry())
        edition, plan = self._route.found
        if edition is not registry.edition or plan is None:
            plan = self._look_up(registry)
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # to say where a call that fails unseen was made
        try:
            return plan.call(self.__wrapped__, args, kwargs, (plan.about, frame.f_code, frame.f_lasti), within)
        except PoolShutdownError:
            if default_registry() is registry or (within is not None and within.registry is registry):
                raise
        return self.call_from((frame.f_code, frame.f_lasti), args, kwargs)  # see there

    def call_from(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Future[Any]:
        """
        Call the task for somebody else. For methods that do so, here and in other rooms.

        Args:
            place: Where that one calls: what a report of a failure that nobody looks at names.
            args: The call's positional arguments.
            kwargs: Its keyword arguments.

        Raises:
            What calling it raises.
        """
        within = WITHIN.get()
        registry = cast(Registry, (within is not None and within.registry) or default_registry())
        edition, plan = self._route.found
        if edition is not registry.edition or plan is None:
            plan = self._look_up(registry)
        try:
            return plan.call(self.__wrapped__, args, kwargs, (plan.about, *place), within)
        except PoolShutdownError:
            if default_registry() is registry or (within is not None and within.registry is registry):
                raise
        return self.call_from(place, args, kwargs)  # another thread has configured anew meanwhile

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the plain function here and now, and return what it returns."""
        return cast(R, self.__wrapped__(*args, **kwargs))

    def options(self, **said: Unpack[Said]) -> Self:
        """
        Make the same task with other options; they win over the configuration.

        Args:
            said: As for `task`; what is None, or left out, stays as it is. `math.inf` switches a time off.

        Raises:
            TypeError, ValueError: One of them is of another type, or has a value that it can't have.
        """
        other = self._copy()
        other._said = declared_options(self.name, **said).over(self._said)
        return other

    @overload  # values or futures; defaults work because a Task matches Callable[[A]]
    def submit(self: Callable[[], Future[T]]) -> Future[T]: ...
    @overload
    def submit(self: Callable[[A], Future[T]], a: A | Future[A], /) -> Future[T]: ...
    @overload
    def submit(self: Callable[[A, B], Future[T]], a: A | Future[A], b: B | Future[B], /) -> Future[T]: ...
    @overload
    def submit(
        self: Callable[[A, B, C], Future[T]], a: A | Future[A], b: B | Future[B], c: C | Future[C], /
    ) -> Future[T]: ...
    @overload  # more are not checked
    def submit(
        self: Callable[..., Future[T]], a: object, b: object, c: object, d: object, /, *more: object
    ) -> Future[T]: ...
    def submit(self: Any, *args: Any) -> Future[Any]:
        """Call the task; the same as calling it, typed for arguments that are values or futures of them."""
        return cast("Task[..., Any]", self).call_from(caller(), args, {})

    @overload
    def map(self: Callable[[A], Future[T]], items: Iterable[A], /, **said: Unpack[MapSaid]) -> MapFuture[T]: ...
    @overload
    def map(
        self: Callable[[A, B], Future[T]], items: Iterable[A], more: Iterable[B], /, **said: Unpack[MapSaid]
    ) -> MapFuture[T]: ...
    @overload  # more are not checked
    def map(
        self: Callable[..., Future[T]],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        /,
        *more: Iterable[Any],
        **said: Unpack[MapSaid],
    ) -> MapFuture[T]: ...
    @overload
    def map(
        self: Callable[..., Future[T]],
        *iterables: Iterable[Any],
        constants: Mapping[str, object],
        unpack: bool = False,
        **said: Unpack[MapSaid],
    ) -> MapFuture[T]: ...
    @overload
    def map(
        self: Callable[..., Future[T]],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        unpack: Literal[True],
        **said: Unpack[MapSaid],
    ) -> MapFuture[T]: ...
    @overload
    def map(
        self: Callable[[A], Future[T]], items: Iterable[A], /, *, errors: Literal["collect"], **said: Unpack[MapCommon]
    ) -> MapFuture[Settled[T]]: ...
    @overload
    def map(
        self: Callable[..., Future[T]],
        *iterables: Iterable[Any],
        errors: Literal["collect"],
        constants: Mapping[str, object] = ...,
        unpack: bool = False,
        **said: Unpack[MapCommon],
    ) -> MapFuture[Settled[T]]: ...
    def map(self: Any, *iterables: Iterable[Any], **said: Any) -> MapFuture[Any]:
        """
        Call the task once per item, or per tuple of items of several iterables, the shortest of which ends it.

        Args:
            iterables: What it is called with.
            said: See `MapSaid`; `errors="collect"` gives a `Settled` for each item.

        Returns:
            The future of the list of all values, in input order; iterating it yields them as they come.

        Raises:
            What an iterable raises at once, and what calling the task raises.
        """
        return MapFuture(self, caller(), iterables, said)

    @overload
    def stream(self: Callable[[A], Future[T]], items: Iterable[A], /, **said: Unpack[StreamSaid]) -> Stream[T]: ...
    @overload
    def stream(
        self: Callable[[A, B], Future[T]], items: Iterable[A], more: Iterable[B], /, **said: Unpack[StreamSaid]
    ) -> Stream[T]: ...
    @overload  # more are not checked
    def stream(
        self: Callable[..., Future[T]],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        /,
        *more: Iterable[Any],
        **said: Unpack[StreamSaid],
    ) -> Stream[T]: ...
    @overload
    def stream(
        self: Callable[..., Future[T]],
        *iterables: Iterable[Any],
        constants: Mapping[str, object],
        unpack: bool = False,
        **said: Unpack[StreamSaid],
    ) -> Stream[T]: ...
    @overload
    def stream(
        self: Callable[..., Future[T]],
        rows: Iterable[Iterable[Any]],
        /,
        *,
        unpack: Literal[True],
        **said: Unpack[StreamSaid],
    ) -> Stream[T]: ...
    @overload
    def stream(
        self: Callable[[A], Future[T]],
        items: Iterable[A],
        /,
        *,
        errors: Literal["collect"],
        **said: Unpack[StreamCommon],
    ) -> Stream[Settled[T]]: ...
    @overload
    def stream(
        self: Callable[..., Future[T]],
        *iterables: Iterable[Any],
        errors: Literal["collect"],
        constants: Mapping[str, object] = ...,
        unpack: bool = False,
        **said: Unpack[StreamCommon],
    ) -> Stream[Settled[T]]: ...
    def stream(self: Any, *iterables: Iterable[Any], **said: Any) -> Stream[Any]:
        """
        Call the task once per item, as `map` does, and return an iterator over the values, for `for` and `async for`.

        It reads the items only as far as its window reaches, and keeps nothing: they may be endless, and who takes the
        values may be slow. Leaving the loop ends it.

        Args:
            iterables: What it is called with.
            said: See `StreamSaid`; `errors="collect"` gives a `Settled` for each item.
        """
        return Stream(self, caller(), iterables, said)

    def route(self, place: Place, manner: Manner, /) -> Route:
        """Return how the items of a map are sent that is made at *place*; see `Mapped`."""
        within = WITHIN.get()
        registry = cast(Registry, (within is not None and within.registry) or default_registry())
        plan = self._look_up(registry)
        pool = cast(Pool, plan.pool)
        group = None if within is None else within.group
        on_terms = (within is not None and within.deadline is not None) or (
            group is not None and group.limits is not None
        )
        is_async = inspect.iscoroutinefunction(plain_function(self.__wrapped__))
        if on_terms or not (plan.chunks and pool.chunks) or is_async or manner.medians is not None:
            return self._route_of_singles(place, manner, pool, is_async)
        shared = constants_of(manner.constants, pool.shared)
        context = copy_context()

        def launch(fn: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
            noting = trail.current
            kind: type[Future[Any]] = Future if noting is None or pool.tells_times else TracedFuture
            future = kind((fn, args, None, context.copy()))
            future.__dict__["_made"] = (plan.about, *place)
            if noting is not None:
                note_call(noting, future, plan.about.name, pool.number, items=len(args[1]))
            try:
                if group is not None:
                    group.adopt(future)
                pool.launch(future)
            except BaseException:
                drop(future, pool)  # the group knows of it
                raise
            return future

        def prepare(piece: Piece) -> tuple[Callable[..., Done], tuple[Any, ...]]:
            return pool.run_chunk, (self, piece.items, manner.spread, shared, *_seeding(manner.seed, piece.first))

        return Chunks(
            self.name,
            launch,
            prepare,
            pool.counts,
            functools.partial(pool.error_of_item, self.name),
            lambda error: type(error)(self.name, error.pid, error.exit_code, error.last_words, error.worker),
            plan.reruns,
            pool.capacity,
            pool.depth,
            pool.piece_time,
            functools.cache(lambda: self._route_of_singles(place, manner, pool, is_async)),
            manner.spread,
            pool.pickles,
        )

    def _route_of_singles(self, place: Place, manner: Manner, pool: Pool, is_async: bool) -> Route:
        """Return how items are sent one by one: with their seeds, and watched for how long they take, if need be."""
        one: Task[..., Any] = self
        before: Callable[[int], tuple[Any, ...]] | None = None
        medians: Medians | None = None
        if manner.seed is not None or manner.medians is not None:
            one = self._copy()
            one.__wrapped__ = ItemCall(run_item_later if is_async else run_item, self)
            before = functools.partial(_seeding, manner.seed)
        if manner.medians is not None:
            one._lane = lane = LateLane(TIMER)
            medians = Medians(manner.medians, lane)
        kwargs: dict[str, Any] = constants_of(manner.constants, pool.shared)
        context = copy_context()  # who asks for the next value of a stream may be in another registry
        return Singles(
            lambda *items: context.copy().run(one.call_from, place, items, kwargs),
            manner.spread,
            min(pool.capacity, SINGLES),
            pool.depth,
            pool.counts,
            before,
            medians,
        )

    @overload  # a Task matches here too: a Future is Awaitable
    def then(self: Callable[Q, Future[T]], fn: Callable[[T], Awaitable[U]], /) -> Task[Q, U]: ...
    @overload
    def then(self: Callable[Q, Future[T]], fn: Callable[[T], U], /) -> Task[Q, U]: ...
    def then(self: Any, fn: Callable[[Any], Any], /) -> Task[Any, Any]:
        """
        Make the task that calls this one and then *fn* with its value, each stage in its own pool.

        Args:
            fn: A task, or a plain function, which runs where `Future.then` would run it.
        """
        return TaskChain(self, "then", fn)

    @overload
    def catch(self: Callable[Q, Future[T]], fn: Callable[[Exception], Awaitable[U]], /) -> Task[Q, T | U]: ...
    @overload
    def catch(self: Callable[Q, Future[T]], fn: Callable[[Exception], U], /) -> Task[Q, T | U]: ...
    @overload
    def catch(
        self: Callable[Q, Future[T]], exc: type[E] | tuple[type[E], ...], fn: Callable[[E], Awaitable[U]], /
    ) -> Task[Q, T | U]: ...
    @overload
    def catch(
        self: Callable[Q, Future[T]], exc: type[E] | tuple[type[E], ...], fn: Callable[[E], U], /
    ) -> Task[Q, T | U]: ...
    def catch(self: Any, exc: Any, fn: Any = None, /) -> Task[Any, Any]:
        """
        Make the task that calls this one and, if that fails so, *fn* with the error; see `Future.catch`.

        Args:
            exc: The exception, or tuple of them, to catch; left out: every `Exception`.
            fn: A task, or a plain function.
        """
        return TaskChain(self, "catch", *what_to_catch(exc, fn))

    def finally_(self: Callable[Q, Future[T]], fn: Callable[[], object], /) -> Task[Q, T]:
        """Make the task that calls this one and, when that has ended in whatever way, *fn*; see `Future.finally_`."""
        return TaskChain(cast("Task[Q, Any]", self), "finally_", fn)

    @overload  # over a class method, by way of the class
    def __get__(self: Method[type[S], Q, T], obj: None, owner: type[S]) -> Task[Q, T]: ...
    @overload  # by way of the class
    def __get__(self, obj: None, owner: type | None = None) -> Self: ...
    @overload  # over a class method, by way of an object
    def __get__(self: Method[type[S], Q, T], obj: S, owner: type | None = None) -> Task[Q, T]: ...
    @overload
    def __get__(self: Method[S, Q, T], obj: S, owner: type | None = None) -> Task[Q, T]: ...
    @overload  # over a static method
    def __get__(self, obj: object, owner: type | None = None) -> Self: ...
    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """Bind the task to an object, as a function is."""
        return self if obj is None else self._bound_to(obj)

    def _bound_to(self, obj: Any) -> Task[..., Any]:
        bound = self._copy()
        bound._object = (obj,)
        bound.__wrapped__ = MethodType(self.__wrapped__, obj)
        bound._route = self._route
        return bound

    def submits_lightly(self) -> bool:
        """Tell whether calling it here and now only queues a call; False if that isn't known yet."""
        within = WITHIN.get()
        registry = cast(Registry, (within is not None and within.registry) or default_registry())
        edition, plan = self._route.found
        return edition is registry.edition and plan is not None and plan.submits_lightly

    def _look_up(self, registry: Registry) -> Plan:
        """Ask *registry* how calls are made there, and remember it."""
        edition = registry.edition
        plan, pool = registry.plan_for(self.saying, self._limits_of, self._lane)
        pool.check(plain_function(self.__wrapped__))
        if not registry.is_shut:  # then each call is looked at: only those from inside are taken
            edition.keep(self._route, plan)
        return plan

    @property
    def saying(self) -> Saying:
        """What is said about it besides the configuration."""
        return Saying(self.name, self.otherwise, self._declared, self._said)

    def parts(self) -> tuple[Task[P, Any], list[Tie]]:
        """Return the task that is called first, and what is tied to it: here, nothing."""
        return self, []

    def graph(self) -> Graph:
        """
        Return its stages, and the pool in which each runs, as the configuration has it: for `print`, or as a drawing.

        No pool is opened. A stage that is a plain function has no pool: it runs where the one before it did.

        Raises:
            ConfigError: The configuration, found only now, can't be used.
        """
        # It loads what draws, and what it needs.
        made: Graph = import_module("parallel.observe.walks").graph_of_task(self)
        return made

    @property
    def declared(self) -> TaskOptions:
        """What its decorator says."""
        return self._declared

    @property
    def otherwise(self) -> TaskOptions:
        """What holds if nobody says anything else."""
        return self._otherwise or _OTHERWISE[inspect.iscoroutinefunction(self.__wrapped__)]

    def _limits_of(self, limit: int | None, rate: Rate | None) -> tuple[Limits, ...]:
        """Return what counts the calls of this task, of its copies and of what binds it: a place, then a start."""
        made: list[Limits] = []
        if limit is not None:
            made.append(self._limits.setdefault(limit, Limits(limit)))
        if rate is not None:
            made.append(self._limits.setdefault(rate, Limits(None, rate)))
        return tuple(made)

    def _copy(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.__wrapped__ = self.__wrapped__
        other._route = LookUp()
        return other

    def __eq__(self, other: object) -> bool:
        """Bound tasks are equal as methods are: if they are bound to the same object, and say the same."""
        if self is other:
            return True
        one: Any = other
        bound = self._object and isinstance(other, Task)
        return bool(bound and self.__wrapped__ == one.__wrapped__ and self._said == one._said)

    def __hash__(self) -> int:
        return hash(self.__wrapped__) if self._object else object.__hash__(self)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._object:
            return _bind, (_unbound(self), self._object[0], self._said)
        qualname: str = self.__qualname__
        found = resolve(self.__module__, qualname)
        if found is self:
            return find_again, (self.__module__, qualname)
        if isinstance(found, Declared) and found.__wrapped__ is self.__wrapped__:
            return _with_options, (found, self._said)
        return self.reduce_by_value()

    def reduce_by_value(self) -> tuple[Any, ...]:
        """Return what pickle needs to make it again where its module can't be imported, such as a notebook's."""
        if self._object:
            return _bind, (_unbound(self), self._object[0], self._said)
        return _remade, (type(self), self.__wrapped__, self._declared, self._said, self._otherwise)


class StaticTask(Task[P, R]):
    """A task over a static method: it binds to nothing."""

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """Return the task itself."""
        return self


class ClassTask(Task[P, R]):
    """A task over a class method: it binds to the class."""

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """Bind the task to the class."""
        return self._bound_to(owner if owner is not None else type(obj))


class TaskChain(Task[P, R]):
    """
    A task made of another one, and of what follows it.

    Args:
        first: The task that is called.
        how: The method of its future that ties the rest to it: `then`, `catch` or `finally_`.
        stage: The arguments of that method; the last one is the function, or task.
    """

    def __init__(self, first: Task[P, Any], how: str, *stage: Any) -> None:
        fn = stage[-1]
        if not callable(fn):
            raise TypeError(f"the stage of a chain must be callable, found {fn!r}")
        self._first = first
        self._how = how
        self._stage = stage
        super().__init__(self._run, TaskOptions())
        self.name = f"{short_name(first)} → {short_name(fn)}"
        self.__doc__ = first.__doc__
        self.__module__ = first.__module__
        self.__name__ = self.__qualname__ = self.name

    def parts(self) -> tuple[Task[P, Any], list[Tie]]:
        """Return the task that is called first, and what is tied to it, in that order."""
        first: Task[P, Any] = self
        ties: list[Tie] = []
        while isinstance(first, TaskChain):
            ties.append((first._how, first._stage))
            first = first._first
        return first, ties[::-1]

    def stages(self) -> tuple[object, ...]:
        """Return the first task, and for each that follows how it is tied, and what it is."""
        first, ties = self.parts()
        return first, *(part for how, stage in ties for part in (how, *stage))

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the first task; what comes out is what the last stage returns, which isn't known here."""
        return inspect.signature(self._first).replace(return_annotation=inspect.Signature.empty)

    def _run(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run all stages here and now."""
        first, ties = self.parts()
        return cast(R, run_here(functools.partial(first.local, *args, **kwargs), ties))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the first task, and tie the rest to its future."""
        return self.call_from(caller(), args, kwargs)

    def call_from(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Future[Any]:
        """Call the first task, and tie the rest to its future; see `Task.call_from`."""
        first, ties = self.parts()
        future = first.call_from(place, args, kwargs)
        for how, stage in ties:
            future = cast("Future[Any]", getattr(future, how)(*stage))
        return future

    def route(self, place: Place, manner: Manner, /) -> Route:
        """Return how items are sent through all stages: each in a call of its own; see `Task.route`."""
        if manner.seed is not None or manner.medians is not None:
            raise TypeError(f"a chain has no seed, and no timeout: map its stages one by one ({self.name})")
        first, ties = self.parts()
        tasks = cast("list[Task[..., Any]]", [first, *(stage[-1] for _, stage in ties if isinstance(stage[-1], Task))])
        routes = [stage.route(place, Manner(manner.spread)) for stage in tasks]
        context = copy_context()
        kwargs = dict(manner.constants or {})
        return Singles(
            lambda *items: context.copy().run(self.call_from, place, items, kwargs),
            manner.spread,
            min(sum(route.capacity for route in routes), SINGLES),
            max(route.depth for route in routes),
            lambda: _together([route.stats() for route in routes]),
        )

    def submits_lightly(self) -> bool:
        """Tell that it does more: it ties its stages too."""
        return False

    def options(self, **said: Unpack[Said]) -> Self:
        """Refuse: each stage has options of its own."""
        raise TypeError(f"a chain has no options of its own: set them on its stages, before chaining ({self.name})")

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        """Bind the first task, in its own way."""
        first: Task[..., Any] = self._first.__get__(obj, owner)
        if first is self._first:
            return self
        bound: TaskChain[..., Any] = TaskChain(first, self._how, *self._stage)
        return bound

    def __eq__(self, other: object) -> bool:
        """Chains are equal if their tasks are, and do the same."""
        if not isinstance(other, TaskChain):
            return False
        one = cast("TaskChain[..., Any]", other)
        return bool(self._first == one._first and (self._how, self._stage) == (one._how, one._stage))

    def __hash__(self) -> int:
        return hash((self._first, self._how))

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskChain, (self._first, self._how, *self._stage)

    def reduce_by_value(self) -> tuple[Any, ...]:
        """Return the stages, which travel each in its own way."""
        return self.__reduce__()


def _seeding(seed: int | tuple[int, ...] | None, first: int) -> tuple[Seeding | None]:
    """Return what has a function draw, with the item of that index first; as the one item of a tuple of arguments."""
    return (None if seed is None else functools.partial(seeded, seed, first),)


def _together(pools: list[Counts]) -> Counts:
    """Return what several pools do, as if they were one."""
    workers, queued, running, done, stragglers = (sum(numbers) for numbers in list(zip(*pools, strict=True))[:5])
    link = next((each.dashboard_link for each in pools if each.dashboard_link), "")
    return Counts(workers, queued, running, done, stragglers, link)


def caller() -> Place:
    """Return the place that calls the function which asks; for one of ours that calls a task for its own caller."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  # no public way is as fast
    return frame.f_code, frame.f_lasti


def _unbound(bound: Task[..., Any]) -> Task[..., Any]:
    plain = _with_options(bound, TaskOptions())
    plain._object = ()  # pyright: ignore[reportPrivateUsage]  # same module
    plain.__wrapped__ = cast(MethodType, bound.__wrapped__).__func__
    return plain


def _bind(plain: Task[..., Any], obj: Any, said: TaskOptions) -> Task[..., Any]:
    """Make a bound task again, from its pickle."""
    return _with_options(plain, said)._bound_to(obj)  # pyright: ignore[reportPrivateUsage]  # same module


def _with_options(plain: Task[..., Any], said: TaskOptions) -> Task[..., Any]:
    """Make a task with options again, from its pickle; of a map, its task of one item."""
    plain = getattr(plain, "task", plain)
    other = plain._copy()  # pyright: ignore[reportPrivateUsage]  # same module
    other._said = said  # pyright: ignore[reportPrivateUsage]  # same module
    return other


def _remade(
    kind: type[Task[..., Any]],
    fn: Callable[..., Any],
    declared: TaskOptions,
    said: TaskOptions,
    otherwise: TaskOptions | None,
) -> Task[..., Any]:
    """Make a task of a lambda or closure again, from its pickle."""
    return _with_options(kind(fn, declared, otherwise), said)
