"""
What comes out of a map: all of it, or one value after the other.

    items ──▶ Flow ──┬── MapFuture: driven by callback threads, as fast as it goes; keeps the values
                     └── Stream: driven by who asks for the next value, no further than its window; keeps nothing

What an item's failure does is said by *errors*: it ends the whole, stands in the place of the value, or is left out.

State: of a `MapFuture`, `_slots`, `_ready`, `_arrivals` and what counts, written by the one thread at a time that
drives it, and read by anybody; `_turn`, held by that one; `_bells`, by single steps. A `Stream` belongs to who asks it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import CancelledError
from contextlib import suppress
from contextvars import copy_context
from math import inf
from os import PathLike, fspath
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, Self, TypeAlias, TypedDict, TypeVar, cast

from parallel.chains import short_name
from parallel.checks import described, is_count
from parallel.chunks import Manner
from parallel.combine import Settled
from parallel.context import Declared, Dispatcher, current_registry, name_of, plain_function, take_in
from parallel.delivery import Errand, dispatch, give_up, settle
from parallel.durations import Duration
from parallel.errors import MapHaltedError, PoolShutdownError
from parallel.flows import Flow, Pace, PieceCancelledError, Route, Wake
from parallel.futures import Future
from parallel.ledgers import Part, open_ledger
from parallel.meters import Progress, total_of
from parallel.options import Said
from parallel.outcomes import CANCELLED, failed_with
from parallel.progress import Shown, make_display
from parallel.retries import Retry
from parallel.seeds import Seed, read_seed
from parallel.states import BARE, State
from parallel.terms import About

R = TypeVar("R")

Errors: TypeAlias = Literal["raise", "collect", "skip"]

FEW: Final = 3
"""Failures that are too few for a share of items whose number nobody knows."""

_MISSING: Final = object()
"""In the place of a value that has not come."""
_SKIPPED: Final = object()
"""In the place of one that is left out."""


class Halt(NamedTuple):
    """
    When failures end a map that would go on after each of them.

    Attributes:
        when: `"soon"`: nothing more is begun, what runs comes to its end; `"now"`: what runs is ended too.
        fail: After so many failures; or so much of all items, as in `"10%"`: of those that have ended, and three at
            least, if it isn't known how many there will be.
    """

    when: Literal["soon", "now"] = "soon"
    fail: int | str = 1


class MapCommon(TypedDict, total=False):
    """
    What may be said about any map, besides `constants` and `unpack`, and what a failure does.

    Attributes:
        strict: Iterables of different lengths are a `ValueError`.
        chunksize: Items that are sent together; left out: as many as it turns out to be best.
        halt: When failures end it that would not.
        total: How many items there are, if the iterable doesn't know.
        journal: A file in which each item is recorded that has ended, before its value is seen.
        resume: What a journal has from earlier runs is not run again, which is the usual; `"failed"`: but what has
            failed is; False: all is.
        key: Returns what an item is known by in the journal, from its arguments; left out: the item itself.
        seed: Gives each item a random generator of its own, which `rng()` returns in the function: the numbers hang on
            the seed and on the item's index alone.
        progress: Shows on standard error how far it is: True, a label, `"tqdm"`, or a function that gets a `Progress`
            ten times a second at most.
        timeout: How long one attempt at an item may run; see `TaskOptions`. `"3x median"`: so many times as long as
            the middle one of the last thousand that have ended, and a second at least; nothing is bounded
            before ten have.
        retry: When to try an item again; see `TaskOptions`.
    """

    strict: bool
    chunksize: int | None
    halt: Halt | None
    total: int | None
    journal: str | PathLike[str] | None
    resume: bool | Literal["failed"]
    key: Callable[..., Hashable] | None
    seed: Seed | None
    progress: Shown
    timeout: Duration | None
    retry: Retry | None


class MapSaid(MapCommon, total=False):
    """
    What may be said about a map whose values are plain.

    Attributes:
        errors: What a failure does: `"raise"` ends the whole, which is the usual; `"skip"` leaves the item out.
    """

    errors: Literal["raise", "skip"]


class MapOptions(Said, MapSaid):
    """What may be said where a map is declared: about the call of each item, and about the whole."""


class StreamCommon(MapCommon, total=False):
    """
    What may be said about a stream, besides.

    Attributes:
        buffersize: Items that may have been read, and not handed out; left out: as many as keep the workers busy.
        ordered: Values come in the order of the items, which is the usual; else as soon as they are there.
    """

    buffersize: int | None
    ordered: bool


class StreamSaid(StreamCommon, total=False):
    """As `MapSaid`, for a stream."""

    errors: Literal["raise", "skip"]


class Mapped(Protocol):
    """What is called with each item."""

    @property
    def name(self) -> str:
        """The name of the function."""
        ...

    def route(self, place: Any, manner: Manner, /) -> Route:
        """Return how items are sent, when it is mapped at *place*."""
        ...

    def options(self, *, timeout: Duration | None = None, retry: Retry | None = None) -> Mapped:
        """Return the same with other options."""
        ...


def check_said(said: Mapping[str, Any]) -> None:
    """
    Refuse options that no map can have.

    Raises:
        TypeError, ValueError: One of them is unknown, of another type, or has a value that it can't have.
    """
    _Rules(said, [()], MapSaid.__annotations__)


class _Rules:
    """What is said about a map, checked."""

    def __init__(self, said: Mapping[str, Any], iterables: Sequence[Iterable[Any]], known_words: Iterable[str]) -> None:
        known = {*known_words, "constants", "unpack"}
        for name in said:
            if name not in known:
                raise TypeError(f"a map has no option {name!r}: expected one of {', '.join(sorted(known))}")
        self.errors: Errors = said.get("errors", "raise")
        if self.errors not in ("raise", "collect", "skip"):
            raise ValueError(f"errors: expected 'raise', 'collect' or 'skip', found {described(self.errors)}")
        self.chunksize = _count("chunksize", said.get("chunksize"))
        self.buffersize = _count("buffersize", said.get("buffersize"))
        if not iterables:
            raise TypeError("a map needs the items: expected an iterable at least, found none")
        unpack, strict = _flag("unpack", said.get("unpack", False)), _flag("strict", said.get("strict", False))
        self.ordered = _flag("ordered", said.get("ordered", True))
        self.medians, self.timeout = _timeout(said.get("timeout"))
        self.retry: Retry | None = said.get("retry")
        seed = said.get("seed")
        self.manner = Manner(
            len(iterables) != 1 or unpack,
            _constants(said.get("constants")),
            None if seed is None else read_seed(seed),
            self.medians,
        )
        self.progress: Shown = said.get("progress")
        if len(iterables) != 1 and unpack:
            raise TypeError("unpack=True is for one iterable of rows; several iterables give one argument each")
        self.total = total_of(iterables, said.get("total"))
        self.journal: str | PathLike[str] | None = said.get("journal")
        self.resume: object = said.get("resume", True)
        self.key: Callable[..., Hashable] | None = said.get("key")
        if self.key is not None and not callable(self.key):
            raise TypeError(f"key: expected a function, found {described(self.key)}")
        self.halts = _Halting(said.get("halt"), self.total)
        one = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=strict)
        self.source: Iterator[Any] = one

    def flow(self, mapped: Mapped, place: Any, target: State[Any], wake: Callable[[], State[Any] | None]) -> Flow:
        """Make the flow of the items."""
        if self.timeout is not None or self.retry is not None:
            mapped = mapped.options(timeout=self.timeout, retry=self.retry)
        route = mapped.route(place, self.manner)
        pace = Pace(self.chunksize, self.total, route.capacity, route.piece_time)
        ledger = None
        if self.journal is None and (self.key is not None or self.resume is not True):
            raise ValueError("key and resume say something about a journal: expected only beside one")
        if self.journal is not None and not fspath(self.journal):
            raise ValueError("journal: expected the path of a file, found an empty one")
        if self.journal is not None:
            plain = plain_function(cast(Any, mapped))
            ledger = open_ledger(fspath(self.journal), _recorded_as(mapped), plain, self.resume, self.manner, self.key)
        try:
            display = make_display(self.progress, short_name(cast(Any, mapped)), self.total, route.stats)
        except BaseException:
            if ledger is not None:
                ledger.close()
            raise
        source, self.source = self.source, iter(())  # the flow's alone: it is let go of at the end
        return Flow(source, route, pace, self.buffersize, mapped.name, target, wake, display, ledger)


def _recorded_as(mapped: Mapped) -> str:
    """Return by which name a journal knows what is mapped: that of a chain tells the modules of its stages too."""
    stages = cast(Declared, mapped).stages()
    return " ".join(part if isinstance(part, str) else name_of(cast(Any, part)) for part in stages) or mapped.name


def _constants(value: object) -> Mapping[str, object] | None:
    if value is None or isinstance(value, Mapping):
        return cast("Mapping[str, object] | None", value)
    raise TypeError(f"constants: expected a mapping of arguments by name, found {described(value)}")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError(f"{name}: expected a boolean, found {described(value)}")


def _count(name: str, value: object) -> int | None:
    if value is None or is_count(value):
        return cast("int | None", value)
    raise ValueError(f"{name}: expected an integer of at least 1, found {described(value)}")


def _timeout(said: Duration | None) -> tuple[float | None, Duration | None]:
    """Return after how many medians an item is ended, and after which time."""
    if not is_of_median(said):
        return None, said
    text = cast(str, said).removesuffix("median").strip()
    with suppress(ValueError):
        factor = float(text.removesuffix("x"))
        if text.endswith("x") and 1 < factor < inf:
            return factor, None
    raise ValueError(f"timeout: expected a duration, or a multiple of more than 1 as '3x median', found {said!r}")


def is_of_median(timeout: object) -> bool:
    """Tell whether a timeout is a multiple of what the items take."""
    return isinstance(timeout, str) and timeout.endswith("median")


class _Halting:
    """Counts failures, and says when they are too many."""

    def __init__(self, halt: Halt | None, total: int | None) -> None:
        self._halt = halt
        self._share: float | None = None
        self._most = 0
        self._total = total
        self.failures = 0
        if halt is None:
            return
        if not isinstance(cast(object, halt), Halt):
            raise TypeError(f"halt: expected a Halt, such as Halt('soon', 3), found {described(halt)}")
        if halt.when not in ("soon", "now"):
            raise ValueError(f"halt: expected 'soon' or 'now', found {described(halt.when)}")
        if isinstance(halt.fail, str):
            self._share = _share(halt.fail)
        else:
            self._most = cast(int, _count("halt", halt.fail))

    def count(self, failures: int, ended: int) -> bool:
        """Note that so many more have failed, of so many that have ended by now; True if that is too many."""
        self.failures += failures
        if self._halt is None or not self.failures:
            return False
        if self._share is None:
            return self.failures >= self._most
        if self._total is None and self.failures < FEW:
            return False
        return self.failures >= self._share * max(self._total or ended, 1)

    @property
    def at_once(self) -> bool:
        """Whether what runs is ended too."""
        return self._halt is not None and self._halt.when == "now"


def _share(text: str) -> float:
    with suppress(ValueError):
        percent = float(text.removesuffix("%"))
        if text.endswith("%") and 0 < percent <= 100:
            return percent / 100
    raise ValueError(f"halt: expected a number of failures, or a share such as '10%', found {described(text)}")


# -- all values -------------------------------------------------------------------------------------------------------


class MapFuture(Future[list[R]]):
    """
    The future of the list of all values, one per item, in input order; iterating yields each as soon as it is there.

    It goes on by itself, whoever waits, and keeps the values. A failure ends the whole, unless *errors* says otherwise:
    what runs is asked to stop, and what has not begun is cancelled. Iterating raises the failed item's exception when
    the values before it have come. Leaving a loop over it early cancels nothing. An endless iterable is for a stream:
    the program would wait for its end.
    """

    def __init__(self, mapped: Mapped, place: Any, iterables: Sequence[Iterable[Any]], said: Mapping[str, Any]) -> None:
        """Begin it, on this thread; what an iterable raises at once, and what calling the task raises, comes out."""
        super().__init__(BARE, current_registry().callbacks)
        self._name = mapped.name
        self._rules = rules = _Rules(said, iterables, MapSaid.__annotations__)
        self._slots: list[Any] = []
        self._ready = 0  # so many of the first slots are filled
        self._arrivals: list[tuple[int, int]] = []  # first index and count, as they came
        self._count = 0  # items that have ended
        self._bells: deque[_Chime] = deque()
        self._turn = threading.Lock()
        self._context = copy_context()
        self._flow = rules.flow(mapped, place, self, self._wake)
        self.__dict__["_made"] = (About(mapped.name, ""), *place)
        self._turn.acquire()
        try:
            take_in(self)
            self._context.copy().run(self._flow.fill, in_hand=True)
            if self._flow.is_slow and not self._flow.runs_here:  # the rest of the source is not for who makes the map
                dispatch(cast(Dispatcher, self.dispatcher), Errand(self._go_on))
            else:
                self._go_on()
        except BaseException:  # an interrupt, as the source was read; or the group is at its end
            self._flow.stop()
            self._flow.close()
            give_up(self)
            raise

    # -- who drives it ------------------------------------------------------------------------------------------------

    def _wake(self) -> State[Any] | None:
        """On any thread: have a callback thread go on, unless somebody is at it."""
        if self._turn.acquire(blocking=False):
            try:
                dispatch(cast(Dispatcher, self.dispatcher), Errand(self._go_on))
            except PoolShutdownError as error:  # at the end of the program: nobody goes on
                self._flow.fail(error)
                return self
        return None

    def _go_on(self, here: Dispatcher | None = None) -> None:
        """Holding the turn: see to what has ended, and send more, until there is nothing to do; then let go of it."""
        while True:
            try:
                self._context.copy().run(self._step)
                if self._flow.is_over:
                    self._flow.close()  # before it is told: who hears of it may open the journal anew
            except BaseException as error:  # nobody else would end it
                self._flow.fail(error)
            self._tell(here)
            self._turn.release()
            # (*) who comes now finds it free; who came before has left what is to be done
            if not self._flow.has_news or not self._turn.acquire(blocking=False):
                return

    def _step(self) -> None:
        flow = self._flow
        while True:
            for part in flow.take():
                self._store(part)
            self._ring()  # a slow source may take long to be read
            flow.fill()
            if flow.broken is not None:
                flow.fail(flow.broken)
            if not flow.has_news:  # those of an inline pool have ended by now
                return

    def _store(self, part: Part) -> None:
        first, failures = part.first, part.failures
        values: list[Any] = part.values
        slots = self._slots
        end = first + len(values)
        if failures and self._rules.errors == "raise":
            self._flow.fail(failures[0][1])
        if self._rules.errors == "collect":
            values = [Settled[Any](value, None) for value in values]
        for index, error in failures:
            values[index - first] = Settled[Any](None, error) if self._rules.errors == "collect" else _SKIPPED
        if len(slots) < first:
            slots.extend([_MISSING] * (first - len(slots)))
        slots[first:end] = values
        if failures and self._rules.errors == "raise":
            slots[failures[0][0] : end] = [_MISSING] * (end - failures[0][0])
        self._arrivals.append((first, end - first))
        self._count += end - first
        ready = self._ready
        while ready < len(slots) and slots[ready] is not _MISSING:
            ready = end if first <= ready < end and not failures else ready + 1
        self._ready = ready
        if self._rules.halts.count(len(failures), self._count) and self._flow.error is None:
            self._halt(failures)

    def _halt(self, failures: list[tuple[int, BaseException]]) -> None:
        error = MapHaltedError(self._name, self._rules.halts.failures, self._count)
        error.__cause__ = failures[-1][1] if failures else None
        self._flow.fail(error)
        if self._rules.halts.at_once:
            self._flow.stop(running=True)

    def _tell(self, here: Dispatcher | None) -> None:
        """End it if it is over, and tell those who wait."""
        flow = self._flow
        error = flow.error
        if isinstance(error, PieceCancelledError):
            settle(self, (None, CANCELLED, None), here)
        elif error is not None and (flow.is_over or self._rules.journal is None):
            flow.display.close(interrupted=True)
            settle(self, failed_with(error), here)
        elif error is None and flow.is_over:
            settle(self, (self._all(), None, None), here)
        self._ring(here)

    def _all(self) -> list[Any]:
        """Return the values; those who iterate have a list of their own, as this one is its user's."""
        if self._rules.errors != "skip":
            return self._slots.copy()  # a look at each takes as long as all else that is done for a tiny item here
        return [value for value in self._slots if value is not _SKIPPED]

    def _ring(self, here: Dispatcher | None = None) -> None:
        """Tell those who wait for values."""
        while self._bells:
            settle(self._bells.popleft(), (None, None, None), here)

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel what has not begun, and what follows; what runs is asked to stop, or killed: see `Future.cancel`."""
        cancelled = settle(self, (None, CANCELLED, None))
        if cancelled:
            self._flow.stop(running)
            self._tell(None)
        return cancelled or self.cancelled()

    def awaited(self) -> list[Any]:
        """Return the calls that are on their way: it ends by them. See `State.awaited`."""
        return self._flow.awaited()

    # -- who wants the values -----------------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """How far it is: what has ended, what has failed, how fast, and how long it will take."""
        return self._flow.display.progress()

    def __len__(self) -> int:
        """Return how many items there are; as long as that is not known, how many have been read."""
        total = self._rules.total
        return self._flow.read if self._flow.is_read or total is None else total

    def __bool__(self) -> bool:
        """True: a future is one, of however many items."""
        return True

    def __iter__(self) -> Iterator[R]:
        index = 0
        while True:
            while index < self._ready:
                value = self._slots[index]
                index += 1
                if value is not _SKIPPED:
                    yield value
            bell = self._bell(lambda index=index: index < self._ready)  # type: ignore[misc]  # mypy: no type of a default
            if bell is not None:
                bell.outcome()
            elif index >= self._ready:
                self._finish()
                return

    async def __aiter__(self) -> AsyncIterator[R]:
        index = 0
        while True:
            while index < self._ready:
                value = self._slots[index]
                index += 1
                if value is not _SKIPPED:
                    yield value
            bell = self._bell(lambda index=index: index < self._ready)  # type: ignore[misc]  # as above
            if bell is not None:
                await bell
            elif index >= self._ready:
                self._finish()
                return

    def as_completed(self) -> Iterator[tuple[int, R]]:
        """Yield the index and the value of each item, as soon as they come; what fails the whole is raised then."""
        seen = 0
        while True:
            while seen < len(self._arrivals):
                first, count = self._arrivals[seen]
                seen += 1
                for index in range(first, first + count):
                    value = self._slots[index]
                    if value is not _SKIPPED and value is not _MISSING:
                        yield index, value
            bell = self._bell(lambda seen=seen: seen < len(self._arrivals))  # type: ignore[misc]  # as above
            if bell is not None:
                bell.outcome()
            elif seen >= len(self._arrivals):
                self._finish()
                return

    def _bell(self, is_there: Callable[[], bool]) -> Future[None] | None:
        """Return a future that ends when there is news; None if there is some now, or nothing more will come."""
        bell = _Chime(self._flow, self.dispatcher)
        self._bells.append(bell)
        if is_there() or self.done():  # (*) after it was hung up: who brings news does it the other way round
            with suppress(ValueError):
                self._bells.remove(bell)
            return None
        return bell

    def _finish(self) -> None:
        """Raise what has ended it before its time."""
        if self.cancelled():
            raise CancelledError
        self.result()


class _Chime(Future[None]):
    """A future that ends when a flow has news."""

    def __init__(self, flow: Flow, dispatcher: Dispatcher | None) -> None:
        super().__init__(BARE, dispatcher)
        self._flow = flow

    def awaited(self) -> list[Any]:
        """Return the calls of the flow, one of which ends next; see `State.awaited`."""
        return self._flow.awaited()


# -- one value after the other ----------------------------------------------------------------------------------------


class Stream(Generic[R]):
    """
    The values of a map, one after the other: an iterator, for `for` and for `async for`.

    The items are read no further than the window reaches, by who asks for the next value; and nothing is kept. Leaving
    the loop ends it: what has not begun is cancelled, and what runs is asked to stop.
    """

    def __init__(self, mapped: Mapped, place: Any, iterables: Sequence[Iterable[Any]], said: Mapping[str, Any]) -> None:
        """Make one that has read nothing."""
        # Apart from this one, which nothing refers to: so it is dropped as soon as the loop over it is left.
        self._reading: Reading[R] = Reading(mapped, place, iterables, said)
        self._values: Generator[R] | None = None
        self._values_later: AsyncGenerator[R] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        if self._values is None:
            self._values = self._reading.values()
        return next(self._values)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        if self._values_later is None:
            self._values_later = self._reading.values_later()
        return await anext(self._values_later)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it, as `close` does, where it is read by `async for`."""
        self._reading.stop()
        if self._values_later is None:
            self._values_later = self._reading.values_later()
        with suppress(RuntimeError):  # another coroutine is in the middle of it, and closes it
            await self._values_later.aclose()
            self.close()

    def close(self) -> None:
        """End it: nothing more is begun, and what runs is asked to stop. Whoever waits for a value is told so."""
        self._reading.stop()
        if getattr(self._values_later, "ag_running", False):  # a coroutine waits in it, and closes it
            return
        if self._values is None:
            self._values = self._reading.values()  # which yields nothing once it is closed
        with suppress(ValueError):  # another thread is in the middle of it, and closes it
            self._values.close()
            self._reading.close()

    def __del__(self) -> None:
        if hasattr(self, "_reading"):
            self.close()

    @property
    def progress(self) -> Progress:
        """How far it is: what has ended, whether it has been handed out or not; see `MapFuture.progress`."""
        return self._reading.progress


class Reading(Generic[R]):
    """
    What a stream does.

    Args:
        mapped: What is called with each item.
        place: Where it is mapped.
        iterables: The items.
        said: What is said about it.
        wake: Called when an item has ended, in place of the stream's own way.
    """

    def __init__(
        self,
        mapped: Mapped,
        place: Any,
        iterables: Sequence[Iterable[Any]],
        said: Mapping[str, Any],
        wake: Wake | None = None,
    ) -> None:
        self._name = mapped.name
        self._rules = rules = _Rules(said, iterables, StreamSaid.__annotations__)
        self._bell = _Bell()
        callbacks = current_registry().callbacks
        self._flow = rules.flow(mapped, place, Future(BARE, callbacks), wake or self._bell.ring)
        self._callbacks = callbacks
        self._parts: dict[int, Part] = {}  # those that came before their turn
        self._next = 0  # the index whose turn it is
        self._count = 0  # items that have ended
        self._is_cancelled = False

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._flow.display.progress()

    def stop(self) -> None:
        """Begin nothing more, and ask what runs to stop; whoever waits for a value now is told that it won't come."""
        self._is_cancelled = True
        self._flow.stop()

    def close(self) -> None:
        """Let go of the journal and the display."""
        self._flow.close()

    def values(self) -> Generator[R]:
        """Go on, and yield the values as they come."""
        flow = self._flow
        try:
            flow.fill()
            while True:
                for part in self._round():
                    yield from self._shown(part)
                    self._hand_out(part)
                if not flow.has_news:
                    if flow.is_over:
                        return self._finish()
                    bell = self._bell.hang(_Chime(flow, self._callbacks))
                    if not flow.ended:  # (*) after it was hung up: who ends a piece does it the other way round
                        bell.outcome()
        finally:
            flow.stop()
            flow.close()

    async def values_later(self) -> AsyncGenerator[R]:
        """Do the same on an event loop; the source is read there, as it may belong to that thread."""
        flow = self._flow
        try:
            flow.fill()
            while True:
                for part in self._round():
                    for value in self._shown(part):
                        yield value
                    self._hand_out(part)
                if not flow.has_news:
                    if flow.is_over:
                        self._finish()
                        return
                    bell = self._bell.hang(_Chime(flow, self._callbacks))
                    if not flow.ended:  # (*) as above
                        await bell
        finally:
            flow.stop()
            flow.close()

    def _round(self) -> Iterator[Part]:
        """Take what has ended, send more, and yield the parts whose turn it is."""
        parts = self._taken()
        if not self._rules.ordered:
            self._flow.fill(in_hand=bool(parts))  # before they are handed out, which may take long
            yield from parts
            return
        self._parts.update((part.first, part) for part in parts)
        # What waits for its turn is not in hand: nobody would fill it after that, and what goes before may have to be
        # sent again first.
        self._flow.fill(in_hand=self._next in self._parts)
        while (part := self._parts.pop(self._next, None)) is not None:
            self._next += len(part.values)
            self._flow.early = len(self._parts)
            yield part
        self._flow.early = len(self._parts)

    def _taken(self) -> list[Part]:
        """Take the parts that have ended, and count them."""
        parts = self._flow.take()
        for ended in parts:
            self._note(ended)
        return parts

    def _hand_out(self, part: Part) -> None:
        """Note that the values of a part have been taken, and send more."""
        self._flow.kept -= len(part.values)
        self._flow.fill()

    def _shown(self, part: Part) -> Iterable[Any]:
        """Return what comes out for the items of a part."""
        errors, failures = self._rules.errors, dict(part.failures)
        if errors == "collect":
            return [Settled(value, failures.get(index)) for index, value in enumerate(part.values, part.first)]
        if not failures:
            return part.values
        if errors == "skip":
            return [value for index, value in enumerate(part.values, part.first) if index not in failures]
        return self._shown_up_to(part)

    def _shown_up_to(self, part: Part) -> Iterator[Any]:
        index, error = part.failures[0]
        yield from part.values[: index - part.first]
        raise error

    def _note(self, part: Part) -> None:
        """Note that items have ended, though their turn may come much later; end it if too many have failed."""
        self._count += len(part.values)
        halts = self._rules.halts
        if halts.count(len(part.failures), self._count) and self._flow.error is None:
            error = MapHaltedError(self._name, halts.failures, self._count)
            error.__cause__ = part.failures[-1][1] if part.failures else None
            self._flow.finish(error)
            if halts.at_once:
                self._flow.stop(running=True)

    def _finish(self) -> None:
        """Raise what has ended it before its time."""
        error = self._flow.error or self._flow.broken
        if isinstance(error, PieceCancelledError) or (error is None and self._is_cancelled):
            raise CancelledError
        if error is not None:
            raise error


class _Bell:
    """What rings when a piece has ended; apart from its stream, which nobody else is to keep alive."""

    def __init__(self) -> None:
        self._future: Future[None] | None = None

    def hang(self, bell: Future[None]) -> Future[None]:
        """Have it end that future when it rings next."""
        self._future = bell
        return bell

    def ring(self) -> State[Any] | None:
        """On any thread: return the future that ends now."""
        return self._future
