"""
Kind `inline`: the caller runs the call, at once. For tests and debuggers.

The future that `submit` returns has ended; what is chained to it runs inline as well. With *check_pickle* the call is
packed and loaded first, and what comes out of it afterwards, as if it went to a worker process: see `rehearsal`, in the
rooms of that kind, which are loaded for it.

State: `_running` and `_done`, changed by single steps.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from parallel import context
from parallel.call import Call
from parallel.context import WITHIN, Dispatcher
from parallel.delivery import INLINE, settle
from parallel.errors import PoolShutdownError
from parallel.futures import Future
from parallel.outcomes import Outcome, Work
from parallel.pools.base import AtWork, Counts, Pool
from parallel.pools.leftovers import calls_left, thread_at_work
from parallel.runs import raise_interrupt, run_by_caller


class InlinePool(Pool):
    """
    A pool without workers: `submit` runs the call itself and returns its ended future.

    A KeyboardInterrupt in a call on the main thread ends the future and is raised by `submit` as well: a Ctrl-C is for
    the program.

    Args:
        check_pickle: Whether each call is packed and loaded as a pool of processes would do it: the function gets
            copies of its arguments, who waits gets a copy of the value or error, and what can't travel fails the call
            as it would there.
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call where its caller can't; None: the registry's callback threads.
    """

    kind: ClassVar[str] = "inline"

    launches_here: ClassVar[bool] = True

    def __init__(self, *, check_pickle: bool = False, name: str = "", callbacks: Dispatcher | None = None) -> None:
        if not isinstance(check_pickle, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may not check types
            raise TypeError(f"check_pickle must be a bool, found {check_pickle!r}")
        super().__init__(name, callbacks)
        self._running: list[Future[Any]] = []
        self._done = 0
        self._rehearsal: Any = None  # kinds never import each other
        if check_pickle:
            # The rooms of another kind, and heavy: for those alone who ask for it.
            self._rehearsal = import_module("parallel.pools.process.rehearsal").Rehearsal()

    def _new_engine(self) -> None:
        return None

    @property
    def follower(self) -> Dispatcher:
        """The caller."""
        return INLINE

    @property
    def chunks(self) -> bool:
        """
        Whether many items of a map may run as one call: only where it stands for a pool of processes, in a worker.

        Elsewhere each is a call of its own, so that nothing hangs on how long they take: see `Flow.fill`.
        """
        return context.in_worker_process and self._rehearsal is None

    def shared(self, value: object) -> object:
        """Return what stands for a value that many calls share: itself, or a copy; see `Pool.shared`."""
        shared: object = value if self._rehearsal is None else self._rehearsal.share(value)
        return shared

    def launch(self, future: Future[Any], /) -> None:
        """Run a call, here and now, and as often as is said; see `Pool.launch`."""
        if self._closed:
            raise PoolShutdownError(self.label)
        future.dispatcher = INLINE
        if self._rehearsal is not None:
            self._pack(future)
        self._running.append(future)
        try:
            with run_by_caller(future):
                future.run_on(INLINE)
                while isinstance(future, Call) and future.comes_again():
                    future.run_on(INLINE)
        finally:
            self._running.remove(future)
            self._done += 1
        try:
            raise_interrupt(future)
        finally:
            del future  # an error's traceback leads here, by way of the frames that called

    def _pack(self, future: Future[Any]) -> None:
        """Replace the work of a future by one that loads and runs it; what can't travel ends it."""
        fields = future.__dict__
        work: Work | None = fields.pop("_work", None)
        if work is None:
            return  # cancelled
        fn, args, kwargs, around = work
        try:
            packed: Outcome | Callable[[], Any] = self._rehearsal.pack(fn, args, kwargs or {}, around)
        except BaseException:
            fields["_work"] = work
            raise
        if callable(packed):
            fields["_work"] = (packed, (), None, around)  # who has cancelled it meanwhile has asked its run
            return
        fields["_work"] = packed
        if (within := around.get(WITHIN)) is not None:
            fields["_within"] = within  # for the report of a failure that nobody looks at
        settle(future, packed, INLINE)

    def remains(self) -> list[str]:
        """Name the calls that other threads run here; see `Engine.remains`."""
        return list(calls_left(self._running.copy(), self.label))

    def at_work(self) -> list[AtWork]:
        """Tell which calls run here; see `Engine.at_work`."""
        return [thread_at_work(None, future, 0)._replace(name="its caller") for future in self._running.copy()]

    def counts(self) -> Counts:
        """Return what the pool does at this moment."""
        return Counts(workers=0, queued=0, running=len(self._running), done=self._done)
