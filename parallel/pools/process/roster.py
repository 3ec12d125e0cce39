"""
The workers of a process pool, by what they are doing.

    add() ──▶ unready ──welcome()──▶ idle ◀──▶ has a call        leave() ──▶ leavers
      └────────────────── staff: all of these ──────────────┘       └── strike_off() ◀── from anywhere

State: everything here, changed under the pool's lock, by single steps: a signal handler may submit between any two.
"""

from __future__ import annotations

from parallel.pools.process.calls import Calls
from parallel.pools.process.peer import Peer


class Roster:
    """
    Who works in a pool.

    Attributes:
        staff: All workers but the leaving ones.
        idle: Those of them that are free, the latest last: its caches are warm.
        unready: Those of them that have been started, and have not said hello.
        leavers: Those that have been dismissed, and have not exited.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.staff: dict[Peer, None] = {}
        self.idle: list[Peer] = []
        self.unready: dict[Peer, None] = {}
        self.leavers: dict[Peer, None] = {}

    def __contains__(self, peer: Peer) -> bool:
        return peer in self.staff or peer in self.leavers

    def __len__(self) -> int:
        return len(self.staff) + len(self.leavers)

    def lacks(self, waiting: int) -> bool:
        """Tell whether more calls are *waiting* than workers are coming, and there is room for one."""
        return len(self.staff) < self._most and waiting > len(self.unready)

    def add(self, peer: Peer) -> None:
        """Take on a worker that has been started."""
        self.unready[peer] = None
        self.staff[peer] = None

    def welcome(self, peer: Peer) -> None:
        """Note that a worker has said hello; one that has been dismissed meanwhile leaves all the same."""
        if peer in self.staff:
            peer.ready = True
            self.unready.pop(peer, None)
            self.idle.append(peer)

    def match(self, calls: Calls) -> list[Peer]:
        """Give waiting calls to free workers; returns those that the calling thread is to send their call to."""
        matched: list[Peer] = []
        while self.idle and calls.waiting():  # again after each step: a nested submit may have added a call
            try:
                peer = self.idle.pop()
            except IndexError:
                continue  # a nested submit was faster
            given = calls.next()
            if given is None:
                self.idle.append(peer)
            else:
                peer.take(given)
                matched.append(peer)
        return matched

    def recount(self) -> None:
        """Find the free workers again, after an interrupt in the middle of a `match`."""
        for peer in self.staff:
            if peer.free() and peer not in self.idle:
                self.idle.append(peer)

    def block(self, peer: Peer) -> None:
        """See that nobody gives a dead worker a call."""
        if peer in self.idle:
            self.idle.remove(peer)

    def leave(self, *peers: Peer) -> None:
        """Note that workers without a call are dismissed."""
        for peer in peers:
            self.block(peer)
            self.unready.pop(peer, None)
            self.staff.pop(peer, None)
            self.leavers[peer] = None

    def strike_off(self, peer: Peer) -> bool:
        """Forget a worker that has exited; True if it was dismissed before."""
        self.staff.pop(peer, None)
        self.unready.pop(peer, None)
        return self.leavers.pop(peer, self) is None

    def clear(self) -> list[Peer]:
        """Forget all workers, and return them."""
        peers = [*self.staff, *self.leavers]
        self.staff.clear()
        self.idle.clear()
        self.unready.clear()
        self.leavers.clear()
        return peers

    def busy(self) -> int:
        """Count the workers that have a call."""
        return sum(peer.given is not None for peer in self.staff)

    def sent_by(self, thread: int) -> list[Peer]:
        """Return the workers to which that thread is sending, or about to."""
        return [peer for peer in list(self.staff) if peer.sender == thread]
