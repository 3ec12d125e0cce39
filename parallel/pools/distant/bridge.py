"""
The engine of a pool whose calls somebody else's engine runs: it sends them, and sees to their ends.

    accept() ──▶ the queue (`looping`) ──▶ as many as the window holds ──▶ Driver.send() ──▶ somebody else's workers
                                                      ┌─ NEEDS: sent again, with what the worker lacks ──┐
    ended ◀── the value or the error ◀── answered() ◀─┴──────────────────────────────────────────────────┘
                                         lost() ──▶ it had not begun: sent again; else blamed, or run again if it may be

Guarantees:
- A call whose worker has died is run again only if it is idempotent, or had not begun; see `Events.lost`.
- A call is RUNNING from when its worker says so, or has answered. Before that it can be cancelled, wherever it is.
- What can't be sent fails its own call.

State: `_sent` and what is in it belong to the loop's thread; the rest is `looping`'s.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from parallel.call import Call
from parallel.chunks import BUDGET, Kept
from parallel.coroutines import runs_a_loop
from parallel.deaths import WorkerDiedError
from parallel.delivery import Feed, settle
from parallel.errors import PoolBrokenError
from parallel.futures import Future
from parallel.gates import GatedFuture
from parallel.naps import until_set
from parallel.outcomes import CANCELLED, Outcome
from parallel.pools.base import AtWork, Counts
from parallel.pools.distant.driver import Driver, Loss
from parallel.pools.distant.packets import NEEDS, Answer, Facts, Letter, Packet, Setup, Supply, origin, outcome_of
from parallel.pools.distant.uploads import UploadError
from parallel.pools.leftovers import thread_at_work
from parallel.pools.looping import LoopingEngine
from parallel.pools.process.calls import end_called_off, is_called_off
from parallel.pools.process.replies import error_of
from parallel.pools.process.wire import BROKEN
from parallel.runs import Run
from parallel.states import State
from parallel.trail import clock, id_of

LOGGER = logging.getLogger("parallel")

LIVES: Final = 3
"""Workers that may be lost with a call that had not begun, until it is blamed: it may kill them as it is loaded."""

SHARE: Final = 1_000_000
"""Nanoseconds of a piece of a map for each worker: a scheduler takes a thousand pieces a second, not more."""

RERUNS: Final = 2
"""How often an idempotent call is run again whose worker has died in it: as in pools of processes."""


class Sent:
    """
    A call that is with somebody else's engine.

    Attributes:
        future: Its future.
        letter: What it is made of.
        number: Which call it is; sent again, it is another one.
        run: Its run, once it has begun.
        losses: Workers that were lost with it before it had begun.
        deaths: Those that have died in it.
        item: Of a chunk, the item that it has been in for a while, from 1 on; 0: nobody knows.
        size: How many were begun together with that.
        since: When it began, on the clock of the trail; 0: it has not.
        is_timed: Its time counts.
        is_stranded: It has overrun its time, and nobody waits for it any more; but its worker runs it.
    """

    __slots__ = (
        "deaths",
        "future",
        "is_stranded",
        "is_timed",
        "item",
        "letter",
        "losses",
        "number",
        "run",
        "since",
        "size",
    )

    def __init__(self, future: Future[Any], letter: Letter, number: int) -> None:
        self.future = future
        self.letter = letter
        self.number = number
        self.run: Run | None = None
        self.losses = 0
        self.deaths = 0
        self.item = 0
        self.size = 0
        self.since = 0
        self.is_timed = False
        self.is_stranded = False


class Bridge(LoopingEngine):
    """
    The engine.

    Args:
        label: What messages call its pool.
        thread_name: The name of its thread.
        driver: The way to somebody else's engine.
        setup: Packs how its calls are run; called on the loop's thread.
    """

    def __init__(self, label: str, thread_name: str, driver: Driver, setup: Callable[[], Setup]) -> None:
        self._driver = driver
        self._new_setup = setup
        self._setup: Supply | None = None  # what that has made
        self._numbers = itertools.count(1)
        self._sent: dict[int, Sent] = {}
        self._is_open = False
        self._tried = threading.Event()  # it is open, and what waited has been sent; or it can't be opened
        self._goodbye: asyncio.Task[None] | None = None
        self._why: tuple[str, BaseException | None] | None = None
        super().__init__(label, thread_name)

    # -- opening and leaving ------------------------------------------------------------------------------------------

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        opening = loop.create_task(self._open_driver())
        super()._run_loop(loop)
        del opening

    async def _open_driver(self) -> None:
        try:
            self._setup = Supply(self._new_setup())
            await self._driver.open(self)
        except asyncio.CancelledError:
            raise
        except UploadError as error:
            self.broke(f"it could not be started: {error}", error)
            return
        except BaseException as error:
            self.broke(f"it could not be started: {type(error).__name__}: {error}", error)
            return
        self._is_open = True
        self._start_waiting()
        self._tried.set()

    def wait_until_open(self) -> None:
        """
        After a call has been accepted: wait until the engine is there, the first time.

        A program may come to its end right after its calls, and at the exit little can be started any more. Who can't
        wait doesn't: an event loop, and a signal handler in the middle of a submit.
        """
        if not (self._tried.is_set() or runs_a_loop() or self.owns_this_thread()):
            until_set(self._tried)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._goodbye is None:
            self._goodbye = loop.create_task(self._close_driver(loop))

    async def _close_driver(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self._driver.close()
        finally:
            loop.stop()
            self._finish()

    def _finish(self, error: BaseException | None = None) -> None:
        super()._finish(error)
        self._tried.set()

    def broke(self, reason: str, cause: BaseException | None) -> None:
        """End all calls, and take no others; see `Events`."""
        with self._lock:
            loop = self._loop
            if self._why is None:
                self._why = (reason, cause)
                self._broken = cause or RuntimeError(reason)
            self._closed = True
        self._waiting.clear()
        self._sent.clear()
        self._end_left()
        self._tried.set()
        if loop is not None:
            self._leave(loop)

    def _broken_error(self) -> PoolBrokenError:
        if self._why is None:
            return super()._broken_error()
        reason, cause = self._why
        error = PoolBrokenError(self.label, reason)
        error.__cause__ = cause
        return error

    # -- sending ------------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self._is_open and len(self._sent) < self._driver.window

    def has_room(self) -> None:
        """See to what waits; see `Events`."""
        self._start_waiting()

    def _start_call(self, future: Future[Any]) -> None:
        if is_called_off(future):
            end_called_off(future, (None, CANCELLED, None))
        letter: Letter | None = future.__dict__.get("_work")
        if letter is None:
            self._ended(future)  # it was cancelled
            return
        sent = Sent(future, letter, next(self._numbers))
        self._sent[sent.number] = sent
        watch = _Watch(self, sent)
        if not future.add(watch):
            self._drop(sent)
            return
        self._send(sent)

    def _send(self, sent: Sent, supplies: tuple[Supply, ...] = ()) -> None:
        assert self._setup is not None, "calls are sent when it is open"
        letter = sent.letter
        name, function, by_value, arguments, needs = letter
        keys = tuple(supply.key for supply in needs)
        facts = _facts(sent, self.piece_time)
        packet = Packet(
            sent.number, origin(), self._setup.key, keys, self._driver.line, name, function, by_value, arguments, facts
        )
        try:
            self._driver.send(packet, supplies, sent.future.priority)
        except BaseException as error:
            self.failed(sent.number, error)

    def _send_again(self, sent: Sent, supplies: tuple[Supply, ...] = ()) -> None:
        """Send a call once more, under a number of its own: what comes of the earlier sending counts no more."""
        sent.number, sent.item, sent.size = next(self._numbers), 0, 0
        self._sent[sent.number] = sent
        self._send(sent, supplies)

    def take_setup(self, setup: Callable[[], Setup]) -> None:
        """Have the calls that are sent from now on run by another setup. From any thread."""
        self._new_setup = setup
        self._tell(self._renew_setup)

    def _renew_setup(self) -> None:
        if self._setup is not None:
            self._setup = Supply(self._new_setup())

    def count_stillborn(self) -> None:
        """Count a call that ended where it was made."""
        with self._lock:
            self._done += 1

    # -- what becomes of them -----------------------------------------------------------------------------------------

    def began(self, number: int, item: int = 0, size: int = 0) -> None:
        """Note that a call runs; see `Events`."""
        sent = self._sent.get(number)
        if sent is None:
            return
        sent.item, sent.size = item, size
        if sent.run is None:
            self._begin(sent)
        elif not sent.is_timed:
            self._time(sent, sent.run)

    def _begin(self, sent: Sent) -> Run | None:
        """Begin the call; None if it was cancelled before."""
        future = sent.future
        run = future.begin()
        if isinstance(future, GatedFuture):
            future.leave_gate()
        if run is None:
            return None
        sent.run, run.work, sent.since = run, None, clock()
        if self._driver.kills:
            run.kill = partial(self.kill, run)
        self._time(sent, run)
        return run

    def _time(self, sent: Sent, run: Run) -> None:
        """Have its time count."""
        sent.is_timed = True
        try:
            run.start()
        except Exception as error:  # it can't be watched
            run.finish((None, error, None), may_block=False)

    def answered(self, number: int, answer: Answer) -> None:
        """End a call, or send it again with what its worker lacks; see `Events`."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        if answer[0] == NEEDS and not (sent.future.done() or (sent.run is not None and sent.run.is_over)):
            self._supply(sent, set(answer[1:]))
        elif answer[0] == NEEDS:  # nobody wants it any more
            self._conclude(sent, lambda: (None, CANCELLED, None))
        elif answer[0] == BROKEN:
            self._sent[number] = sent
            error = error_of(answer[1], answer[2])
            self.broke(str(error) if isinstance(error, UploadError) else f"its initializer raised {error!r}", error)
        else:
            self._conclude(sent, lambda: outcome_of(sent.letter.name, answer))

    def _supply(self, sent: Sent, keys: set[str]) -> None:
        assert self._setup is not None
        self._send_again(sent, tuple(each for each in (self._setup, *sent.letter.supplies) if each.key in keys))

    def failed(self, number: int, error: BaseException) -> None:
        """End a call with what the engine raised; see `Events`."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._conclude(sent, lambda: (None, error, None))

    def lost(self, number: int, loss: Loss) -> None:
        """Blame a call for the death of its worker, or send it again; see `Events`."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        future, run = sent.future, sent.run
        has_begun = run is not None or loss.begun is True
        if future.done():
            self._conclude(sent, lambda: (None, CANCELLED, None))
        elif not has_begun and loss.begun is False and sent.losses + 1 < LIVES:
            sent.losses += 1
            self._send_again(sent)
        elif future.idempotent and sent.deaths < RERUNS and not (run is not None and run.cancel_requested):
            sent.deaths += 1
            if run is not None:
                run.rewind()
                sent.is_timed = False
            self._send_again(sent)
        else:
            self._conclude(sent, lambda: (None, _death(sent, loss), None))

    def withdrawn(self, number: int) -> None:
        """Forget a call that the engine has dropped; see `Events`."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        if sent.run is not None:  # it was heard to begin, as that was asked
            self._conclude(sent, lambda: (None, CANCELLED, None))
            return
        _call_off(sent.future)
        self._leave_place(sent)

    def _conclude(self, sent: Sent, outcome: Callable[[], Outcome]) -> None:
        """End a call, with what *outcome* makes of it if anybody still wants to know."""
        run = sent.run or self._begin(sent)
        try:
            if run is not None:
                told = (None, CANCELLED, None) if run.is_over else outcome()
                run.finish(told, may_block=False)
        finally:
            self._leave_place(sent)

    def _drop(self, sent: Sent) -> None:
        """Forget a call that has ended otherwise, and has not begun."""
        if self._sent.pop(sent.number, None) is not None:
            self._leave_place(sent)

    # -- cancelling ---------------------------------------------------------------------------------------------------

    def called_off(self, sent: Sent) -> None:
        """Have the engine drop a call that was cancelled while it was queued there. From any thread."""
        self._tell(partial(self._withdraw, sent))

    def _withdraw(self, sent: Sent) -> None:
        if sent.run is None and self._sent.get(sent.number) is sent:
            self._driver.withdraw(sent.number)

    def kill(self, given: State[Any] | Run) -> None:
        """End a call that runs by force, `Run.given`; from any thread."""
        self._tell(partial(self._pass_on, self._driver.kill, given))

    def ask(self, given: State[Any] | Run) -> None:
        """Have the function of a call that runs told that it is to stop, `Run.given`; from any thread."""
        self._tell(partial(self._pass_on, self._driver.ask, given))

    def _pass_on(self, tell: Callable[[int], object], given: State[Any] | Run) -> None:
        for sent in self._sent.values():
            if sent.run is not None and (sent.run is given or sent.future is given):
                tell(sent.number)
                if sent.run.is_over and not self._driver.kills:
                    self._strand(sent)
                return

    def _strand(self, sent: Sent) -> None:
        """Wait no more for a call that has overrun its time, and can't be ended; it keeps its place there."""
        if sent.is_stranded:
            return
        sent.is_stranded = self._driver.has_stragglers = True
        self._ended(sent.future)
        held = sum(each.is_stranded for each in self._sent.values())
        if held == self._driver.capacity:
            LOGGER.warning(
                "%s: calls that have overrun their time, and can't be ended, hold all of its %d places; "
                "the others wait until one of them ends",
                self.label,
                held,
            )

    def _leave_place(self, sent: Sent) -> None:
        """Note that a call has ended, for good."""
        if sent.is_stranded:
            self._start_waiting()
        else:
            self._ended(sent.future)

    def _tell(self, step: Callable[[], object]) -> None:
        """Have the loop do something; nothing happens if it is gone."""
        with self._lock, suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(step)

    def interrupt(self) -> None:
        self._tell(self._cancel_all)

    def _cancel_all(self) -> None:
        """End what runs as far as the engine can, and drop the rest."""
        for sent in list(self._sent.values()):
            if sent.run is not None and self._driver.kills:
                self._driver.kill(sent.number)
            elif sent.run is not None:
                sent.run.cancel()
            else:
                self._driver.withdraw(sent.number)

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self, cancel_futures: bool) -> None:
        super().close(cancel_futures)
        if cancel_futures:
            self._tell(self._cancel_queued)

    def _cancel_queued(self) -> None:
        for sent in list(self._sent.values()):
            if sent.run is None:
                self._driver.withdraw(sent.number)

    @property
    def capacity(self) -> int:
        """How many calls run at a time, as far as is known."""
        return self._driver.capacity

    @property
    def piece_time(self) -> int:
        """Nanoseconds that a piece of a map is to take: the more workers there are, the longer; see `SHARE`."""
        return max(BUDGET, self._driver.capacity * SHARE)

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self._driver.workers if self._is_open else 0

    def at_work(self) -> list[AtWork]:
        with self._lock:
            begun = [sent for sent in list(self._sent.values()) if sent.run is not None]
        return [
            thread_at_work(None, sent.future, sent.since)._replace(name="a worker", task=sent.letter.name)
            for sent in begun
        ]

    def counts(self) -> Counts:
        with self._lock:
            begun = [sent for sent in list(self._sent.values()) if sent.run is not None]
            late = sum(sent.run is not None and sent.run.is_over for sent in begun)
            stranded = sum(sent.is_stranded for sent in begun)
            workers = self._driver.workers if self._is_open and self._loop is not None else 0
            link = self._driver.dashboard_link if workers else ""
            queued = len(self._open) - (len(begun) - stranded)
            return Counts(workers, queued, len(begun) - late, self._done, late, link)

    def abandon(self) -> None:
        super().abandon()
        self._sent = {}
        self._driver.abandon()


class _Watch(Feed):
    """Tells the bridge of a call that is cancelled while somebody else's engine has it in its queue."""

    __slots__ = ("_bridge", "_sent")
    looks_on = True

    def __init__(self, bridge: Bridge, sent: Sent) -> None:
        super().__init__(sent.future, sent.future)
        self._bridge = bridge
        self._sent = sent

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        """Tell it."""
        if self._sent.run is None:
            self._bridge.called_off(self._sent)
        return None


def _call_off(future: Future[Any]) -> None:
    """Cancel a call that has not begun, on the loop's thread: no code of the user's may run there."""
    if future.take_work() is not None:
        settle(future, (None, CANCELLED, None), may_block=False)


def _facts(sent: Sent, piece_time: int) -> Facts:
    """Return what the function can ask about its call."""
    future = sent.future
    attempt = 1
    if isinstance(future, Call):
        attempt = future.attempts + (sent.run is None)
    deadline = getattr(future, "deadline", None)
    seconds = None if deadline is None else max(deadline.at - time.monotonic(), 0.0)
    is_timed = isinstance(future, Call) and future.terms.lane is not None
    return Facts(id_of(future), attempt, seconds, piece_time, is_timed)


def _death(sent: Sent, loss: Loss) -> WorkerDiedError:
    """Make the error of a call whose worker has died."""
    error = WorkerDiedError(sent.letter.name, None, None, worker=loss.worker)
    error.__cause__ = loss.cause
    if sent.item:
        error.kept = Kept(sent.item, max(sent.size - 1, 0), False, [])
    return error
