"""
`Pool`: the executor that every kind implements; its statistics and its life.

    Pool (what the user holds) ──▶ Engine (queue, workers) ◀── worker threads

The two are apart so that a pool that nobody holds any more can be closed: workers keep their engine alive, never the
pool. An engine takes calls until `close()`, and is gone after `join()`.

State: `_pools`, `_engines`, `_helpers` and `_observing`, weak and changed by single atomic steps; `_draining` and
`_exiting`, set once; a pool's `_engine`, replaced only in a forked child, where one thread runs.

Source: `threading._register_atexit` is where `concurrent.futures.thread` of CPython 3.9 and later joins its workers:
earlier than `atexit`, while threads can still be started, so that what was accepted can run, its later stages too.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from importlib import import_module
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
)

from parallel import trail
from parallel.chunks import BUDGET, Done, run_chunk
from parallel.context import WITHIN, Dispatcher, callbacks_within, era, plain_function
from parallel.futures import Future
from parallel.gates import Gate, GatedFuture, OnFull
from parallel.limits import are_asked_here
from parallel.naps import join
from parallel.outcomes import Work, contexts
from parallel.outcomes import failure as failed
from parallel.timer import TIMER
from parallel.traced import TracedFuture
from parallel.trail import note_call
from parallel.weak import WeakSet

if TYPE_CHECKING:
    from parallel.stats import PoolStats

P = ParamSpec("P")
T = TypeVar("T")


OnExit: TypeAlias = Literal["wait", "cancel"]
"""What becomes of accepted calls at the program's end: they are run, or cancelled."""


class Counts(NamedTuple):
    """How much there is in a pool, at this moment: what `PoolStats` says in these words, without the cost of that."""

    workers: int
    queued: int
    running: int
    done: int
    stragglers: int = 0
    dashboard_link: str = ""


class AtWork(NamedTuple):
    """
    A worker, or a call that a pool's one thread runs beside others: what `WorkerStats` says in these words, and more.

    Attributes:
        since: When it began what it runs, on the clock of the trail; 0: nobody knows.
        coroutine: What it runs, if that is a coroutine.
    """

    name: str
    process: int
    thread: int | None = None
    task: str = ""
    called_at: str = ""
    since: int = 0
    coroutine: object = None
    call_id: int = 0


class Traffic(NamedTuple):
    """
    What has gone between a pool and its workers.

    Attributes:
        sent: Bytes that were sent to them; None: nobody counts, as is
        received: what has come from them.
        deaths: Worker processes that have died, other than by the pool's own will.
    """

    sent: int | None = None
    received: int | None = None
    deaths: int = 0


class Engine(ABC):
    """
    What runs the calls of one pool.

    Attributes:
        era: The `era()` in which it was made: in a forked child, an older one has no threads.
        cancels_at_exit: Its pool's.
        number: Its pool's; 0: it has none.
        label: What messages call its pool.
    """

    cancels_at_exit = False
    number = 0
    label: str

    def __init__(self) -> None:
        self.era = era()
        _engines.add(self)

    @abstractmethod
    def close(self, cancel_futures: bool) -> None:
        """
        Take no more calls. Accepted ones are run, or cancelled unless they run already. Doesn't wait; idempotent.
        """

    @abstractmethod
    def join(self) -> None:
        """After `close`: wait until all calls have ended and no worker is left. Not from a worker of this engine."""

    @abstractmethod
    def idle(self) -> int:
        """
        Wait until no accepted call is left, and all that follows those calls has been handed on.

        Returns:
            How many calls, continuations and callbacks have been run so far: if two rounds over all pools return the
            same, nothing was going on between them.
        """

    @abstractmethod
    def counts(self) -> Counts:
        """Count the workers and the calls."""

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent. Never waits."""

    def work_off(self) -> None:  # noqa: B027  # only threads can be stood in for
        """At exit: do here what waits for a worker if none is there, and the interpreter may refuse to start one."""

    def interrupt(self) -> None:  # noqa: B027  # a kind that can't ask does nothing
        """After `close`, at an exit by Ctrl-C: ask what runs to end, as far as this kind can."""

    def forsake(self) -> None:  # noqa: B027  # as above
        """After `interrupt`: wait no more for what runs all the same, if its worker can be left to itself."""

    def at_work(self) -> list[AtWork]:
        """Tell what each of its workers does; without waiting for anybody who could wait in turn."""
        return []

    def stacks(self) -> dict[int, str]:
        """Return where its worker processes are at this moment, by process ids: as far as they can be asked."""
        return {}

    def traffic(self) -> Traffic:
        """Count what has gone to its workers, and come from them."""
        return Traffic()

    def remains(self) -> list[str]:
        """
        Name the calls that run or wait, and the threads and processes that are at work, or still there after `close`.

        After `join` that is mostly nothing. See `leftovers`.
        """
        return []

    def owns_this_thread(self) -> bool:
        """Tell whether the current thread is one of its workers: then it can't be waited for."""
        return False


class Pool(concurrent.futures.Executor):
    """
    An executor with a name and an engine.

    Attributes:
        kind: What `kind =` in a configuration calls it.
        launches_here: Whether `launch` runs code of the user's, or the call itself: not for a timer's or loop's thread.
        has_threads: Whether its workers are threads, which take the future itself and run it by `run_on`.
        tells_times: Whether its workers tell by themselves when calls begin and end; else who runs them notes it.
        pickles: Whether what a function is given is pickled.
        depth: How many pieces of a map it is given for each that it runs: one, and those that wait behind it.
        piece_time: Nanoseconds that a piece of a map is to take.
        name: Its name in the configuration; empty for a pool used on its own.
        number: Which pool of this process it is; what the trail calls it.
        gate: What bounds the calls that wait in it; None: nothing.
        cancels_at_exit: Whether what waits at the program's end is cancelled, and what runs asked to end.
        wants_configuration: Whether its workers make registries of their own.
    """

    kind: ClassVar[str]
    launches_here: ClassVar[bool] = False
    has_threads: ClassVar[bool] = False
    tells_times: ClassVar[bool] = False
    pickles: ClassVar[bool] = False
    depth: ClassVar[int] = 2
    piece_time: int = BUDGET
    wants_configuration: ClassVar[bool] = False

    def __init__(
        self,
        name: str = "",
        callbacks: Dispatcher | None = None,
        max_pending: int | None = None,
        on_full: OnFull = "block",
        on_exit: OnExit = "wait",
    ) -> None:
        self.name = name
        self.number = next(_numbers)
        self.cancels_at_exit = check_exit(on_exit) == "cancel"
        self.gate = None if max_pending is None else Gate(self.label, check_pending(max_pending), check_full(on_full))
        self._callbacks = callbacks
        self._closed = False
        self._engine: Engine | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._renew()
        _pools.add(self)
        noting = trail.current
        if noting is not None:
            noting.note((trail.POOL_OPENED, trail.clock(), self.number, self.name, self.kind, self.capacity))

    @abstractmethod
    def _new_engine(self) -> Engine | None:
        """Make the engine; called by the constructor, and again in a forked child."""

    def _renew(self) -> None:
        """Take a fresh engine, and see that it ends with this pool."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._engine = engine = self._new_engine()
        if engine is None:
            return
        engine.cancels_at_exit = self.cancels_at_exit
        engine.number = self.number
        self._finalizer = weakref.finalize(self, engine.close, False)
        self._finalizer.atexit = False
        if self._closed or _exiting:
            engine.close(False)

    @property
    def engine(self) -> Engine | None:
        """What runs its calls; it may live on when nobody holds the pool any more."""
        return self._engine

    def reconfigure(self, configuration: bytes) -> None:  # most kinds have no use for it
        """
        Have workers that make registries of their own do so from another configuration.

        Args:
            configuration: A `Config`, pickled.
        """

    @property
    def callbacks(self) -> Dispatcher:
        """Who runs what follows a call of this pool where its own workers can't: its registry's callback threads."""
        return self._callbacks or callbacks_within(WITHIN.get())

    @property
    @abstractmethod
    def follower(self) -> Dispatcher:
        """Who runs what follows its calls."""

    @property
    def chunks(self) -> bool:
        """Whether many items of a map may run as one call."""
        return True

    @property
    def run_chunk(self) -> Callable[..., Done]:
        """What runs many items in one call; see `chunks.run_chunk`."""
        return run_chunk

    def error_of_item(self, name: str, failure: Any) -> BaseException:
        """Return the exception of an item, from what stands among the failures of a chunk of the function *name*."""
        return cast(BaseException, failed(failure)[1])  # with the frames of the user's alone

    def shared(self, value: object) -> object:
        """Return what stands for a value that many calls share, as an argument of each."""
        return value

    @property
    def capacity(self) -> int:
        """How many calls it runs at a time, at most."""
        return 1

    @abstractmethod
    def launch(self, future: Future[Any], /) -> None:
        """
        Queue a call: a future that holds its work, the plain function among it.

        Raises:
            PoolShutdownError: The pool has been shut down.
            PoolBrokenError: The pool can't go on.
        """

    def check(self, fn: Callable[..., Any]) -> None:  # most kinds run anything
        """
        Refuse a plain function that this kind can't run.

        Raises:
            UnsuitableFunctionError: It can't.
        """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """
        Run `fn(*args, **kwargs)` on a worker and return the future of its value.

        Arguments are passed as they are, futures too. A declared function runs as the plain one. What *fn* raises,
        and a value that can't travel, come out of the future.

        Raises:
            PoolShutdownError: The pool has been shut down.
            PoolBrokenError: The pool can't go on.
            PoolFullError: As many calls wait as may, and *on_full* doesn't say that the caller waits for room.
            UnsuitableFunctionError: This kind of pool can't run such a function.
        """
        plain = plain_function(fn)
        self.check(plain)
        work: Work = (plain, args, kwargs or None, copy_context())
        noting = trail.current
        future: Future[T]
        if self.gate is not None:
            future = GatedFuture(work, self.follower)
        elif noting is None or self.tells_times:
            future = Future(work, self.follower)
        else:
            future = TracedFuture(work, self.follower)
        if noting is not None:
            note_call(noting, future, plain, self.number)
        try:
            self.enter(future)
            return future
        finally:
            del args, kwargs, work, future  # an error of a call that was run here refers to this frame: see `failure`

    def enter(self, future: Future[Any]) -> None:
        """Launch a future, through the gate if there is one."""
        try:
            if self.gate is None or not isinstance(future, GatedFuture):
                self.launch(future)
            elif future.pass_gate(self.gate):
                try:
                    self.launch(future)
                except BaseException:
                    future.take_work()  # gives its place in the gate back
                    raise
            else:
                future.run_here()
        finally:
            del future  # as in `submit`

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """
        Take no more calls. What was accepted is run; may be called again.

        Args:
            wait: Return only when all calls have ended and no worker is left. A worker of the pool itself doesn't wait,
                nor does a signal handler that has interrupted a submit.
            cancel_futures: Cancel the calls that have not been started.
        """
        self._note_closing()
        engine = self._engine
        if engine is not None:
            engine.close(cancel_futures)
            if wait and not self.owns_this_thread():
                engine.join()

    def interrupt(self) -> None:
        """After a Ctrl-C: take no more calls, cancel those that wait, end those that run as far as this kind can."""
        self._note_closing()
        engine = self._engine
        if engine is not None:
            engine.close(True)
            engine.interrupt()

    def _note_closing(self) -> None:
        closed, self._closed = self._closed, True
        noting = trail.current
        if noting is not None and not closed:
            noting.note((trail.POOL_CLOSED, trail.clock(), self.number))

    def forsake(self) -> None:
        """After `interrupt`: wait no more for what runs all the same; see `Engine.forsake`."""
        if self._engine is not None:
            self._engine.forsake()

    def remains(self) -> list[str]:
        """Name what of it is there; see `Engine.remains`."""
        return [] if self._engine is None else self._engine.remains()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut it down; after a Ctrl-C, end what runs as far as this kind can, and after a second one, don't wait."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.interrupt()
        self.shutdown(wait=count_interrupts(error) < 2)

    def owns_this_thread(self) -> bool:
        """Tell whether the current thread can't wait: it is one of its workers, or a signal handler amid a submit."""
        if are_asked_here() or TIMER.is_owned() or (self.gate is not None and self.gate.is_owned()):
            return True
        return self._engine is not None and self._engine.owns_this_thread()

    def stats(self) -> PoolStats:
        """Return what the pool does at this moment."""
        # It loads attrs, which takes 20 ms.
        made: PoolStats = import_module("parallel.observe.statistics").stats_of(self)
        return made

    def counts(self) -> Counts:
        """Count its workers and calls: what `stats` says of them."""
        return Counts(0, 0, 0, 0) if self._engine is None else self._engine.counts()

    def at_work(self) -> list[AtWork]:
        """Tell what each of its workers does; see `Engine.at_work`."""
        return [] if self._engine is None else self._engine.at_work()

    def traffic(self) -> Traffic:
        """Count what has gone to its workers; see `Engine.traffic`."""
        return Traffic() if self._engine is None else self._engine.traffic()

    def idle(self) -> int:
        """Wait until no accepted call is left; see `Engine.idle`."""
        return 0 if self._engine is None else self._engine.idle()

    @property
    def label(self) -> str:
        """What messages call it: `thread pool 'io'`."""
        return f"{self.kind} pool {self.name!r}" if self.name else f"{self.kind} pool"

    def __repr__(self) -> str:
        counts = self.counts()
        name = f" {self.name!r}" if self.name else ""
        state = "shut down" if self._closed else "running"
        return f"<{type(self).__name__}{name} {state} [calls: {counts.queued} queued, {counts.running} running]>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(f"{self!r} can't be pickled: a pool belongs to its process; name it, and look it up there")


def pools() -> list[Pool]:
    """Return all pools of this process that somebody holds."""
    return list(_pools)


def engines() -> list[Engine]:
    """Return all engines of this process that are not gone: those of pools, and others."""
    return list(_engines)


def check_workers(max_workers: int | None, default: int) -> int:
    """Return the number of workers to use, *default* for None; refuse what is no positive number."""
    if max_workers is None:
        return default
    if isinstance(max_workers, bool) or not isinstance(max_workers, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"max_workers must be an int or None, found {max_workers!r}")
    if max_workers < 1:
        raise ValueError(f"max_workers must be 1 or more, found {max_workers}")
    return max_workers


def check_pending(max_pending: object) -> int:
    """Refuse a bound of waiting calls that is no positive number."""
    if isinstance(max_pending, bool) or not isinstance(max_pending, int):
        raise TypeError(f"max_pending must be an int or None, found {max_pending!r}")
    if max_pending < 1:
        raise ValueError(f"max_pending must be 1 or more, found {max_pending}")
    return max_pending


def check_full(on_full: object) -> OnFull:
    """Refuse what `on_full` can't be."""
    if on_full not in get_args(OnFull):
        raise ValueError(f"on_full must be one of {', '.join(get_args(OnFull))}; found {on_full!r}")
    return cast(OnFull, on_full)


def check_exit(on_exit: object) -> OnExit:
    """Refuse what `on_exit` can't be."""
    if on_exit not in get_args(OnExit):
        raise ValueError(f"on_exit must be one of {', '.join(get_args(OnExit))}; found {on_exit!r}")
    return cast(OnExit, on_exit)


def check_initializer(initializer: object) -> None:
    """Refuse an initializer that can't be called."""
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be callable or None, found {initializer!r}")


_pools: WeakSet[Pool] = WeakSet()
_numbers = itertools.count(1)
_engines: WeakSet[Engine] = WeakSet()
_helpers: WeakSet[threading.Thread] = WeakSet()
_observing: WeakSet[Observing] = WeakSet()
_draining = False
_exiting = False


def _after_fork_in_child() -> None:
    """Give each pool a fresh engine: the threads, processes and sockets of the old one belong to the parent."""
    global _draining
    _draining = False  # that is the parent's, too
    for engine in _engines:
        engine.abandon()
    _engines.clear()
    _helpers.clear()
    _observing.clear()
    for pool in _pools:
        pool._renew()  # pyright: ignore[reportPrivateUsage]  # same module


def run_dry(engines: Callable[[], Sequence[T]], idle: Callable[[T], int]) -> None:
    """
    Wait until none of *engines* has anything to do, or gets it from another.

    Args:
        engines: Tells which there are; it is asked again, as calls may open pools.
        idle: Waits for one of them, and counts what it has done.
    """
    before: list[tuple[T, int]] = []
    while before != (now := [(engine, idle(engine)) for engine in engines()]):
        before = now  # twice the same: nothing went on between, or it would have counted


def _work_off(engine: Engine) -> int:
    engine.work_off()
    return engine.idle()


def is_draining() -> bool:
    """Tell whether the program is at its end, and runs what it has accepted."""
    return _draining


def _at_exit() -> None:
    """
    Close every engine of the program: accepted calls, and what follows them, are run; of a pool that says so, they are
    cancelled. After an unhandled Ctrl-C all are cancelled, and what runs is waited for; after a second one it isn't.
    """
    global _draining
    interrupts = count_interrupts(getattr(sys, "last_value", None))
    if not interrupts:
        _draining = True
        try:
            for engine in _engines:
                if engine.cancels_at_exit:
                    engine.close(True)
                    engine.interrupt()
            run_dry(lambda: list(_engines), _work_off)
            if trail.current is not None:
                trail.current.tell()
                run_dry(lambda: list(_engines), _work_off)  # what follows by that
        except KeyboardInterrupt:
            _close_all(interrupted=True)  # nothing more is begun while the interpreter ends
            raise
    engines = _close_all(interrupted=interrupts > 0)
    if interrupts < 2:
        for engine in engines:
            engine.join()
        for thread in _helpers:
            with suppress(RuntimeError):  # it has not been started
                join(thread)
        TIMER.close()
    for one in _observing:
        one.end()


def _close_all(*, interrupted: bool) -> list[Engine]:
    """Close every engine; *interrupted*: cancel what waits, and end what runs as far as its kind can."""
    global _exiting
    _exiting = True  # engines made from now on, by threads that still run, are born closed
    engines = list(_engines)
    for engine in engines:
        engine.close(interrupted)
        if interrupted:
            engine.interrupt()
    return engines


def count_interrupts(error: BaseException | None) -> int:
    """Count the Ctrl-C's that *error*, which ends a block or the program, stands for: also one that it came after."""
    if not isinstance(error, KeyboardInterrupt):
        return 0
    return sum(isinstance(one, KeyboardInterrupt) for one in contexts(error))


def exit_before_others() -> None:
    """
    Have the exit run what is accepted before it comes to what others have registered by now.

    Executors of others shut themselves down there, with calls of ours still to come. What is registered last is called
    first; to be called twice does no harm.
    """
    with suppress(RuntimeError):  # the exit has begun
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # as below


class Observing(Protocol):
    """Something that observes pools."""

    def end(self) -> None:
        """Observe nothing any more, and keep nobody waiting for what comes."""
        ...


def end_at_exit(one: Observing) -> None:
    """See that the exit ends it, once the engines have ended."""
    _observing.add(one)


def wait_at_exit(thread: threading.Thread) -> None:
    """See that the exit waits for a daemon thread that only waits for engines, once these have ended."""
    _helpers.add(thread)


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # no public hook runs while threads can still start
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
