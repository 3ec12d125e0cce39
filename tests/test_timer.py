"""
The timer: order, cancelling, the thread's life, lanes; on a clock that stands still until a test moves it.
"""

from __future__ import annotations

import gc
import linecache
import logging
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from queue import Empty, SimpleQueue
from subprocess import CompletedProcess
from textwrap import dedent
from types import FrameType
from typing import Any

import jobs
import pytest
from clocks import Stage

import parallel.lanes
import parallel.timer
from parallel.lanes import Action, Lane
from parallel.timer import LINGER, TIMER, Entry, Timer

LONG = 30.0
"""Seconds that only a deadlock lasts."""

Runner = Callable[..., CompletedProcess[str]]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A timer on a clock of its own, closed afterwards."""
    one = Stage()
    yield one
    one.timer.close(LONG)


@pytest.fixture
def timer() -> Iterator[Timer]:
    """A timer on the real clock, closed afterwards."""
    one = Timer()
    yield one
    one.close(LONG)


@pytest.fixture
def tidy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers have their heaps tidied after a few cancelled entries."""
    monkeypatch.setattr(parallel.timer, "_SPARE", 4)


class Item:
    """Something that may take only so long; notes when it expired."""

    def __init__(self, expired: Callable[[Item], object] = id) -> None:
        self.times = 0
        self._expired = expired

    def expire(self) -> None:
        self.times += 1
        self._expired(self)


class Dropped:
    """Calls a function when it is freed."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def __del__(self) -> None:
        self._action()


def timer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "parallel-timer"]


def with_interruption(call: Callable[[], object], line: int, interruption: Callable[[], object]) -> bool:
    """
    Call *call*, and *interruption* before one line that it runs of the timer or a lane, as a signal handler would.

    Args:
        call: Runs something of the timer.
        line: Which line, of those that are run.
        interruption: What comes in between.

    Returns:
        Whether so many lines were run.
    """
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in (parallel.timer.__file__, parallel.lanes.__file__):
            return None
        # Where a block is entered or left, the interpreter handles no signal.
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not text.lstrip().startswith(("with ", "try:")):
            left -= 1
            if left == -1:
                interruption()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return left < 0


def settled(timer: Timer) -> None:
    """Return when a timer on the real clock has run all that is due by now."""
    ran = threading.Event()
    timer.call_at(timer.now(), ran.set)
    assert ran.wait(LONG)


# -- entries ----------------------------------------------------------------------------------------------------------


def test_order(stage: Stage) -> None:
    """Actions run in the order of their times, those of one time in the order in which they were scheduled."""
    ran: list[str] = []
    for name, seconds in [("d", 4), ("b", 2), ("c", 2.5), ("b2", 2), ("a", 1), ("b3", 2)]:
        stage.timer.call_later(seconds, partial(ran.append, name))
    stage.go_on(3)
    assert ran == ["a", "b", "b2", "b3", "c"]
    stage.go_on(1)
    assert ran == ["a", "b", "b2", "b3", "c", "d"]


def test_nothing_runs_before_its_time(stage: Stage) -> None:
    """An action runs when its time has come, not a moment earlier, however often the thread wakes."""
    ran: list[float] = []
    stage.timer.call_at(1010, lambda: ran.append(stage.time))
    for _ in range(4):
        stage.go_on(2.5 - 1 / 1024)
    assert ran == []
    stage.go_on(4 / 1024)
    assert ran == [1010]


def test_a_time_that_is_over(stage: Stage) -> None:
    """What is late when it is scheduled runs at once."""
    ran: list[str] = []
    stage.timer.call_at(-1, partial(ran.append, "long ago"))
    stage.timer.call_later(-1, partial(ran.append, "before"))
    stage.settle()
    assert ran == ["long ago", "before"]


def test_cancel(stage: Stage) -> None:
    """A cancelled action doesn't run and is dropped at once; only the first cancel says True."""
    ran: list[int] = []
    action = partial(ran.append, 1)
    gone = weakref.ref(action)
    entry = stage.timer.call_later(1, action)
    del action
    assert entry.cancel()
    assert gone() is None
    assert not entry.cancel()
    stage.go_on(2)
    assert ran == []


def test_cancel_too_late(stage: Stage) -> None:
    """What has run, or is running, can't be cancelled."""
    entries: list[Entry] = []
    said: list[bool] = []
    entries.append(stage.timer.call_later(1, lambda: said.append(entries[0].cancel())))
    stage.go_on(1)
    assert said == [False]
    assert not entries[0].cancel()


def test_cancel_races_with_the_time(timer: Timer) -> None:
    """Either the action runs or its cancel says True, never both and never neither."""
    ran: SimpleQueue[int] = SimpleQueue()
    with jobs.frequent_switches():
        entries = [timer.call_later(number / 1e6, partial(ran.put, number)) for number in range(5_000)]
        cancelled = [number for number, entry in enumerate(entries) if entry.cancel()]
    settled(timer)
    assert sorted([*cancelled, *(ran.get() for _ in range(ran.qsize()))]) == list(range(5_000))


def test_two_cancels_at_once(stage: Stage) -> None:
    """Of several that cancel an entry at the same time, one is told True."""
    entries = [stage.timer.call_later(9, int) for _ in range(2_000)]
    said: SimpleQueue[bool] = SimpleQueue()

    def cancel_all() -> None:
        for entry in entries:
            said.put(entry.cancel())

    with jobs.frequent_switches():
        threads = [threading.Thread(target=cancel_all) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert sum(said.get() for _ in range(said.qsize())) == len(entries)


def test_cancelled_entries_are_tidied_away(stage: Stage) -> None:
    """Though they leave the heap lazily, cancelled entries never are much more than half of it."""
    ran: list[int] = []
    for number in range(2_000):
        entry = stage.timer.call_later(5 + number % 7, partial(ran.append, number))
        if number % 200:
            entry.cancel()
        assert len(stage.timer._heap) <= 2 * len(stage.timer._actions) + parallel.timer._SPARE + 1
    stage.go_on(12)
    assert sorted(ran) == list(range(0, 2_000, 200))
    assert not stage.timer._heap


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_action_that_raises(error: BaseException, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """What an action raises is logged with its traceback, and the thread goes on."""
    ran: list[int] = []
    stage.timer.call_later(1, partial(jobs.raises, error))
    stage.timer.call_later(1, partial(ran.append, 1))
    stage.go_on(1)
    assert ran == [1]
    [record] = caplog.records
    assert record.name == "parallel"
    assert "raises" in record.getMessage()
    assert record.exc_info is not None and record.exc_info[1] is error


def test_a_log_that_fails(stage: Stage) -> None:
    """Not even a log handler that raises ends the thread."""
    ran: list[int] = []

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit

    handler = Failing()
    logging.getLogger("parallel").addHandler(handler)
    try:
        stage.timer.call_later(1, partial(jobs.raises, ValueError()))
        stage.timer.call_later(1, partial(ran.append, 1))
        stage.go_on(1)
    finally:
        logging.getLogger("parallel").removeHandler(handler)
    assert ran == [1]


def test_no_reference_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread sleeps, it keeps nothing of what it ran, failed ones included."""
    monkeypatch.setattr(logging.getLogger("parallel"), "disabled", True)  # pytest keeps what is logged
    action, failing, item = Item(), Item(jobs.raises), Item()
    gone = [weakref.ref(one) for one in (action, failing, item)]
    with jobs.without_gc():
        stage.timer.call_later(1, action.expire)
        stage.timer.soon(failing.expire)
        stage.timer.lane(1).start(item)
        del action, failing, item
        stage.go_on(1)
        assert [one() for one in gone] == [None] * 3


def test_not_a_number(stage: Stage) -> None:
    """What is no time is refused: it would spoil the order of all others."""
    with pytest.raises(ValueError, match="found nan"):
        stage.timer.call_at(float("nan"), int)
    with pytest.raises(ValueError, match="found nan"):
        stage.timer.lane(float("nan"))
    assert timer_threads() == []


def test_a_time_that_never_comes(stage: Stage) -> None:
    """An infinite time is a time; the thread doesn't stay for it."""
    entry = stage.timer.call_later(float("inf"), int)
    stage.timer.lane(float("inf")).start(Item())
    stage.go_on(LINGER)
    stage.go_on(LINGER) if timer_threads() else None
    assert timer_threads() == []
    assert entry.cancel()


def test_the_state_is_shown(stage: Stage) -> None:
    """The repr tells what goes on."""
    lane = stage.timer.lane(5)
    assert repr(stage.timer) == "<Timer idle [0 scheduled]>"
    lane.start(Item())
    stage.timer.call_later(1, int)
    assert repr(stage.timer) == "<Timer running [2 scheduled]>"
    assert repr(lane) == "<Lane of 5 s [1 running]>"


# -- the thread -------------------------------------------------------------------------------------------------------


def test_the_thread_sleeps_until_the_next_time(stage: Stage) -> None:
    """The thread is woken only for an entry that is earlier than what it sleeps for."""
    stage.timer.call_later(10, int)
    stage.settle()
    before = len(stage.naps)
    for seconds in (10, 11, 12, 60):
        stage.timer.call_later(seconds, int)
    assert stage.timer._inbox.empty()
    entry = stage.timer.call_later(5, int)
    stage.settle()
    assert set(stage.naps[before:]) == {5}
    assert entry.cancel()
    stage.settle()
    assert stage.naps[-1] == 10


def test_the_thread(stage: Stage) -> None:
    """The thread is a daemon with a name, starts with the first entry, and is the only one."""
    assert timer_threads() == []
    stage.timer.call_later(1, int)
    stage.timer.ensure()
    [thread] = timer_threads()
    assert thread.daemon


def test_many_start_the_thread_at_once(timer: Timer) -> None:
    """However many need the thread at the same time, one is left, and all that they scheduled runs."""
    ran: SimpleQueue[int] = SimpleQueue()
    barrier = threading.Barrier(8)

    def schedule() -> None:
        barrier.wait(LONG)
        timer.call_later(0, partial(ran.put, 1))

    for _ in range(20):
        threads = [threading.Thread(target=schedule) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        for _ in range(8):
            ran.get(timeout=LONG)
        for thread in timer_threads():
            if thread is not timer._worker:
                thread.join(LONG)
        assert timer_threads() == [timer._worker]
        timer.close(LONG)


def test_the_thread_ends_when_it_is_idle(stage: Stage) -> None:
    """When nothing has been scheduled for a while the thread ends; the next entry starts a new one."""
    ran: list[int] = []
    stage.timer.call_later(5, partial(ran.append, 1))
    stage.go_on(5)
    stage.go_on(LINGER / 2)
    [first] = timer_threads()
    stage.go_on(LINGER / 2)
    first.join(LONG)
    assert not first.is_alive()
    stage.timer.call_later(5, partial(ran.append, 2))
    assert timer_threads() not in ([], [first])
    stage.go_on(5)
    assert ran == [1, 2]


def test_the_thread_stays_while_something_is_scheduled(stage: Stage) -> None:
    """An entry that comes while the thread is idle keeps it, and begins the idle time anew."""
    stage.timer.ensure()
    stage.settle()
    stage.time += LINGER / 2
    stage.timer.call_later(100, int)
    for seconds in (LINGER, 100 - LINGER, LINGER / 2):
        stage.go_on(seconds)
        assert timer_threads()


def test_ending_races_with_scheduling() -> None:
    """An entry that comes just when the thread ends is not forgotten."""
    looks = iter(range(10**9))
    timer = Timer(lambda: next(looks) * LINGER / 50, lambda inbox, _: int if inbox.empty() else inbox.get_nowait())
    try:
        with jobs.frequent_switches():
            for _ in range(200):
                ran = threading.Event()
                timer.call_later(0, ran.set)  # the thread ends when it has looked fifty times
                assert ran.wait(LONG)
    finally:
        timer.close(LONG)


def test_the_thread_has_a_context_of_its_own(stage: Stage) -> None:
    """The thread doesn't see the variables of whoever happened to start it."""
    variable = ContextVar("variable", default="its own")
    variable.set("the starter's")
    seen: list[str] = []
    stage.timer.soon(lambda: seen.append(variable.get()))
    stage.timer.ensure()
    stage.settle()
    assert seen == ["its own"]


def test_no_thread_can_be_started(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no thread to be had, the caller is told, and nothing is left behind; the next one may have one."""
    lane = stage.timer.lane(1)
    item = Item()
    ran: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: jobs.raises(RuntimeError("can't start new thread")))
        for start in (lambda: stage.timer.call_later(1, partial(ran.append, 1)), lambda: lane.start(item)):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                start()
        assert repr(stage.timer) == "<Timer idle [0 scheduled]>"
        assert repr(lane) == "<Lane of 1 s [0 running]>"
    stage.timer.call_later(1, partial(ran.append, 2))
    lane.start(item)
    stage.go_on(1)
    assert ran == [2]
    assert item.times == 1


def test_the_longest_sleep() -> None:
    """Waiting takes any number of seconds, however large."""
    inbox: SimpleQueue[Action] = SimpleQueue()
    inbox.put(list)
    assert parallel.timer._wait(inbox, float("inf")) is list
    assert parallel.timer._wait(inbox, -1)() is None


def test_the_shortest_sleep() -> None:
    """Waiting for next to no time comes to an end, whatever came before."""

    def wait() -> None:
        inbox: SimpleQueue[Action] = SimpleQueue()
        for _ in range(1_000):
            inbox.put(int)
            assert parallel.timer._wait(inbox, 1) is int
            parallel.timer._wait(inbox, 1e-9)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()


# -- soon and close ---------------------------------------------------------------------------------------------------


def test_soon(stage: Stage) -> None:
    """Actions for soon run in order on the timer thread."""
    ran: list[tuple[int, str]] = []
    stage.timer.ensure()
    for number in range(3):
        stage.timer.soon(lambda number=number: ran.append((number, jobs.thread_name())))
    stage.settle()
    assert ran == [(number, "parallel-timer") for number in range(3)]


def test_soon_starts_no_thread(stage: Stage) -> None:
    """Without a thread, an action for soon waits until there is one."""
    ran: list[int] = []
    stage.timer.soon(partial(ran.append, 1))
    assert timer_threads() == []
    stage.timer.ensure()
    stage.settle()
    assert ran == [1]


def test_soon_takes_its_turn(stage: Stage) -> None:
    """An action that schedules itself again and again doesn't keep others from running."""
    ran = threading.Event()

    def again() -> None:
        if not ran.is_set():
            stage.timer.call_at(0, again)

    stage.timer.call_at(0, again)
    stage.timer.soon(ran.set)
    assert ran.wait(LONG)


def every_method(timer: Timer) -> None:
    """Call all there is."""
    lane = timer.lane(3)
    item = Item()
    lane.start(item)
    lane.stop(item)
    lane.stop(item)
    lane.start(item)
    for entry in [timer.call_later(1, int) for _ in range(8)]:
        entry.cancel()
    timer.ensure()
    timer.soon(int)
    timer.close(LONG)


@pytest.mark.usefixtures("tidy")
def test_a_destructor_calls_soon(stage: Stage) -> None:
    """`soon` may be called by a destructor that runs in the middle of any method."""
    ran: list[int] = []
    line = 0

    def drop() -> None:
        Dropped(partial(stage.timer.soon, partial(ran.append, line)))

    while with_interruption(partial(every_method, stage.timer), line, drop):
        line += 1
    stage.timer.close(LONG)
    assert line > 100
    assert ran == list(range(line))


@pytest.mark.usefixtures("tidy")
def test_a_signal_handler_schedules(stage: Stage) -> None:
    """A signal handler may schedule and cancel in the middle of scheduling and cancelling; nothing is lost."""
    ran: list[str] = []

    def schedule(name: str) -> None:
        entries = [stage.timer.call_later(9, int) for _ in range(8)]
        stage.timer.call_later(1, partial(ran.append, f"{name}'s entry"))
        stage.timer.lane(1).start(Item(lambda _: ran.append(f"{name}'s item")))
        for entry in entries:
            entry.cancel()

    line = 0
    while with_interruption(partial(schedule, "main"), line, partial(schedule, "handler")):
        stage.go_on(1)
        assert sorted(ran) == ["handler's entry", "handler's item", "main's entry", "main's item"], f"line {line}"
        ran.clear()
        line += 1
        if line % 2:
            stage.timer.close(LONG)
    assert line > 100


@pytest.mark.usefixtures("tidy")
def test_an_interrupt_while_scheduling(stage: Stage) -> None:
    """A Ctrl-C in the middle of a method may undo what was asked for, but spoils nothing else."""
    lane = stage.timer.lane(1)
    interrupted = True
    line = 0

    def use(timer: Timer) -> None:
        item = Item()
        timer.lane(1).start(item)
        timer.lane(1).stop(item)
        for entry in [timer.call_later(9, int) for _ in range(8)]:
            entry.cancel()

    while interrupted:
        ran: list[int] = []
        stage.timer.call_later(1, partial(ran.append, 1))
        try:
            interrupted = with_interruption(partial(use, stage.timer), line, partial(jobs.raises, KeyboardInterrupt()))
        except KeyboardInterrupt:
            interrupted = True
        assert stage.timer._actions.keys() <= {place[2] for place in stage.timer._heap}
        item = Item()
        lane.start(item)
        stage.go_on(1)
        assert (ran, item.times) == ([1], 1)
        line += 1
        if line % 2:
            stage.timer.close(LONG)
    assert line > 50


def test_signals_all_the_time(timer: Timer) -> None:
    """Real signals that come in anywhere, and whose handlers schedule, cancel and call soon, lose nothing."""
    ran: SimpleQueue[str] = SimpleQueue()
    handled = 0

    def handler(*_: object) -> None:
        nonlocal handled
        handled += 1
        timer.soon(partial(ran.put, "soon"))
        timer.call_later(0, partial(ran.put, "entry"))
        timer.call_later(9, int).cancel()
        signal.setitimer(signal.ITIMER_REAL, 1e-4)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        rounds = 0
        while handled < 300:
            rounds += 1
            timer.call_later(0, partial(ran.put, "main"))
            timer.call_later(9, int).cancel()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    settled(timer)
    timer.close(LONG)
    names = [ran.get_nowait() for _ in range(ran.qsize())]
    assert {name: names.count(name) for name in set(names)} == {"soon": handled, "entry": handled, "main": rounds}


def test_close(stage: Stage) -> None:
    """Closing drops what is scheduled, runs what is to run soon, and ends the thread; twice is no error."""
    ran: list[int] = []
    action = partial(ran.append, 1)
    gone = weakref.ref(action)
    entry = stage.timer.call_later(1, action)
    del action
    stage.settle()
    stage.timer.soon(partial(ran.append, 2))
    stage.timer.close(LONG)
    assert ran == [2]
    assert gone() is None
    assert not entry.cancel()
    assert timer_threads() == []
    stage.timer.close(LONG)


def test_close_without_a_thread(stage: Stage) -> None:
    """Closing runs what was to run soon, though there never was a thread."""
    ran: list[int] = []
    stage.timer.soon(partial(ran.append, 1))
    stage.timer.close(LONG)
    assert ran == [1]


def test_use_after_close(stage: Stage) -> None:
    """A closed timer can be used again, its lanes as well."""
    lane = stage.timer.lane(1)
    items = [Item(), Item()]
    for item in items:
        ran: list[int] = []
        lane.start(item)
        stage.timer.call_later(1, partial(ran.append, 1))
        stage.go_on(1)
        assert ran == [1]
        assert item.times == 1
        stage.timer.close(LONG)


def test_a_lane_outlives_close(stage: Stage) -> None:
    """What was running in a lane when the timer was closed expires once the lane is used again."""
    lane = stage.timer.lane(2)
    ended, late, later = Item(), Item(), Item()
    lane.start(ended)
    lane.start(late)
    stage.timer.close(LONG)
    stage.time += 1
    assert lane.stop(ended)
    lane.start(later)
    stage.go_on(1)
    assert (ended.times, late.times, later.times) == (0, 1, 0)
    stage.go_on(1)
    assert later.times == 1


def test_close_on_the_timer_thread(stage: Stage) -> None:
    """An action may close the timer: the thread ends after it, without waiting for itself."""
    stage.timer.call_later(1, stage.timer.close)
    stage.timer.call_later(2, partial(jobs.raises, ValueError()))
    [thread] = timer_threads()
    stage.time += 1
    stage.timer.soon(int)
    thread.join(LONG)
    assert not thread.is_alive()
    assert repr(stage.timer) == "<Timer idle [0 scheduled]>"


def test_close_waits_only_so_long(timer: Timer) -> None:
    """With a timeout, closing doesn't wait for ever for an action that hangs; what comes next has a new thread."""
    go = threading.Event()
    busy = threading.Event()
    ran = threading.Event()

    def hang() -> None:
        busy.set()
        go.wait(LONG)

    timer.call_later(0, hang)
    assert busy.wait(LONG)
    timer.close(0.01)
    [stuck] = timer_threads()
    timer.call_later(0, ran.set)
    assert ran.wait(LONG)
    go.set()
    stuck.join(LONG)
    assert not stuck.is_alive()


def test_close_while_the_thread_begins(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is closed before it has begun doesn't begin."""
    go = threading.Event()
    serve = stage.timer._serve

    def late(worker: Any) -> None:
        assert go.wait(LONG)
        serve(worker)

    with monkeypatch.context() as patch:
        patch.setattr(stage.timer, "_serve", late)
        stage.timer.ensure()
    closing = threading.Thread(target=stage.timer.close, daemon=True)
    closing.start()
    while stage.timer._worker is not None:
        pass
    go.set()
    closing.join(LONG)
    assert not closing.is_alive()
    assert stage.naps == []


def test_close_while_a_lane_is_looked_at(stage: Stage) -> None:
    """If the timer is closed while one of its items expires, the lane schedules nothing until it is used again."""
    lane = stage.timer.lane(1)

    def close(_: Item) -> None:
        stage.timer.close()
        stage.timer.ensure()

    left = Item()
    lane.start(Item(close))
    stage.time += 0.5
    lane.start(left)
    [thread] = timer_threads()
    stage.time += 0.5
    stage.timer.soon(int)
    thread.join(LONG)
    stage.settle()
    assert repr(stage.timer) == "<Timer running [0 scheduled]>"
    lane.start(Item())
    stage.go_on(0.5)
    assert left.times == 1


def test_a_signal_handler_closes(stage: Stage) -> None:
    """A signal handler may close the timer in the middle of any method; it can be used on as if closed before."""
    lane = stage.timer.lane(1)
    line = 0

    def use() -> None:
        lane.start(Item())
        stage.timer.call_later(1, int).cancel()
        stage.timer.ensure()

    while with_interruption(use, line, partial(stage.timer.close, LONG)):
        ran: list[int] = []
        item = Item()
        lane.start(item)
        stage.timer.call_later(1, partial(ran.append, 1))
        stage.go_on(1)
        assert (ran, item.times) == ([1], 1)
        line += 1
        if line % 2:
            stage.timer.close(LONG)
    assert line > 30


def test_close_races_with_scheduling(timer: Timer) -> None:
    """Closing while others schedule drops or runs each of their actions, and nobody hangs."""
    stop = threading.Event()
    lane = timer.lane(0)

    def schedule() -> None:
        while not stop.is_set():
            timer.call_later(0, int)
            timer.call_later(1, int).cancel()
            lane.start(Item())

    threads = [threading.Thread(target=schedule) for _ in range(2)]
    with jobs.frequent_switches():
        for thread in threads:
            thread.start()
        for _ in range(200):
            timer.close(LONG)
        stop.set()
        for thread in threads:
            thread.join(LONG)
    expired = threading.Event()
    lane.start(Item(lambda _: expired.set()))
    assert expired.wait(LONG)


# -- lanes ------------------------------------------------------------------------------------------------------------


def test_items_expire_in_order(stage: Stage) -> None:
    """Each item expires when its time is over, once, in the order in which they began."""
    expired: list[Item] = []
    lane = stage.timer.lane(10)
    items = [Item(expired.append) for _ in range(5)]
    for item in items:
        lane.start(item)
        stage.time += 1
    stage.go_on(4)
    assert expired == []
    for count in range(1, 6):
        stage.go_on(1)
        assert expired == items[:count]
    stage.go_on(100)
    assert expired == items


def test_stop(stage: Stage) -> None:
    """What is stopped in time doesn't expire; stopping what has expired, or never ran, says False."""
    lane = stage.timer.lane(10)
    early, late = Item(), Item()
    lane.start(early)
    lane.start(late)
    stage.go_on(9)
    assert lane.stop(early)
    assert not lane.stop(early)
    stage.go_on(1)
    assert not lane.stop(late)
    assert not lane.stop(Item())
    assert (early.times, late.times) == (0, 1)


def test_an_item_starts_again(stage: Stage) -> None:
    """An item that was stopped, or has expired, may start again, and has all its time again."""
    lane = stage.timer.lane(10)
    item = Item()
    lane.start(item)
    stage.go_on(9)
    assert lane.stop(item)
    lane.start(item)
    stage.go_on(9)
    assert item.times == 0
    stage.go_on(1)
    assert item.times == 1
    lane.start(item)
    stage.go_on(9)
    assert item.times == 1
    stage.go_on(1)
    assert item.times == 2


def test_an_item_starts_again_while_it_expires(stage: Stage) -> None:
    """`expire` may start the next attempt."""
    lane = stage.timer.lane(10)
    item = Item(lambda item: lane.start(item))
    lane.start(item)
    for times in range(1, 4):
        stage.go_on(10)
        assert item.times == times
    assert lane.stop(item)


def test_an_item_starts_again_while_the_timer_looks(stage: Stage) -> None:
    """If the timer comes upon an item that was over, but has been started again since, it leaves it alone."""
    lane = stage.timer.lane(10)
    item = Item()
    lane.start(item)
    assert not lane._take(item, stage.time + 9)
    assert lane.stop(item)
    assert not lane._take(item, stage.time + 10)


def test_stop_while_the_timer_looks(stage: Stage) -> None:
    """Who stops an item that the timer has in its hands by mistake waits for it, and is told the truth."""
    lane = stage.timer.lane(10)
    item = Item()
    lane.start(item)
    said: SimpleQueue[bool] = SimpleQueue()
    stopping = threading.Thread(target=lambda: said.put(lane.stop(item)))
    with stage.timer.lock:
        began = lane._running.pop(item)
        stopping.start()
        with pytest.raises(Empty):
            said.get(timeout=0.05)
        lane._running[item] = began
    assert said.get(timeout=LONG)
    stopping.join(LONG)


def test_a_start_wakes_nobody(stage: Stage) -> None:
    """In a lane that is armed, starting and stopping schedules nothing and wakes no thread."""
    lane = stage.timer.lane(10)
    first = Item()
    lane.start(first)
    stage.settle()
    naps = len(stage.naps)
    for _ in range(1_000):
        item = Item()
        lane.start(item)
        assert lane.stop(item)
    assert lane.stop(first)
    assert stage.timer._inbox.empty()
    assert len(stage.naps) == naps
    assert repr(stage.timer) == "<Timer running [1 scheduled]>"


def test_an_idle_lane_is_disarmed(stage: Stage) -> None:
    """A lane in which nothing is left takes nothing of the timer, until something starts in it again."""
    lane = stage.timer.lane(10)
    item = Item()
    lane.start(item)
    stage.go_on(1)
    assert lane.stop(item)
    assert repr(stage.timer) == "<Timer running [1 scheduled]>"
    stage.go_on(9)
    assert repr(stage.timer) == "<Timer running [0 scheduled]>"
    lane.start(item)
    assert repr(stage.timer) == "<Timer running [1 scheduled]>"
    stage.go_on(10)
    assert item.times == 1


def test_a_start_while_the_lane_is_disarmed(stage: Stage) -> None:
    """An item that starts at any moment of the timer's look, which finds the lane idle, is not forgotten."""
    lane = stage.timer.lane(1)
    threads: list[threading.Thread] = []

    def start(item: Item) -> None:
        # On another thread, as it would be; that waits for the lock while the look holds it, so nobody waits for it.
        threads.append(threading.Thread(target=lane.start, args=(item,)))
        threads[-1].start()
        threads[-1].join(0.01)

    interrupted: SimpleQueue[bool] = SimpleQueue()

    def run(look: Action, line: int, interruption: Action) -> None:
        interrupted.put(with_interruption(look, line, interruption))

    line = 0
    while True:
        lane.start(Item())
        [entry] = stage.timer._actions
        look = stage.timer._actions[entry]
        item = Item()
        stage.timer._actions[entry] = partial(run, look, line, partial(start, item))
        stage.go_on(1)
        if not interrupted.get(timeout=LONG):
            break
        threads.pop().join(LONG)
        stage.go_on(1)
        assert item.times == 1, f"line {line}"
        line += 1
    assert line > 20


def test_arming_races_with_disarming(timer: Timer) -> None:
    """Items that come whenever the lane has just become idle all expire."""
    with jobs.frequent_switches():
        for seconds in (0, 1e-5, 1e-4):
            lane = timer.lane(seconds)
            for _ in range(1_000):
                expired = threading.Event()
                lane.start(Item(lambda _, expired=expired: expired.set()))
                assert expired.wait(LONG)


def test_stopping_races_with_expiring(timer: Timer) -> None:
    """Each of many items, stopped at about the time when they are over, either expires or is stopped in time."""
    lane = timer.lane(0.002)
    items = [Item() for _ in range(50_000)]
    stopped: list[bool] = []
    with jobs.frequent_switches():
        for begin in range(0, len(items), 500):
            batch = items[begin : begin + 500]
            for item in batch:
                lane.start(item)
            stopped += [lane.stop(item) for item in batch]
    settled(timer)
    assert [item.times for item in items] == [int(not in_time) for in_time in stopped]
    assert sum(stopped) > 0


def test_starting_again_races_with_expiring(timer: Timer) -> None:
    """An item that is stopped and started again all the time expires only when one run of it took too long."""
    lane = timer.lane(0.001)
    began: dict[Item, float] = {}
    early: list[float] = []

    def check(item: Item) -> None:
        took = timer.now() - began[item]
        if took < lane.seconds:
            early.append(took)

    items = [Item(check) for _ in range(50)]
    stops = runs = 0
    with jobs.frequent_switches():
        for _ in range(300):
            for item in items:
                began[item] = timer.now()
                lane.start(item)
                runs += 1
            for item in items:
                stops += lane.stop(item)
    settled(timer)
    assert early == []
    assert stops + sum(item.times for item in items) == runs


def test_many_expire_at_once(stage: Stage) -> None:
    """When thousands expire at the same time, others get their turn in between."""
    expired: list[Item] = []
    seen: list[int] = []
    lane = stage.timer.lane(1)
    first = Item(lambda _: stage.timer.soon(lambda: seen.append(len(expired))))
    lane.start(first)
    items = [Item(expired.append) for _ in range(10_000)]
    for item in items:
        lane.start(item)
    stage.go_on(1)
    assert expired == items
    assert seen[0] < 10_000


def test_a_lane_rests(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that takes long to look at is looked at more rarely, though some of its items are late then."""
    first = Lane._first

    def slow(lane: Lane, count: int) -> list[Any]:
        stage.time += 1e-4
        return first(lane, count)

    lane = stage.timer.lane(10)
    lane._batch = 9
    items = [Item() for _ in range(5)]
    for item in items:
        lane.start(item)
        stage.time += 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "_first", slow)
        stage.go_on(10 - 2.5e-3)
    assert [item.times for item in items] == [1, 1, 1, 0, 0]
    assert stage.naps[-1] == pytest.approx(parallel.lanes._REST * 1e-4)
    stage.go_on(stage.naps[-1])
    assert [item.times for item in items] == [1, 1, 1, 1, 1]


def test_an_item_that_raises(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """What `expire` raises is logged, and the others expire all the same."""
    lane = stage.timer.lane(1)
    broken, sound = Item(lambda _: jobs.raises(SystemExit(3))), Item()
    lane.start(broken)
    lane.start(sound)
    stage.go_on(1)
    assert sound.times == 1
    [record] = caplog.records
    assert "failed to expire" in record.getMessage()
    assert record.exc_info is not None and isinstance(record.exc_info[1], SystemExit)


def test_a_look_that_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If the timer can't look at a lane, as there is no memory, the next start has it look again."""
    lane = stage.timer.lane(1)
    first, second = Item(), Item()
    lane.start(first)
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "_first", lambda *_: jobs.raises(MemoryError()))
        stage.go_on(1)
    assert first.times == 0
    lane.start(second)
    stage.settle()
    assert (first.times, second.times) == (1, 0)
    assert len(caplog.records) == 1


def test_one_lane_a_duration(stage: Stage) -> None:
    """There is one lane for each number of seconds, as long as somebody has it."""
    lane = stage.timer.lane(1.5)
    assert stage.timer.lane(1.5) is lane
    assert stage.timer.lane(2) is not lane


def test_lanes_are_not_kept(stage: Stage) -> None:
    """A lane that nobody has and nothing runs in is gone; one in which something runs is not."""
    for number in range(100):
        lane = stage.timer.lane(1 + number)
        item = Item()
        lane.start(item)
        if number % 2:
            assert lane.stop(item)
    del lane
    assert len(stage.timer._lanes) == 100
    assert stage.timer.lane(1)._running
    stage.go_on(100)
    gc.collect()
    assert len(stage.timer._lanes) == 0


# -- forks, exit ------------------------------------------------------------------------------------------------------


@pytest.fixture
def process_timer() -> Iterator[Timer]:
    """The process's timer, closed afterwards."""
    yield TIMER
    TIMER.close(LONG)


def test_fork(process_timer: Timer, in_fork: Callable[..., Any]) -> None:
    """A forked child has nothing of the parent's scheduled, and a timer and lanes that work."""
    ran: list[str] = []
    lane = process_timer.lane(0.01)
    slow = process_timer.lane(60)
    parents = Item()
    slow.start(parents)
    entry = process_timer.call_later(60, partial(ran.append, "the parent's"))
    process_timer.soon(int)

    def child() -> tuple[Any, ...]:
        before = repr(process_timer), len(timer_threads()), slow.stop(parents), entry.cancel()
        expired = threading.Event()
        lane.start(Item(lambda _: expired.set()))
        return (*before, expired.wait(LONG), parents.times, ran)

    assert in_fork(child) == ("<Timer idle [0 scheduled]>", 0, False, False, True, 0, [])
    assert slow.stop(parents)
    assert entry.cancel()


def test_fork_while_a_lock_is_held(process_timer: Timer, in_fork: Callable[..., Any]) -> None:
    """A child that was forked while another thread was in the middle of a method doesn't hang."""
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with process_timer.lock:
            held.set()
            go.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LONG)

    def child() -> bool:
        ran = threading.Event()
        process_timer.call_later(0, ran.set)
        return ran.wait(LONG)

    try:
        assert in_fork(child)
    finally:
        go.set()
        thread.join(LONG)


def test_exit(run_script: Runner) -> None:
    """The program's exit waits for nothing that is scheduled, and runs what is to run soon."""
    script = """
        from parallel.timer import TIMER

        TIMER.call_later(60, lambda: print("too late"))
        TIMER.lane(60).start(TIMER)
        TIMER.soon(lambda: print("first"))
        class Last:
            def __del__(self, soon=TIMER.soon):
                soon(lambda: print("last"))
        last = Last()
        import atexit
        atexit.register(globals().pop, "last")
        """
    assert run_script(dedent(script), timeout=30).stdout == "first\nlast\n"


def test_scheduling_at_exit(run_script: Runner) -> None:
    """At the interpreter's exit scheduling works, or raises where threads can't be started any more (gh-113964)."""
    script = """
        import atexit
        from parallel.timer import TIMER

        @atexit.register
        def late():
            try:
                TIMER.call_later(0, int)
                TIMER.lane(5).start(TIMER)
            except RuntimeError as error:
                assert "shutdown" in str(error), error
                assert repr(TIMER) == "<Timer idle [0 scheduled]>", TIMER
            print("late")
        """
    ended = run_script(dedent(script))
    assert (ended.stdout, ended.stderr) == ("late\n", "")
