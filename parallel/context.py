"""
The ContextVars, the thread-locals and the Protocols by which a lower room speaks to a higher one.

A future is made below the pools, and a pool below the registry. What they need from above they get through the
Protocols here: who makes a future gives it its `Dispatcher`, a worker thread says in `this.worker` how it waits, and
the program's default registry is made by `registry_source`, which the package itself sets.

State: `WITHIN` and `RUNNING` are per context, `this` is per thread. `_source` and `_era` are written once at import and
after a fork, when no other thread runs. `_renewing` is held by who renews something that was inherited by a fork.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from asyncio import Runner
    from concurrent.futures import Executor

T = TypeVar("T")


class Step(Protocol):
    """A piece of work that a dispatcher runs: a queued call, a continuation, a callback."""

    @property
    def priority(self) -> int:
        """The higher, the earlier it is run, where priorities count; 0 is usual."""
        ...

    def run_on(self, here: Dispatcher) -> None:
        """Run it on a thread of *here*. Must not raise."""
        ...


class Dispatcher(Protocol):
    """Runs what follows a call, on threads where user code may block."""

    @property
    def era(self) -> int:
        """The `era()` in which it was made: in a forked child an older one has no threads."""
        ...

    def dispatch(self, step: Step) -> None:
        """
        Have *step* run soon, not on the calling thread (the inline dispatcher excepted).

        Raises:
            PoolShutdownError: There are no threads any more that could run it.
        """
        ...

    def fuses(self, link: Any, dispatcher: Dispatcher, /) -> bool:
        """Tell whether *link*, which is *dispatcher*'s to run, may run at once on a thread of this one: no hop."""
        ...


class Running(Protocol):
    """One attempt of a call, as seen from inside the function that it runs."""

    def lend(self, awaited: Any) -> None:
        """Lend what it holds, such as its place under a limit, to *awaited*; None: to whoever comes."""
        ...

    def unlend(self) -> None:
        """Take it back."""
        ...


class Deadline(Protocol):
    """The moment at which calls have to have ended."""

    @property
    def at(self) -> float:
        """That moment, on the clock of `time.monotonic`."""
        ...


class Group(Protocol):
    """What a `TaskGroup` is for the calls that are made in it."""

    @property
    def limits(self) -> Any:
        """The `Limits` of its calls; None if it has none."""
        ...

    def adopt(self, future: Any, /) -> None:
        """
        Take *future* in: it ends before the group does.

        Raises:
            GroupClosedError: The group's block has ended.
            CancelledError: The group has been cancelled, and *future* is a call: nothing feeds it.
        """
        ...

    def entrust(self, future: Any, taker: Any, /) -> None:
        """Leave it to *taker* what becomes of a failure of *future*, unless that one is cancelled."""
        ...

    def look(self) -> None:
        """Note that this thread is about to wait: nothing takes on the failures of what it has made so far any more."""
        ...


class Within:
    """
    What calls are made within; each that is None isn't there. Never changed: a block makes another one.

    Attributes:
        registry: The registry of the block; None: the program's default one.
        group: The task group that adopts the calls.
        deadline: When they have to have ended.
    """

    __slots__ = ("deadline", "group", "registry")

    def __init__(
        self, registry: Home | None = None, group: Group | None = None, deadline: Deadline | None = None
    ) -> None:
        self.registry = registry
        self.group = group
        self.deadline = deadline


class Waiter(Protocol):
    """How a worker thread waits for a future: by running it itself, or by lending its place to a spare worker."""

    running: Any
    """What it runs now, a future or a `Running`; None: nothing, or that is told by `RUNNING`."""

    def wait(self, future: Any, timeout: float | None) -> bool:
        """Return once *future* has ended; False if *timeout* seconds came first (None: no limit)."""
        ...

    def check(self, futures: Iterable[Any], /) -> None:
        """
        See that this thread may block until some of *futures* have ended.

        Raises:
            DeadlockError: It would block what they hang on.
        """
        ...

    def lend(self, awaited: Any = None) -> None:
        """Give this thread's place to a spare worker, as it is about to wait: for the future *awaited*, if known."""
        ...

    def unlend(self) -> None:
        """Take the place back."""
        ...

    def replace(self) -> None:
        """From another thread: give the place away, as the call that runs here has overrun its time."""
        ...

    def come_back(self) -> None:
        """Take that place back, as the call has ended."""
        ...


class Home(Protocol):
    """What futures, and pools used on their own, need of a registry."""

    @property
    def callbacks(self) -> Dispatcher:
        """The callback threads."""
        ...

    @property
    def unobserved(self) -> str:
        """What is done about a failure that nobody looked at: `log`, `warn`, `raise` or `ignore`."""
        ...

    def pool(self, name: str, /) -> Executor:
        """
        The pool of that name, opened if it is not.

        Raises:
            UnknownPoolError: No pool has this name.
            PoolShutdownError: The registry has been shut down.
        """
        ...


class Inherited(Protocol):
    """What a forked child goes on with, though a thread that is no more may have held its lock."""

    era: int
    """The `era()` in which its lock was made."""

    def renew(self) -> None:
        """Take a lock that nobody holds."""
        ...


class Named:
    """The base of what takes the place of a function under its name, and travels by that."""

    __slots__ = ()

    def reduce_by_value(self) -> tuple[Any, ...]:
        """Return what pickle needs to make it again where nobody can import it: see `object.__reduce__`."""
        raise TypeError(f"{self!r} can only travel by its name")


class Declared(Named):
    """
    The base of a declared function. An executor that is handed one runs the plain function in it.

    Attributes:
        __wrapped__: The plain function, bound as the declared one is.
    """

    __slots__ = ("__wrapped__",)
    __wrapped__: Callable[..., Any]

    def submits_lightly(self) -> bool:
        """Tell whether calling it only queues a call: no code of the user's runs, and nothing blocks."""
        return False

    def stages(self) -> tuple[object, ...]:
        """Return what it is made of, in order, if that is more than the plain function."""
        return ()


class _ThisThread(threading.local):
    """What is particular to the current thread."""

    worker: Waiter | None = None
    """How this thread waits for a future; None: it sleeps."""

    runner: Runner | None = None
    """The event loop in which this worker runs coroutines, once one came."""


this = _ThisThread()

WITHIN: ContextVar[Within | None] = ContextVar("parallel.within", default=None)
"""What calls are made within here; None: nothing in particular."""

RUNNING: ContextVar[Any] = ContextVar("parallel.running", default=None)
"""The future or `Running` of the call that runs here, where no worker of ours knows it: in a coroutine, or inline."""

in_worker_process = False
"""True in a worker process of a process pool: there, process pools run inline."""

inherited_configuration: bytes | None = None
"""In a worker process, what its default registry is to be made from; unpickled, and forgotten, when it is."""

MAIN_FILE: Final[str | None] = getattr(sys.modules.get("__main__"), "__file__", None)
"""The program's file: the interpreter forgets it when the script has come to its end, and calls may be left."""

_NOTHING: Final = Within()

_source: Callable[[], Home] | None = None
_source_is_loaded = False
_era = 0
_renewing = threading.RLock()


def era() -> int:
    """Count the forks that lie between the program's first process and this one."""
    return _era


def renew(owner: Inherited) -> None:
    """In a forked child, have *owner* renewed once, whoever asks first."""
    with _renewing:
        if owner.era != _era:
            owner.renew()
            owner.era = _era


def _next_era() -> None:
    global _era, _renewing
    _era += 1
    _renewing = threading.RLock()  # a thread that is no more may have held the old one
    this.worker = None  # its pool stayed in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_next_era)


def registry_source(source: Callable[[], Home], *, is_loaded: bool) -> None:
    """
    Say how the program's default registry is reached.

    Args:
        source: Returns it.
        is_loaded: The room that makes it is loaded: it says so itself. Before, the package says how to load it.
    """
    global _source, _source_is_loaded
    _source = source
    _source_is_loaded = is_loaded


def entered(*, registry: Home | None = None, group: Group | None = None, deadline: Deadline | None = None) -> Within:
    """Return what calls are made within in a block that sets these; the rest is as it is around it."""
    around = WITHIN.get() or _NOTHING
    return Within(registry or around.registry, group or around.group, deadline or around.deadline)


def take_in(future: Any) -> None:
    """
    Have the group of the present block, if it has one, adopt *future*.

    Raises:
        GroupClosedError: The group's block has ended.
        CancelledError: The group has been cancelled, and *future* is a call.
    """
    within = WITHIN.get()
    if within is not None and within.group is not None:
        within.group.adopt(future)


def about_to_wait() -> None:
    """Tell the task group of this block, if there is one, that this thread is about to wait."""
    within = WITHIN.get()
    if within is not None and within.group is not None:
        within.group.look()


def current_registry() -> Home:
    """Return the registry of this block, or else the program's default one."""
    within = WITHIN.get()
    return (within and within.registry) or default_registry()


def default_registry_if_loaded() -> Home | None:
    """
    Return the program's default registry; None if nothing has asked for it: then nothing was configured.

    For what runs at the interpreter's end: to load anything then takes time, and may change the exit status.
    """
    return default_registry() if _source_is_loaded else None


def default_registry() -> Home:
    """Return the program's default registry."""
    assert _source is not None, "`import parallel` sets it"
    return _source()


class LateCallbacks:
    """The callback threads of a registry, asked for when the first step comes: who chains nothing needs none."""

    __slots__ = ("_callbacks",)

    def __init__(self, callbacks: Callable[[], Dispatcher]) -> None:
        self._callbacks = callbacks

    @property
    def era(self) -> int:
        """The present one: a forked child's registry has callback threads of its own."""
        return _era

    def dispatch(self, step: Step) -> None:
        """Queue what follows a call."""
        self._callbacks().dispatch(step)

    def fuses(self, link: object, dispatcher: Dispatcher) -> bool:
        """No thread is known as one of its own; see `Dispatcher`."""
        return False


DEFAULT_CALLBACKS: Final = LateCallbacks(lambda: default_registry().callbacks)
"""Those of the program's default registry, whichever that is by then."""


def callbacks_within(within: Within | None) -> Dispatcher:
    """Return the callback threads for calls that are made within that."""
    registry = None if within is None else within.registry
    return DEFAULT_CALLBACKS if registry is None else registry.callbacks


def enter_worker_process(configuration: bytes | None) -> None:
    """
    Note that this process is a worker of a process pool.

    Args:
        configuration: That of the pool's registry, pickled; None: the pool has none.
    """
    global in_worker_process, inherited_configuration
    in_worker_process = True
    inherited_configuration = configuration
    WITHIN.set(None)  # under fork, what the forking thread had
    RUNNING.set(None)


def plain_function(fn: Callable[..., T]) -> Callable[..., T]:
    """Return *fn*, or for a declared function the plain one inside."""
    plain: Any = fn
    while isinstance(plain, Declared):
        plain = plain.__wrapped__
    return cast("Callable[..., T]", plain)


def name_of(fn: Callable[..., Any]) -> str:
    """Name *fn* for people and for patterns, `module:qualname`, whatever kind of callable it is."""
    module = module_of(fn)
    if module in _MAIN:
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = "__main__" if spec is None else spec.name  # its real name under `python -m`
    fn = _named(fn)
    return f"{module}:{getattr(fn, '__qualname__', None) or type(fn).__qualname__}"


def module_of(fn: Callable[..., Any]) -> str:
    """Return the name of the module that *fn* was defined in, whatever kind of callable it is."""
    fn = _named(fn)
    return str(getattr(fn, "__module__", None) or type(fn).__module__)


def _named(fn: Any) -> Any:
    """Return what names *fn*: of a partial that has been given no name, its function."""
    named: Any = fn
    while isinstance(named, partial) and "__qualname__" not in vars(cast(Any, named)):
        named = cast(Any, named).func
    return cast(Any, named)


_MAIN = ("__main__", "__mp_main__")
"""What the program's main module is called, in the program and in the worker processes of multiprocessing."""
