"""
The futures among a task's arguments: waited for, holding no worker, before the call goes to its pool.

    values_of(args, kwargs) ──▶ no future among them ──▶ the arguments, as they are
                           └──▶ a future of the arguments, with values in the places of futures

A future counts at the top level and one level down in an exact list, tuple or dict; deeper ones, and those in other
containers, are passed as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future as StandardFuture
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, cast

from parallel.context import current_registry
from parallel.delivery import outcome_of
from parallel.futures import Future
from parallel.meetings import AllOrError, meet
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


Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


def values_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | Future[Arguments]:
    """
    Put values in the places of the futures among the arguments of a call.

    Returns:
        The arguments; or, if there are futures to wait for, the future of them. An argument that failed fails it with
        the same exception, a cancelled one cancels it; the other arguments go on.
    """
    values = [*args, *kwargs.values()]
    marked = [item for value in values if _may_hold(value) for item in _items(value) if _is_marked(item)]
    if not marked:
        return args, kwargs
    awaited = [item for item in marked if is_future(item)]

    def filled(results: list[Any]) -> Arguments:
        coming = iter(results)
        now = [_filled(value, coming) for value in values]
        return tuple(now[: len(args)]), dict(zip(kwargs, now[len(args) :], strict=True))

    if all(map(_has_value, awaited)):
        return filled([future.result() for future in awaited])  # nothing to wait for, or nothing more
    arrived: Future[Any] = Future(BARE, current_registry().callbacks)
    meet(awaited, AllOrError(filled, selects=False), arrived)
    return arrived


def hold_futures(items: Sequence[Any], spread: bool) -> bool:
    """
    Tell whether a call with one of *items* would have to wait for futures among its arguments.

    Args:
        items: Some arguments, each of a call of its own.
        spread: Each is a tuple of arguments instead; a row of another kind is not looked into.
    """
    if not spread:
        return not ATOMS.issuperset(map(type, items)) and any(map(_may_hold, items))
    rows: list[tuple[Any, ...]] = [row for row in items if type(row) is tuple]
    return any(_may_hold(value) for row in rows for value in row)


def _has_value(future: StandardFuture[Any]) -> bool:
    """Tell whether *future* has ended with a value; that is no look at an error that it has instead."""
    return future.done() and outcome_of(future)[1] is None


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
