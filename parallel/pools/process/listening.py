"""
What the reader of a process pool does with what its workers send, and with their deaths.

    socket ──▶ frame ──▶ hello: it gets calls
                    ├──▶ answers: it gets its next message, then the calls are settled
                    ├──▶ calls that it gives back: see `looking`
                    ├──▶ segments that it has released: see `baggage`
                    ├──▶ a log record: see `logs`
                    └──▶ its initializer raised: the pool is broken
           └─▶ end ────▶ dead: what stands in its journal is settled, the call that it was in is blamed, or run again if
                         it may be, the others are queued again; replaced if needed
    its process ends ──▶ the same, if a child of the worker holds its socket

All of it runs on the reactor's thread.

State: `_stillborn`, `_answered` and `has_unburied`, the reader's own.
"""

from __future__ import annotations

import marshal
import time
from functools import partial
from typing import Any, Final, cast

from parallel import trail
from parallel.deaths import WorkerDiedError, how_it_died, quoted
from parallel.delivery import settle
from parallel.outcomes import CANCELLED, Outcome
from parallel.pools.process.books import GUARD_HINT, LOGGER, Books
from parallel.pools.process.costs import LOOK, Known
from parallel.pools.process.crashes import PERIOD, Crashes
from parallel.pools.process.departures import Departures
from parallel.pools.process.ears import make_ear
from parallel.pools.process.hiring import Hiring
from parallel.pools.process.items import kept_on
from parallel.pools.process.last_words import last_words
from parallel.pools.process.looking import Looking
from parallel.pools.process.peer import Given, Peer
from parallel.pools.process.reactor import READ, WRITE
from parallel.pools.process.replies import error_of, outcome_of
from parallel.pools.process.wire import ANSWERS, BROKEN, HEAVY, HELLO, LOG, RELEASED, Frame, Part

STILLBORN: Final = 3
"""Workers in a row that may die before they are ready. One is an accident, and each costs 0.1 s under spawn."""

RERUNS: Final = 2
"""Times that a call is run again which may be. One death is an accident; more are deaths of workers, for one call."""


class Listening:
    """
    Listens to the workers.

    Attributes:
        looking: Looks at their boards.
        departures: Sees those off that are to leave.
        has_unburied: Some worker is dead, and its leader is to leave it before it can be buried.
    """

    def __init__(self, books: Books, hiring: Hiring, known: dict[int, Known]) -> None:
        """
        Make the listener.

        Args:
            books: What it shares with the rest of the engine.
            hiring: Who sees to it that there are workers enough, when one has come or gone.
            known: The functions of the pool.
        """
        self._books = books
        self._calls = books.calls
        self._dispatching = dispatching = books.dispatching
        self._known = known
        self._see_to_workers = hiring.see_to_workers
        self._stillborn = 0  # workers in a row that died before their hello
        self._crashes = Crashes()
        self._answered = 0  # calls, by workers that are no more
        self.looking = Looking(books, self._settle, self._replace)
        self.departures = Departures(books, self.looking, hiring.see_to_workers)
        self.has_unburied = False
        books.watch = self.watch
        dispatching.watch = self.listen
        dispatching.hand_back = self.take_back
        dispatching.bury = self.bury

    def watch(self, peer: Peer) -> None:
        """Listen to a worker from now on."""
        reactor = self._books.reactor
        peer.ear = make_ear(peer.sock.fileno(), reactor.poller)
        reactor.watch(peer.sock.fileno(), partial(self._on_socket, peer))
        reactor.watch(peer.end, partial(self._on_end, peer))

    def listen(self, peer: Peer) -> None:
        """Listen to a worker again, or see when it can be sent more; one that is led will come back by itself."""
        if not (peer.dead or peer.leader):
            self._books.reactor.listen(peer.sock.fileno(), READ | WRITE if peer.outbox else READ)

    def take_back(self, peer: Peer) -> None:
        """On any thread, under the gate: listen to a worker that was led."""
        ear = peer.ear
        assert ear is not None, "it was led"
        try:
            self._books.reactor.poller.register(ear.descriptor, READ | WRITE if peer.outbox else READ)
        except OSError:
            LOGGER.debug("the socket of worker %d has come back by itself", peer.pid)
        ear.ring()

    # -- what they send -----------------------------------------------------------------------------------------------

    def _on_socket(self, peer: Peer, events: int) -> None:
        if peer.dead:
            return  # its end was faster
        if events & WRITE and not peer.sender:
            with self._dispatching.gate:
                peer.send()
                self._dispatching.attention = True  # it may be idle: what was sent last may have been no calls
            self.listen(peer)
        if events & ~WRITE:
            self._read(peer)

    def _on_end(self, peer: Peer, events: int) -> None:
        """The process has ended; its socket may not have, if the process left a child behind that holds it."""
        if peer.dead:
            return  # its socket was faster
        self._books.reactor.forget(peer.end)
        if peer.has_exited():
            self._stream_ended(peer)

    def _read(self, peer: Peer) -> bool:
        """Read once, and see to the frames that have come; False if nothing was there."""
        peer.reads += 1  # (*) odd, before `leader` is read: nobody peeks who has not begun to
        try:
            if peer.leader:
                return False  # its socket comes back
            came = peer.read()
            while (frame := peer.cut()) is not None:
                self._on_frame(peer, frame)
        except MemoryError as error:  # the rest of the stream can't be read: it is given up, with the worker
            came = False
            peer.problem = error
            peer.kill()
        finally:
            peer.reads += 1
            if peer.leader and peer.ear is not None:
                peer.ear.ring()  # what it waits for may have been taken out
        if came is False:
            self._stream_ended(peer)
        return bool(came)

    def _on_frame(self, peer: Peer, frame: Frame) -> None:
        (kind, *parts), large = frame
        if kind == ANSWERS:
            self._on_answers(peer, *parts, large=large)
        elif kind == LOG:
            self._books.relay.take(parts[0], _id_of(peer, parts[1]))
        elif kind == HELLO:
            self._on_hello(peer)
        elif kind == RELEASED:
            with self._dispatching.gate:
                peer.baggage.take_back(parts[0])
        elif kind == BROKEN:
            self._books.fail_to_start(parts[2], error_of(*parts[:2]))
        elif kind == HEAVY:
            self.departures.go(peer)
        else:
            self.looking.on_returned(peer, parts[0])
            self._retire_if_due(peer)

    def _on_hello(self, peer: Peer) -> None:
        self._stillborn = 0
        with self._books.lock:
            stays = self._books.roster.welcome(peer)
        if trail.current is not None:
            number, name = self._books.settings.number, f"process {peer.pid}"
            trail.current.note((trail.WORKER_STARTED, trail.clock(), number, peer.pid, name))
        if stays:
            self._dispatching.welcome(peer)
        self._see_to_workers()

    def _on_answers(
        self, peer: Peer, first: int, results: list[Any], spent: list[int], times: bytes = b"", *, large: Part
    ) -> None:
        """Refill the worker before its answers are looked at, so that it has something to do meanwhile."""
        self._note_costs(peer, spent)
        noting = trail.current
        if peer.seen:
            seen = min(peer.seen, len(results))
            peer.seen -= seen
            del results[:seen]
        self._settle(peer, results, large, refill=True)
        if times and noting is not None:  # (*) after their ends: who follows knows then which have failed
            noting.note((trail.TIMES, peer.pid, first, times))
        self._retire_if_due(peer)

    def _note_costs(self, peer: Peer, spent: list[int]) -> None:
        for index in range(0, len(spent), 3):
            number, calls, nanoseconds = spent[index : index + 3]
            known = self._known.get(number)
            if known is not None:
                known.note(calls, nanoseconds)
                peer.cost = known.cost

    def _retire_if_due(self, peer: Peer) -> None:
        """Dismiss a worker that has run as many calls as it may."""
        if peer.limit is not None and peer.ended >= peer.limit and not peer.inflight and peer.ready:
            self.departures.go(peer)

    # -- their ends ---------------------------------------------------------------------------------------------------

    def _settle(self, peer: Peer, results: list[Any], large: Part = b"", refill: bool = False) -> None:
        """Settle the next calls of a worker; before that, if it is to be, give it others."""
        self._calls.settling = True
        peer.answered += len(results)
        peer.ended += len(results)
        if peer.sent == peer.answered:
            peer.look_at = None
            peer.recall = None
            peer.taken = False
            self._dispatching.attention = True  # before the queue is looked at
        else:
            self._look_later(peer)
        done = [peer.inflight.popleft() for _ in results]
        if refill:
            self._refill()
        for given, result in zip(done, results, strict=True):
            _, future, _, _, run = given
            fields = future.__dict__
            if type(result) is not tuple and run is None and "_run" not in fields:
                outcome = (result, None, None)  # the usual case, without the ceremony
                if fields.setdefault("_end", outcome) is outcome and "_first" not in fields:
                    continue
            try:
                _end(peer, given, result, large)
            except Exception:  # nothing that follows one call may cost another its end
                LOGGER.exception("a process pool could not hand on what follows a call")
        self._calls.settled += len(results)
        self._calls.settling = False

    def _look_later(self, peer: Peer) -> None:
        peer.look_at = time.monotonic_ns() + LOOK
        self._dispatching.armed = True

    def _refill(self) -> None:
        if self._calls.waiting():
            self._dispatching.dispatch()
            if self._dispatching.lacking:
                self._see_to_workers()

    # -- their deaths -------------------------------------------------------------------------------------------------

    def _blame(self, peer: Peer, outcome: Outcome) -> None:
        """End the first of a worker's calls with *outcome*."""
        peer.answered += 1
        self._calls.end(peer.inflight[0], lambda: outcome)  # before it is nobody's any more: see `Calls.all_ended`
        peer.inflight.popleft()

    def _stream_ended(self, peer: Peer) -> None:
        if peer.dead:
            return
        self._books.reactor.forget(peer.sock.fileno())
        self._books.reactor.forget(peer.end)
        peer.dead = True  # (*) before `sender` and `leader` are read: whoever comes second sees both, and buries
        self.bury(peer)

    def bury(self, peer: Peer) -> None:
        """Strike a dead worker off, and see to its calls; nothing happens while a thread is sending to it, or leads."""
        books = self._books
        self._dispatching.retire(peer)
        with books.lock:
            if peer not in books.roster:
                return  # it is buried already
        if peer.sender:
            return  # its sender comes here when it is through
        if peer.leader:
            self.has_unburied = True
            if peer.ear is not None:
                peer.ear.ring()
            return  # its leader rings when it is through
        while peer.problem is None and self._read(peer):
            continue  # what it has sent before its end; there may be no end of the stream
        with books.lock:
            was_spare = peer in books.roster.spares
            books.roster.doom(peer)
            books.note_room()
        self._salvage(peer)
        if peer.ready:
            self._replace()  # before it is waited for; but one that can't even start may be the last
        exit_code = peer.bury()
        with books.lock:
            expected = books.roster.strike_off(peer)
        if trail.current is not None:
            how = "" if expected and not peer.killed else how_it_died(exit_code)
            trail.current.note((trail.WORKER_ENDED, trail.clock(), books.settings.number, peer.pid, how))
        self._answered += peer.ended
        sent, received = peer.traffic()
        books.traffic = (books.traffic[0] + sent, books.traffic[1] + received)
        books.killing.bury(peer.target, spare=expected)
        words = last_words(peer.board)
        error = self._blame_for_death(peer, exit_code, words)
        peer.board.close()
        peer.baggage.close()
        if not (peer.killed or expected):
            books.deaths += 1
            how = how_it_died(exit_code) + quoted(words)
            if peer.ready or was_spare:
                self._count_crash(how, error)
            else:
                self._count_stillborn(how, known=bool(words))
        self._replace()

    def _replace(self) -> None:
        """Have others do what a worker did that is on its way out."""
        self.departures.promote()
        self._see_to_workers()

    def bury_dead(self) -> None:
        """Bury the workers that a leader has kept from that."""
        self.has_unburied = False
        for peer in self._books.roster.everybody():
            if peer.dead:
                self.bury(peer)

    def _salvage(self, peer: Peer) -> None:
        """Settle the calls of a dead worker that had ended, and queue those again that it is not to blame for."""
        if peer.board.is_shared and peer.inflight:
            base, entries = peer.board.journal()
            fresh = entries[max(peer.answered + 1 - base, 0) :]
            self._settle(peer, [marshal.loads(entry) for entry in fresh])
        if self._books.interrupted or peer.forsaken or not peer.inflight:
            return
        lost = int(peer.problem is not None or (self._is_to_blame(peer) and not self._is_run_again(peer)))
        with self._dispatching.gate:
            while len(peer.inflight) > lost:
                self._calls.give_back(peer.inflight.pop())
        self._books.drop_if_cancelling()

    def _blame_for_death(self, peer: Peer, exit_code: int | None, words: str) -> WorkerDiedError | None:
        """End the calls that a dead worker has left: the one that it was in; of an interrupted pool, all."""
        error = None
        if not peer.inflight and peer.board.report():  # no error tells of it
            LOGGER.warning("worker process %d %s between two calls%s", peer.pid, how_it_died(exit_code), quoted(words))
        while peer.inflight:
            if self._books.interrupted or peer.forsaken:
                self._blame(peer, (None, CANCELLED, None))  # whoever interrupted the program, or the submit, knows
                continue
            if peer.problem is not None:
                self._blame(peer, (None, peer.problem, None))
                continue
            name = peer.inflight[0].known.name
            error = WorkerDiedError(name, peer.pid, exit_code, words)
            error.kept = kept_on(peer.board)
            self._blame(peer, (None, error, None))
        return error

    def _is_to_blame(self, peer: Peer) -> bool:
        """Tell whether a dead worker was in its first call; or died before that had begun, for the second time."""
        given = peer.inflight[0]
        if peer.in_call() or (given.run is not None and given.run.is_over):
            return True
        fields = given.future.__dict__
        mark = given.run or True
        if fields.get("_unread") is mark:
            return True  # reading it may be what is deadly
        fields["_unread"] = mark
        return False

    def _is_run_again(self, peer: Peer) -> bool:
        """Tell whether the call that a dead worker was in may be run by another one."""
        _, future, known, _, run = peer.inflight[0]
        if not future.idempotent or future.done() or (run is not None and run.is_over):
            return False
        fields = future.__dict__
        deaths = fields["_deaths"] = fields.get("_deaths", 0) + 1
        if deaths > RERUNS:
            return False
        if run is not None:
            run.rewind()
        LOGGER.info("worker process %d died while it ran %s, which is run again", peer.pid, known.name)
        return True

    def _count_crash(self, how: str, error: WorkerDiedError | None) -> None:
        books = self._books
        answered = self._answered + sum(peer.ended for peer in books.roster.everybody())
        many = self._crashes.count(time.monotonic(), answered, cost_a_call=error is not None)
        if many:
            cause = None if error is None else WorkerDiedError(*error.args)
            books.break_down(f"{many} workers died within {PERIOD:g} s, and no call ended: the last {how}", cause)

    def _count_stillborn(self, how: str, *, known: bool) -> None:
        self._stillborn += 1
        if self._stillborn < STILLBORN:
            return
        reason = f"{STILLBORN} workers in a row died before they were ready: the last {how}"
        if not (known or self._books.settings.launcher.forks):
            reason += f"; see what they wrote to standard error. If it is about bootstrapping: {GUARD_HINT}"
        self._books.break_down(reason, None)


def _id_of(peer: Peer, number: int) -> int:
    """Return the number that a call has in this process, by that in its worker; 0: it is not known."""
    future = next((given.future for given in list(peer.inflight) if given.number == number), None)
    return 0 if future is None else trail.id_of(future)


def _end(peer: Peer, given: Given, result: Any, large: Part) -> None:
    """Settle a call with what its worker has sent."""
    _, future, known, _, run = given
    kind: object = type(result)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
    outcome: Outcome = (result, None, None)
    if kind is tuple:
        outcome = outcome_of(known.name, result, large, peer.baggage)
    if run is not None:
        run.finish(outcome, may_block=False)
        return
    fields = future.__dict__
    if "_run" in fields:
        outcome = fields["_run"].told(outcome)
    if outcome[1] is None:
        end = fields.setdefault("_end", outcome)
        if end is outcome and "_first" not in fields:
            return
        if type(end) is tuple:
            # It was published, perhaps by a leader, and the first may not have been told; or it was ended by force.
            if end[1] is not None:
                return
            outcome = cast(Outcome, end)
    settle(future, outcome, may_block=False)
