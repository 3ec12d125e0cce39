"""
The worker's side of a process pool: one call after the other, until the stream ends.

    socket ──▶ message ──▶ each call: function looked up, called ──▶ journal ──▶ one answer for many ──▶ socket
       │
       └─▶ a lifeline: the pool's process is gone ──▶ this one goes too, whatever it is doing

Guarantees:
- Whatever a call raises, SystemExit and KeyboardInterrupt included, ends that call only. So does a function that can't
  be found, arguments that can't be loaded, a value that can't be pickled.
- A result is in the journal, or sent, before the next call begins: whoever kills this process kills one call. It is
  sent at the end of its message, after `FLUSH`, or when the journal is full, whichever comes first.
- A worker leaves in order only when it is told to, by the end of the stream: then what multiprocessing runs at the end
  of a process runs, and the standard streams are flushed.
- Nothing outlives the pool's process, nor what its calls have started: see `lifeline`.
- It leads a session of its own, so that one signal reaches it and what its calls start: see `killing`.
- Loaded here is only what calls need: no cloudpickle, no asyncio, no attrs before a call asks for them.

State: all of it belongs to the one thread that serves, except the socket's descriptor, which the watcher looks at, and
the board, at which the pool does.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from importlib import import_module
from selectors import EVENT_READ, BaseSelector, DefaultSelector
from socket import socket
from threading import TIMEOUT_MAX, RLock
from types import CoroutineType, FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from parallel.context import WITHIN, enter_worker_process, name_of, plain_function, this
from parallel.coroutines import run_coroutine
from parallel.kept import close_kept
from parallel.pools.process.baggage import Luggage, Unpacking
from parallel.pools.process.board import (
    BASE,
    BEGAN,
    EPOCH,
    ITEM,
    JOURNAL,
    LENGTH,
    RECALL,
    SIZE,
    STARTED,
    WRITTEN,
    Board,
    Carried,
    is_recalled,
)
from parallel.pools.process.failures import pack_error
from parallel.pools.process.last_words import tell_last_words
from parallel.pools.process.lifeline import Lifeline
from parallel.pools.process.pickling import dumps, loads
from parallel.pools.process.references import resolve
from parallel.pools.process.scale import Scale
from parallel.pools.process.stacks import answer_for_stacks
from parallel.pools.process.surroundings import PreloadFailed, Surroundings
from parallel.pools.process.wire import (
    ANSWERS,
    ATOMS,
    BROKEN,
    FAILED,
    HEAVY,
    HELLO,
    LOG,
    LONG,
    LONGEST,
    NEWS,
    NOT_FOUND,
    POSTED,
    RESULT,
    RETURNED,
    SMALL,
    UNREADABLE,
    UNSENDABLE,
    Frame,
    Inbox,
    Part,
    keep_from_forks,
    pack,
)

if TYPE_CHECKING:
    from parallel.pools.process.inside import Inside
    from parallel.pools.process.logs import Levels

FLUSH: Final = 2_000_000
"""Nanoseconds after which results are sent though the message has not come to its end: so late are they at most."""

_STRINGS: Final = (str, bytes)
_VALUES: Final = (RESULT, POSTED)


T = TypeVar("T")


class Setup:
    """
    What a worker does before its first call.

    It is pickled apart from the process that carries it: an initializer that can't be loaded is to break the pool with
    its own error, not to end the worker with a riddle.
    """

    def __init__(
        self,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        main_by_value: bool,
        configuration: bytes | None,
        surroundings: Surroundings,
        label: str,
        levels: Callable[[], Levels | None],
    ) -> None:
        self._load: Callable[[], Any] = lambda: (initializer, initargs)
        self.main_by_value = main_by_value
        self.configuration = configuration
        self.surroundings = surroundings
        self.label = label  # what messages call the pool
        self.levels = levels

    def __getstate__(self) -> tuple[Any, ...]:
        levels = self.levels()
        plain = None if levels is None else tuple(levels)  # to load its type would load logging
        own = dumps(self._load(), self.main_by_value)
        return own, self.main_by_value, self.configuration, self.surroundings, self.label, plain

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        packed, self.main_by_value, self.configuration, self.surroundings, self.label, levels = state
        self._load = lambda: loads(packed)
        self.levels = lambda: levels

    def run(self) -> None:
        """Call the initializer; what it raises comes out."""
        initializer, initargs = self._load()
        if initializer is not None:
            initializer(*initargs)


def run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """Call *fn* with each tuple of arguments of a chunk, one after the other."""
    plain = plain_function(fn)
    return [plain(*args) for args in chunk]


def work(sock: socket, luggage: Luggage, carried: Carried, setup: Setup) -> None:
    """Serve the pool at the other end of *sock*, with that board; the target of the process."""
    # Under fork, the context is that of the thread that forked: nobody's business here.
    Context().run(_work, sock, luggage, carried, setup)


def _work(sock: socket, luggage: Luggage, carried: Carried, setup: Setup) -> None:
    _lead_a_session()
    board = carried.open()
    keep_from_forks(sock)
    signal.signal(signal.SIGINT, _leave_it_to_the_pool)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # under fork, a handler of the parent's; and see `killing`
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `starting.without_interrupts`
    tell_last_words(board, carried.descriptor)
    answer_for_stacks()
    enter_worker_process(setup.configuration)
    try:
        lifeline = Lifeline(sock)
    except ConnectionError:
        return
    outlet, scale = Outlet(sock), Scale(setup.surroundings.soft_limit)
    _prepare_streams(outlet, setup)
    server = Server(sock, outlet, board, lifeline, Unpacking(luggage, setup.main_by_value), setup, scale)
    this.worker = _Sleeper(server)
    try:
        if _set_up(outlet, setup, scale):
            server.serve()
    except ConnectionError:
        pass  # nobody is there any more who wants to know
    finally:
        close_kept()
        lifeline.untie()


def _lead_a_session() -> None:
    """Have a process group of its own, to which what its calls start belongs: see `killing`."""
    if hasattr(os, "setsid"):
        with suppress(PermissionError):  # it leads a group already
            os.setsid()


def _prepare_streams(outlet: Outlet, setup: Setup) -> None:
    """Have what this process prints, and logs, come out in one piece, and soon."""
    with suppress(AttributeError, OSError, ValueError):  # it may be closed, or anything
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # if it is a text stream, as is usual
    levels = setup.levels()
    if levels is not None:
        # Its room loads `logging`, which takes 4 ms.
        logs = import_module("parallel.pools.process.logs")
        logs.install(logs.Levels(*levels), setup.main_by_value, outlet.send_record)


def _set_up(outlet: Outlet, setup: Setup, scale: Scale) -> bool:
    """Enter the surroundings, run the initializer, and say hello, or why not."""
    what = "the entering of its surroundings"
    try:
        setup.surroundings.enter()
        setup.surroundings.load()
        what = "its initializer"
        setup.run()
        what = "its start"
        scale.check()
    except PreloadFailed as failure:
        return _is_broken(outlet, setup, str(failure), cast(BaseException, failure.__cause__))
    except BaseException as error:  # whatever it is, the pool has to tell whoever waits
        return _is_broken(outlet, setup, what, error)
    outlet.send(pack((HELLO,)))
    return True


def _is_broken(outlet: Outlet, setup: Setup, what: str, error: BaseException) -> bool:
    outlet.send(pack((BROKEN, *pack_error(error, setup.main_by_value), what)))
    return False


class Outlet:
    """
    The worker's end of the stream, where frames go out, one after the other, whoever sends them.

    State: `_waiting`, guarded by `_lock`, which is re-entrant: a signal handler may log, or raise, while a frame goes
    out. The first frame in it loses what has been sent: whoever comes next goes on where an interrupted one stopped.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._lock = RLock()
        self._waiting: deque[list[Part]] = deque()
        self._is_sending = False

    def send(self, frame: list[Part]) -> None:
        """
        Send a frame; one that comes in the middle of another, after that.

        Raises:
            ConnectionError: Nobody is on the other end.
        """
        with self._lock:
            self._waiting.append(frame)
            if self._is_sending:
                return
            self._is_sending = True
            try:
                while self._waiting:
                    frame = self._waiting[0]
                    while frame:
                        frame[0] = memoryview(frame[0])[self._sock.send(frame[0]) :]
                        if not frame[0]:
                            del frame[0]
                    self._waiting.popleft()
            finally:
                self._is_sending = False

    def send_record(self, record: bytes, number: int) -> None:
        """Send a log record, pickled, and the number here of the call that it is of; as `send`."""
        self.send(pack((LOG, record, number)))


class Server:
    """Runs the calls that come in, and answers."""

    def __init__(
        self,
        sock: socket,
        outlet: Outlet,
        board: Board,
        lifeline: Lifeline,
        unpacking: Unpacking,
        setup: Setup,
        scale: Scale,
    ) -> None:
        self._sock = sock
        self._send = outlet.send
        self._lifeline = lifeline
        self._inbox = Inbox()
        self._unpacking = unpacking
        self._frames: deque[Frame] = deque()  # read, and not seen to
        self._asked: set[int] = set()  # calls that are to stop
        self._function: int | None = None  # that of the present call; None: none has come
        self._by_value: Any = None  # if it came by value
        self._facts: tuple[int, int, float | None] | None = None  # about the present call
        self.mapped: Any = None  # what the present call calls with many items; None: that is no such call
        self._selector: BaseSelector | None = None  # for what comes while a call runs
        self._has_ended = False  # the stream, in the middle of a call
        self._inside: Inside | None = None  # the run of the present call, or of an earlier one
        self.board = board
        self._words = board.words
        self._bytes = board.bytes
        self._label = setup.label
        self.main_by_value = setup.main_by_value
        self._functions: dict[int, Any] = {}  # by their numbers: the function, or its reference
        self._large: Part = b""  # what comes with the present message
        self._results: list[Any] = []  # not sent yet
        self._spent: list[int] = []  # on them: function, calls, nanoseconds
        self._times: array[int] | None = None  # when each of them has begun, and has ended; None: nobody wants to know
        self._journal_end = JOURNAL
        self._flushed_at = 0
        self._scale = scale
        self._left_behind: object = None  # by the last call; dropped after its result is out, or in the journal

    def serve(self) -> None:
        """Serve until the stream ends."""
        frames, lifeline, unpacking = self._frames, self._lifeline, self._unpacking
        lifeline.loosen()
        while self._receive():
            lifeline.tighten()
            while frames:
                message, self._large = frames.popleft()
                if message[0] == NEWS:
                    _, released, gone, constant = message
                    unpacking.hear(released, gone, constant, self._large)
                else:
                    self._run_message(*message)
                self._large = b""
                if unpacking.untold:
                    self._send(unpacking.released())
            lifeline.loosen()
            unpacking.rest(self._sock)

    def _receive(self) -> bool:
        """Read once; False at the end of the stream, which may have come earlier."""
        if self._has_ended or not self._inbox.read(self._sock):
            return False
        while (frame := self._inbox.cut()) is not None:
            if frame[0][1] is None:
                self._asked.add(frame[0][0])
            else:
                self._frames.append(frame)
        return True

    def _run_message(
        self,
        number: int,
        runs: list[Any],
        references: list[tuple[int, bytes]],
        facts: tuple[int, int, float | None] | None,
        is_timed: bool = False,
    ) -> None:
        """Run the calls of one message, with what is known about them."""
        self._times = array("q") if is_timed else None
        self._functions.update(references)
        self._facts = facts
        if facts is None or facts[2] is None:
            self._run(number, runs)
        else:
            copy_context().run(self._run_by, facts[2], number, runs)

    def _run_by(self, deadline: float, number: int, runs: list[Any]) -> None:
        """In a context of its own, run a call that has to have ended at that moment, with all that it calls."""
        WITHIN.set(_inside_room().within_deadline(deadline))
        self._run(number, runs)

    def _run(self, number: int, runs: list[Any]) -> None:
        """Run the calls of one message, the first of which has that number, and answer."""
        self._flushed_at = time.monotonic_ns()
        if self._asked:
            self._asked = {one for one in self._asked if one >= number}
        self._empty_journal(number)
        left = sum(map(len, runs[1::2]))
        for index in range(0, len(runs), 2):
            function, items = runs[index : index + 2]
            left -= len(items)
            if not self._run_all(function, items, number, left):
                self._skip(runs[-1][-1])
                return
            number += len(items)
        self._flush(number)
        self._left_behind = None

    def _run_all(self, function: int, items: list[Any], number: int, left: int) -> bool:
        """Run calls of one function, after which *left* of others come; False if the pool wants the rest back."""
        words, call, times = self._words, self._call, self._times
        self._function = function
        begun = now = time.monotonic_ns()
        last = number + len(items) - 1 + left
        first = number
        for item in items:
            words[BEGAN] = now
            words[STARTED] = number
            recall = words[RECALL]  # (*) after STARTED was written: the pool does it the other way round
            if recall and is_recalled(recall, number):
                self._note_cost(function, number - first, now - begun)
                self._give_back(number)
                return False
            result = call(function, item)
            self._results.append(result)
            now = time.monotonic_ns()
            if times is not None:
                times.extend((words[BEGAN], now))
            if number != last and (now - self._flushed_at >= FLUSH or not self._write_down(result)):
                self._note_cost(function, number + 1 - first, now - begun)
                begun, first = now, number + 1
                self._flush(first)
                self._flushed_at = now
            if number != last:
                self._left_behind = None
            number += 1
        self._note_cost(function, number - first, now - begun)
        return True

    def _call(self, function: int, item: Any) -> Any:
        """Run one call and return its result, as it is sent."""
        given, problem = item, NOT_FOUND
        try:
            context = copy_context()
            fn: Any = self._functions.get(function)
            if type(fn) is bytes:
                fn = self._functions[function] = resolve(fn)
            problem = UNREADABLE
            if type(item) is tuple:
                problem = FAILED
                value = context.run(fn, *item)
                kwargs = None
            else:
                args, kwargs, *carried = self._load(item)
                if carried:
                    context.run(import_module("parallel.pools.process.carrying").enter, carried[0])
                if fn is None:
                    problem = NOT_FOUND
                    fn, args = loads(args[0]), args[1:]
                    self._by_value = fn
                item = args
                problem = FAILED
                value = context.run(fn, *args, **kwargs)
            if type(value) in ATOMS and not (type(value) in _STRINGS and len(value) >= LONG):
                self._left_behind = item, kwargs
                return value
            if type(value) is CoroutineType:
                value = context.run(run_coroutine, cast("Coroutine[Any, Any, Any]", value))
            problem = UNSENDABLE
            self._left_behind = item, kwargs, value
            return self._pack(value, context)
        except BaseException as error:  # each is an answer; this process goes on
            self._skip(given)
            self._left_behind = item, error
            return (problem, *pack_error(error, self.main_by_value))

    def _pack(self, value: Any, context: Context) -> Any:
        """Return what a value travels as; what comes out of a chunk, without that which can't."""
        try:
            return self._unpacking.pack(value)
        except BaseException:
            if not hasattr(value, "only_sound"):
                raise
        run: Any = partial(context.run, cast(Any, run_coroutine))
        value = value.awaited(run, partial(pack_error, main_by_value=self.main_by_value))
        return self._unpacking.pack(value.only_sound(self._try_to_send, self._refuse))

    def _try_to_send(self, value: object) -> None:
        dumps(value, self.main_by_value)

    def _refuse(self, error: BaseException) -> tuple[Any, ...]:
        """Return what the failure of an item travels as whose value can't, because of *error*."""
        return (*pack_error(error, self.main_by_value), UNSENDABLE)

    def _load(self, item: list[Any] | bytes | None) -> Any:
        """Return the arguments of a call, `(args, kwargs)`."""
        if isinstance(item, bytes):
            return loads(item)
        large: Part = b""
        if item is None or item[0] is None:
            large, self._large = self._large, b""
        return loads(large) if item is None else self._unpacking.open(item, large)

    def _skip(self, item: list[Any] | tuple[Any, ...] | bytes | None) -> None:
        """Let go of what came for a call, if its arguments were not loaded."""
        if isinstance(item, list):
            self._unpacking.skip(item)

    # -- what a function asks about its call --------------------------------------------------------------------------

    def inside(self) -> Any:
        """Return the run of the present call; None: no call has come."""
        if self._function is None:
            return None
        number = self._words[STARTED]
        if self._inside is None or self._inside.number_here != number:
            function = self._functions.get(self._function, self._by_value)
            room = _inside_room()
            facts = self._facts or (os.getpid() << 32 | number, 1, None)
            about = room.About(name_of(function if self.mapped is None else self.mapped), self._label)
            self._inside = room.Inside(self, number, about, room.Facts(*facts))
        return self._inside

    def is_asked(self, number: int) -> bool:
        """Tell whether the call of that number is to stop."""
        self._look(0)
        return number in self._asked

    def pause(self, number: int, seconds: float) -> bool:
        """Wait so long, or until that call is to stop: then the answer is True."""
        end = time.monotonic() + min(max(seconds, 0), TIMEOUT_MAX)
        while not self.is_asked(number):
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._has_ended:
                time.sleep(left)
            else:
                self._look(min(left, LONGEST))
        return True

    def _look(self, seconds: float) -> None:
        """Read what the pool has sent meanwhile; if nothing is there, wait so long for it."""
        if self._has_ended:
            return
        if self._selector is None:
            self._selector = DefaultSelector()
            self._selector.register(self._sock, EVENT_READ)
        while self._selector.select(seconds) and not self._has_ended:
            seconds = 0
            try:
                self._has_ended = not self._receive()
            except ConnectionError:
                self._has_ended = True

    def _write_down(self, result: Any) -> bool:
        """Write a result into the journal; False if there is no room."""
        data = marshal.dumps(result)
        start = self._journal_end + LENGTH.size
        end = start + len(data)
        if end > SIZE:
            return False
        LENGTH.pack_into(self._bytes, self._journal_end, len(data))
        self._bytes[start:end] = data
        self._words[WRITTEN] = self._journal_end = end
        return True

    def _flush(self, following: int) -> None:
        """Send the results before the call of that number; then the journal begins anew with it."""
        results, spent = self._results, self._spent
        if results:
            large: Part = b""
            last: Any = results[-1]
            kind: object = type(last)  # pyright: ignore[reportUnknownVariableType]  # of whatever it is
            if kind is tuple and last[0] in _VALUES and len(last[1]) >= SMALL:
                name, large, *rest = last
                results[-1] = (name, None, *rest)
            times = self._times
            told = () if times is None else (times.tobytes(),)
            self._send(pack((ANSWERS, following - len(results), results, spent, *told), large))
            self._results, self._spent = [], []
            if times is not None:
                del times[:]
            if self._scale.is_over():
                self._send(pack((HEAVY,)))
        self._empty_journal(following)

    def _empty_journal(self, following: int) -> None:
        words = self._words
        words[EPOCH] += 1
        words[WRITTEN] = self._journal_end = JOURNAL
        words[BASE] = following
        words[ITEM] = 0

    def _give_back(self, number: int) -> None:
        """Drop the calls of this message from that one on, which has not been begun, and tell the pool."""
        self._words[STARTED] = number - 1
        self._flush(number)
        self._left_behind = None
        self._send(pack((RETURNED, number)))

    def _note_cost(self, function: int, calls: int, nanoseconds: int) -> None:
        if calls:
            self._spent += (function, calls, nanoseconds)


class _Sleeper:
    """How a worker process waits for a future of some pool of its own: it sleeps, and its place stays empty."""

    def __init__(self, server: Server) -> None:
        self.server = server  # for `items`
        self._set: Any = None  # what runs here besides the calls of the pool

    @property
    def running(self) -> Any:
        """What it runs now."""
        return self.server.inside() if self._set is None else self._set

    @running.setter
    def running(self, running: Any) -> None:
        self._set = None if running is self.server.inside() else running

    def wait(self, future: Any, timeout: float | None) -> bool:
        return bool(future.sleep(timeout))

    def check(self, futures: Iterable[Any], /) -> None:
        """Pools that run in this process have threads of their own."""

    def lend(self, awaited: Any = None) -> None:
        """Nobody could take the place: the pool, in another process, has as many workers as it may have."""

    def unlend(self) -> None:
        """It was not lent."""

    def replace(self) -> None:
        """Nobody could take the place here, either."""

    def come_back(self) -> None:
        """It was not replaced."""


def _inside_room() -> Any:
    """Return the room of what a function asks about its call, 20 ms of loading that most workers do without."""
    return import_module("parallel.pools.process.inside")


def _leave_it_to_the_pool(signum: int, frame: FrameType | None) -> None:
    """
    Do nothing about a Ctrl-C: the pool's process gets it as well, and decides.

    SIG_IGN would do the same here, but also in every program that a call starts.
    """
