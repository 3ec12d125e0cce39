"""
The engine of a process pool: it takes calls, and has them run by workers.

    take: a call, packed ──▶ a worker is idle ──▶ sent to it by the caller ─────────┐
                         └──▶ none is ──▶ queued: no lock, no system call            ▼
                                             │                                    worker ──▶ socket
    reader: answers arrive ──▶ worker refilled from the queue, many calls at a time ◀──────────┘
                          └──▶ then loaded, futures settled, what follows handed to the callback threads
            end of a stream ──▶ dead: one call blamed, the others queued again; replaced if needed

Guarantees:
- Calls start in submission order; one that a worker could not begin is begun by another, perhaps later than some behind
  it. Each future ends, whatever becomes of the workers.
- A call is begun once, unless it is idempotent. A death costs the call that ran in it. It breaks the pool only if some
  workers in a row died before they were ready, as then no worker ever will be; if nothing but deaths happens any more
  (see `crashes`); or if the initializer raised. Then the queued calls fail, running ones end.
- The caller pickles, and never waits: neither for a lock held by somebody at work, nor for a full socket, nor for a
  worker to start (fork excepted: there all workers are forked by the first submit).
- Only the sender of a call writes to its worker; what does not fit at once is left to the reader.
- A signal handler that raises in the middle of a submit costs that call, and the worker that it was for.
- At the end no process, thread or descriptor is left.

The parts: `books` (what they share), `dispatching` (who gets which calls), `leading` (who waits for a call may read its
answer), `listening` (what becomes of what workers send), `looking` (calls that take long), `killing` (who is ended by
force), `hiring` (who starts workers).

State, changed under the lock of the books: `_life`, `_opener`, `_watchers`.
"""

from __future__ import annotations

import math
import threading
from enum import Enum
from functools import partial
from multiprocessing import process as processes
from typing import Any

from parallel.context import WITHIN, era
from parallel.delivery import settle
from parallel.errors import PoolBrokenError, PoolShutdownError
from parallel.futures import Future
from parallel.naps import nap_on
from parallel.outcomes import CANCELLED, Outcome, Work
from parallel.pools.base import AtWork, Counts, Engine, Traffic
from parallel.pools.leftovers import called_at, calls_left, processes_left, threads_left, waiting_left
from parallel.pools.process.books import GUARD_HINT, Books
from parallel.pools.process.books import Settings as Settings
from parallel.pools.process.carrying import Carrier
from parallel.pools.process.costs import Known
from parallel.pools.process.hiring import Hiring
from parallel.pools.process.launching import Launcher as Launcher
from parallel.pools.process.leading import Leading
from parallel.pools.process.listening import Listening
from parallel.pools.process.packing import Packed, Packer
from parallel.pools.process.stacks import stacks_of
from parallel.runs import Run
from parallel.trail import id_of


class Life(Enum):
    """How far an engine has come: NEW → OPENING → OPEN → GONE; back to NEW if it could not open; NEW → GONE."""

    NEW = "new"
    """Nothing has been started."""
    OPENING = "opening"
    """The thread of the first submit is starting it."""
    OPEN = "open"
    """Its reader runs."""
    GONE = "gone"
    """Closed, and nothing is left of it."""


class Staff(Engine):
    """The workers of a process pool, and who looks after them."""

    def __init__(self, settings: Settings, carrier: Carrier | None) -> None:
        self.label = settings.label
        self._books = books = Books(settings, self._round_done)
        self._lock = books.lock
        self._calls = books.calls
        self._plain = books.calls.plain
        self._dispatching = books.dispatching
        self._dispatching.kill = self.kill
        self._roster = books.roster
        self._reactor = books.reactor
        self._launcher = settings.launcher
        self._hiring = Hiring(books)
        self._packer = Packer(settings.setup.main_by_value, books.store, carrier)
        self._listening = Listening(books, self._hiring, self._packer.known)
        self._leading = Leading(books.dispatching, books.calls)
        # Each answer of a worker that retires is the reader's: it counts them.
        self.lead = None if settings.max_tasks_per_child is not None else self._leading.lead
        self.pack = self._packer.pack
        self.pack_quickly = self._packer.pack_quickly
        self.constant = self._packer.constant
        self._quiet = threading.Condition(self._lock)  # told of each round while there are watchers, and of the end
        self._watchers = 0  # threads in `idle`
        self._life = Life.NEW
        self._opener = 0  # the thread that opens it
        super().__init__()

    # -- taking calls -------------------------------------------------------------------------------------------------

    def take(self, future: Future[Any], known: Known) -> None:
        """
        Take a call: a future whose work is packed.

        Raises:
            PoolShutdownError, PoolBrokenError: No calls are taken any more.
        """
        if self._dispatching.attention:
            self._take_carefully(future, known)
        elif future.priority:
            self._calls.queue(future)
        else:
            self._plain.append(future)  # the reader comes to it: all workers are busy
        if self._books.closing:  # (*) after it was queued: who closes the engine does it the other way round
            self._refuse(future)

    def _take_carefully(self, future: Future[Any], known: Known) -> None:
        """Open the engine if need be; send the call, if somebody is idle, or queue it."""
        try:
            self._see_to_opening()
            if not self._books.closing:
                self._dispatching.direct(future, known)
                self._see_to_opening()  # (*) after it was queued: the thread that was opening it may have failed
        except (PoolShutdownError, PoolBrokenError):
            raise
        except BaseException:
            if self._opener == threading.get_ident():
                self._undo_opening()
            self._reactor.tell(self._hiring.see_to_workers)
            raise

    def _see_to_opening(self) -> None:
        """Open the engine if nobody has, or is about to."""
        while self._life is Life.NEW and not self._books.closing:
            with self._lock:
                opens = self._life is Life.NEW and not self._books.closing
                if opens:
                    self._opener = threading.get_ident()
                    self._life = Life.OPENING
            if opens:
                self._open()

    def _refuse(self, future: Future[Any]) -> None:
        """
        Refuse a call that came with the end of the engine, unless it has been begun, or cancelled.

        Raises:
            PoolShutdownError, PoolBrokenError: It has not.
        """
        if future.take_work() is not None:
            raise self._books.refusal()

    def take_unsendable(self, future: Future[Any], outcome: Outcome) -> None:
        """
        Take a call that can't be sent: it ends at once.

        Raises:
            PoolShutdownError, PoolBrokenError: No calls are taken any more.
        """
        if self._books.closing:
            raise self._books.refusal()
        settle(future, outcome, may_block=False)
        self._calls.count_stillborn()

    def take_unpacked(self, future: Future[Any]) -> None:
        """
        Take a call: a future that holds its work, packed or not. What can't be pickled fails it.

        Raises:
            PoolShutdownError, PoolBrokenError: No calls are taken any more.
        """
        if self._books.closing:
            raise self._books.refusal()
        packed = self._packed(future)
        if packed is None:
            self._calls.count_stillborn()
        else:
            self.take(future, packed.known)

    def _packed(self, future: Future[Any]) -> Packed | None:
        """Replace the work of a future by what a worker is sent; None if it has ended by that, or before."""
        fields = future.__dict__
        work: Work | Packed | None = fields.get("_work")
        packed: Packed | Outcome = (None, CANCELLED, None)
        within = None
        try:
            if fields.pop("_work", None) is None:
                work = None  # it was cancelled
            if isinstance(work, Packed):
                packed = work
            elif work is not None:
                fn, args, kwargs, context = work
                within = context.get(WITHIN)
                quickly = None if kwargs else self.pack_quickly(fn, args, context)
                packed = quickly or self.pack(fn, args, kwargs or {}, context)
        except BaseException:
            if work is not None:
                fields["_work"] = work
            raise
        fields["_work"] = packed  # who has cancelled it meanwhile has asked its run, which is looked at: `begin`
        if isinstance(packed, Packed):
            if within is not None:
                fields["_within"] = within  # for the report of a failure that nobody looks at: the context is gone
            return packed
        settle(future, packed, may_block=False)
        return None

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """
        Start the reader; under fork all workers first, while this engine has no thread.

        Raises:
            PoolBrokenError: It can't be started, and nothing of it is left. The next submit tries again.
        """
        try:
            if getattr(processes.current_process(), "_inheriting", False):
                raise RuntimeError(f"this process is a worker that imports its main module; {GUARD_HINT}")
            self._reactor.open()
            self._leading.poller = self._reactor.poller
            self._launcher.check()
            if self._launcher.forks:
                self._hiring.fork_all()
            self._life = Life.OPEN
            self._reactor.start()
            self._opener = 0
        except Exception as error:
            self._undo_opening()
            raise self._books.broken_error(f"it could not be started: {error}", error) from error

    def _undo_opening(self) -> None:
        """Take everything back, unless the reader runs after all; calls queued meanwhile by other threads fail."""
        self._opener = 0
        if self._reactor.is_running():
            return
        with self._lock:
            peers = self._roster.clear()
            with self._dispatching.gate:
                dropped = self._calls.drop()
            self._life = Life.GONE if self._books.closing else Life.NEW
            self._quiet.notify_all()
        for peer in peers:
            peer.drop()
        self._reactor.close()
        for future in dropped:
            self._calls.end_here(future, (None, self._books.broken_error("it could not be started", None), None))

    # -- the reader's rounds ------------------------------------------------------------------------------------------

    def _round_done(self) -> float | None:
        """On the reader, after each round: see to what is due; return the seconds until more is, None at the end."""
        if self._listening.has_unburied:
            self._listening.bury_dead()
        if self._dispatching.has_news:
            self._dispatching.tell_news()  # (*) before the queue is looked at, as it takes the gate
        if self._calls.waiting() and self._dispatching.attention:
            self._hiring.see_to_workers()
        self._calls.settle_all()
        self._books.killing.all_due()  # (*) before the end is decided, which waits for them
        if self._watchers:
            with self._lock:
                self._quiet.notify_all()
        if self._books.closing:
            self._dismiss()
            if self._is_finished():
                return None
        books = self._books
        parts = (self._listening.looking, self._listening.departures, books.killing)
        due = min(*(part.all_due() for part in parts), books.store.expire() or math.inf)
        return due if books.dispatching.shortage is None else min(due, books.dispatching.look_again())

    def _dismiss(self) -> None:
        """Once nothing is queued, tell those workers to leave that have no call."""
        with self._lock, self._dispatching.gate:
            self._calls.drop_ended()
            if self._calls.waiting():
                return
            free = [peer for peer in self._roster.staff if not (peer.inflight or peer.sender)]
            self._dispatching.retire(*free)
            self._roster.leave(*free)
        for peer in free:
            peer.dismiss()
            self._books.killing.expect(peer.target)

    def _is_finished(self) -> bool:
        with self._lock:
            if len(self._roster) or not self._calls.all_ended():
                return False
            if not self._books.killing.is_over:
                return False
            starting = self._hiring.starting
        if starting:
            self._launcher.give_up()  # nobody needs that worker
            return False
        self._launcher.close()  # nobody starts anything any more: all that could is at its end
        with self._lock:
            self._life = Life.GONE
            self._quiet.notify_all()
        self._books.store.close()
        return True

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        if self.era != era():
            return
        if (
            self._dispatching.is_owned()
        ):  # by this thread, in the middle of a submit; and the lock comes before the gate
            self._reactor.tell(partial(self.close, cancel_futures))
            return
        with self._lock:
            self._books.closing = True
            self._dispatching.is_watched = self._dispatching.attention = True
            if cancel_futures or self._life is Life.NEW:
                self._drop()
            dropped = self._calls.dropped()  # with those that an interrupted thread has left
            if self._life is Life.NEW:
                self._life = Life.GONE
                self._quiet.notify_all()
                self._books.store.close()
        try:
            for future in dropped:
                self._calls.end_here(future, (None, CANCELLED, None))
        finally:
            self._reactor.tell(self._close_behind)

    def _close_behind(self) -> None:
        """On the reader: cancel what an interrupted thread has left, and see to the workers."""
        for future in self._calls.dropped():
            self._calls.end_dropped(future, lambda: (None, CANCELLED, None))
        self._hiring.see_to_workers()

    def join(self) -> None:
        if self.era != era():
            return
        try:
            with self._lock:
                while self._life is not Life.GONE:
                    nap_on(self._quiet)
            self._reactor.join()
            self._books.relay.wait()
        except KeyboardInterrupt:  # whoever interrupts this wait does not want to wait for what runs
            self.close(True)
            self.interrupt()
            raise

    def remains(self) -> list[str]:
        label = self._books.settings.label
        closing = self._books.closing
        peers = [peer for peer in self._roster.everybody() if peer.inflight or closing]
        running = [next(iter(list(peer.inflight)), None) for peer in peers]
        return [
            *calls_left([given and given.future for given in running], label),
            *waiting_left(self.counts().queued, label),
            *threads_left([self._reactor.thread if closing and not peers else None], label),
            *processes_left([peer.pid for peer in peers], label),
        ]

    def at_work(self) -> list[AtWork]:
        found: list[AtWork] = []
        for peer in self._roster.everybody():  # no lock, as in `counts`
            running = peer.running()
            name = f"process {peer.pid}"
            if running is None:
                found.append(AtWork(name, peer.pid))
            else:
                given, since = running
                found.append(
                    AtWork(
                        name,
                        peer.pid,
                        None,
                        given.known.name,
                        called_at(given.future),
                        since,
                        call_id=id_of(given.future),
                    )
                )
        return found

    def stacks(self) -> dict[int, str]:
        return stacks_of([peer.target for peer in self._roster.everybody()])

    def traffic(self) -> Traffic:
        every = [self._books.traffic, *(peer.traffic() for peer in self._roster.everybody())]
        return Traffic(sum(sent for sent, _ in every), sum(received for _, received in every), self._books.deaths)

    def resize(self, max_workers: int) -> None:
        """Have at most so many workers from now on; those too many leave when their calls have ended."""
        if self._dispatching.is_owned():
            self._reactor.tell(partial(self.resize, max_workers))  # as in `close`
            return
        with self._lock:
            self._books.roster.most = max_workers
            self._books.note_room()
        self._reactor.tell(self._listening.departures.shrink)
        self._reactor.tell(self._hiring.see_to_workers)

    def reconfigure(self, configuration: bytes) -> None:
        """Have others, with that configuration, take the places of the present workers after their present calls."""
        self._books.settings.setup.configuration = configuration
        self._reactor.tell(self._renew_staff)

    def _renew_staff(self) -> None:
        """On the reader: see all off that there are."""
        with self._lock:
            staff = list(self._books.roster.staff)
        self._listening.departures.go(*staff)

    def _drop(self) -> list[Future[Any]]:
        """Under the lock: take all calls that wait, now and later."""
        self._books.cancelling = True
        with self._dispatching.gate:
            return self._calls.drop()

    def interrupt(self) -> None:
        """Kill the workers that have calls; these fail, also those that their worker had not begun yet."""
        self._books.interrupted = True
        self._reactor.tell(self._kill_busy)

    def kill(self, given: Future[Any] | Run) -> None:
        """Kill the worker that runs a call, `Run.given`, from any thread; nothing happens if none does any more."""
        self._reactor.tell(partial(self._listening.looking.kill, given))

    def ask(self, given: Future[Any] | Run) -> None:
        """Tell the worker that runs a call, `Run.given`, from any thread, that it is to stop; if one does still."""
        self._reactor.tell(partial(self._listening.looking.ask, given))

    def _kill_busy(self) -> None:
        """On the reader, so that no process is hit that has been buried."""
        for peer in list(self._roster.staff):
            if peer.inflight:
                self._listening.looking.execute(peer)

    def abandon(self) -> None:
        """In a forked child: the workers are the parent's. `wire` has the child close their sockets."""
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._books.closing = True
        self._life = Life.GONE
        self._calls.clear()

    def idle(self) -> int:
        with self._lock:
            self._watchers += 1
            self._dispatching.is_watched = True
            try:
                while not self._is_idle():
                    nap_on(self._quiet)
            finally:
                self._watchers -= 1
                self._dispatching.is_watched = self._books.closing or self._watchers > 0
            return self._calls.done

    def _is_idle(self) -> bool:
        with self._dispatching.gate:
            self._calls.drop_ended()
            busy = self._roster.busy()
            return not busy and self._calls.all_ended()  # in this order: see `Calls.settling`

    def owns_this_thread(self) -> bool:
        """Tell whether this thread can't wait: it is the reader, or a signal handler in the middle of a submit."""
        if self._reactor.is_this_thread() or self._dispatching.is_owned():
            return True
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as Condition does
            return True
        return self._dispatching.sent_by(threading.get_ident())

    def counts(self) -> Counts:
        sent = [len(peer.inflight) for peer in list(self._roster.staff)]  # no lock: a signal handler may ask
        running = sum(map(bool, sent))
        return Counts(
            workers=len(self._roster),
            queued=self._calls.waiting() + sum(sent) - running,
            running=running,
            done=self._calls.done,
        )
