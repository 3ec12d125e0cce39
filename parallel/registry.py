"""
The registry: owns the named pools, opens each on first use, shuts them down, runs the callbacks.

    a task ──▶ current registry ──▶ options of the task ──▶ pool, opened if it is not ──▶ submit

Guarantees:
- A pool is opened once, whoever asks first; opening starts no thread and no process: the first call does.
- `shutdown` runs accepted chains dry, their later stages too, before it closes the pools.
- After `reload` new calls go to the pools as they are now said; a pool of before ends when nothing needs it any more:
  the calls, maps and chains that know it finish there.
- A forked child has the same configuration and no open pool.
- Nothing that a registry owns refers to it: one that is forgotten ends, and its pools with it.

State: `_config`, `_pools`, `_retired`, `_desk`, `_declared_hooks`, `_shut`, `_entered` and `edition` of a registry,
guarded by its `_lock`; its `_names`, changed by single atomic steps; the program's default registry, guarded by
`_default_lock`. No user code runs while one of them is held. Nothing else in the library remembers anything between
calls; `reset` forgets it.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, cast, overload
from weakref import ref

import parallel.config
from parallel import context
from parallel.checks import key_path
from parallel.config import Config, Unobserved
from parallel.context import WITHIN, Dispatcher, LateCallbacks, Within, entered, registry_source
from parallel.durations import Duration, pause, written
from parallel.editions import Edition
from parallel.errors import ConfigError, DeadlockError, PoolShutdownError, UnknownPoolError
from parallel.events import (
    STEPS,
    CallCancelled,
    CallCreated,
    CallEnded,
    CallFailed,
    CallQueued,
    CallRetried,
    CallStarted,
    CallSucceeded,
    Event,
    EventName,
    PoolClosed,
    PoolOpened,
    PoolResized,
    WorkerEnded,
    WorkerStarted,
)
from parallel.following import CallbackThreads
from parallel.hooks import Hooks
from parallel.lanes import Lane
from parallel.limits import Limits
from parallel.observing import Observation
from parallel.opening import changed, function, hooks_of, open_pool
from parallel.options import Rate, Saying, TaskOptions
from parallel.plans import Plan
from parallel.pools.base import Engine, Pool, count_interrupts, end_at_exit, run_dry, wait_at_exit
from parallel.pools.desk import Desk
from parallel.terms import Terms
from parallel.tidings import EventStream
from parallel.unseen import raise_collected
from parallel.weak import WeakSet

if TYPE_CHECKING:
    from parallel.stats import RegistryStats

LimitsOf: TypeAlias = Callable[[int | None, Rate | None], tuple[Limits, ...]]
"""Returns what counts the calls of one task, by its limit and its rate."""

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, object]"
"""What a configuration is read from: a file's path, or tables as a file would have them."""

E = TypeVar("E", bound=Event)
F = TypeVar("F", bound=Callable[..., object])


class Registry:
    """
    Named pools and the rules that route tasks to them; a context manager.

    In a `with` block it is the current registry: the tasks called there, and in what they call, go to its pools; at
    the end of the block it is shut down. After a Ctrl-C with *cancel_futures*, and what runs is ended as far as it can
    be. One that nobody refers to any more, and that has opened pools, is closed with a `ResourceWarning`: what it has
    accepted is run.

    Args:
        source: A mapping as a TOML file would hold it, the path of a TOML file, or None: what is found from the
            working directory upward, read when the first pool is asked for.
        profile: The profile that is laid over its tables; None: the one that `$PARALLEL_PROFILE` names, if the source
            is a file.

    Raises:
        ConfigError: The configuration can't be used; it tells every mistake.
    """

    def __init__(self, source: Source | None = None, *, profile: str | None = None) -> None:
        self._shut = True  # until all is there: see `__del__`
        self._read = _reader(source, profile)
        self._config = None if source is None and profile is None else self._read()
        self._lock = threading.RLock()
        self._pools: dict[str, Pool] = {}
        self._retired: WeakSet[Engine] = WeakSet()  # of pools that were swapped
        self._callbacks = CallbackThreads(_callbacks_of_default)
        self._desk: Desk | None = None
        self._hooks = Hooks(LateCallbacks(self._callbacks.at_hand))
        self._declared_hooks: dict[str, list[Callable[..., object]]] | None = None
        self._names: dict[int, str] = {}  # of all its pools that ever were, by their numbers
        self._observation = self._new_observation()
        self._sink = _hook_sink(self._hooks, ref(self))
        self._drained = threading.Event()
        self._entered = 0  # blocks that it is current in
        self._nested = False  # it is for what the calls of a worker call
        self.edition = Edition()
        """Changes when what a task has looked up here is no longer true."""
        self._shut = False
        _registries.add(self)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, profile: str | None = None) -> Self:
        """Make a registry from a `parallel.toml`, or from the `[tool.parallel]` table of a `pyproject.toml`."""
        return cls(path, profile=profile)

    @property
    def config(self) -> Config:
        """The configuration, found and read now if it was not given."""
        config = self._config
        if config is None:
            config = self._config = self._read()
        return config

    @property
    def unobserved(self) -> Unobserved:
        """What is done about a failure that nobody looked at; as long as no configuration was read, it is logged."""
        return "log" if self._config is None else self._config.unobserved

    def adopt(self, config: Config) -> None:
        """
        Take *config* for its own. Pools about which it says nothing else go on; the others are swapped.

        The workers of process pools that go on leave after their present calls, as they have the former configuration.
        """
        packed: bytes | None = None
        with self._lock:
            if self._shut:
                raise PoolShutdownError("the registry")
            before, self._config = self._config, config
            if before == config:
                return
            names = changed(before.pools, config.pools) if before is not None else set[str]()
            retired = {name: self._pools.pop(name) for name in names & self._pools.keys()}
            self._retired.update(engine for pool in retired.values() if (engine := pool.engine) is not None)
            staying = list(self._pools.values())
            edition, self.edition = self.edition, Edition()
            declared, self._declared_hooks = self._declared_hooks, None
        edition.end()
        for event, hooks in (declared or {}).items():
            for hook in hooks:
                self._hooks.discard(event, hook)
        if staying:
            self._observe(config)
        for pool in staying:
            if pool.wants_configuration:
                packed = packed or pickle.dumps(config)
                pool.reconfigure(packed)
        for name, pool in retired.items():
            self._hooks.tell(PoolClosed(name, pool.kind), self)

    def reload(self) -> None:
        """
        Read the configuration again, from where it was read before: the same file, or what is found now.

        Pools about which the same is said go on. Those about which something else is said are swapped: new calls go to
        the new ones; the old ones end when the calls, maps and chains that know them have ended, and are waited for by
        `shutdown`. A pool that the program itself holds stays as it is.

        Raises:
            ConfigError: It has mistakes; nothing has changed then.
            PoolShutdownError: The registry has been shut down.
        """
        self.adopt(self._read())

    def read_from(self, source: Source | None, profile: str | None) -> None:
        """Read another configuration, and take it as `reload` does; nothing changes if it has mistakes."""
        read = _reader(source, profile)
        config = read()
        self.adopt(config)
        self._read = read

    def owns(self, callbacks: CallbackThreads) -> bool:
        """Tell whether these are its callback threads."""
        return self._callbacks is callbacks

    @property
    def callbacks(self) -> Dispatcher:
        """The threads that run what follows calls whose own workers can't; once it has run dry, the default's."""
        return self._callbacks.at_hand()

    @overload
    def on(self, event: Literal["call_succeeded"], hook: Callable[[CallSucceeded], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_failed"], hook: Callable[[CallFailed], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_cancelled"], hook: Callable[[CallCancelled], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_retried"], hook: Callable[[CallRetried], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_created"], hook: Callable[[CallCreated], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_queued"], hook: Callable[[CallQueued], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_started"], hook: Callable[[CallStarted], object], /) -> None: ...
    @overload
    def on(self, event: Literal["call_ended"], hook: Callable[[CallEnded], object], /) -> None: ...
    @overload
    def on(self, event: Literal["worker_started"], hook: Callable[[WorkerStarted], object], /) -> None: ...
    @overload
    def on(self, event: Literal["worker_ended"], hook: Callable[[WorkerEnded], object], /) -> None: ...
    @overload
    def on(self, event: Literal["pool_resized"], hook: Callable[[PoolResized], object], /) -> None: ...
    @overload
    def on(self, event: Literal["pool_opened"], hook: Callable[[PoolOpened], object], /) -> None: ...
    @overload
    def on(self, event: Literal["pool_closed"], hook: Callable[[PoolClosed], object], /) -> None: ...
    @overload
    def on(self, event: EventName, /) -> Callable[[F], F]: ...
    def on(self, event: EventName, hook: Callable[[Any], object] | None = None, /) -> Callable[[F], F] | None:
        """
        Have a function called with each event of that name, from now on, on a callback thread.

        Events come in the order in which they happened, one after the other. What the function raises is logged and
        changes nothing else. The calls that it makes tell no hooks.

        As long as there are hooks for `call_succeeded`, `call_failed`, `call_cancelled` or `call_retried`, each item of
        a map is a call of its own. The other events of calls and workers are found out some hundredths of a second
        later, and maps are seen in pieces.

        Args:
            event: The name of one; `parallel.events` has all, and what the function gets.
            hook: The function; left out: what is decorated with the result.

        Raises:
            ValueError: There is no such event.
        """
        if hook is None:
            return lambda fn: self._add_hook(event, fn)
        self._add_hook(event, hook)
        return None

    def off(self, event: EventName, hook: Callable[[Any], object], /) -> None:
        """Have a function that `on` has registered called no more; nothing happens if it wasn't."""
        self._hooks.discard(event, hook)
        self._renew_edition()
        if not self._hooks.of_steps:
            self._observation.tell_no_more(self._sink)

    def events(self, *, most: int | None = None) -> EventStream:
        """
        Return what happens from now on: an iterator over the steps of all calls, workers and pools.

        It waits for the next event, and ends when the registry has been shut down, or by `close()`, as at the end of a
        `with` block. Events come some hundredths of a second after what they tell, in the order in which that was
        noted; of worker processes, beginnings come with the ends. See `parallel.events`: of each call there are
        `CallCreated`, and for each attempt `CallQueued`, `CallStarted` and, if another follows, `CallRetried`; then
        `CallEnded`. Maps are seen in pieces.

        Args:
            most: How many events may wait; beyond that the first are dropped, and counted. None: 100,000.

        Raises:
            PoolShutdownError: The registry has been shut down.
        """
        if most is not None and most < 1:
            raise ValueError(f"most must be 1 or more, found {most}")
        if self._shut:
            raise PoolShutdownError("the registry")
        stream = self._observation.stream(most)
        if self._drained.is_set():  # (*) after it was made: who ends the others does it the other way round
            stream.close()
        return stream

    def _add_hook(self, event: str, hook: F) -> F:
        self._hooks.add(event, hook)
        self._renew_edition()
        self._observe(self._config)
        return hook

    def _new_observation(self) -> Observation:
        observation = Observation(self._names)
        end_at_exit(observation)
        return observation

    def _observe(self, config: Config | None) -> None:
        """Observe what is asked for; None: no configuration was read, and so no pool has been opened."""
        if config is not None and not self._nested:  # in a worker process, nobody looks on
            self._observation.begin(config.observe)
        if self._hooks.of_steps:
            self._observation.tell(self._sink)

    def _renew_edition(self) -> None:
        """Have all tasks look up anew how their calls are made."""
        with self._lock:
            edition, self.edition = self.edition, Edition()
        edition.end()

    def _load_hooks(self) -> None:
        """Register the hooks that the configuration names, once."""
        if self._declared_hooks is None:
            declared: dict[str, list[Callable[..., object]]] = {}
            for event, hook in hooks_of(self.config):
                declared.setdefault(event, []).append(hook)
            with self._lock:
                if self._declared_hooks is None:
                    self._declared_hooks = declared
                    for event, hooks in declared.items():
                        for hook in hooks:
                            self._hooks.add(event, hook)

    def pool(self, name: str, /) -> Pool:
        """
        Return the pool of that name, opened if it is not.

        Raises:
            UnknownPoolError: No pool has this name.
            PoolShutdownError: The registry has been shut down.
            ConfigError: The configuration, found only now, can't be used.
        """
        if self._shut:
            self._check_inside()
        return self._pools.get(name) or self._open(name)

    def plan_for(self, saying: Saying, limits: LimitsOf, lane: Lane | None = None) -> tuple[Plan, Pool]:
        """
        Return how the calls of a task are made here, and the pool that they run in.

        Args:
            saying: What is said about it besides the configuration.
            limits: Returns what counts the calls of the task, by limit and rate; the same for the same.
            lane: Says how long an attempt may run, in place of the options.

        Raises:
            ConfigError: An import string among the options names nothing, or the rules don't decide. Besides, what
                `pool` raises.
        """
        if self._shut:
            self._check_inside()
        self._load_hooks()
        options = self.options_of(saying)
        try:
            pool = self.pool(cast(str, options.pool))
        except UnknownPoolError as error:
            raise UnknownPoolError(error.name, error.known, saying.task) from None
        hooks = self._hooks.of_calls
        plain = TaskOptions(pool=options.pool, timeout=options.timeout, idempotent=options.idempotent)
        terms = self._terms(saying.task, pool, options, limits, lane, hooks)
        return Plan(terms, is_bare=options == plain and hooks is None), pool

    def options_of(self, saying: Saying) -> TaskOptions:
        """Lay what is said about a task over each other: built in, defaults, decorator, rules, `.options()`."""
        rules = self.edition.rules  # in this order: another configuration comes before its edition
        config = self.config
        ruled = rules.get(saying.task)
        if ruled is None:
            ruled = rules[saying.task] = config.options_for(saying.task)
        return saying.said.over(ruled.over(saying.declared.over(config.defaults.over(saying.otherwise))))

    def _terms(
        self, task: str, pool: Pool, options: TaskOptions, limits: LimitsOf, lane: Lane | None, hooks: Hooks | None
    ) -> Terms:
        with self._lock:
            desk = self._desk = self._desk or Desk()
        try:
            return Terms(
                task,
                pool,
                desk,
                limits=limits(options.limit, options.rate),
                timeout=lane or options.timeout,
                deadline=options.deadline,
                retry=options.retry,
                priority=options.priority or 0,
                idempotent=bool(options.idempotent),
                on_success=function("on_success", options.on_success),
                on_failure=function("on_failure", options.on_failure),
                hooks=hooks,
            )
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(self.config.source, [f"tasks.{key_path(task)}: {error}"]) from error

    @property
    def is_shut(self) -> bool:
        """Whether it takes no more calls from outside."""
        return self._shut

    def _check_inside(self) -> None:
        """Refuse calls from outside; what is accepted may go on calling until all has run dry."""
        if self._drained.is_set() or not self._owns_this_thread():
            raise PoolShutdownError("the registry")

    def _open(self, name: str) -> Pool:
        self._load_hooks()
        while True:
            config = self.config
            if name not in config.pools:
                raise UnknownPoolError(name, sorted(config.pools))
            self._observe(config)
            made = open_pool(name, config, LateCallbacks(self._callbacks.at_hand), nested=self._nested)
            self._names[made.number] = name
            with self._lock:
                if self._config is config:
                    pool = self._pools.setdefault(name, made)
                    break
            made.shutdown(wait=False)  # the configuration has changed meanwhile; this one has started nothing
        if pool is made:
            self._hooks.tell(PoolOpened(name, pool.kind), self)
        else:
            made.shutdown(wait=False)  # another thread was faster
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: Duration | None = None) -> None:
        """
        Take no more calls from outside, run what was accepted, with all that is chained to it, and close the pools.

        May be called again. Called by a worker of its own it doesn't wait, nor does a signal handler that has
        interrupted a call to it.

        Args:
            wait: Return only when all that is done; else it goes on behind.
            cancel_futures: Cancel what has not been started.
            timeout: How long to wait at most: seconds, a `timedelta` or a string such as `30s`; None for any time.

        Raises:
            TimeoutError: All has not ended by then. It goes on behind; what has not been started can be cancelled by
                another shutdown.
            ExceptionGroup: With `unobserved = "raise"`: calls have failed, and nobody has looked at their errors, and
                nobody can any more. Only with *wait*; else it is told at the interpreter's exit.
        """
        seconds = None if timeout is None else pause(timeout)
        self._shut_down(wait, cancel_futures, timeout=seconds)
        if wait and self.unobserved == "raise":
            raise_collected(self)

    def stats(self) -> RegistryStats:
        """Return what its pools do at this moment: those that are open."""
        # It loads what follows calls, which takes some milliseconds.
        made: RegistryStats = import_module("parallel.observe.statistics").stats_of_registry(self)
        return made

    def open_pools(self) -> list[Pool]:
        """Return the pools that are open."""
        with self._lock:
            return list(self._pools.values())

    def waiting(self) -> int:
        """Count the calls that are in no pool: they wait for a place, or for their next attempt."""
        return 0 if self._desk is None else self._desk.counts().queued

    def drain(self, timeout: Duration | None = None) -> None:
        """
        Wait until nothing is left to do here: all calls have ended, and all that follows them. It stays open.

        What comes meanwhile is waited for, too.

        Args:
            timeout: How long to wait at most, as for `shutdown`.

        Raises:
            TimeoutError: There was something to do all the time.
            DeadlockError: It is called by a worker of its own, whose call would have to end first.
        """
        if self._owns_this_thread():
            raise DeadlockError("a worker", "wait until its own registry has nothing to do", "wait for futures instead")
        seconds = None if timeout is None else pause(timeout)
        if seconds is None:
            run_dry(self._engines, lambda engine: engine.idle())
            return
        dry = threading.Event()

        def wait() -> None:
            run_dry(self._engines, lambda engine: engine.idle())
            dry.set()

        thread = threading.Thread(target=wait, name="parallel-drain", daemon=True)
        wait_at_exit(thread)
        thread.start()
        if not dry.wait(seconds):
            raise TimeoutError(self._unfinished(seconds))

    def _unfinished(self, seconds: float) -> str:
        busy = [repr(pool) for pool in self.open_pools() if any(pool.counts()[1:3])]
        if any(any(engine.counts()[1:3]) for engine in self._retired):
            busy.append("pools of a former configuration")
        left = ", ".join(busy) or "calls that wait for their next attempt, or callbacks"
        return f"the registry still has something to do after {written(seconds)}: {left}"

    def _shut_down(
        self, wait: bool, cancel_futures: bool, interrupt: bool = False, timeout: float | None = None
    ) -> None:
        with self._lock:
            first = not self._shut
            self._shut = True
        self._renew_edition()
        if cancel_futures:
            if self._desk is not None:
                self._desk.close(cancel_futures=True)
            for pool in self.open_pools():
                pool.shutdown(wait=False, cancel_futures=True)
                if interrupt:
                    pool.interrupt()
            for engine in self._retired:
                engine.close(cancel_futures=True)
                if interrupt:
                    engine.interrupt()
        inside = self._owns_this_thread()
        if first and wait and not inside and timeout is None:
            try:
                self._run_dry(cancel_futures)
            except BaseException:  # a Ctrl-C: the rest is done behind
                self._run_dry_behind(cancel_futures)
                raise
        elif first:
            self._run_dry_behind(cancel_futures)
        if wait and not inside and not self._drained.wait(timeout):
            raise TimeoutError(self._unfinished(cast(float, timeout)))

    def _run_dry_behind(self, cancel_futures: bool) -> None:
        run = self._run_dry
        thread = threading.Thread(target=run, args=(cancel_futures,), name="parallel-shutdown", daemon=True)
        wait_at_exit(thread)
        thread.start()

    def _run_dry(self, cancel_futures: bool) -> None:
        """Wait until nothing is left to do, then close the pools and end the callback threads."""
        if not cancel_futures:
            run_dry(self._engines, lambda engine: engine.idle())
        if self._desk is not None:
            self._desk.close(cancel_futures)
        for pool in self.open_pools():
            pool.shutdown(wait=False, cancel_futures=cancel_futures)
        for engine in self._retired:
            engine.close(cancel_futures)
            engine.join()
        for pool in self.open_pools():
            pool.shutdown(wait=True)
            self._hooks.tell(PoolClosed(pool.name, pool.kind), self)
        self._observation.end()  # hooks are told the last of it
        self._callbacks.end()
        self._drained.set()
        self._observation.end()  # (*) and streams end that were made meanwhile: see `events`

    def _engines(self) -> list[Pool | Engine]:
        """Return all that has something to do, or may get it."""
        others = [engine for engine in (self._desk, self._callbacks.crew) if engine is not None]
        return [*self.open_pools(), *self._retired, *others]

    def _owns_this_thread(self) -> bool:
        if self._lock._is_owned() or self._hooks.is_owned():  # type: ignore[attr-defined]  # as Condition does
            return True  # it is a signal handler: whom it has interrupted holds them
        return self._callbacks.owns_this_thread() or any(engine.owns_this_thread() for engine in self._engines())

    def after_fork_in_child(self) -> None:
        """Forget the open pools: their workers stayed in the parent."""
        self._lock = threading.RLock()
        self._pools = {}
        self._retired = WeakSet()
        self._callbacks.after_fork_in_child()
        self._hooks.after_fork_in_child()
        self._desk = None
        self._observation = self._new_observation()
        self._drained = threading.Event()
        if self._shut:
            self._drained.set()
        self.edition = Edition()

    def __enter__(self) -> Self:
        with self._lock:
            self._entered += 1
        _ENTERED.set((*_ENTERED.get(), WITHIN.set(entered(registry=self))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        *outer, token = _ENTERED.get()
        _ENTERED.set(tuple(outer))
        WITHIN.reset(token)
        with self._lock:
            self._entered -= 1
            last = self._entered == 0
        if last and kind is None:
            self.shutdown()
        elif last:  # what else has failed is told at the interpreter's exit
            raised = cast("type[BaseException]", kind)
            wait = count_interrupts(error) < 2
            self._shut_down(wait, not issubclass(raised, Exception), issubclass(raised, KeyboardInterrupt))

    def __del__(self) -> None:
        if self._shut or not self._pools or sys.is_finalizing():
            return
        message = f"nobody has shut down {self!r}: use it in a with block, or call shutdown()"
        self._shut = True
        self.edition.end()
        self._observation.end_behind()
        self._pools = {}  # nobody keeps them any more: they run what they have accepted, and end
        warnings.warn(message, ResourceWarning, stacklevel=1, source=self)

    def __repr__(self) -> str:
        state = "shut down" if self._shut else "running"
        source = "not read yet" if self._config is None else self._config.source
        pools = ", ".join(repr(pool) for pool in self.open_pools()) or "none"
        return f"<Registry {state} [configuration: {source}; open pools: {pools}]>"


def _hook_sink(hooks: Hooks, registry: ref[Registry]) -> Callable[[Event], object]:
    """Return what tells hooks of steps."""

    def sink(event: Event) -> None:
        if isinstance(event, STEPS):  # of the others they were told at once
            hooks.tell(event, registry())

    return sink


def _reader(source: Source | None, profile: str | None) -> Callable[[], Config]:
    """Return what reads a configuration, now and when it is to be read again."""
    if source is None:
        return lambda: parallel.config.discover(profile)
    if isinstance(source, Mapping):
        return lambda: parallel.config.from_mapping(source, profile=profile)
    path = os.path.abspath(source)  # the working directory may be another one then
    return lambda: parallel.config.load(path, profile)


def _callbacks_of_default(asking: CallbackThreads) -> Dispatcher | None:
    registry = default_registry()
    return None if registry.owns(asking) else registry.callbacks


_ENTERED: ContextVar[tuple[Token[Within | None], ...]] = ContextVar("parallel.entered", default=())
"""How to leave the blocks of registries that this context is in, the innermost last."""

_registries: WeakSet[Registry] = WeakSet()
_default: Registry | None = None
_default_lock = threading.RLock()


def default_registry() -> Registry:
    """Return the program's default registry: the one that `configure` set, or one that finds its configuration."""
    global _default
    if context.inherited_configuration is not None:
        _adopt_inherited()
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Registry()
    return _default


def _adopt_inherited() -> None:
    """In a worker process, make the default registry from the configuration of the one that its pool belongs to."""
    global _default
    with _default_lock:
        packed, context.inherited_configuration = context.inherited_configuration, None
        if packed is not None:
            _default = Registry()
            _default.adopt(pickle.loads(packed))


def nested_registry(packed: bytes) -> Registry:
    """Make the registry for what the calls of a worker call, from the configuration that its pool has sent."""
    registry = Registry()
    registry._nested = True  # pyright: ignore[reportPrivateUsage]  # same module
    registry.adopt(pickle.loads(packed))
    return registry


def configure(source: Source | None = None, *, profile: str | None = None) -> Registry:
    """
    Configure the program's default registry; again, if need be: see `Registry.reload` for what becomes of its pools.

    Args:
        source: A mapping as a TOML file would hold it, the path of a TOML file, or None: search again, from the
            working directory upward.
        profile: The profile that is laid over its tables; see `Registry`.

    Returns:
        The default registry.

    Raises:
        ConfigError: The configuration can't be used; it tells every mistake, and all stays as it was.
    """
    global _default
    with _default_lock:
        registry = _default
    if registry is not None and not registry.is_shut:
        with suppress(PoolShutdownError):  # another thread has shut it down
            registry.read_from(source, profile)
            return registry
    made = Registry()
    made.read_from(source, profile)
    with _default_lock:
        _default = made
    return made


@contextmanager
def using(source: Registry | Source | None = None, *, profile: str | None = None) -> Generator[Registry]:
    """
    Make a registry the current one for a block.

    Args:
        source: A registry, which stays open after the block; or what makes one, a mapping, a path, or None for what is
            found from the working directory upward: it is shut down at the end.
        profile: The profile that is laid over the tables of what makes one; see `Registry`.

    Raises:
        ConfigError: The configuration can't be used; it tells every mistake.
        TypeError: A registry has been made already, and a profile is of no use to it.
    """
    if not isinstance(source, Registry):
        with Registry(source, profile=profile) as registry:
            yield registry
        return
    if profile is not None:
        raise TypeError(f"a profile is laid over a configuration that is read; {source!r} has been made without")
    token = WITHIN.set(entered(registry=source))
    try:
        yield source
    finally:
        WITHIN.reset(token)


def reset() -> None:
    """Shut the default registry down and forget it: the next call starts from the configuration files. For tests."""
    global _default
    with _default_lock:
        before, _default = _default, None
    if before is not None:
        before.shutdown()


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.RLock()
    for registry in _registries:
        registry.after_fork_in_child()


registry_source(default_registry, is_loaded=True)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
