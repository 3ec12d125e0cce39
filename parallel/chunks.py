"""
Chunks: many items of a map, which run as one call.

    run_chunk(fn, items, ...) ──▶ Done: the values of the first so many items, and which of them failed
                             └──▶ its worker is killed ──▶ Kept: what it had written down, and which item it was in

A chunk that has taken long enough comes back with what it has done; who sent it sends the rest anew, to whoever is
free. So long items hold up nothing but themselves, and nobody has to know beforehand how long they are.

In a worker process each item is noted before it begins, and what items of some length return is written down at once
(see `Board`). Whoever kills the worker costs the item that it is in: those before it are not run again, unless they
were so short that writing them down would have taken as long as they did. Tiny ones are noted many at a time: then
those are run again, one by one, until it is known which.

Nothing here has state.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import itemgetter
from types import CoroutineType
from typing import Any, Final, NamedTuple, Self, TypeAlias

from parallel.context import module_of, name_of, plain_function
from parallel.coroutines import run_coroutine
from parallel.salvage import Unloadable, load_around, refuse_gaps

BUDGET: Final = 20_000_000
"""
Nanoseconds after which a chunk begins no other item. The sending of the rest costs less than a hundredth of that; the
longer it is, the longer an item waits for the ones before it while another worker has nothing to do. With half of that,
tiny items take a tenth longer. Where somebody else's scheduler brings chunks to many workers, they are to be longer.
"""

SHORT: Final = 100_000
"""Nanoseconds of work between two notes of what has been done: an item that takes longer is never run twice."""

FEW: Final = 10
"""Items in that time at most of which a note is taken: for shorter ones it would take longer than they do."""

BLOCK: Final = 1024
"""Items that are begun together at most, as they are tiny: with twice as many, they gain a percent."""

COROUTINE: Final[type[Any]] = CoroutineType
"""What a function returns that is to be awaited, rather than handed out."""

Seeding: TypeAlias = Callable[[Callable[[Any], Any]], AbstractContextManager[Callable[[Any], Any]]]
"""Has a function draw that is called with one item of a chunk after the other: `partial(seeded, seed, first)`."""


class Manner(NamedTuple):
    """
    How the items of a map are called.

    Attributes:
        spread: Each item is a tuple of arguments.
        constants: Arguments by name, the same for all; None: there are none.
        seed: What they draw from, as `read_seed` returns it; None: nothing.
        medians: An item may take so many times as long as the middle one of those that have ended; None: as long as
            the task says.
    """

    spread: bool
    constants: Mapping[str, object] | None = None
    seed: int | tuple[int, ...] | None = None
    medians: float | None = None


class Done(NamedTuple):
    """
    What has become of a chunk.

    Attributes:
        values: Those of its first items, in order; None in the place of one that failed.
        failures: Which of these failed, counted from 0, and how: an exception, or what it travels as.
        nanoseconds: What they took.
    """

    values: list[Any]
    failures: list[tuple[int, Any]]
    nanoseconds: int

    def awaited(self, run: Callable[[Any], Any], pack: Callable[[BaseException], Any]) -> Done:
        """Return the same with what *run* makes of each coroutine among the values in its place."""

        def value_of(value: object) -> object:
            return run(value) if type(value) is COROUTINE else value

        return self._checked(value_of, pack)

    def only_sound(self, check: Callable[[Any], object], pack: Callable[[BaseException], Any]) -> Done:
        """Return the same with a failure in the place of each value that *check* refuses, made of what it raises."""

        def checked(value: object) -> object:
            check(value)
            return value

        return self._checked(checked, pack)

    def _checked(self, check: Callable[[Any], Any], pack: Callable[[BaseException], Any]) -> Done:
        values, failures = list(self.values), list(self.failures)
        for index, value in enumerate(values):
            try:
                values[index] = check(value)
            except BaseException as error:  # the value's own code runs here
                values[index] = None
                failures.append((index, pack(error)))
        return Done(values, sorted(failures, key=itemgetter(0)), self.nanoseconds)


class Kept(NamedTuple):
    """
    What is known of a chunk whose worker has died in it.

    Attributes:
        begun: How many of its items had been begun for certain.
        perhaps: How many more may have been, as they were begun together with the last of these.
        ended: Whether all that were begun had ended; else it is one of those last that the worker died in.
        notes: What it had written down, pickled: values and failures, as of `Done`, of its first items.
    """

    begun: int
    perhaps: int
    ended: bool
    notes: list[bytes]

    def read(self) -> tuple[list[Any], list[tuple[int, Any]]]:
        """Return the values and the failures that it had written down. Loading them runs the user's code."""
        values: list[Any] = []
        failures: list[tuple[int, Any]] = []
        for note in self.notes:
            try:
                more, failed = pickle.loads(note)
            except Exception:  # the values' own code runs here
                more, failed = load_around(note)
                sound = Done(more, [], 0).only_sound(refuse_gaps, Unloadable)
                more = sound.values
                failed += [(len(values) + index, gap) for index, gap in sound.failures]
            values += more
            failures += failed
        return values, failures


class Notebook:
    """
    Where is noted how far a chunk has come; this one notes nothing: on a thread nobody could read it.

    Attributes:
        caught: What is the failure of an item; all else is that of the chunk.
        budget: Nanoseconds after which no other item is begun.
    """

    caught: tuple[type[BaseException], ...] = (Exception, SystemExit)
    budget: int = BUDGET

    def begin(self) -> None:
        """Start with an empty one, at the beginning of a chunk."""

    def enter(self, number: int, size: int) -> None:
        """Note that so many items are begun, one after the other, the first of which has that number, from 1 on."""

    def end(self) -> None:
        """Note that all have ended that were begun, and that no other is."""

    def complete(self, done: Done) -> Done:
        """Return the same with the values of coroutines that are among its values: plain functions return some."""
        if COROUTINE not in set(map(type, done.values)):  # a look at each by itself takes twice as long
            return done
        return done.awaited(run_coroutine, self.pack)

    def keep(self, values: list[Any], failures: list[tuple[int, Any]], /) -> bool:
        """Write down what the next items have returned; False if that doesn't fit, or can't be written."""
        return True

    def pack(self, error: BaseException, /) -> Any:
        """Return what an exception travels as."""
        return error


def run_chunk(
    fn: Callable[..., Any],
    items: Sequence[Any],
    spread: bool,
    constants: Mapping[str, Any],
    seeding: Seeding | None = None,
    notebook: Notebook | None = None,
) -> Done:
    """
    Call a function with one item after the other.

    Args:
        fn: The function, or a task.
        items: What it is called with.
        spread: Each item is a tuple of arguments.
        constants: Arguments by name, the same for all.
        seeding: Has the function draw; None: it can't.
        notebook: Where to note how far it has come; None: nowhere.

    Returns:
        How those have ended that were begun in the notebook's budget; one of them at least.
    """
    call = plain_function(fn)
    if constants:
        call = partial(call, **constants)
    if spread:
        call = partial(_call_spread, call)
    notebook = notebook or Notebook()
    if seeding is None:
        return _run(call, items, notebook)
    with seeding(call) as drawing:
        return _run(drawing, items, notebook)


def _run(call: Callable[[Any], Any], items: Sequence[Any], notebook: Notebook) -> Done:
    """
    Call a function with the items, until the time is over; short ones many at a time, as a look at the clock costs.

    A block of them that has taken longer than `SHORT` is followed by a smaller one.
    """
    values: list[Any] = []
    failures: list[tuple[int, Any]] = []
    caught, clock = notebook.caught, time.monotonic_ns
    notebook.begin()
    size = 1
    seen = kept = 0
    now = began = clock()
    stop, due = began + notebook.budget, began + SHORT
    while (done := len(values)) < len(items):
        block, before = items[done : done + size], now
        notebook.enter(done + 1, len(block))
        try:
            values.extend(map(call, block))  # what ended before one that raises is there
            if len(values) < done + len(block):
                raise StopIteration  # one did, which `map` takes for its own end
        except caught as error:
            failures.append((len(values), notebook.pack(error)))
            values.append(None)
        if type(values[0]) is COROUTINE and len(values) == 1:  # as those of the others will be
            call = _awaiting(call, values.pop())
            continue
        now = clock()
        if now >= due:
            if len(values) - seen <= FEW:
                if not notebook.keep(values[kept:], [each for each in failures if each[0] >= kept]):
                    break  # what can't be written down is safe in the answer only
                kept = len(values)
            if now >= stop:
                break
            seen, due = len(values), now + SHORT
        if now - before < SHORT // 4:
            size = min(2 * size, BLOCK)
        elif now - before > SHORT:
            size = max(size // 4, 1)
    notebook.end()
    return notebook.complete(Done(values, failures, now - began))


def _awaiting(call: Callable[[Any], Any], first: object) -> Callable[[Any], Any]:
    """Return what calls a function that returns coroutines, and runs these; *first* is what it returned already."""
    made = [first]

    def awaited(item: Any) -> Any:
        value: Any = made.pop() if made else call(item)
        return run_coroutine(value) if type(value) is COROUTINE else value

    return awaited


class Timed(NamedTuple):
    """
    What a call of one item brings.

    Attributes:
        value: What the function returned.
        nanoseconds: What it took.
    """

    value: Any
    nanoseconds: int


def run_item(fn: Callable[..., Any], seeding: Seeding | None, /, *args: Any, **kwargs: Any) -> Timed:
    """Call a function with one item, as a call of its own; what it raises comes out."""
    call = plain_function(fn)
    began = time.monotonic_ns()
    if seeding is None:
        return Timed(call(*args, **kwargs), time.monotonic_ns() - began)
    with seeding(lambda item: call(*item, **kwargs)) as drawing:
        return Timed(drawing(args), time.monotonic_ns() - began)


async def run_item_later(fn: Callable[..., Any], seeding: Seeding | None, /, *args: Any, **kwargs: Any) -> Timed:
    """Do the same with a function of coroutines."""
    call = plain_function(fn)
    began = time.monotonic_ns()
    if seeding is None:
        return Timed(await call(*args, **kwargs), time.monotonic_ns() - began)
    with seeding(lambda item: call(*item, **kwargs)) as drawing:
        return Timed(await drawing(args), time.monotonic_ns() - began)


class ItemCall(partial[Any]):
    """
    What calls a function with one item: known by the name of that function, wherever it is sent.

    Args:
        run: `run_item`, or `run_item_later`.
        fn: The function, or a task.
    """

    def __new__(cls, run: Callable[..., Any], fn: Any, /) -> Self:
        """Make one."""
        self = super().__new__(cls, run, fn)
        vars(self).update(__module__=module_of(fn), __qualname__=name_of(fn).partition(":")[2])
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ItemCall, (self.func, *self.args)


def _call_spread(call: Callable[..., Any], arguments: Iterable[Any]) -> Any:
    return call(*arguments)
