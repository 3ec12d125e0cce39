"""
The one timer thread of the process: it serves timeouts, waiting between attempts, deadlines and rates.

    call_at(when, action) ──▶ _heap, the earliest first ─────────────┐
    lane.start(item) ──▶ the lane, in order ──▶ one entry in _heap ──┼──▶ timer thread ──▶ action(), item.expire()
    soon(action) ──▶ _inbox ─────────────────────────────────────────┘

Guarantees:
- An action runs once, or was cancelled: whoever takes it out of its dict, by one atomic step, decides.
- Nothing runs before its time. What an action raises is logged, and the thread goes on.
- The thread sleeps until the next entry is due, and is woken only for one that is due earlier. When nothing has been
  scheduled for `LINGER` seconds it ends, and the next entry starts another one.
- No lock is held while an action runs, and nothing keeps an action or an item that has run, or was cancelled.
- A forked child has a timer with nothing in it.

State: `_heap`, `_worker`, `generation`, what a worker notes and whether a lane is armed are changed under `lock`. It is
re-entrant, as a signal handler or a destructor may come in anywhere, and schedule, cancel or close. `_actions` and the
items of a lane are changed by single steps of a dict (`d[key] = value`, `get`, `pop`), which are atomic, on
free-threaded builds too, and `_inbox` guards itself: these need no lock.

All times are those of `time.monotonic`: setting the system's clock changes nothing.

Source: the ideas of cancelling lazily and of tidying the heap when most of it is cancelled, CPython 3.11
`asyncio/base_events.py`.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias
from weakref import WeakValueDictionary

from parallel.lanes import Action, Lane, report

LINGER: Final = 1.0
"""Seconds for which the thread stays when nothing is scheduled: starting one takes 0.1 ms, keeping one some 100 KB."""

_GRACE: Final = 1.0
"""Seconds that a running action gets at the interpreter's exit; none should take a millisecond."""

_SPARE: Final = 64
"""Cancelled entries that may stay in the heap, 150 bytes each, however few others there are; fewer: more tidying."""

Wait: TypeAlias = Callable[[SimpleQueue[Action], float], Action]
"""Returns the next action of the queue, or, if none comes for so many seconds, one that does nothing."""


def _nothing() -> None:
    """Do nothing: what the thread is woken with to look at the heap."""


def _wait(inbox: SimpleQueue[Action], seconds: float) -> Action:
    """Return the next action of *inbox*, or `_nothing` if none comes in so many seconds."""
    try:
        # Before CPython 3.13, a timed `get` finds the queue's lock free once after each `put`, even if nothing is left.
        # If its time is over by then, it waits for ever. Looking first leaves the lock taken.
        return inbox.get_nowait()
    except Empty:
        if seconds <= 0:
            return _nothing
    try:
        return inbox.get(timeout=min(seconds, threading.TIMEOUT_MAX))
    except Empty:
        return _nothing


def _run(action: Action) -> None:
    try:
        action()
    except BaseException:
        report("the timer: %r failed", action)


class Entry:
    """An action that is to run at some time."""

    __slots__ = ("_timer",)

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    def cancel(self) -> bool:
        """Drop the action. True: it will not run; False: it has been started, or was cancelled before."""
        return self._timer.withdraw(self)


class _Worker(threading.Thread):
    """
    One life of the timer thread.

    Attributes:
        until: When it will look at the heap by itself; -inf: before it sleeps again.
        idle_until: When it ends unless something is scheduled; inf: something is.
        retired: It must not be put on duty: its starter may still be about to, though it has been and is no more.
        ended: It touches the timer no more.
    """

    def __init__(self, serve: Callable[[_Worker], None]) -> None:
        # In a context of its own: it must not see the variables of whoever happened to need it first.
        super().__init__(target=Context().run, args=(serve, self), name="parallel-timer", daemon=True)
        self.until = -inf
        self.idle_until = inf
        self.retired = False
        self.ended = False


class Timer:
    """
    Runs actions at their time, on a thread of its own.

    Args:
        clock: Tells the time, in seconds.
        wait: Waits for the next action that comes at once.

    Attributes:
        now: Tells the time.
        lock: Guards the state; for lanes.
        generation: What all that is scheduled belongs to; `close` begins a new one. For lanes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wait: Wait = _wait) -> None:
        self.now = clock
        self._wait = wait
        self._numbers = count()
        self._lanes: WeakValueDictionary[float, Lane] = WeakValueDictionary()
        self._begin()

    def _begin(self) -> None:
        """Begin with nothing scheduled, no thread, and locks that nobody holds."""
        self.lock = threading.RLock()
        self._gone = threading.Condition(self.lock)  # told when a worker has ended
        self._inbox: SimpleQueue[Action] = SimpleQueue()
        self._worker: _Worker | None = None  # the one on duty; another one ends as soon as it notices
        self._clear()

    def _clear(self) -> None:
        self._actions: dict[Entry, Action] = {}  # an entry that is not in here has been started or cancelled
        self._heap: list[tuple[float, int, Entry]] = []  # the number keeps the order of those of the same time
        self._last = -1  # the number of the entry that was pushed last
        self.generation = object()

    def is_owned(self) -> bool:
        """Tell whether this thread is in the middle of scheduling something: a signal handler may ask."""
        return self.lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def __repr__(self) -> str:
        state = "idle" if self._worker is None else "running"
        return f"<Timer {state} [{len(self._actions)} scheduled]>"

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def call_at(self, when: float, action: Action) -> Entry:
        """
        Have *action* run on the timer thread at a time of the clock, or soon if that is over.

        What it raises is logged.

        Raises:
            ValueError: *when* is no time.
            RuntimeError: No thread can be started; nothing is scheduled then.
        """
        if when != when:
            raise ValueError("a time must be a number, found nan")
        entry = Entry(self)
        while not self.push(when, entry, action):
            self.ensure()
        return entry

    def call_later(self, seconds: float, action: Action) -> Entry:
        """
        Have *action* run on the timer thread in so many seconds, or soon if they are negative.

        Raises:
            As `call_at` does.
        """
        return self.call_at(self.now() + seconds, action)

    def soon(self, action: Action) -> None:
        """
        Have *action* run as soon as possible on the timer thread, if there is one, else on the next one or by `close`.

        It takes no lock and starts no thread: destructors, weak references' callbacks and signal handlers may call it
        at any point. Who needs the thread calls `ensure` beforehand.
        """
        self._inbox.put(action)

    def lane(self, seconds: float) -> Lane:
        """
        Return the lane of the things that may take so many seconds; there is one for each number.

        Raises:
            ValueError: *seconds* is no number.
        """
        if seconds != seconds:
            raise ValueError("a lane's seconds must be a number, found nan")
        with self.lock:
            lane = self._lanes.get(seconds)
            if lane is None:
                lane = self._lanes[seconds] = Lane(self, seconds)
            return lane

    # -- for entries and lanes ----------------------------------------------------------------------------------------

    def push(self, when: float, entry: Entry, action: Action) -> bool:
        """Schedule *action*; False, and nothing is done, if there is no thread."""
        with self.lock:
            worker = self._worker
            if worker is None:
                return False
            self._last = number = next(self._numbers)
            place = (when, number, entry)
            try:
                self._actions[entry] = action
                heappush(self._heap, place)
            except BaseException:
                self._actions.pop(entry, None)  # a Ctrl-C came in between, or the memory is full
                raise
            if when < worker.until:
                self._inbox.put(_nothing)
                worker.until = -inf
        return True

    def schedule(self, when: float, action: Action) -> bool:
        """Schedule *action*, for good; see `push`."""
        return self.push(when, Entry(self), action)

    def withdraw(self, entry: Entry) -> bool:
        """Cancel *entry*; its place in the heap stays until its time comes, or until most places are such."""
        actions = self._actions
        if actions.pop(entry, None) is None:
            return False
        if len(self._heap) > 2 * len(actions) + _SPARE:
            self._tidy()
        return True

    def _tidy(self) -> None:
        """Make a heap without the cancelled entries, when there are so many that it costs each of them little."""
        with self.lock:
            last = self._last
            live = self._live()
            heapify(live)
            # If a signal handler or a destructor has scheduled something meanwhile, this has to wait for the next time.
            # None comes in between comparing and storing, as nothing is called there.
            self._heap = live if self._last == last else self._heap

    def _live(self) -> list[tuple[float, int, Entry]]:
        # Not inside the `with` above: CPython 3.12 and 3.13 would leave that without releasing the lock if a Ctrl-C
        # came at the jump of the comprehension, which their tables of exceptions leave out.
        return [place for place in self._heap if place[2] in self._actions]

    # -- the thread ---------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """
        Start the thread if there is none.

        Raises:
            RuntimeError: No thread can be started.
        """
        if self._worker is not None:
            return
        # Started outside of the lock, which a destructor that runs on the new thread may want before it has begun. So
        # two callers may start two threads: one of them is put on duty, the other one ends at once.
        worker = _Worker(self._serve)
        try:
            worker.start()
        except Exception:
            if self._worker is None:
                raise
        else:
            self._put_on_duty(worker)

    def _put_on_duty(self, worker: _Worker) -> bool:
        """Make *worker* the one on duty if there is none; tell whether it is. Asked by its starter and by itself."""
        with self.lock:
            if self._worker is None and not worker.retired:
                self._worker = worker
            return self._worker is worker

    def _serve(self, worker: _Worker) -> None:
        """Be the timer thread."""
        try:
            on_duty = self._put_on_duty(worker)
            while on_duty:
                try:
                    on_duty = self._go_round(worker)
                except BaseException:  # no memory; the timeouts of the whole process hang on this thread
                    report("the timer got out of hand; it goes on")
        finally:
            with self.lock:
                worker.retired = worker.ended = True
                if self._worker is worker:
                    self._worker = None
                self._gone.notify_all()
            self._inbox.put(_nothing)  # (*)

    def _go_round(self, worker: _Worker) -> bool:
        """Run what is due, if anything, then what comes at once, which is waited for if nothing was due."""
        step = self._next_step(worker)
        if step is None:
            return False
        action, seconds = step
        _run(action)
        _run(self._wait(self._inbox, seconds))
        return True

    def _next_step(self, worker: _Worker) -> tuple[Action, float] | None:
        """Return the action to run now, and the seconds to wait for another one; None: the thread is to end."""
        with self.lock:
            if self._worker is not worker:
                return None
            now = self.now()
            action, until = self._take_due(now)
            if until < inf:
                worker.idle_until = inf
            if action is not None:
                worker.until = -inf
                return action, 0.0
            if until == inf:
                until = worker.idle_until = min(worker.idle_until, now + LINGER)
                if until <= now and self._inbox.empty():
                    # Whoever schedules something holds the lock: what came before this was seen, what comes after it
                    # finds no worker and starts one.
                    worker.retired = True
                    self._worker = None
                    return None
            worker.until = until
            return _nothing, until - now

    def _take_due(self, now: float) -> tuple[Action | None, float]:
        """Take the first action that is due; if there is none, tell when the next one will be (inf: never)."""
        while True:
            # Taken out first and put back if it is too early: the heap may change between looking and taking, when a
            # destructor runs in between.
            try:
                place = heappop(self._heap)
            except IndexError:
                return None, inf
            when, _, entry = place
            if when <= now:
                action = self._actions.pop(entry, None)
                if action is not None:
                    return action, when
            elif entry in self._actions:
                heappush(self._heap, place)
                return None, when

    def close(self, timeout: float | None = None) -> None:
        """
        Drop all that is scheduled, end the thread (and wait for it, unless this is it), and run what `soon` was given.

        The timer can be used again afterwards: the next entry starts a thread anew. What is running in a lane stays
        there, and is looked after again when something else starts in it.

        Args:
            timeout: Seconds to wait for the thread, which may be in an action; None: for ever.
        """
        with self.lock:
            worker, self._worker = self._worker, None
            dropped = self._actions
            self._clear()
            if worker is not None:
                worker.retired = True
                self._inbox.put(_nothing)
        del dropped  # not under the lock: that may run destructors
        if worker is not None and worker is not threading.current_thread():
            # By a condition, which lets go of the lock however often this thread holds it: a signal handler may have
            # come in anywhere.
            with self.lock:
                ended = self._gone.wait_for(lambda: worker.ended, timeout)
            if ended:
                worker.join()
        self._empty_inbox()

    def _empty_inbox(self) -> None:
        """Run what is in the inbox."""
        with suppress(Empty):
            while True:
                _run(self._inbox.get_nowait())
        # (*) Who took something while another thread was on duty, such as a new one after `close`, may have taken what
        # was to wake that.
        self._inbox.put(_nothing)

    def forget_parent(self) -> None:
        """In a forked child: begin anew. What was scheduled, and what was running, is the parent's."""
        dropped = self._actions, self._inbox
        self._begin()
        del dropped  # not before: a destructor may want a lock that nobody will release
        for lane in list(self._lanes.values()):
            lane.clear()


TIMER: Final = Timer()
"""The process's timer."""

atexit.register(TIMER.close, _GRACE)  # no daemon thread may meet an interpreter that is being taken down

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TIMER.forget_parent)
