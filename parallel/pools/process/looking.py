"""
Long calls: what stands on the boards of workers that have not answered for a while.

    a message of many calls ──▶ `LOOK` later ──▶ is the worker in a long call?
        no ──▶ look again
        yes ─▶ settle what stands in its journal ──▶ RECALL: don't begin the rest ──▶ `SETTLED` later: it hasn't ──▶
               the rest is queued again, for others ──▶ the worker has ended that call: RETURNED, and it is sent more

A call is begun at most once: it is taken back only from a worker that is still in the same call long after it was told
to begin no other; else the worker's own word decides: RETURNED, or the results of what it has begun.

After the last look nothing is armed: long calls take no time of the pool's process.

State: of a `Peer`, `recall`, `taken`, `condemned`, `look_at` and `seen`, all of them the reader's own. All of it runs
on the reader.
"""

from __future__ import annotations

import marshal
import math
import time
from collections.abc import Callable
from typing import Any

from parallel.futures import Future
from parallel.pools.process.board import BEGAN, EPOCH, SETTLED, STARTED
from parallel.pools.process.books import Books
from parallel.pools.process.costs import LOOK
from parallel.pools.process.peer import Peer, Recall
from parallel.runs import Run


class Looking:
    """Looks at boards."""

    def __init__(
        self, books: Books, settle: Callable[[Peer, list[Any]], object], see_to_workers: Callable[[], object]
    ) -> None:
        """
        Make one.

        Args:
            books: What it shares with the rest of the engine.
            settle: Settles the next calls of a worker with these results.
            see_to_workers: Sees to it that there are enough.
        """
        self._books = books
        self._see_to_workers = see_to_workers
        self._dispatching = books.dispatching
        self._settle = settle

    def all_due(self) -> float:
        """Look at those boards that are due; return the seconds until the next, infinity if there is none."""
        if not self._dispatching.armed:
            return math.inf
        self._dispatching.armed = False  # (*) before the workers are asked: who arms one does it the other way round
        now = time.monotonic_ns()
        soonest: float = math.inf
        for peer in list(self._books.roster.staff):
            if peer.look_at is not None and peer.look_at <= now:
                self._look(peer, now)
            if peer.look_at is not None:
                soonest = min(soonest, peer.look_at)
        if soonest == math.inf:
            return soonest
        self._dispatching.armed = True
        return max((soonest - now) / 1e9, 0)

    def _look(self, peer: Peer, now: int) -> None:
        words = peer.words
        started, epoch, began = words[STARTED], words[EPOCH], words[BEGAN]
        # The longer nothing happens, the less often: it may have been stopped.
        peer.look_at = None if peer.sent == peer.answered else now + max(LOOK, now - peer.sent_at)
        if peer.dead or started <= peer.answered:
            return
        peer.look_at = now + LOOK
        if now - began < SETTLED:
            return  # it gets along, and answers by itself
        base, entries = peer.board.journal()
        if (words[STARTED], words[EPOCH]) != (started, epoch) or base > peer.answered + 1:
            return  # it gets along after all; or a message is on its way
        ended = base + len(entries)  # the number of the call behind those that have ended
        if ended != started:
            return
        if ended > peer.answered + 1:
            results = [marshal.loads(entry) for entry in entries[peer.answered + 1 - base :]]
            peer.seen += len(results)
            self._settle(peer, results)
        if peer.inflight[-1].number > started:
            self._recall(peer, started, now)
        elif peer.condemned == started:
            if self._dispatching.retire_with(peer, started):
                self.execute(peer)
        else:
            peer.look_at = None  # all is known, and it answers at the end of this call

    def _recall(self, peer: Peer, started: int, now: int) -> None:
        """Have others do what is behind the call that a worker is in."""
        peer.look_at = now + SETTLED
        recall = peer.recall
        if recall is None:
            with self._dispatching.gate:
                if not peer.sender and peer.board.recall(started + 1, peer.sent + 1):
                    peer.recall = Recall(started + 1, peer.sent + 1)
        elif started >= recall.first:  # it is for the worker to say what it has begun
            peer.look_at = now + LOOK if peer.condemned > peer.answered else None
        else:
            with self._dispatching.gate:
                peer.taken = True
                self._take_back(peer, recall.first)
            if peer.condemned != started:
                peer.look_at = None
            self._books.drop_if_cancelling()
            self._dispatching.dispatch()

    def recall_rest(self, peer: Peer) -> None:
        """Have a worker give back what it has not begun, if it is in the middle of a message; it says what that is."""
        with self._dispatching.gate:
            if peer.recall is not None or peer.sender or peer.outbox or not peer.board.is_shared:
                return  # it has one call, or is told already, or runs the few that it has
            started = max(peer.words[STARTED], peer.answered)
            if started < peer.sent and peer.board.recall(started + 1, peer.sent + 1):
                peer.recall = Recall(started + 1, peer.sent + 1)

    def _take_back(self, peer: Peer, first: int) -> None:
        """Under the gate: queue again, before all others, the calls of a worker from that number on."""
        calls = self._books.calls
        while peer.inflight and peer.inflight[-1].number >= first:
            calls.give_back(peer.inflight.pop())

    def on_returned(self, peer: Peer, number: int) -> None:
        """
        See to it that a worker has dropped its calls from *number* on.

        It says so once for each message of which it has dropped something; after the first that is no news.
        """
        recall = peer.recall
        if recall is None or not recall.first <= number < recall.end:
            return
        with self._dispatching.gate:
            if not peer.taken:
                self._take_back(peer, number)
            peer.recall = None
            peer.taken = False
            peer.answered = peer.sent  # numbers go on behind those that were recalled
            peer.look_at = None
            self._dispatching.attention = True
        self._books.drop_if_cancelling()
        self._dispatching.dispatch()

    # -- calls that are to end ----------------------------------------------------------------------------------------

    def ask(self, given: Future[Any] | Run) -> None:
        """Tell the worker that has a call, `Run.given`, that this is to stop."""
        for peer, number in self._having(given):
            self._dispatching.ask(peer, number)

    def kill(self, given: Future[Any] | Run) -> None:
        """End a call, `Run.given`, which a worker has, with the worker: no other call is to be in it then."""
        for peer, number in self._having(given):
            self._condemn(peer, number)

    def _having(self, given: Future[Any] | Run) -> list[tuple[Peer, int]]:
        """Return the worker that has a call, and its number there; empty: none has."""
        with self._dispatching.gate:  # who gives it to one is through then
            peers = list(self._books.roster.staff)
            return [
                (peer, call.number)
                for peer in peers
                for call in peer.inflight
                if call.future is given or call.run is given
            ][:1]

    def _condemn(self, peer: Peer, number: int) -> None:
        if self._dispatching.retire_with(peer, number):
            self.execute(peer)
            return
        peer.condemned = number
        peer.look_at = time.monotonic_ns()
        self._dispatching.armed = True

    def execute(self, peer: Peer) -> None:
        """Kill a worker, and have another one started if calls wait."""
        books = self._books
        self._dispatching.retire(peer)
        with books.lock:
            books.roster.doom(peer)
            books.note_room()
        peer.killed = True
        peer.dismiss()  # should it end its call all the same, it leaves
        books.killing.begin(peer.target)
        self._see_to_workers()
