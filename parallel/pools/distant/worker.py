"""
The worker's side: runs one packet, in whatever process somebody else's engine has brought it to.

    run(packet) ──▶ what it lacks? ──▶ NEEDS
               └──▶ once in each process: uploads, initializer ──▶ function found, arguments loaded, called ──▶ Answer

Guarantees:
- Whatever a call raises, SystemExit and KeyboardInterrupt included, is the answer of that call; nothing gets out.
- The calls that a function makes go to the registry of the program that sent it, made anew here: its pools of
  processes, and those of somebody else's engines, run them inline, on the thread at hand.

State: `_supplies`, `_entered` and `_registries`, guarded by `_lock`, which is held while an initializer runs, and while
what was uploaded is imported; `_runs`, changed by single atomic steps; `_here`, per thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Context
from functools import partial
from importlib import import_module
from typing import Any, Final, cast

from parallel.chunks import Done, Notebook, Seeding, run_chunk
from parallel.context import RUNNING, WITHIN, Within, enter_worker_process, name_of
from parallel.coroutines import run_coroutine
from parallel.deadlines import Deadline
from parallel.outcomes import is_coroutine
from parallel.pools.distant import telling, uploads
from parallel.pools.distant.packets import (
    BY_VALUE,
    NEEDS,
    Answer,
    Bundle,
    Facts,
    Packet,
    Setup,
    bundle,
    origin,
    set_stock,
)
from parallel.pools.process import carrying
from parallel.pools.process.failures import pack_error
from parallel.pools.process.inside import About, Distant, deadline_at
from parallel.pools.process.inside import Facts as LocalFacts
from parallel.pools.process.pickling import dumps, loads
from parallel.pools.process.references import resolve
from parallel.pools.process.wire import BROKEN, FAILED, NOT_FOUND, POSTED, UNREADABLE, UNSENDABLE
from parallel.runs import Run
from parallel.states import State

KEPT: Final = 8
"""Supplies that a process keeps for later calls. A map has one for each constant, and a few maps may run."""


class Supplied:
    """A supply that has come; it is loaded when first asked for, and shared by the calls of this process."""

    def __init__(self, packed: Bundle) -> None:
        self._packed: Bundle | None = packed
        self._value: Any = None
        self._lock = threading.RLock()

    def value(self) -> Any:
        """Return it; what loading it raises, comes out."""
        with self._lock:
            if self._packed is not None:
                self._value = self._packed.load()
                self._packed = None
            return self._value


class _Here(threading.local):
    """What the call on this thread may ask for."""

    supplies: Mapping[str, Supplied] = {}


_here = _Here()
_lock = threading.RLock()
_supplies: OrderedDict[str, Supplied] = OrderedDict()  # the one that was needed last comes last
_setups: dict[str, Setup | Answer] = {}  # those that have been entered; or how that has failed
_initialized: set[str] = set()  # the pools whose initializers have been called
_registries: dict[bytes, Any] = {}
_runs: dict[tuple[str, int], RemoteRun] = {}


def run(packet: Packet, *attached: tuple[str, Bundle]) -> Answer:
    """
    Run a call.

    Args:
        packet: The call.
        attached: What it needs, and this process may lack.
    """
    with _lock:
        come = {key: _supplies.get(key) or Supplied(packed) for key, packed in attached}
        setup = _setups.get(packet.setup)
        if isinstance(setup, Setup) and setup.uploads and not uploads.use(setup.uploads):
            _initialized.discard(setup.pool)  # what it uploaded was thrown away, for that of many others
            setup = None
        if setup is None and packet.setup in come:
            setup = _setups[packet.setup] = _entered(packet, come.pop(packet.setup))
        found = {key: come.get(key) or _supplies.get(key) for key in packet.needs}
        _supplies.update(come)
        for key in packet.needs:
            if key in _supplies:
                _supplies.move_to_end(key)
        while len(_supplies) > KEPT:
            _supplies.popitem(last=False)
    supplies = {key: supplied for key, supplied in found.items() if supplied is not None}
    if setup is None or len(supplies) < len(found):
        lacking = [key for key in packet.needs if key not in supplies]
        return (NEEDS, *lacking) if setup is not None else (NEEDS, packet.setup, *lacking)
    if not isinstance(setup, Setup):
        return setup
    return Context().run(_run, packet, setup, supplies)


def _entered(packet: Packet, supplied: Supplied) -> Setup | Answer:
    """Under the lock: do what is to be done in a process before the first call of a pool."""
    try:
        setup = cast(Setup, supplied.value())
        if packet.origin != origin():  # else the engine's workers are threads of the sender
            Context().run(enter_worker_process, None)
            sys.path.extend(place for place in setup.path if place not in sys.path)
            setup = setup._replace(uploads=uploads.enter(setup.uploads))
        else:
            setup = setup._replace(uploads=())
        if setup.initializer is not None and setup.pool not in _initialized:
            initializer, initargs = setup.initializer.load()
            Context().run(initializer, *initargs)
            _initialized.add(setup.pool)
        return setup._replace(initializer=None)
    except KeyboardInterrupt:  # the call is being cancelled, by an engine that does it so: the next one begins anew
        raise
    except BaseException as error:  # whatever it is, the pool has to tell whoever waits
        return (BROKEN, *pack_error(error, BY_VALUE))


def _run(packet: Packet, setup: Setup, supplies: Mapping[str, Supplied]) -> Answer:
    """In a context of its own: run the call, as its function may ask about it."""
    run = RemoteRun(About(packet.name, setup.label), packet.facts)
    before, _here.supplies = _here.supplies, supplies
    key = packet.origin, packet.number
    _runs[key] = run
    if packet.line is not None:
        run.entry = telling.begin(packet.number, packet.line, at_once=packet.facts.is_timed)
    RUNNING.set(cast(Any, run))
    WITHIN.set(Within(_registry_of(setup), None, run.deadline))
    try:
        return _answer(packet, setup)
    finally:
        if run.entry is not None:
            telling.end(run.entry)
        _runs.pop(key, None)
        _here.supplies = before


def _answer(packet: Packet, setup: Setup) -> Answer:
    problem = NOT_FOUND
    try:
        with _lock if setup.uploads else nullcontext():  # until all is found that the call needs of its own version
            uploads.use(setup.uploads)  # another thread may have brought in other ones
            fn: Any = loads(packet.function) if packet.by_value else resolve(packet.function)
            problem = UNREADABLE
            args, kwargs, *carried = packet.arguments.load()
        if carried:
            carrying.enter(carried[0])
        problem = FAILED
        value: Any = fn(*args, **kwargs)
        if is_coroutine(value):
            value = run_coroutine(value)
        problem = UNSENDABLE
        return (POSTED, _packed(value))
    except BaseException as error:  # each is an answer
        return (problem, *pack_error(error, BY_VALUE))


def _packed(value: Any) -> Bundle:
    """Return what a value travels as; what comes out of a chunk, without that which can't."""
    try:
        return bundle(value)
    except BaseException:
        if not isinstance(value, Done):
            raise
    value = value.awaited(cast(Any, run_coroutine), partial(pack_error, main_by_value=BY_VALUE))
    return bundle(value.only_sound(partial(dumps, main_by_value=BY_VALUE), _refuse))


def _refuse(error: BaseException) -> tuple[Any, ...]:
    """Return what the failure of an item travels as whose value can't, because of *error*."""
    return (*pack_error(error, BY_VALUE), UNSENDABLE)


def _registry_of(setup: Setup) -> Any:
    """Return the registry for what a call of that pool calls; None: that of this process."""
    if setup.configuration is None:
        return None
    with _lock:
        registry = _registries.get(setup.configuration)
        if registry is None:
            # A room above this one: only a worker has to do with it, and only if functions come with a configuration.
            room: Any = import_module("parallel.registry")
            registry = _registries[setup.configuration] = room.nested_registry(setup.configuration)
        return registry


def ask_to_stop(sender: str, number: int) -> bool:
    """Ask a call that runs in this process to stop; False if there is none."""
    run = _runs.get((sender, number))
    if run is None:
        return False
    run.ask()
    return True


class RemoteRun(Run):
    """The run of a call whose future is in another process."""

    __slots__ = ("_distant", "budget", "deadline", "entry")

    def __init__(self, about: About, facts: Facts) -> None:
        """
        Make one.

        Args:
            about: What it is called.
            facts: What its sender has told about it.
        """
        at = None if facts.seconds is None else time.monotonic() + facts.seconds
        self._distant = Distant(about, LocalFacts(facts.id, facts.attempt, at))
        self.deadline: Deadline | None = None if at is None else deadline_at(at)
        self.entry: telling.Entry | None = None
        self.budget = facts.budget
        super().__init__(cast("State[Any]", self._distant), None, facts.attempt)

    def is_called(self, name: str) -> None:
        """Note the function that it calls with many items: it is known by the name of that."""
        self._distant.is_called(name)

    def lend(self, awaited: Any) -> None:
        """Nothing: its places are held where it comes from."""

    def unlend(self) -> None:
        """Nothing was lent."""


def run_items(
    fn: Callable[..., Any],
    items: Sequence[Any],
    spread: bool,
    constants: Mapping[str, Any],
    seeding: Seeding | None = None,
) -> Done:
    """Call a function with one item after the other, in the worker of a packet; see `run_chunk`."""
    run = cast(RemoteRun, RUNNING.get())
    run.is_called(name_of(fn))
    return run_chunk(fn, items, spread, constants, seeding, Notes(run.entry, run.budget))


class Notes(Notebook):
    """The notes of a chunk, for the teller. Each error is an item's; it goes on."""

    caught = (BaseException,)

    def __init__(self, entry: telling.Entry | None, budget: int) -> None:
        self._entry = entry
        self.budget = budget

    def enter(self, number: int, size: int) -> None:
        """Note which items are begun."""
        entry = self._entry
        if entry is not None:
            entry.item, entry.size = number, size

    def complete(self, done: Done) -> Done:
        """Return the same: a coroutine can't be pickled, so it is seen when the answer is packed."""
        return done

    def pack(self, error: BaseException) -> tuple[bytes, bytes]:
        """Return what an exception travels as."""
        return pack_error(error, BY_VALUE)


def _find(key: str) -> Any:
    """Return a supply, for a call on this thread that needs it."""
    return _here.supplies[key].value()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _supplies.clear()  # another thread may have been loading one, and have held its lock


set_stock(_find)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
