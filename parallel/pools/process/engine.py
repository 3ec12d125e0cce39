"""
The engine of a process pool: a backlog of calls, the workers, and the one thread that reads what they answer.

    submit: pickle ──▶ a worker is free ──▶ sent to it by the caller ────────┐
                  └──▶ none is ──▶ queued, no system call                    ▼
                                      │                                   worker ──▶ socket
    reader: answer arrives ──▶ worker refilled from the queue  ◀─────────────────────┘
                          └──▶ then loaded, future settled, what follows handed to the callback threads
            end of a stream ──▶ dead: its call blamed, or given back if it was never read; worker replaced if needed

Guarantees:
- Calls start in submission order. Each future ends, whatever becomes of the workers.
- A death costs the call that ran in it. It breaks the pool only if `STILLBORN` workers in a row died before they were
  ready, as then no worker ever will be; or if the initializer raised. Then the queued calls fail, running ones end.
- The caller pickles, and never waits: neither for a lock held by somebody at work, nor for a full socket, nor for a
  worker to start (fork excepted: all workers are forked by the first submit, while this engine has no thread yet).
- Only the sender of a call writes to its worker; what does not fit at once is left to the reader.
- At the end no process, thread or descriptor is left.

A short-lived thread of its own starts workers, so that neither a submit nor the reading waits for it: 5 ms by a
forkserver, 70 ms by spawn, a second for the first one of a program.

State, changed under `_lock`: all of it, also that of `_calls` and `_roster` where they don't say otherwise.
The lock is re-entrant, and what it guards is changed by single steps after which a nested submit finds it in order: a
signal handler or a `__del__` may submit, or shut down, while its thread holds the lock. No user code runs under the
lock, nothing under it blocks, and no other lock is taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from multiprocessing import process as processes
from multiprocessing.context import BaseContext
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Final, NamedTuple

from parallel.context import Dispatcher, era
from parallel.deaths import WorkerDiedError
from parallel.errors import PoolBrokenError, PoolShutdownError
from parallel.futures import Future
from parallel.outcomes import CANCELLED
from parallel.pools.base import Engine, PoolStats
from parallel.pools.process.calls import Calls
from parallel.pools.process.packing import Packer
from parallel.pools.process.peer import Call, Given, Peer, hire
from parallel.pools.process.reactor import Reactor
from parallel.pools.process.replies import error_of, outcome_of
from parallel.pools.process.roster import Roster
from parallel.pools.process.wire import BROKEN, HELLO, Frame
from parallel.pools.process.worker import Setup

LOGGER = logging.getLogger("parallel")

STILLBORN: Final = 3
"""Workers in a row that may die before they are ready. One is an accident, and each costs 0.1 s under spawn."""

PAUSES: Final = (0.01, 0.1)
"""Seconds between the tries to start a worker; calls that nobody else could run fail that much later."""

GUARD_HINT: Final = (
    "a script has to start its work under `if __name__ == '__main__':`, because each worker imports the script first"
)


class Settings(NamedTuple):
    """What a pool was made with: see `ProcessPool`."""

    label: str
    thread_name: str
    max_workers: int
    context: BaseContext
    setup: Setup
    max_tasks_per_child: int | None


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
        self._settings = settings
        self._pack = Packer(settings.setup.main_by_value).pack
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._life = Life.NEW
        self._opener = 0  # the thread that opens it
        self._closing = False
        self._broken: tuple[str, BaseException | None] | None = None  # why, and what caused it
        self._calls = Calls(self._lock)
        self._roster = Roster(settings.max_workers)
        self._starting = False  # the starter runs, or its end has not been seen to
        self._stillborn = 0  # workers in a row that died before their hello
        self._watchers = 0  # threads in `idle`
        self._reactor = Reactor(f"{settings.thread_name}-reader", self._round_done)
        super().__init__()

    # -- taking calls -------------------------------------------------------------------------------------------------

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], callbacks: Dispatcher
    ) -> Future[Any]:
        """
        Take a call; what can't be pickled fails its future only.

        Raises:
            PoolShutdownError, PoolBrokenError: No calls are taken any more.
        """
        if self._closing:
            raise self._refusal()
        packed = self._pack(fn, args, kwargs)
        future: Future[Any] = Future(packed, callbacks)
        if not isinstance(packed, Call):
            future.end_with(packed)  # nobody else has it yet
            self._calls.count_stillborn()
            return future
        try:
            for peer in self._place(future):
                self._send(peer)
        except BaseException:
            self._after_interrupt()
            raise
        return future

    def _place(self, future: Future[Any]) -> list[Peer]:
        """Queue a call; return the workers that have been given one now, for this thread to send."""
        while True:
            with self._lock:
                if self._closing:
                    raise self._refusal()
                if self._life is not Life.NEW:
                    self._calls.queued.append(future)
                    matched = self._roster.match(self._calls)
                    short = self._is_short()
                    break
                self._opener = threading.get_ident()
                self._life = Life.OPENING
            self._open()
        if short:
            self._reactor.tell(self._see_to_workers)
        return matched

    def _send(self, peer: Peer) -> None:
        """Send its call to a worker that `Roster.match` returned to this thread."""
        sent = peer.send()
        peer.sender = 0  # (*) before `dead` is read: `_stream_ended` does it the other way round
        if peer.dead:
            self._reactor.tell(partial(self._bury, peer))
        elif not sent:
            self._reactor.tell(partial(self._reactor.change, peer.sock, EVENT_READ | EVENT_WRITE))

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
            self._roster.recount()
        for peer in doubtful:
            peer.kill()
            peer.sender = 0
        self._reactor.tell(self._see_to_workers)

    def _refusal(self) -> Exception:
        return PoolShutdownError(self._settings.label) if self._broken is None else self._broken_error(*self._broken)

    def _broken_error(self, reason: str, cause: BaseException | None) -> PoolBrokenError:
        """Make the error of one future or submit: anew each time, or their tracebacks would pile up."""
        error = PoolBrokenError(self._settings.label, reason)
        error.__cause__ = cause
        return error

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
            if self._settings.context.get_start_method() == "fork":
                self._fork_all()
            self._life = Life.OPEN
            self._reactor.start()
            self._opener = 0
        except Exception as error:
            self._undo_opening()
            raise self._broken_error(f"it could not be started: {error}", error) from error

    def _fork_all(self) -> None:
        for _ in range(self._settings.max_workers):
            try:
                self._hire()
            except OSError:
                if not self._roster.staff:
                    raise
                return  # it goes on with those that it has

    def _undo_opening(self) -> None:
        """Take everything back, unless the reader runs after all; calls queued meanwhile by other threads fail."""
        self._opener = 0
        if self._reactor.is_running():
            return
        with self._lock:
            peers = self._roster.clear()
            dropped = self._calls.drop()
            self._life = Life.GONE if self._closing else Life.NEW
            self._quiet.notify_all()
        for peer in peers:
            peer.kill()
            peer.bury()
        self._reactor.close()
        for future in dropped:
            self._calls.end_here(future, (None, self._broken_error("it could not be started", None), None))

    # -- starting workers: on the starter's thread, except where said -----------------------------------------------

    def _is_short(self) -> bool:
        """Under the lock: tell whether the starter is to be started."""
        return not self._starting and self._roster.lacks(self._calls.waiting())

    def _see_to_workers(self) -> None:
        """On the reader: put free workers to work, and have more started if they don't suffice."""
        with self._lock:
            matched = self._roster.match(self._calls)
            start = self._is_short()
            if start:
                self._starting = True
        for peer in matched:
            self._send(peer)
        if start:
            starter = threading.Thread(
                target=self._start_workers, name=f"{self._settings.thread_name}-starter", daemon=False
            )
            try:
                starter.start()
            except RuntimeError as error:  # no thread can be started
                self._starter_left(None, error)

    def _start_workers(self) -> None:
        failure: Exception | None = None
        try:
            while self._may_start():
                self._hire_patiently()
        except Exception as error:  # the system refuses, or the initializer can't be pickled
            failure = error
        self._reactor.tell(partial(self._starter_left, threading.current_thread(), failure))

    def _hire_patiently(self) -> None:
        """Start a worker; if the system refuses, or the fork server has died, see whether it is better in a moment."""
        for pause in PAUSES:
            try:
                return self._hire()
            except (OSError, EOFError):
                time.sleep(pause)
        self._hire()

    def _may_start(self) -> bool:
        with self._lock:
            return self._roster.lacks(self._calls.waiting())

    def _hire(self) -> None:
        peer = hire(self._settings.context, self._settings.setup, self._settings.thread_name)
        with self._lock:
            self._roster.add(peer)
        self._reactor.tell(partial(self._watch, peer))

    def _starter_left(self, starter: threading.Thread | None, error: Exception | None) -> None:
        """On the reader: see to what has come up while the starter ended."""
        if starter is not None:
            starter.join()
        with self._lock:
            self._starting = False
            alone = not self._roster.staff
        if error is None:
            self._see_to_workers()
        elif alone:
            self._fail_queued(f"no worker could be started: {error}", error)
        else:
            LOGGER.warning("%s could not start one more worker, and goes on without: %s", self._settings.label, error)

    # -- listening to workers: on the reader ------------------------------------------------------------------------

    def _watch(self, peer: Peer) -> None:
        self._reactor.watch(peer.sock, EVENT_READ, partial(self._on_socket, peer))
        self._reactor.watch(peer.process.sentinel, EVENT_READ, partial(self._on_sentinel, peer))

    def _on_socket(self, peer: Peer, events: int) -> None:
        if events & EVENT_WRITE and peer.send():
            self._reactor.change(peer.sock, EVENT_READ)
        if events & EVENT_READ:
            self._read(peer)

    def _on_sentinel(self, peer: Peer, events: int) -> None:
        """The process has ended; its socket may not have, if the process left a child behind that holds it."""
        if peer.dead:
            return  # its socket was faster
        self._reactor.forget(peer.process.sentinel)
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
            self._welcome(peer)
        elif kind == BROKEN:
            error = error_of(first, second)
            self._break(f"its initializer raised {type(error).__name__}: {error}", error)
        else:
            self._on_answer(peer, call_id, frame)

    def _on_answer(self, peer: Peer, call_id: int, frame: Frame) -> None:
        """Refill the worker before its answer is looked at, so that it has something to do meanwhile."""
        most = self._settings.max_tasks_per_child
        with self._lock:
            future, call = peer.hand_back(call_id)
            self._calls.end(future, partial(outcome_of, call.name, frame))
            peer.done += 1
            retires = most is not None and peer.done >= most
            if retires:
                self._roster.leave(peer)
            else:
                self._roster.idle.append(peer)
            matched = self._roster.match(self._calls)
        for refilled in matched:
            self._send(refilled)
        if retires:
            peer.dismiss()
            self._see_to_workers()

    def _welcome(self, peer: Peer) -> None:
        with self._lock:
            self._stillborn = 0
            self._roster.welcome(peer)
        self._see_to_workers()

    # -- deaths: on the reader --------------------------------------------------------------------------------------

    def _give_up(self, peer: Peer, error: BaseException) -> None:
        """End a worker and, with *error*, the call that it has."""
        with self._lock:
            given = peer.given
            peer.given = None
        if given is not None:
            self._calls.end(given.future, lambda: (None, error, None))
        peer.kill()

    def _stream_ended(self, peer: Peer) -> None:
        if peer.dead:
            return
        self._reactor.forget(peer.sock)
        self._reactor.forget(peer.process.sentinel)
        peer.dead = True  # (*) before `sender` is read: whichever of the two comes second sees both, and buries
        self._bury(peer)

    def _bury(self, peer: Peer) -> None:
        """Strike a dead worker off, and see to its call."""
        with self._lock:
            if peer.sender or peer not in self._roster:
                return  # a thread is in the middle of sending to it, and has it buried then; or this is done
            self._roster.block(peer)
        exit_code = peer.bury()
        with self._lock:
            expected = self._roster.strike_off(peer)
            given, peer.given = peer.given, None
            if not peer.ready and not expected:
                self._stillborn += 1
            doomed = self._stillborn >= STILLBORN
        if given is not None:
            self._return_or_blame(peer, given, exit_code)
        if doomed:
            self._break(self._why_stillborn(exit_code), None)
        self._see_to_workers()

    def _return_or_blame(self, peer: Peer, given: Given, exit_code: int | None) -> None:
        """Queue the call again if it can't have been started; once only, as reading it may be what is deadly."""
        future, call = given
        if peer.left_unread() and not call.sent_before:
            call.sent_before = True
            with self._lock:
                self._calls.give_back(given)
        else:
            error = WorkerDiedError(call.name, peer.pid, exit_code)
            self._calls.end(future, lambda: (None, error, None))

    def _why_stillborn(self, exit_code: int | None) -> str:
        reason = f"{STILLBORN} workers in a row died before they were ready, the last with exit code {exit_code}"
        if self._settings.context.get_start_method() == "fork":
            return reason
        return f"{reason}; see what they wrote to standard error. If it is about bootstrapping: {GUARD_HINT}"

    def _break(self, reason: str, cause: BaseException | None) -> None:
        """Take no more calls, and fail the queued ones; running ones end as they do."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = (reason, cause)
            self._closing = True
        self._fail_queued(reason, cause)

    def _fail_queued(self, reason: str, cause: BaseException | None) -> None:
        with self._lock:
            dropped = self._calls.drop()
        for future in dropped:
            self._calls.end(future, lambda: (None, self._broken_error(reason, cause), None))

    def _round_done(self) -> bool:
        """On the reader, after each round: settle what has ended; True if nothing is left to be done ever."""
        self._calls.settle_all()
        if self._watchers:
            with self._lock:
                self._quiet.notify_all()
        if not self._closing:
            return False
        self._dismiss()
        return self._is_finished()

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        if self.era != era():
            return
        dropped: list[Future[Any]] = []
        with self._lock:
            self._closing = True
            if cancel_futures:
                dropped = self._calls.drop()
            if self._life is Life.NEW:
                self._life = Life.GONE
                self._quiet.notify_all()
        for future in dropped:
            self._calls.end_here(future, (None, CANCELLED, None))
        self._reactor.tell(self._see_to_workers)

    def _dismiss(self) -> None:
        """On the reader: once nothing is queued, tell those workers to leave that have no call."""
        with self._lock:
            if self._calls.waiting():
                return
            leavers = [*self._roster.idle, *self._roster.unready]
            self._roster.leave(*leavers)
        for peer in leavers:
            peer.dismiss()

    def _is_finished(self) -> bool:
        with self._lock:
            if len(self._roster) or self._starting or not self._calls.all_ended():
                return False
            self._life = Life.GONE
            self._quiet.notify_all()
        return True

    def join(self) -> None:
        if self.era != era():
            return
        try:
            with self._quiet:
                while self._life is not Life.GONE:
                    self._quiet.wait()
            self._reactor.join()
        except KeyboardInterrupt:  # whoever interrupts this wait does not want to wait for what runs
            self.kill()
            raise

    def kill(self) -> None:
        """Cancel the calls that are queued, and kill the workers that run the others: these fail."""
        self.close(True)
        with self._lock:
            busy = [peer for peer in self._roster.staff if peer.given is not None]
        self._reactor.tell(lambda: [peer.kill() for peer in busy if peer in self._roster])

    def abandon(self) -> None:
        """In a forked child: the workers are the parent's. `wire` has the child close their sockets."""
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._closing = True
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
        me = threading.get_ident()
        if self._reactor.is_this_thread() or self._lock._is_owned():  # type: ignore[attr-defined]  # as Condition does
            return True
        return bool(self._roster.sent_by(me))

    def stats(self) -> PoolStats:
        with self._lock:
            return PoolStats(
                workers=len(self._roster),
                queued=self._calls.waiting(),
                running=self._roster.busy(),
                done=self._calls.done,
            )
