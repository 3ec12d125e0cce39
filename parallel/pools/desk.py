"""
The desk of a registry: counts the calls that it has accepted and that are in no pool.

They wait for a place under a limit, or for their next attempt.

So a shutdown waits for them, and a program's exit does. It runs nothing, and has no thread.

State: `_calls`, changed by single atomic steps; `_passed`, guarded by `_quiet`, whose lock is re-entrant: a `__del__`
or a signal handler may cancel a call while it is held.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from parallel.naps import nap_on
from parallel.pools.base import Counts, Engine
from parallel.pools.leftovers import waiting_left

LOGGER = logging.getLogger("parallel")


class Parked(Protocol):
    """A call, for the desk."""

    def cancel(self) -> bool:
        """End it."""
        ...

    def is_stuck(self) -> bool:
        """Tell whether it may wait for ever."""
        ...

    def cancels_at_exit(self) -> bool:
        """Tell whether it is cancelled when the program ends."""
        ...


class Desk(Engine):
    """
    The calls of one registry that are in no pool.

    Who waits for them doesn't wait for those that are stuck; `close` cancels these.
    """

    label = "no pool: for a place, or for their next attempt"

    def __init__(self) -> None:
        self._calls: dict[tuple[Parked, int], None] = {}
        self._lock = threading.RLock()  # entered itself: in `with condition` a Ctrl-C can leave the lock held
        self._quiet = threading.Condition(self._lock)
        self._passed = 0  # how many have left; only for `idle`, so a lost count does no harm
        self._cancels = False
        super().__init__()

    def add(self, call: Parked, attempt: int, /) -> None:
        """Count *call* in before that attempt; after `close` with *cancel_futures*, cancel it."""
        self._calls[call, attempt] = None
        if self._cancels:
            call.cancel()

    def discard(self, call: Parked, attempt: int, /) -> None:
        """Count it out, if it was in."""
        if self._calls.pop((call, attempt), call) is None:
            with self._lock:
                self._passed += 1
                self._quiet.notify_all()

    def look(self) -> None:
        """Have those who wait look again: some calls may be stuck now."""
        with self._lock:
            self._quiet.notify_all()

    def close(self, cancel_futures: bool) -> None:
        self._cancels = self._cancels or cancel_futures
        for call, _ in list(self._calls):
            if cancel_futures:
                call.cancel()
            elif call.is_stuck():
                LOGGER.warning("%r is cancelled: it waits for a place, and all are held by overrun calls", call)
                call.cancel()

    def join(self) -> None:
        self.idle()

    def idle(self) -> int:
        with self._lock:
            while not all(call.is_stuck() for call, _ in list(self._calls)):
                nap_on(self._quiet)
            return self._passed

    def owns_this_thread(self) -> bool:
        """Tell whether this is a signal handler in the middle of counting: calls that end would wait for it."""
        return self._quiet._is_owned()  # type: ignore[attr-defined, no-any-return]  # as `wait` does

    def work_off(self) -> None:
        """At exit: cancel the calls of pools that want that."""
        for call, _ in list(self._calls):
            if call.cancels_at_exit():
                call.cancel()

    def remains(self) -> list[str]:
        return list(waiting_left(len(self._calls), self.label))

    def counts(self) -> Counts:
        return Counts(workers=0, queued=len(self._calls), running=0, done=self._passed)

    def abandon(self) -> None:
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._calls = {}
