"""
Workers that leave while the pool goes on: they have run enough calls, have grown too large, are too many, or have been
idle for too long.

    go(): no more calls ──▶ those that it has not begun: to others ──▶ its present one has ended ──▶ dismissed
                                                                              others are started if calls wait

None is killed, and no call is lost or run twice: what a worker has not begun, it gives back itself (see `looking`).

The timeout of the idle is looked at four times in its length, as long as there are workers: so one stays up to a
quarter longer. Nothing is armed, and no call costs anything more, without one.

State: `_going` and `_next`, the reader's own, on which all of it runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from parallel.pools.process.books import Books
from parallel.pools.process.looking import Looking
from parallel.pools.process.peer import Peer

LOOKS: Final = 4
"""Looks in the length of the timeout. Fewer are less exact, more are work for nothing."""


class Departures:
    """Sees workers off."""

    def __init__(self, books: Books, looking: Looking, see_to_workers: Callable[[], object]) -> None:
        """
        Make one.

        Args:
            books: What it shares with the rest of the engine.
            looking: Has workers give back what they have not begun.
            see_to_workers: Has others started, if need be.
        """
        self._books = books
        self._looking = looking
        self._see_to_workers = see_to_workers
        self._going: list[Peer] = []  # retired, and not dismissed yet
        self._next = math.inf  # when the idle are looked at

    def go(self, *peers: Peer) -> None:
        """Have workers leave as soon as their present calls have ended."""
        for peer in peers:
            if not peer.leaves:
                peer.leaves = True
                self._books.dispatching.retire(peer)
                self._looking.recall_rest(peer)
                self._going.append(peer)
        self._dismiss()

    def all_due(self) -> float:
        """See off whoever is to go now; return the seconds until the next look, infinity if there is none."""
        if self._going:
            self._dismiss()
        timeout = self._books.settings.idle_timeout
        if timeout is None:
            return math.inf
        now = time.monotonic()
        if now >= self._next:
            self.go(*self._idle_since(now - timeout))
            self._next = math.inf
        if self._next == math.inf and self._books.dispatching.peers:
            self._next = now + timeout / LOOKS
        return self._next - now

    def shrink(self) -> None:
        """After a change of their number: have workers leave that are too many, first those with the least to do."""
        self.promote()  # there may be more places
        staff = [peer for peer in self._books.roster.staff if not peer.leaves]
        surplus = len(staff) - self._books.roster.most
        if surplus > 0:
            self.go(*sorted(staff, key=lambda peer: len(peer.inflight))[:surplus])

    def promote(self) -> None:
        """Give calls to those that were waiting for a place."""
        while True:
            with self._books.lock:
                peer = self._books.roster.promote()
            if peer is None:
                return
            self._books.dispatching.welcome(peer)

    def _idle_since(self, moment: float) -> list[Peer]:
        """Return the workers that have had no call since then; take them from those that are given calls."""
        dispatching = self._books.dispatching
        now = time.monotonic()
        found: list[Peer] = []
        with dispatching.gate:
            for peer in dispatching.peers:
                if peer.inflight or peer.sender:
                    peer.rested = None
                elif peer.rested is None or peer.rested[0] != peer.sent:
                    peer.rested = (peer.sent, now)
                elif peer.rested[1] <= moment:
                    found.append(peer)
            dispatching.peers[:] = [peer for peer in dispatching.peers if peer not in found]
        return found

    def _dismiss(self) -> None:
        done = [peer for peer in self._going if peer.dead or not (peer.inflight or peer.sender)]
        if not done:
            return
        self._going = [peer for peer in self._going if peer not in done]
        with self._books.lock:
            leaving = [peer for peer in done if peer in self._books.roster.staff and not peer.dead]
            for peer in leaving:
                peer.ready = False
            self._books.roster.leave(*leaving)
            self._books.note_room()
        for peer in leaving:
            peer.dismiss()
            self._books.killing.expect(peer.target)
        self.promote()
        self._see_to_workers()
