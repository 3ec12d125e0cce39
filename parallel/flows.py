"""
The items of a map on their way: read, sent, ended. `streams` says who drives this, and what comes out.

    source ──▶ fill(): pieces, as many as the window holds ──▶ sent: a call of many items, or of one ──▶ its future ends
                 ▲                                                                                          │
                 └── the rest of a piece that came back, or was lost with its worker ◀── take(): parts ◀── wake()

One engine for all kinds of pools. How many items make a piece is measured: what they take at the worker, and what
their reading and sending take here. A piece that takes longer than was thought comes back in the middle (`chunks`), and
a death costs the item that it hit: so nothing has to be tuned, and nobody waits for what somebody else was given.

Guarantees:
- The source is read as far as the window reaches, and by who drives the flow only.
- Each item ends once. No body is run again, but those of which nobody can know that they have run: see `chunks`.

State: all of it belongs to who drives the flow, one thread at a time. Others append to `ended`, and read `stopped`.
`_told` is added to by single steps.
"""

from __future__ import annotations

import logging
import reprlib
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, cast

from parallel.context import WITHIN
from parallel.delivery import INLINE, Feed
from parallel.errors import JournalError, PoolFullError
from parallel.futures import Future
from parallel.ledgers import LOOKUP, Ledger, Part
from parallel.meetings import attach
from parallel.meters import Meter
from parallel.outcomes import Outcome
from parallel.pools.base import Counts
from parallel.states import State, hangs_on

MOST: Final = 1 << 14
"""Items in a piece. Twice as many are no faster, and the first results of tiny items come later."""

LEAST: Final = 250_000
"""Nanoseconds of work that are not worth being divided: to send them takes as long."""

NOISE: Final = 1_000_000
"""Nanoseconds for which another thread may have had the interpreter, or another program the CPU."""

GROWTH: Final = 8
"""How many times larger than the one before a piece may be: the first few items may not be like the rest."""

AHEAD: Final = 64
"""
Pieces for each worker that may have ended before their turn. If fewer may, workers have nothing to do sooner while one
item takes much longer than the rest; they are what a stream keeps in memory.
"""

LIVES: Final = 2
"""Workers that may die before they have begun any item of a piece, until it is divided, or its one item is blamed."""

FUTILE: Final = 400
"""Nanoseconds of an item below which two workers gain nothing: to bring it there and back takes a third of that."""

MANY: Final = 10_000
"""Items below which nobody waits for a map of such anyway."""

_told: Final[set[str]] = set()
"""The functions of which that has been said."""

LOGGER = logging.getLogger("parallel")

_brief: Final = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60


class Piece:
    """
    Items that are sent together.

    Attributes:
        first: The index of the first of them.
        items: The items.
        future: That of the call that they were sent with.
        lives: Workers that may still die before they have begun any.
        deaths: Workers that have died in its one item.
        waits: Its one item is, or holds, futures: it goes in a call of its own, which waits for them.
    """

    __slots__ = ("deaths", "first", "future", "items", "lives", "waits")

    def __init__(
        self, first: int, items: Sequence[Any], lives: int = LIVES, deaths: int = 0, *, waits: bool = False
    ) -> None:
        self.first = first
        self.items = items
        self.lives = lives
        self.deaths = deaths
        self.waits = waits
        self.future: Future[Any]

    def rest(self, done: int) -> list[Piece]:
        """Return what is left of it, as pieces."""
        return self.between(done, len(self.items))

    def between(self, start: int, end: int) -> list[Piece]:
        """Return those of its items, as a piece, if there are any."""
        return [Piece(self.first + start, self.items[start:end])] if start < end else []

    def halves(self) -> list[Piece]:
        """Divide it."""
        middle = len(self.items) // 2
        return [Piece(self.first, self.items[:middle]), Piece(self.first + middle, self.items[middle:])]


class Back(NamedTuple):
    """
    What has come back of a piece.

    Attributes:
        parts: Items that have ended.
        again: Pieces that are to be sent again.
        cost: Nanoseconds that each of the ended items took; None: nobody knows.
        error: What ends the whole; None: nothing.
    """

    parts: list[Part]
    again: list[Piece]
    cost: int | None = None
    error: BaseException | None = None


class Route(Protocol):
    """How pieces are sent."""

    @property
    def most(self) -> int:
        """How many items a piece may have."""
        ...

    @property
    def capacity(self) -> int:
        """How many pieces may run at a time."""
        ...

    @property
    def depth(self) -> int:
        """How many pieces are sent for each of these: one that runs, and those that wait behind it."""
        ...

    @property
    def piece_time(self) -> int:
        """Nanoseconds that a piece is to take."""
        ...

    @property
    def stats(self) -> Callable[[], Counts]:
        """Tells what the pool does now."""
        ...

    def send(self, piece: Piece, /) -> Future[Any]:
        """Make the call; what can't be called raises."""
        ...

    def read(self, piece: Piece, outcome: Outcome, /) -> Back:
        """Say what has become of the items."""
        ...


class Arriving(Iterator[Any]):
    """
    A source whose items come in their own time, such as lines of a pipe: nobody waits for them here.

    Who drives the flow fills it again when more have come.
    """

    @abstractmethod
    def take(self, most: int, /) -> Sequence[Any] | BaseException | None:
        """
        Return the next items, as many at most, or none if none is there yet; None: there will be no more.

        An exception stands for one item that can't be read: that is its failure. What is raised ends the source.
        """

    def __next__(self) -> Any:
        """Refuse: there may be no item, which doesn't mean that there will be none."""
        raise TypeError("only a flow reads this source: it asks for what is there")


class Pace:
    """
    How many items make a piece.

    Args:
        chunksize: So many; None: as many as it turns out.
        total: How many items there are, as far as is known.
        workers: Among whom they are divided.
        target: Nanoseconds that a piece is to take.
    """

    def __init__(self, chunksize: int | None, total: int | None, workers: int, target: int) -> None:
        self._chunksize = chunksize
        self._total = total
        self._workers = workers
        self._target = target
        self._last = 0  # the size of the last piece
        self.cost = 0  # nanoseconds that an item takes; 0: nobody knows yet

    def size(self, read: int) -> int:
        """Return the size of the next piece, when so many items have been read."""
        if self._chunksize is not None:
            return self._chunksize
        if not self.cost:
            return 1
        size = min(self._target // self.cost, self._last * GROWTH, MOST)
        if self._total is not None:  # half of an equal share, so that all end together
            size = min(size, max(-(-(self._total - read) // (2 * self._workers)), LEAST // self.cost))
        self._last = max(size, 1)
        return self._last

    def note(self, cost: int) -> None:
        """Note what an item has taken. Whatever is wrong about it is soon forgotten: a piece too large comes back."""
        if not self.cost:
            self._last = 1
        self.cost = max((self.cost + cost) // 2 if self.cost else cost, 1)


class Flow:
    """
    A map that goes on.

    Attributes:
        ended: Pieces whose call has ended, and that nobody has looked at.
        found: What the journal has told, likewise.
        out: Those that are on their way.
        is_read: The source is at its end.
        is_slow: It was slow when it was read last.
        runs_here: What is sent is run by who sends it, in an inline pool.
        stopped: Nothing more is begun.
        error: What has ended it before its time.
        broken: What the source has raised; the items before that go their way.
        read: How many items have been read.
        kept: Items that have been read, and not been handed out; counted down by who hands them out.
        early: Parts that have ended, and wait for others to be handed out before them.
        display: What shows how far it is.
    """

    def __init__(
        self,
        source: Iterator[Any],
        route: Route,
        pace: Pace,
        window: int | None,
        name: str,
        target: State[Any],
        wake: Wake,
        display: Meter,
        ledger: Ledger | None = None,
    ) -> None:
        """
        Make one that has not begun.

        Args:
            source: The items.
            route: How they are sent.
            pace: How many at a time.
            window: How many may have been read and not handed out; None: as many as keep the workers busy.
            name: That of the function.
            target: The future that the calls serve.
            wake: Called on any thread when a piece has ended; returns a future that ends by that, or None.
            display: What shows how far it is.
            ledger: What is recorded already, and where the rest is; None: nothing is.
        """
        self._source = source
        self._route = route
        self._pace = pace
        self._window = window
        self._name = name
        self._target: State[Any] | None = target
        within = WITHIN.get()
        self._group = None if within is None else within.group
        self._wake: Wake = wake
        self.display = display
        self._ledger = ledger
        self._again: deque[Piece] = deque()
        self._finishes = False  # pieces that have not begun are cancelled, and that is no failure
        self._took = 0  # nanoseconds that the reading, or sending, of an item takes, if that is slow
        self.found: list[Part] = []
        self.ended: deque[tuple[Piece, Outcome]] = deque()
        self.out: dict[Piece, None] = {}
        self.is_read = False
        self.is_slow = False
        self.runs_here = False
        self._is_closed = False
        self.stopped = False
        self.error: BaseException | None = None
        self.broken: BaseException | None = None
        self.read = 0
        self.kept = 0
        self.early = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return not (self.out or self.has_news) and (self.stopped or (self.is_read and not self._again))

    @property
    def has_news(self) -> bool:
        """Whether something has ended that nobody has looked at."""
        return bool(self.ended or self.found)

    def close(self) -> None:
        """Once it is over, close the journal, let go of who drives it, and say so if it was not worth the way."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wake, self._target = _wake_nobody, None
        if self._ledger is not None:
            if self.ended:
                self.take()  # so that it is recorded
            self._ledger.close()
        self.display.close(interrupted=bool(self.error or self.broken or self._again or self.out or not self.is_read))
        self._source = iter(())
        self._again.clear()
        if self.read >= MANY and 0 < self._pace.cost < FUTILE and self._name not in _told:
            _told.add(self._name)
            took = self._pace.cost / 1e3
            LOGGER.info("an item of %s takes %.2g us: a plain loop is as fast as any map", self._name, took)

    def fill(self, in_hand: bool = False) -> None:
        """
        Send as much as the window holds; but nothing that has ended waits for a source that is slow, or for a call that
        runs here: in an inline pool, each is looked at before the next begins, as in a plain loop.

        Args:
            in_hand: Something has ended that is about to be handed out; it is filled again after that.
        """
        most = self._route.depth * self._route.capacity
        while len(self.out) < most and not self.stopped:
            if (self.is_slow or self.runs_here) and (in_hand or self.has_news):
                return
            piece = self._next()
            if piece is None:
                return
            if not self._send(piece):
                return

    def _next(self) -> Piece | None:
        while not (self._again or self.found or self.is_read):  # what is found is handed out before more is read
            if not self._read():
                break
        if not self._again:
            return None
        piece = self._again.popleft()
        size = min(self._pace.size(piece.first), self._route.most)
        if size < len(piece.items):
            self._again.appendleft(Piece(piece.first + size, piece.items[size:], piece.lives))
            piece = Piece(piece.first, piece.items[:size], piece.lives, piece.deaths)
        return piece

    def _read(self) -> bool:
        """Read on, and queue what is to be sent; False if there is no room for more."""
        size = min(self._pace.size(self.read), self._route.most)
        if self._ledger is not None and self.read and not self.is_slow:
            size = max(size, LOOKUP)
        if self._window is not None:
            size = min(size, self._window - self.kept)
        if size < 1 or self.early >= AHEAD * self._route.capacity:
            return False
        began = time.monotonic_ns()
        items = self._items(size)
        if isinstance(items, BaseException):
            self.found.append(failed_part(self.read, items))
            self.read += 1
            self.kept += 1
            return True
        self.is_slow = time.monotonic_ns() - began > NOISE
        if not items:
            return False
        self._note(began, len(items))
        first, self.read = self.read, self.read + len(items)
        self.kept += len(items)
        if self._ledger is None:
            self._again.append(Piece(first, items))
            return True
        self._sift(self._ledger, first, items)
        return True

    def _sift(self, ledger: Ledger, first: int, items: Sequence[Any]) -> None:
        """Look items up in the journal; one that has no key has failed."""
        try:
            parts, left = ledger.sift(first, items)
        except JournalError as error:
            return self.fail(error)
        except Exception as error:  # the item's own code runs there
            if len(items) == 1:
                self.found.append(failed_part(first, error))
                return
            for index, item in enumerate(items, first):  # none of them has got one
                self._sift(ledger, index, [item])
            return
        self.found += parts
        self._again.extend(Piece(*each) for each in left)

    def _items(self, size: int) -> Sequence[Any] | BaseException:
        """Return the next items, as many at most; none if the source is at its end, or has none yet."""
        items: list[Any] = []
        try:
            if isinstance(self._source, Arriving):
                arrived = self._source.take(size)
                self.is_read = arrived is None
                return () if arrived is None else arrived
            items.extend(islice(self._source, size))
        except Exception as error:  # what came before it is here
            self.broken = error
        self.is_read = len(items) < size
        return items

    def _send(self, piece: Piece) -> bool:
        """Send a piece; False if it could not be."""
        self.out[piece] = None
        began = time.monotonic_ns()
        try:
            piece.future = self._route.send(piece)
        except BaseException as error:
            del self.out[piece]
            if isinstance(error, PoolFullError) and self.out:
                self._again.appendleft(piece)  # when one of them has ended there is room
            else:
                self.fail(error)
            return False
        self._note(began, len(piece.items))
        self.runs_here = piece.future.dispatcher is INLINE
        if self._group is not None:
            self._group.entrust(piece.future, self._target)
        attach(_Tie(piece, cast("State[Any]", self._target), self))
        return True

    def _note(self, began: int, items: int) -> None:
        """Note what the reading, or sending, of items took that began then, without what others may have taken."""
        took = time.monotonic_ns() - began
        self._took = (self._took + (took // items if took > NOISE else 0)) // 2

    def tell(self, piece: Piece, outcome: Outcome) -> State[Any] | None:
        """On any thread: note that the call of a piece has ended; return a future that ends by that."""
        self.ended.append((piece, outcome))
        return self._wake()

    def take(self) -> list[Part]:
        """Return what has ended since; what came back unfinished is sent first when the flow is filled."""
        found, self.found = self.found, []
        parts: list[Part] = []
        again: list[Piece] = []
        while self.ended:
            piece, outcome = self.ended.popleft()
            self.out.pop(piece, None)
            back = self._route.read(piece, outcome)
            if back.error is not None and not (self._finishes and isinstance(back.error, PieceCancelledError)):
                self.fail(back.error)
            if back.cost is not None:
                self._pace.note(max(back.cost, self._took))
            for part in back.parts:
                for index, failure in part.failures:
                    tell_where(failure, index, piece.items[index - piece.first], self._name)
            parts += back.parts
            again += back.again
        self._again.extendleft(sorted(again, key=lambda piece: -piece.first))
        if self._ledger is not None and parts:
            try:
                self._ledger.write(parts)
            except BaseException as error:  # what is not on disk is not seen
                self.fail(error)
                parts = []
        for part in found + parts:
            self.display.add(len(part.values), len(part.failures))
        return found + parts

    def fail(self, error: BaseException) -> None:
        """End it before its time."""
        if self.error is None:
            self.error = error
        self.stop()

    def awaited(self) -> list[Any]:
        """Return the futures of the calls that are on their way, without one that is just being made; on any thread."""
        return [piece.future for piece in list(self.out) if hasattr(piece, "future")]

    def finish(self, error: BaseException | None = None) -> None:
        """For who drives it: begin nothing more, and let what runs come to its end; *error* is why."""
        if self.error is None:
            self.error = error
        self._finishes = self.stopped = True
        for future in self.awaited():
            if not any(part.running() for part in hangs_on(future)):
                future.cancel()

    def stop(self, running: bool = False) -> None:
        """Begin nothing more, and cancel what has not begun; from any thread. With *running*, end what runs as well."""
        self.stopped = True
        for future in self.awaited():
            future.cancel(running=running)


def _wake_nobody() -> None:
    """Do nothing: it is over."""


class Wake(Protocol):
    """Tells who drives a flow that something has ended."""

    def __call__(self) -> State[Any] | None:
        """Do it, on any thread, without blocking."""
        ...


class _Tie(Feed):
    """The tie of a piece's call to its flow."""

    __slots__ = ("_flow", "_piece")
    adopts = False
    always = True

    def __init__(self, piece: Piece, target: State[Any], flow: Flow) -> None:
        super().__init__(piece.future, target)
        self._piece = piece
        self._flow = flow

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        if outcome[2] is not None:
            outcome[2].look()  # it is one item's failure now
        return self._flow.tell(self._piece, outcome)

    def passed(self, outcome: Outcome) -> Outcome:
        return (None, None, None)


class PieceCancelledError(BaseException):
    """A piece was cancelled, and with it the whole."""


def failed_part(index: int, error: BaseException) -> Part:
    """Return the part of one item that has failed."""
    return Part(index, [None], [(index, error)])


def tell_where(error: BaseException, index: int, item: object, name: str) -> None:
    """Have an exception say which item it is about."""
    try:
        text = _brief.repr(item)
    except Exception as problem:  # the item's own code runs here
        text = f"{type(item).__name__}, whose repr raised {type(problem).__name__}"
    note = f"in item {index} of {name}: {text}"
    with suppress(Exception):  # it may be frozen
        notes: list[str] = getattr(error, "__notes__", [])
        others = [one for one in notes if not (one.startswith("in item ") and f" of {name}: " in one)]
        error.__notes__ = [*others, note]  # of one that came back before, or out of a journal, the last one counts
