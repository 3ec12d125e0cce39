"""
The workers of a process pool, from their start to their end; what they do meanwhile is known to `dispatching`.

    add() ──▶ unready ──welcome()──▶ ready, or a spare ──promote()──▶ ready      leave() ──▶ leavers ─┬──▶ strike_off()
      └────────────────────── staff: all of these ─────────────────────┘          doom() ──▶ dying ──┘

What is on its way out makes room at once: others are started before it has gone. One that is outgoing has been given
its last calls. Whoever is to take its place is started meanwhile, and is a spare until it has gone: no more than `most`
have calls.

State: everything here, changed under the pool's lock, by single steps: a signal handler may submit between any two.
"""

from __future__ import annotations

from parallel.pools.process.peer import Peer


class Roster:
    """
    Who works in a pool.

    Attributes:
        most: How many there may be; more, if that has just been lowered.
        staff: All workers but the leaving ones.
        unready: Those of them that have been started, and have not said hello.
        spares: Those of them that have said hello, and wait for a place.
        leavers: Those that have been dismissed, and have not exited.
        dying: Those that are being killed, or are dead and not buried.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.staff: dict[Peer, None] = {}
        self.unready: dict[Peer, None] = {}
        self.spares: dict[Peer, None] = {}
        self.leavers: dict[Peer, None] = {}
        self.dying: dict[Peer, None] = {}

    def __contains__(self, peer: Peer) -> bool:
        return peer in self.staff or peer in self.leavers or peer in self.dying

    def __len__(self) -> int:
        return len(self.staff) + len(self.leavers) + len(self.dying)

    def has_room(self) -> bool:
        """Tell whether there may be more workers."""
        return len(self.staff) - sum(peer.is_outgoing() for peer in list(self.staff)) < self.most

    def lacks(self, waiting: int) -> bool:
        """Tell whether more calls are *waiting* than workers are coming, and there is room for one."""
        return self.has_room() and waiting > len(self.unready)

    def add(self, peer: Peer) -> None:
        """Take on a worker that has been started."""
        self.unready[peer] = None
        self.staff[peer] = None

    def welcome(self, peer: Peer) -> bool:
        """Note that a worker has said hello; False if it gets no calls: there is no place yet, or it was dismissed."""
        if self.unready.pop(peer, self) is not None:
            return False
        if self._has_place():
            return True
        self.spares[peer] = None
        return False

    def promote(self) -> Peer | None:
        """Return a spare that is to get calls from now on, None if there is none, or no place."""
        if not self.spares or not self._has_place():
            return None
        peer = next(iter(self.spares))
        del self.spares[peer]
        return peer

    def _has_place(self) -> bool:
        return sum(peer.ready for peer in list(self.staff)) < self.most

    def leave(self, *peers: Peer) -> None:
        """Note that workers without a call are dismissed."""
        for peer in peers:
            self.unready.pop(peer, None)
            self.spares.pop(peer, None)
            self.staff.pop(peer, None)
            self.leavers[peer] = None

    def doom(self, peer: Peer) -> None:
        """Note that a worker is dying, if it has not been dismissed."""
        self.unready.pop(peer, None)
        self.spares.pop(peer, None)
        if self.staff.pop(peer, self) is None:
            self.dying[peer] = None

    def strike_off(self, peer: Peer) -> bool:
        """Forget a worker that has exited; True if it was dismissed before."""
        self.staff.pop(peer, None)
        self.unready.pop(peer, None)
        self.spares.pop(peer, None)
        self.dying.pop(peer, None)
        return self.leavers.pop(peer, self) is None

    def clear(self) -> list[Peer]:
        """Forget all workers, and return them."""
        peers = self.everybody()
        self.staff.clear()
        self.unready.clear()
        self.spares.clear()
        self.leavers.clear()
        self.dying.clear()
        return peers

    def everybody(self) -> list[Peer]:
        """Return all workers that have not been struck off."""
        return [*self.staff, *self.leavers, *self.dying]

    def busy(self) -> int:
        """Count the workers that have a call."""
        return sum(bool(peer.inflight) for peer in [*self.staff, *self.dying])
