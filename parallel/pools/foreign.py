"""
Kind `executor`: any `concurrent.futures.Executor`, made by a factory.

    submit() ──▶ packed ──▶ `Executor.submit(run, packet)` ──▶ its worker ──▶ Answer ──▶ Future ──▶ what follows

Guarantees:
- The executor is given one function only, `run`, and never its `map`. What its futures, or its `shutdown`, can't do is
  done without.
- One that has broken is made anew by its factory, later each time; the calls that had not begun are sent again.
- Calls beyond those that it can run, or is to take, wait here: by priority, and cancellable.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final

from parallel.context import Dispatcher
from parallel.elsewhere import CAPABILITIES
from parallel.gates import OnFull
from parallel.machine import cpus
from parallel.pools.base import OnExit, check_workers, exit_before_others
from parallel.pools.distant.driver import Driver, Events, Loss, aside
from parallel.pools.distant.packets import Packet, Supply
from parallel.pools.distant.pool import DistantPool
from parallel.pools.distant.worker import run

LOGGER = logging.getLogger("parallel")

ATTEMPTS: Final = 5
"""Executors in a row that break without having run any call, until the pool is broken as well."""

PAUSES: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Seconds before another one is made."""


class ExecutorPool(DistantPool):
    """
    A pool that runs its calls on an executor of somebody else's.

    Args:
        factory: Makes the executor, when the first call comes, and again if it has broken.
        kwargs: What it is called with.
        submit_kwargs: What is given to each `submit` of the executor beside the call.
        capabilities: What the executor can do besides. `running`: its futures tell when their calls begin, so that
            more may be queued there, and time counts from then; without it a call has begun when the executor has it.
            `cancel`: to cancel the future of a call that runs ends the call.
        max_workers: Calls that the executor runs at a time; None: what it says itself, as the standard library's do,
            else as many as CPUs.
        initializer: Called once in each of its processes, before the first call. If it raises, the pool is broken.
        initargs: What it is called with.
        upload: Names of modules that the workers don't have, such as `package.module`: each is sent, with its top-level
            package, to each worker process once. What can't be found breaks the pool.
        context: Import strings of the context variables whose values travel with each call.
        max_pending: Calls from outside that may wait; None: any number.
        on_full: What becomes of one more: its caller waits (`block`), gets a `PoolFullError` (`raise`) or runs it
            itself (`run`).
        on_exit: What becomes of what it has accepted when the program ends: all is run (`wait`), or what waits is
            cancelled, and what runs is asked to end (`cancel`).
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call; None: the registry's callback threads.
        configuration: For registries: their `Config`, pickled, for what its calls call. None: there is none.

    Raises:
        TypeError, ValueError: An argument is none of these.
    """

    kind: ClassVar[str] = "executor"

    def __init__(
        self,
        factory: Callable[..., concurrent.futures.Executor],
        kwargs: Mapping[str, Any] | None = None,
        submit_kwargs: Mapping[str, Any] | None = None,
        *,
        capabilities: Sequence[str] = (),
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        upload: Sequence[str] = (),
        context: Sequence[str] = (),
        max_pending: int | None = None,
        on_full: OnFull = "block",
        on_exit: OnExit = "wait",
        name: str = "",
        callbacks: Dispatcher | None = None,
        configuration: bytes | None = None,
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must make an executor, found {factory!r}")
        unknown = [one for one in capabilities if one not in CAPABILITIES]
        if isinstance(capabilities, str) or unknown:
            raise ValueError(f"capabilities must be some of {', '.join(CAPABILITIES)}; found {capabilities!r}")
        self._make_executor = partial(factory, **(kwargs or {}))
        self._submit_kwargs = dict(submit_kwargs or {})
        self._capabilities = frozenset(capabilities)
        self._max_workers = None if max_workers is None else check_workers(max_workers, 1)
        super().__init__(
            initializer=initializer,
            initargs=initargs,
            upload=upload,
            context=context,
            max_pending=max_pending,
            on_full=on_full,
            on_exit=on_exit,
            name=name,
            callbacks=callbacks,
            configuration=configuration,
        )

    def _new_driver(self) -> ExecutorDriver:
        return ExecutorDriver(
            self.label, self._make_executor, self._submit_kwargs, self._capabilities, self._max_workers
        )


class ExecutorDriver(Driver):
    """The way to an executor; see `Driver`."""

    def __init__(
        self,
        label: str,
        make: Callable[[], concurrent.futures.Executor],
        submit_kwargs: dict[str, Any],
        capabilities: frozenset[str],
        max_workers: int | None,
    ) -> None:
        self.kills = "cancel" in capabilities
        self._label = label
        self._make = make
        self._submit_kwargs = submit_kwargs
        self._tells = "running" in capabilities
        self._capacity = max_workers or cpus()
        self._max_workers = max_workers
        self._executor: concurrent.futures.Executor | None = None
        self._loop: asyncio.AbstractEventLoop
        self._events: Events
        self._futures: dict[int, concurrent.futures.Future[Any]] = {}  # those that have not ended
        self._begun: set[int] = set()  # of these, those that run; added to by the executor's threads
        self._parked: list[tuple[Packet, tuple[Supply, ...]]] = []  # until there is an executor again
        self._broken = 0  # executors in a row, of which none has run a call
        self._is_used = False  # this executor has been given a call

    async def open(self, events: Events) -> None:
        """Make the executor."""
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._take(self._make())

    def _take(self, executor: object) -> None:
        if not isinstance(executor, concurrent.futures.Executor):
            raise TypeError(f"the factory must make a concurrent.futures.Executor, found {executor!r}")
        self._executor = executor
        self._is_used = False
        found: object = getattr(executor, "_max_workers", None)
        if self._max_workers is None and isinstance(found, int) and found > 0:
            self._capacity = found

    @property
    def window(self) -> int:
        """As many as it runs; some more if it tells when they begin."""
        if self._executor is None:
            return 0
        return 2 * self._capacity + 2 if self._tells else self._capacity

    @property
    def capacity(self) -> int:
        """How many calls it runs at a time."""
        return self._capacity

    @property
    def workers(self) -> int:
        """As many: an executor doesn't say how many it has."""
        return self._capacity if self._executor is not None else 0

    def send(self, packet: Packet, supplies: tuple[Supply, ...], priority: int = 0) -> None:
        """Submit a call."""
        executor = self._executor
        number = packet.number
        if executor is None:  # it has broken a moment ago
            self._parked.append((packet, supplies))
            return
        attached = ((supply.key, supply.bundle) for supply in supplies)
        try:
            future = executor.submit(run, packet, *attached, **self._submit_kwargs)
        except (concurrent.futures.BrokenExecutor, RuntimeError) as error:  # it was shut down, by whomever
            self._parked.append((packet, supplies))
            self._break(executor, error)
            return
        if not self._is_used:
            self._is_used = True
            exit_before_others()  # some register what they do there only now
        self._futures[number] = future
        if self._tells:
            _tell_beginning(future, partial(self._begins, number))
        else:
            self._begins(number)
        future.add_done_callback(partial(self._tell_end, executor, number))

    def _begins(self, number: int) -> None:
        """On a thread of the executor, or here: note that a call runs."""
        self._begun.add(number)
        self._tell(partial(self._events.began, number))

    def _tell_end(
        self, executor: concurrent.futures.Executor, number: int, future: concurrent.futures.Future[Any]
    ) -> None:
        """On a thread of the executor: have the loop see to the end of a call."""
        self._tell(partial(self._ended, executor, number, future))

    def _tell(self, step: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:  # the loop is gone, as it is in a program that ends by force
            LOGGER.debug("a call of %s went on when nobody was there any more", self._label)

    def _ended(
        self, executor: concurrent.futures.Executor, number: int, future: concurrent.futures.Future[Any]
    ) -> None:
        self._futures.pop(number, None)
        has_begun = number in self._begun
        self._begun.discard(number)
        error = concurrent.futures.CancelledError() if future.cancelled() else future.exception()
        if isinstance(error, concurrent.futures.CancelledError):  # some set it as an error, where it was running
            self._events.lost(number, Loss(True)) if has_begun else self._events.withdrawn(number)
        elif error is None:
            self._broken = 0
            self._events.answered(number, future.result())
        elif isinstance(error, concurrent.futures.BrokenExecutor):
            self._break(executor, error)
            self._events.lost(number, Loss(has_begun, cause=error))
        else:
            self._events.failed(number, error)
        self._events.has_room()

    def _break(self, executor: concurrent.futures.Executor, error: BaseException) -> None:
        """Have another one made, in a while."""
        if self._executor is not executor:
            return  # that is so already
        self._executor = None
        _shut_down(executor, wait=False)
        if self._broken >= ATTEMPTS:
            self._events.broke(f"{ATTEMPTS} executors in a row have broken; the last one: {error}", error)
            return
        pause = PAUSES[self._broken]
        self._broken += 1
        LOGGER.warning("%s: its executor has broken, and is made anew in %s s: %s", self._label, pause, error)
        self._loop.call_later(pause, self._remake)

    def _remake(self) -> None:
        try:
            self._take(self._make())
        except BaseException as error:  # SystemExit too: nobody else would end the calls
            self._events.broke(f"its executor could not be made anew: {error!r}", error)
            return
        parked, self._parked = self._parked, []
        for packet, supplies in parked:
            self.send(packet, supplies)
        self._events.has_room()

    def withdraw(self, number: int) -> None:
        """Cancel it there, or here."""
        future = self._futures.get(number)
        if future is not None:
            _cancel(future)
            return
        before = len(self._parked)
        self._parked = [one for one in self._parked if one[0].number != number]
        if len(self._parked) < before:
            self._events.withdrawn(number)

    def kill(self, number: int) -> None:
        """Cancel it there, where that ends it."""
        self.withdraw(number)

    async def close(self) -> None:
        """Shut the executor down, on a thread: it may take its time. Don't wait for what has overrun its own."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await aside(partial(_shut_down, executor, wait=not self.has_stragglers))


def _tell_beginning(future: concurrent.futures.Future[Any], tell: Callable[[], object]) -> None:
    """Have *tell* called when a call begins: whoever runs it says so to its future, and nothing else tells."""
    begin = future.set_running_or_notify_cancel

    def set_running_or_notify_cancel() -> bool:
        begins = begin()
        if begins:
            tell()
        return begins

    future.set_running_or_notify_cancel = set_running_or_notify_cancel  # type: ignore[method-assign]  # of this one
    if future.running():
        tell()  # perhaps twice


def _cancel(future: concurrent.futures.Future[Any]) -> None:
    try:
        future.cancel()
    except Exception:  # such as NotImplementedError: then it is run, for nobody
        LOGGER.debug("%r can't be cancelled", future, exc_info=True)


def _shut_down(executor: concurrent.futures.Executor, *, wait: bool) -> None:
    """Shut it down, though it may not know all that the standard one does."""
    try:
        if wait or "wait" not in inspect.signature(executor.shutdown).parameters:
            executor.shutdown()
        else:
            executor.shutdown(wait=False)
    except Exception:
        LOGGER.exception("%r could not be shut down", executor)
