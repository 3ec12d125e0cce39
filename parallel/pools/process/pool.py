"""
Kind `process`: runs calls in child processes, at most `max_workers` at a time.

    submit() ──▶ pickled ──▶ a worker process ──▶ value or error, pickled ──▶ Future ──▶ what follows: callback threads

Guarantees:
- Calls start in submission order and finish in any order. A worker is started only when none is free.
- A worker that dies costs the call that it ran, which fails with `WorkerDiedError`; the pool goes on.
- A call that is ended by force, by its timeout or `cancel(running=True)`, costs its worker only, which is replaced at
  once. Processes that it has started are ended as well, unless they lead a session of their own.
- What can't travel fails its own call with `SerializationError`.
- `shutdown()` may be called twice; with wait=True every worker has exited on return.

How the calls come to the workers is in `engine`, the bytes in `wire`, the child's side in `worker`.

A worker loads this module if the program's main module names the class, but not the engine, which is twice as much: it
is loaded when a pool is made.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import chain, islice
from multiprocessing.context import BaseContext
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast

from parallel import trail
from parallel.chunks import Done
from parallel.context import DEFAULT_CALLBACKS, WITHIN, Dispatcher, callbacks_within
from parallel.durations import Duration, pause
from parallel.futures import Future
from parallel.gates import OnFull
from parallel.machine import cpus
from parallel.outcomes import Outcome
from parallel.pools.base import OnExit, check_initializer, check_workers
from parallel.pools.handing import Handing, HandingPool, Tally
from parallel.pools.process.carrying import Carrier
from parallel.pools.process.constants import Constant
from parallel.pools.process.items import run_items
from parallel.pools.process.packing import Packed
from parallel.pools.process.pickling import main_is_importable
from parallel.pools.process.replies import error_of_item
from parallel.pools.process.surroundings import Surroundings, thread_variables
from parallel.pools.process.worker import Setup, run_chunk
from parallel.sizes import Size

if TYPE_CHECKING:
    from parallel.kinds import Workplace
    from parallel.pools.process.engine import Staff
    from parallel.pools.process.logs import Levels

P = ParamSpec("P")
T = TypeVar("T")


class ProcessPool(HandingPool):
    """
    A pool of processes; an `Executor` as `concurrent.futures.ProcessPoolExecutor` is, and with its arguments.

    Functions, arguments and values have to be picklable, by the standard pickle or by cloudpickle: lambdas and
    closures are. A script has to start its calls under `if __name__ == "__main__":`, as each worker imports it.

    Args:
        max_workers: Processes at most; None: as many as the CPUs that this process may use.
        mp_context: How they are started: `"forkserver"`, `"spawn"`, `"fork"`, or a context of multiprocessing. None:
            forkserver on Linux, spawn elsewhere. Under fork all are started by the first call; those that take the
            place of others later are forked while threads of the pool run, which fork can't make safe.
        initializer: Called at the start of each worker. If it raises, the pool is broken.
        initargs: What it is called with.
        max_tasks_per_child: Calls after which a worker is replaced; None: never. Works with every start method.
        kill_grace: How long a worker that is killed, as its call has overrun its time or was cancelled, may take to
            end after SIGTERM, before SIGKILL. Only one with a handler for SIGTERM takes any time; nobody waits for it.
        preload: Names of modules that a worker has loaded before its first call. Under forkserver they are imported
            once, in a fork server of the pool's own, and the workers start with them; else by each worker at its start.
            One that can't be imported breaks the pool, with its error.
        env: Variables of the workers' environment, besides those of this process, and instead of them. Under forkserver
            and spawn they are there before anything is loaded; under fork, before the initializer is called. This
            process's own environment stays as it is.
        cwd: The workers' working directory; None: that of this process. It has to be there at the first call.
        threads_per_worker: Threads that numerical libraries may start in a worker: BLAS, OpenMP, MKL, numexpr, numba.
            None: its share of the CPUs, 1 at least, as far as the environment doesn't say. Under fork it comes too late
            for those that this process has loaded.
        max_memory_per_child: Bytes, or a string such as `"500MB"`, above which a worker is replaced after its present
            call: what it has in use, preloaded modules included, is looked at between calls. None: it never is. One
            that takes more before its first call breaks the pool, as each would.
        hard_memory_limit: Bytes, or a string such as `"2GB"`, that a worker's own data can't go beyond; what it calls
            gets a `MemoryError` then, or dies if it doesn't expect one. None: no limit. See `memory.limit_memory`.
        idle_timeout: Seconds, or a string such as `"5m"`, after which a worker without a call leaves, up to a quarter
            later; all may, and the next call starts one again. None: they stay.
        memory_free: Bytes, or a string such as `"2GiB"`, that have to be free on the machine where a call starts, or a
            further worker, unless nothing of this pool runs; the others wait for it. None: any amount.
        max_pending: Calls from outside that may wait for a worker; None: any number.
        on_full: What becomes of one more: its caller waits (`block`), gets a `PoolFullError` (`raise`) or runs it
            itself, in its own process (`run`).
        on_exit: What becomes of what it has accepted when the program ends: all is run (`wait`), or what waits is
            cancelled, and what runs is asked to end, as after a Ctrl-C (`cancel`).
        name: The pool's name, for messages.
        context: Import strings, `package.module:variable`, of the context variables whose values travel with each
            call; they have to be picklable.
        forward_logs: Whether the log records of the workers are handled by the loggers of this process, as they are
            when a worker starts. None: if one of these has a handler then; else a worker logs as any process does.
        callbacks: Who runs what follows a call; None: the registry's callback threads.
        configuration: For registries: their `Config`, pickled, which the workers' default registry has too. None:
            they find their own.

    Raises:
        TypeError, ValueError: An argument is none of these.
        ImportError, AttributeError: An import string of *context* names nothing.
    """

    kind: ClassVar[str] = "process"
    tells_times: ClassVar[bool] = True
    wants_configuration: ClassVar[bool] = True
    pickles: ClassVar[bool] = True
    launches_here: ClassVar[bool] = True

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: str | BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        kill_grace: Duration = 1.0,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | PathLike[str] | None = None,
        threads_per_worker: int | None = None,
        max_memory_per_child: Size | None = None,
        hard_memory_limit: Size | None = None,
        idle_timeout: Duration | None = None,
        memory_free: Size | None = None,
        max_pending: int | None = None,
        on_full: OnFull = "block",
        on_exit: OnExit = "wait",
        name: str = "",
        context: Sequence[str] = (),
        forward_logs: bool | None = None,
        callbacks: Dispatcher | None = None,
        configuration: bytes | None = None,
    ) -> None:
        check_initializer(initializer)
        self._max_workers = check_workers(max_workers, cpus())
        self._context = _context(mp_context)
        self._initializer = (initializer, initargs)
        self._configuration = configuration
        self._asks_for_threads = threads_per_worker is not None
        workplace = _workplace(
            preload=preload,
            env=env,
            cwd=cwd,
            threads_per_worker=threads_per_worker,
            max_memory_per_child=max_memory_per_child,
            hard_memory_limit=hard_memory_limit,
            idle_timeout=idle_timeout,
        )
        self._surroundings = _surroundings(workplace, self._max_workers)
        self._idle_timeout = None if workplace is None else workplace.idle_timeout
        self._memory_free = _memory_free(memory_free)
        self._max_tasks = _check_tasks(max_tasks_per_child)
        self._kill_grace = _check_grace(kill_grace)
        self._carrier = Carrier(context) if context else None
        self._levels = partial(_levels, forward_logs)
        super().__init__(name, callbacks, max_pending, on_full, on_exit)

    def _new_engine(self) -> Staff:
        thread_name = f"parallel-{self.name or 'process'}"
        self._handed = Tally()
        room: Any = import_module("parallel.pools.process.engine")
        launcher = room.Launcher(self.label, self._context, self._surroundings, self._asks_for_threads)
        setup = Setup(
            *self._initializer,
            not main_is_importable(),
            self._configuration,
            launcher.inside,
            self.label,
            self._levels,
        )
        staff: Staff = room.Staff(
            room.Settings(
                self.label,
                thread_name,
                self._max_workers,
                launcher,
                setup,
                self._max_tasks,
                self._kill_grace,
                None if self._idle_timeout == math.inf else self._idle_timeout,
                self._memory_free,
                self.number,
            ),
            self._carrier,
        )
        self._staff = staff
        return staff

    @property
    def max_workers(self) -> int:
        """
        Processes at most; it may be changed at any time.

        More are started when calls wait. Those too many leave: idle ones at once, the others after their present calls;
        what they have not begun goes to others. The variables of threads stay as they were.
        """
        return self._max_workers

    @max_workers.setter
    def max_workers(self, max_workers: int | None) -> None:
        self._max_workers = check_workers(max_workers, cpus())
        self._staff.resize(self._max_workers)
        noting = trail.current
        if noting is not None:
            noting.note((trail.POOL_RESIZED, trail.clock(), self.number, self._max_workers))

    def reconfigure(self, configuration: bytes) -> None:
        """Have the default registries of workers made from another configuration; see `Pool.reconfigure`."""
        self._configuration = configuration
        self._staff.reconfigure(configuration)

    @property
    def capacity(self) -> int:
        """How many calls it runs at a time, at most."""
        return self._max_workers

    @property
    def run_chunk(self) -> Callable[..., Done]:
        """What runs many items in one call, and notes how far it has come; see `Pool.run_chunk`."""
        return run_items

    def error_of_item(self, name: str, failure: Any) -> BaseException:
        """Return the exception of an item, which has travelled; see `Pool.error_of_item`."""
        return error_of_item(name, failure)

    def shared(self, value: object) -> object:
        """Return what stands for a value that many calls share: it travels once to each worker."""
        return self.constant(value)

    @property
    def follower(self) -> Dispatcher:
        """The callback threads."""
        return self.handing(self._handed)

    def handing(self, tally: Tally) -> Handing:
        """Return the dispatcher of its futures, through which they reach the engine; see `HandingPool.handing`."""
        handing = super().handing(tally)
        if handing.kill is None:
            staff = self._staff
            handing.lead, handing.kill, handing.ask = staff.lead, staff.kill, staff.ask
        return handing

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a worker; see `Pool.submit`."""
        if self.gate is not None or trail.current is not None:
            return super().submit(fn, *args, **kwargs)
        staff = self._staff
        packed: Packed | Outcome = (None if kwargs else staff.pack_quickly(fn, args)) or staff.pack(fn, args, kwargs)
        within = WITHIN.get()
        callbacks = self._callbacks or (DEFAULT_CALLBACKS if within is None else callbacks_within(within))
        handing = self._handing
        if handing is None or handing.callbacks is not callbacks or handing.tally is not self._handed:
            handing = self.handing(self._handed)
        future: Future[T] = Future(packed, handing)
        if within is not None:
            future.__dict__["_within"] = within  # for the report of a failure that nobody looks at
        if type(packed) is Packed:
            staff.take(future, packed[0])
        else:
            staff.take_unsendable(future, cast(Outcome, packed))
        return future

    def constant(self, value: object) -> Constant:
        """
        Return what may stand for *value* among the arguments of this pool's calls.

        It is packed once, as it is now, and sent once to each worker, whose calls share it: what one of them writes
        into it, later ones there see. The workers drop it when nobody refers to the constant, nor a call with it. What
        pickling *value* raises, comes out.
        """
        return self._staff.constant(value)

    def launch(self, future: Future[Any], /) -> None:
        """Pack a call and queue it; see `Pool.launch`."""
        future.dispatcher = self.follower
        self._staff.take_unpacked(future)

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """
        Call *fn* with the items of the iterables, and yield the values in order, as `Executor.map` does.

        Args:
            fn: Takes one item of each iterable.
            iterables: Read to their end before the first value is yielded; the shortest ends them.
            timeout: Seconds from now until the last value must be there, None for ever.
            chunksize: Items that travel as one message. One that fails costs the values of its chunk.

        Raises:
            ValueError: *chunksize* is less than 1.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be 1 or more, found {chunksize}")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(islice(items, chunksize)), [])
        return chain.from_iterable(super().map(partial(run_chunk, fn), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; see `Pool.shutdown`. With *wait*, what follows the calls has been run as well."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait and not self.owns_this_thread():
            self._handed.wait()

    def owns_this_thread(self) -> bool:
        """Tell whether this thread can't wait for the pool."""
        return super().owns_this_thread() or self._handed.is_owned()

    def idle(self) -> int:
        """Wait until no accepted call is left, nor anything that follows one; see `Engine.idle`."""
        return super().idle() + self._handed.wait()


def _levels(forward: bool | None) -> Levels | None:
    """Return what workers are to log: see `logs`, a room that a worker loads only if it forwards its records."""
    levels: Levels | None = import_module("parallel.pools.process.logs").levels_now(forward)
    return levels


def _workplace(**said: object) -> Workplace | None:
    """Check what is said about the processes of a pool; None if nothing is, as the room takes 25 ms to load."""
    if all(value is None or value == () for value in said.values()):
        return None
    workplace: Workplace = import_module("parallel.kinds").Workplace(**said)
    return workplace


def _memory_free(said: Size | None) -> int | None:
    if said is None:
        return None
    least: int | None = import_module("parallel.shortage").check_memory_free(said)  # a room that no worker needs
    return least


def _surroundings(workplace: Workplace | None, workers: int) -> Surroundings:
    threads = max(1, cpus() // workers)
    if workplace is None:
        return Surroundings(thread_variables(threads, False, os.environ))
    said = workplace.env or {}
    asked = workplace.threads_per_worker is not None
    return Surroundings(
        env={**thread_variables(workplace.threads_per_worker or threads, asked, os.environ), **said},
        cwd=None if workplace.cwd is None else os.path.abspath(workplace.cwd),
        preload=workplace.preload,
        soft_limit=workplace.max_memory_per_child,
        hard_limit=workplace.hard_memory_limit,
        is_plain=not (said or workplace.cwd is not None or workplace.preload),
    )


def _context(given: str | BaseContext | None) -> BaseContext:
    if isinstance(given, BaseContext):
        return given
    if given is None:
        given = "forkserver" if sys.platform == "linux" else "spawn"
    if not isinstance(given, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may not check types
        raise TypeError(f"mp_context must be a start method, a context of multiprocessing or None, found {given!r}")
    return multiprocessing.get_context(given)


def _check_grace(grace: Duration) -> float:
    try:
        return pause(grace)
    except (TypeError, ValueError) as error:
        raise type(error)(f"kill_grace: {error}") from None


def _check_tasks(max_tasks: int | None) -> int | None:
    if max_tasks is None:
        return None
    if isinstance(max_tasks, bool) or not isinstance(max_tasks, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"max_tasks_per_child must be an int or None, found {max_tasks!r}")
    if max_tasks < 1:
        raise ValueError(f"max_tasks_per_child must be 1 or more, found {max_tasks}")
    return max_tasks
