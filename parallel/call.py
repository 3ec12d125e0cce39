"""
One call of a task: waits for the futures among its arguments, then goes to its pool.

    submit_call() ──▶ no future among the arguments ──▶ pool.submit(fn, *args, **kwargs)
                  └─▶ wait for them, holding no worker ──▶ pool.submit(fn, *values)   on a callback thread

A future counts at the top level and one level down in an exact list, tuple or dict; deeper ones, and those in other
containers, are passed as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future as StandardFuture
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from parallel.context import current_registry
from parallel.futures import Future
from parallel.meetings import all_or_error, meet
from parallel.states import BARE, is_future

if TYPE_CHECKING:
    from typing_extensions import TypeIs

T = TypeVar("T")

ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types that neither are nor hold futures: no need to look."""


class Unresolved(Generic[T]):
    """A future that is to be passed itself."""

    __slots__ = ("future",)

    def __init__(self, future: StandardFuture[T]) -> None:
        self.future = future


def unresolved(future: Future[T], /) -> Future[T]:
    """Mark *future* among a task's arguments: the function gets the future itself, not its value."""
    return cast("Future[T]", Unresolved(future))


def result_of(future: Future[T], /) -> T:
    """Stand for the value of *future* among a task's arguments, for the type checker: returns the future itself."""
    return cast(T, future)


def submit_call(
    submit: Callable[..., Future[T]], fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Future[T]:
    """
    Submit a call, after the futures among its arguments have ended.

    Args:
        submit: The pool's method.
        fn: The plain function.
        args: Its positional arguments, futures among them.
        kwargs: Its keyword arguments, futures among them.

    Returns:
        The call's future. A failed argument fails it with the same exception, a cancelled one cancels it.
    """
    values = [*args, *kwargs.values()]
    marked = [item for value in values if _may_hold(value) for item in _items(value) if _is_marked(item)]
    if not marked:
        return submit(fn, *args, **kwargs)
    awaited = [item for item in marked if is_future(item)]

    def go_on(results: list[Any]) -> Future[T]:
        coming = iter(results)
        now = [_filled(value, coming) for value in values]
        return submit(fn, *now[: len(args)], **dict(zip(kwargs, now[len(args) :], strict=True)))

    if not awaited:
        return go_on([])
    arrived: Future[list[Any]] = Future(BARE, current_registry().callbacks)
    meet(awaited, all_or_error(selects=False), arrived)
    return arrived.then(go_on)


def _may_hold(value: object) -> bool:
    """Tell by types whether *value* is, or holds, anything marked: a long list is looked through quickly."""
    if type(value) in ATOMS:
        return False
    return any(issubclass(kind, StandardFuture | Unresolved) for kind in set(map(type, _items(value))))


def _items(value: object) -> Iterable[object]:
    """Return where to look for futures: in what an exact list, tuple or dict holds, else at the value itself."""
    kind: object = type(value)
    if kind is dict:
        return cast("dict[object, object]", value).values()
    if kind is list or kind is tuple:
        return cast("list[object]", value)
    return (value,)


def _is_marked(item: object) -> bool:
    return is_future(item) or _is_unresolved(item)


def _is_unresolved(item: object) -> TypeIs[Unresolved[Any]]:
    return isinstance(item, Unresolved)


def _filled(value: object, results: Iterator[object]) -> object:
    """Return *value* with its futures replaced by *results*, in the order in which `_items` gives them."""
    items = [_replaced(item, results) for item in _items(value)]
    if type(value) is dict:
        return dict(zip(cast("dict[object, object]", value), items, strict=True))
    if type(value) is list:
        return items
    return tuple(items) if type(value) is tuple else items[0]


def _replaced(item: object, results: Iterator[object]) -> object:
    if is_future(item):
        return next(results)
    return item.future if _is_unresolved(item) else item
