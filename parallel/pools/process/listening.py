"""
What the reader of a process pool does with what its workers send, and with their deaths.

    socket ──▶ frame ──▶ hello: it gets a call
                    ├──▶ answer: it gets its next call, then the call that it had is ended
                    └──▶ its initializer raised: the pool is broken
           └─▶ end ────▶ dead: its call is blamed, or queued again if it can't have been read
    sentinel ──────────▶ the same, if a child of the worker holds its socket

All of it runs on the reactor's thread.

State: `_stillborn`, the reader's own.
"""

from __future__ import annotations

from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Final

from parallel.deaths import WorkerDiedError
from parallel.pools.process.books import GUARD_HINT, Books
from parallel.pools.process.hiring import Hiring
from parallel.pools.process.peer import Given, Peer
from parallel.pools.process.replies import error_of, outcome_of
from parallel.pools.process.wire import BROKEN, HELLO, Frame

STILLBORN: Final = 3
"""Workers in a row that may die before they are ready. One is an accident, and each costs 0.1 s under spawn."""


class Listening:
    """Listens to the workers."""

    def __init__(self, books: Books, hiring: Hiring) -> None:
        """
        Make the listener.

        Args:
            books: What it shares with the rest of the engine.
            hiring: Who sees to it that there are workers enough, when one has come or gone.
        """
        self._books = books
        self._see_to_workers = hiring.see_to_workers
        self._stillborn = 0  # workers in a row that died before their hello
        books.watch = self.watch
        books.bury = self.bury

    def watch(self, peer: Peer) -> None:
        """Listen to a worker from now on."""
        reactor = self._books.reactor
        reactor.watch(peer.sock, EVENT_READ, partial(self._on_socket, peer))
        reactor.watch(peer.process.sentinel, EVENT_READ, partial(self._on_sentinel, peer))

    # -- what they send -----------------------------------------------------------------------------------------------

    def _on_socket(self, peer: Peer, events: int) -> None:
        if peer.dead:
            return  # its sentinel was faster
        if events & EVENT_WRITE and peer.send():
            self._books.reactor.change(peer.sock, EVENT_READ)
        if events & EVENT_READ:
            self._read(peer)

    def _on_sentinel(self, peer: Peer, events: int) -> None:
        """The process has ended; its socket may not have, if the process left a child behind that holds it."""
        if peer.dead:
            return  # its socket was faster
        self._books.reactor.forget(peer.process.sentinel)
        if peer.has_exited():
            while not peer.dead and self._read(peer):
                continue
            self._stream_ended(peer)

    def _read(self, peer: Peer) -> bool:
        """Read once, and see to the frames that have come; False if nothing was there."""
        try:
            came = peer.read()
            while (frame := peer.cut()) is not None:
                self._on_frame(peer, frame)
        except MemoryError as error:  # the rest of the stream can't be read: it is given up, with the worker
            came = False
            self._give_up(peer, error)
        if came is False:
            self._stream_ended(peer)
        return bool(came)

    def _on_frame(self, peer: Peer, frame: Frame) -> None:
        kind, call_id, first, second = frame
        if kind == HELLO:
            self._on_hello(peer)
        elif kind == BROKEN:
            error = error_of(first, second)
            self._books.break_down(f"its initializer raised {type(error).__name__}: {error}", error)
        else:
            self._on_answer(peer, call_id, frame)

    def _on_hello(self, peer: Peer) -> None:
        self._stillborn = 0
        with self._books.lock:
            self._books.roster.welcome(peer)
        self._see_to_workers()

    def _on_answer(self, peer: Peer, call_id: int, frame: Frame) -> None:
        """Refill the worker before its answer is looked at, so that it has something to do meanwhile."""
        books = self._books
        most = books.settings.max_tasks_per_child
        with books.lock:
            given = peer.hand_back(call_id)
            books.calls.end(given, partial(outcome_of, given.call.name, frame))
            peer.done += 1
            retires = most is not None and peer.done >= most
            if retires:
                books.roster.leave(peer)
            else:
                books.roster.idle.append(peer)
            matched = books.match()
        for refilled in matched:
            books.send(refilled)
        if retires:
            peer.dismiss()
            self._see_to_workers()

    # -- their deaths -------------------------------------------------------------------------------------------------

    def _give_up(self, peer: Peer, error: BaseException) -> None:
        """End a worker and, with *error*, the call that it has."""
        with self._books.lock:
            given, peer.given = peer.given, None
        if given is not None:
            self._books.calls.end(given, lambda: (None, error, None))
        peer.kill()

    def _stream_ended(self, peer: Peer) -> None:
        if peer.dead:
            return
        self._books.reactor.forget(peer.sock)
        self._books.reactor.forget(peer.process.sentinel)
        peer.dead = True  # (*) before `sender` is read: whichever of the two comes second sees both, and buries
        self.bury(peer)

    def bury(self, peer: Peer) -> None:
        """Strike a dead worker off, and see to its call; nothing happens while a thread is sending to it."""
        books = self._books
        with books.lock:
            if peer.sender or peer not in books.roster:
                return  # its sender comes here when it is through; or it is buried already
            books.roster.block(peer)
        exit_code = peer.bury()
        with books.lock:
            expected = books.roster.strike_off(peer)
            given, peer.given = peer.given, None
        if given is not None:
            self._return_or_blame(peer, given, exit_code)
        if not peer.ready and not expected:
            self._count_stillborn(exit_code)
        self._see_to_workers()

    def _return_or_blame(self, peer: Peer, given: Given, exit_code: int | None) -> None:
        """Queue the call again if it can't have been started; once only, as reading it may be what is deadly."""
        call = given.call
        doubtful = call.sent_before or self._books.interrupted or given.run.is_over
        if peer.left_unread() and not doubtful:
            call.sent_before = True
            with self._books.lock:
                self._books.calls.give_back(given)
        else:
            error = WorkerDiedError(call.name, peer.pid, exit_code)
            self._books.calls.end(given, lambda: (None, error, None))

    def _count_stillborn(self, exit_code: int | None) -> None:
        self._stillborn += 1
        if self._stillborn < STILLBORN:
            return
        reason = f"{STILLBORN} workers in a row died before they were ready, the last with exit code {exit_code}"
        if not self._books.settings.forks:
            reason += f"; see what they wrote to standard error. If it is about bootstrapping: {GUARD_HINT}"
        self._books.break_down(reason, None)
