"""
The engine of a process pool: it takes calls, and has them run by workers.

    take: pickle ──▶  a worker is free ──▶ sent to it by the caller ────────┐
                  └──▶ none is ──▶ queued, no system call                    ▼
                                      │                                   worker ──▶ socket
    reader: answer arrives ──▶ worker refilled from the queue ◀──────────────────────┘
                          └──▶ then loaded, future settled, what follows handed to the callback threads
            end of a stream ──▶ dead: its call blamed, or queued again if it was never read; replaced if needed

Guarantees:
- Calls start in submission order. Each future ends, whatever becomes of the workers.
- A death costs the call that ran in it. It breaks the pool only if some workers in a row died before they were ready,
  as then no worker ever will be; or if the initializer raised. Then the queued calls fail, running ones end.
- The caller pickles, and never waits: neither for a lock held by somebody at work, nor for a full socket, nor for a
  worker to start (fork excepted: there all workers are forked by the first submit).
- Only the sender of a call writes to its worker; what does not fit at once is left to the reader.
- A signal handler that raises in the middle of a submit costs that call, and the worker that it was for.
- At the end no process, thread or descriptor is left.

The parts: `books` (what they share), `hiring` (who starts workers), `listening` (what becomes of what they send).

State, changed under the lock of the books: `_life`, `_opener`, `_watchers`.
"""

from __future__ import annotations

import threading
from enum import Enum
from functools import partial
from multiprocessing import process as processes
from typing import Any

from parallel.context import WITHIN, era
from parallel.delivery import settle
from parallel.errors import PoolBrokenError, PoolShutdownError
from parallel.futures import Future
from parallel.outcomes import CANCELLED, Outcome, Work
from parallel.pools.base import Engine, PoolStats
from parallel.pools.process.books import GUARD_HINT, Books, Settings
from parallel.pools.process.hiring import Hiring
from parallel.pools.process.listening import Listening
from parallel.pools.process.packing import Packer
from parallel.pools.process.peer import Call, Given, Peer


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

    def __init__(self, settings: Settings) -> None:
        self._books = books = Books(settings, self._round_done)
        self._lock = books.lock
        self._calls = books.calls
        self._calls.kill = self._kill
        self._roster = books.roster
        self._reactor = books.reactor
        self._hiring = Hiring(books)
        self._listening = Listening(books, self._hiring)
        self._pack = Packer(settings.setup.main_by_value).pack
        self._quiet = threading.Condition(self._lock)  # told of each round while there are watchers, and of the end
        self._watchers = 0  # threads in `idle`
        self._life = Life.NEW
        self._opener = 0  # the thread that opens it
        super().__init__()

    # -- taking calls -------------------------------------------------------------------------------------------------

    def take(self, future: Future[Any]) -> None:
        """
        Take a call: a future that holds its work. What can't be pickled fails it.

        Raises:
            PoolShutdownError, PoolBrokenError: No calls are taken any more.
        """
        if self._books.closing:
            raise self._books.refusal()
        if not self._packed(future):
            self._calls.count_stillborn()
            return
        try:
            for peer in self._place(future):
                self._books.send(peer)
        except (PoolShutdownError, PoolBrokenError):
            raise
        except BaseException:
            self._after_interrupt()
            raise

    def _packed(self, future: Future[Any]) -> bool:
        """Replace the work of a future by what a worker is sent; False if it has ended by that, or before."""
        fields = future.__dict__
        work: Work | Call | None = fields.pop("_work", None)
        packed: Call | Outcome = (None, CANCELLED, None)
        try:
            if work is not None:
                packed = work if isinstance(work, Call) else self._pack(work[0], work[1], work[2] or {})
        except BaseException:
            fields["_work"] = work
            raise
        fields["_work"] = packed  # who has cancelled it meanwhile has asked its run, which is looked at: `begin`
        if isinstance(packed, Call):
            if isinstance(work, tuple) and (within := work[3].get(WITHIN)) is not None:
                fields["_within"] = within  # for the report of a failure that nobody looks at: the context is gone
            return True
        settle(future, packed, may_block=False)
        return False

    def _place(self, future: Future[Any]) -> list[Peer]:
        """Queue a call; return the workers that have been given one now, for this thread to send."""
        while True:
            with self._lock:
                if self._books.closing:
                    raise self._books.refusal()
                if self._life is not Life.NEW:
                    self._calls.queued.append(future)
                    matched = self._books.match()
                    due = self._hiring.is_due()
                    break
                self._opener = threading.get_ident()
                self._life = Life.OPENING
            self._open()
        if due:
            self._reactor.tell(self._hiring.see_to_workers)
        return matched

    def _after_interrupt(self) -> None:
        """
        Repair what this thread left half done when a signal handler raised in the middle of a submit.

        A worker that was given a call may have been sent all of it, a part, or nothing: nobody knows, so it goes.
        """
        me = threading.get_ident()
        if self._opener == me:
            self._undo_opening()
        with self._lock:
            doubtful = self._roster.sent_by(me)
            dead = [peer for peer in self._roster.staff if peer.dead]
            self._roster.recount()
        for peer in doubtful:
            peer.kill()
            peer.sender = 0
        for peer in dead:
            self._reactor.tell(partial(self._listening.bury, peer))
        self._reactor.tell(self._hiring.see_to_workers)

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
            if self._books.settings.forks:
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
            dropped = self._calls.drop()
            self._life = Life.GONE if self._books.closing else Life.NEW
            self._quiet.notify_all()
        for peer in peers:
            peer.kill()
            peer.bury()
        self._reactor.close()
        for future in dropped:
            self._calls.end_here(future, (None, self._books.broken_error("it could not be started", None), None))

    # -- the reader's rounds ------------------------------------------------------------------------------------------

    def _round_done(self) -> bool:
        """On the reader, after each round: settle what has ended; True if nothing is left to be done ever."""
        self._calls.settle_all()
        if self._watchers:
            with self._lock:
                self._quiet.notify_all()
        if not self._books.closing:
            return False
        self._dismiss()
        return self._is_finished()

    def _dismiss(self) -> None:
        """Once nothing is queued, tell those workers to leave that have no call."""
        with self._lock:
            if self._calls.waiting():
                return
            leavers = [*self._roster.idle, *self._roster.unready]
            self._roster.leave(*leavers)
        for peer in leavers:
            peer.dismiss()

    def _is_finished(self) -> bool:
        with self._lock:
            if len(self._roster) or self._hiring.starting or not self._calls.all_ended():
                return False
            self._life = Life.GONE
            self._quiet.notify_all()
        return True

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        if self.era != era():
            return
        with self._lock:
            self._books.closing = True
            dropped = self._calls.drop() if cancel_futures else []
            if self._life is Life.NEW:
                self._life = Life.GONE
                self._quiet.notify_all()
        for future in dropped:
            self._calls.end_here(future, (None, CANCELLED, None))
        self._reactor.tell(self._hiring.see_to_workers)

    def join(self) -> None:
        if self.era != era():
            return
        try:
            with self._quiet:
                while self._life is not Life.GONE:
                    self._quiet.wait()
            self._reactor.join()
        except KeyboardInterrupt:  # whoever interrupts this wait does not want to wait for what runs
            self.close(True)
            self.interrupt()
            raise

    def interrupt(self) -> None:
        """Kill the workers that run a call; these calls fail, also those that their worker had not begun yet."""
        self._books.interrupted = True
        self._reactor.tell(self._kill_busy)

    def _kill(self, given: Given) -> None:
        """Kill the worker that has a call, from any thread; nothing happens if none has it any more."""
        self._reactor.tell(partial(self._kill_worker_of, given))

    def _kill_worker_of(self, given: Given) -> None:
        """On the reader, so that no process is hit that has been buried."""
        for peer in list(self._roster.staff):
            if peer.given is given:
                peer.kill()

    def _kill_busy(self) -> None:
        """On the reader, so that no process is hit that has been buried."""
        for peer in list(self._roster.staff):
            if peer.given is not None:
                peer.kill()

    def abandon(self) -> None:
        """In a forked child: the workers are the parent's. `wire` has the child close their sockets."""
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._books.closing = True
        self._life = Life.GONE
        self._calls.clear()

    def idle(self) -> int:
        with self._quiet:
            self._watchers += 1
            try:
                while not self._is_idle():
                    self._quiet.wait()
            finally:
                self._watchers -= 1
            return self._calls.done

    def _is_idle(self) -> bool:
        return self._calls.all_ended() and not self._roster.busy()

    def owns_this_thread(self) -> bool:
        """Tell whether this thread can't wait: it is the reader, or a signal handler in the middle of a submit."""
        if self._reactor.is_this_thread() or self._lock._is_owned():  # type: ignore[attr-defined]  # as Condition does
            return True
        return bool(self._roster.sent_by(threading.get_ident()))

    def stats(self) -> PoolStats:
        with self._lock:
            return PoolStats(
                workers=len(self._roster),
                queued=self._calls.waiting(),
                running=self._roster.busy(),
                done=self._calls.done,
            )
