"""
Lanes: things that may each take the same number of seconds, so that they expire in the order in which they began.

    start(item) ──▶ _running, in order ──▶ one entry of the timer, for the first ──▶ timer thread ──▶ item.expire()
    stop(item) ◀──┘

Guarantees:
- An item expires once, or was stopped: whoever takes it out of the dict, by one atomic step, decides.
- Nothing expires before its time, or much later, however many there are: a look expires a batch, then others go on.
- No lock is held while an item expires, and nothing keeps an item that has expired, or was stopped.

State: the items are changed by single steps of a dict, which are atomic, on free-threaded builds too. Whether a lane is
armed is changed under the timer's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from math import inf
from threading import RLock
from typing import Final, Protocol, TypeAlias

LOGGER = logging.getLogger("parallel")

_BATCH: Final = 1024
"""Items that a lane expires before others get their turn; finding them once costs up to a millisecond per million."""

_REST: Final = 100
"""A lane rests so many times as long as it took to find its first items: so looking takes a few percent of the time."""

_LONGEST_REST: Final = 0.05
"""Seconds by which this may delay an item, in a lane where a million others ran at a time."""

Action: TypeAlias = Callable[[], object]
"""What the timer thread calls. It must not block."""


class Expiring(Protocol):
    """Something that may take only so long."""

    def expire(self) -> None:
        """Called once on the timer thread, when the time is over. Must neither block nor raise."""
        ...


class Driver(Protocol):
    """What a lane needs of the timer."""

    @property
    def now(self) -> Callable[[], float]:
        """Tells the time."""
        ...

    @property
    def lock(self) -> RLock:
        """Guards the state."""
        ...

    @property
    def generation(self) -> object:
        """What all that is scheduled belongs to; it is dropped with that."""
        ...

    def schedule(self, when: float, action: Action) -> bool:
        """Have *action* run at a time of the clock; False, and nothing is done, if there is no thread."""
        ...

    def ensure(self) -> None:
        """
        Start the thread if there is none.

        Raises:
            RuntimeError: No thread can be started.
        """
        ...


class Lane:
    """
    Things that may each take so many seconds.

    Starting and stopping one costs two steps of a dict, takes no lock and wakes no thread, but for the first start in
    an idle lane: that arms the lane, by one entry of the timer for the first item to expire. When the entry's time
    comes, the timer thread expires what is over and arms the lane again for the first item that is left, if any.

    Items are told apart by `==` and hash, which should be the built-in ones.
    """

    __slots__ = ("__weakref__", "_armed", "_batch", "_now", "_running", "_timer", "seconds")

    def __init__(self, timer: Driver, seconds: float) -> None:
        self.seconds = seconds
        self._timer = timer
        self._now = timer.now
        # When each item began, in that order: a dict keeps the order in which its keys came.
        self._running: dict[Expiring, float] = {}
        # The timer's generation if an entry of that will look at this lane, or its look is under way; changed under
        # the timer's lock. An entry holds the lane: the timer itself remembers lanes only while somebody uses them.
        self._armed: object = None
        self._batch = 1  # items that the next look takes on; the timer thread's alone

    def __repr__(self) -> str:
        return f"<Lane of {self.seconds} s [{len(self._running)} running]>"

    def start(self, item: Expiring) -> None:
        """
        Expect *item* to be stopped in time. It must not be running; when it has been stopped, it may start again.

        Raises:
            RuntimeError: No thread can be started; the item is not running then.
        """
        self._running[item] = self._now()
        if self._armed is not self._timer.generation:
            self._arm(item)

    def stop(self, item: Expiring) -> bool:
        """Tell that *item* has ended. False: too late, its `expire` has been called or will be; or it never ran."""
        return self._running.pop(item, None) is not None or self._stop_late(item)

    def _stop_late(self, item: Expiring) -> bool:
        """Look again: the timer may have taken *item* out by mistake, see (**)."""
        with self._timer.lock:
            return self._running.pop(item, None) is not None

    def _arm(self, item: Expiring) -> None:
        try:
            while not self._is_armed():
                self._timer.ensure()
        except BaseException:  # no thread could be started, or a Ctrl-C
            self._running.pop(item, None)
            raise

    def _is_armed(self) -> bool:
        """Arm the lane if it is not, and has an item; False if there is no thread."""
        timer = self._timer
        with timer.lock:
            generation = timer.generation
            if self._armed is generation:
                return True
            due = self._due()
            if due is None:
                return True  # it has been stopped already
            if not timer.schedule(due, partial(self._look, generation)):
                return False
            self._armed = generation
            return generation is timer.generation  # else a signal handler has closed the timer in between

    def _look(self, generation: object) -> None:
        """Expire what is over, and arm again for what is left. Runs on the timer thread."""
        try:
            began = self._now()
            items = self._first(self._batch)
            rest = min(_REST * (self._now() - began), _LONGEST_REST)
            if self._expire_over(items, began):
                rest = 0.0  # there may be more
            del items
            self._arm_again(generation, rest)
        except BaseException:  # no memory: the next start tries again
            with self._timer.lock:
                self._armed = None
            raise

    def _expire_over(self, items: list[Expiring], now: float) -> bool:
        """Expire those of *items* that are over; tell whether all of them are, or have been stopped."""
        taken = 0
        for item in items:
            began = self._running.get(item)
            if began is not None and began + self.seconds > now:
                break
            if began is not None and self._take(item, now):
                taken += 1
                _expire(item)
        else:
            self._batch = min(2 * self._batch, _BATCH)
            return True
        self._batch = min(max(2 * taken, 1), _BATCH)
        return False

    def _take(self, item: Expiring, now: float) -> bool:
        """Take *item*, if it is running and over: then nobody else can."""
        with self._timer.lock:
            began = self._running.pop(item, None)
            if began is None or began + self.seconds <= now:
                return began is not None
            # (**) It has been stopped, and started again, since `_expire_over` looked. Who stops it right now finds
            # nothing, and looks again when it gets the lock. It goes back behind others that began a moment later, and
            # may expire that moment late.
            self._running[item] = began
            return False

    def _arm_again(self, generation: object, rest: float) -> None:
        timer = self._timer
        with timer.lock:
            if self._armed is not generation or generation is not timer.generation:
                return  # closed meanwhile; whoever starts an item arms the lane anew
            due = self._due()
            if due is None:
                # An item may come in right here. `start` stores it, then asks whether the lane is armed; this disarms
                # it, then asks whether there is an item. In whichever order these four steps are taken, one of the two
                # sees what the other did: if both do, `_is_armed` waits for the lock and finds the lane armed.
                self._armed = None
                due = self._due()
                if due is None:
                    return
                self._armed = generation
            timer.schedule(max(due, self._now() + rest), partial(self._look, generation))

    def _due(self) -> float | None:
        """Return when the first item will be over, None if there is none."""
        while first := self._first(1):
            began = self._running.get(first[0])
            if began is not None:
                return began + self.seconds
        return None

    def _first(self, count: int) -> list[Expiring]:
        """
        Return the first *count* items, or less if others come and go meanwhile; none only if there is none.

        A dict that has lost its first items walks over their places, at a nanosecond each: as many as three for each
        item that ran at a time, until so many others have come. Hence `_BATCH` and `_REST`.
        """
        while True:
            try:
                return list(islice(self._running, count))
            except RuntimeError:  # it changed while it was iterated over
                count = max(count // 2, 1)

    def clear(self) -> None:
        """In a forked child: forget the items, which are the parent's."""
        self._running.clear()


class LateLane(Lane):
    """
    A lane that has to be told how long its things may take, when some have begun; until then they may take any time.

    It is nobody else's: what is told counts for all that is in it, from when it began. One that is told a shorter time
    than before is late by the difference once.
    """

    __slots__ = ()

    def __init__(self, timer: Driver) -> None:
        super().__init__(timer, inf)

    def start(self, item: Expiring) -> None:
        """Expect *item* to be stopped in time, once there is one; see `Lane.start`."""
        self._running[item] = self._now()
        if self.seconds < inf and self._armed is not self._timer.generation:  # (*) who tells it does it in this order
            self._arm(item)

    def bound(self, seconds: float) -> None:
        """
        Tell how long they may take.

        Raises:
            RuntimeError: No thread can be started.
        """
        self.seconds = seconds
        while not self._is_armed():
            self._timer.ensure()


def _expire(item: Expiring) -> None:
    try:
        item.expire()
    except BaseException:
        report("the timer: %r failed to expire", item)


def report(message: str, *args: object) -> None:
    """Log the exception that is being handled."""
    with suppress(BaseException):  # a log that fails must not end the thread, and there is nobody left to tell
        LOGGER.exception(message, *args)
