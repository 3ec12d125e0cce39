"""
The desk of a registry: counts the calls that it has accepted and that are in no pool.

They wait for a place under a limit, or for their next attempt.

So a shutdown waits for them, and a program's exit does. It runs nothing, and has no thread.

State: `_calls`, changed by single atomic steps; `_passed`, guarded by `_quiet`, whose lock is re-entrant: a `__del__`
or a signal handler may cancel a call while it is held.
"""

from __future__ import annotations

import threading
from typing import Any

from parallel.futures import Future
from parallel.pools.base import Engine, PoolStats


class Desk(Engine):
    """The calls of one registry that are in no pool."""

    def __init__(self) -> None:
        self._calls: dict[tuple[Future[Any], int], None] = {}
        self._quiet = threading.Condition(threading.RLock())
        self._passed = 0  # how many have left; only for `idle`, so a lost count does no harm
        self._cancels = False
        super().__init__()

    def add(self, call: Future[Any], attempt: int, /) -> None:
        """Count *call* in before that attempt; after `close` with *cancel_futures*, cancel it."""
        self._calls[call, attempt] = None
        if self._cancels:
            call.cancel()

    def discard(self, call: Future[Any], attempt: int, /) -> None:
        """Count it out, if it was in."""
        if self._calls.pop((call, attempt), call) is None:
            with self._quiet:
                self._passed += 1
                self._quiet.notify_all()

    def close(self, cancel_futures: bool) -> None:
        if cancel_futures:
            self._cancels = True
            for call, _ in list(self._calls):
                call.cancel()

    def join(self) -> None:
        self.idle()

    def idle(self) -> int:
        with self._quiet:
            while self._calls:
                self._quiet.wait()
            return self._passed

    def stats(self) -> PoolStats:
        return PoolStats(workers=0, queued=len(self._calls), running=0, done=self._passed)

    def abandon(self) -> None:
        self._quiet = threading.Condition(threading.RLock())
        self._calls = {}
