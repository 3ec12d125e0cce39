"""
The registry: owns the named pools, opens each on first use, shuts them down, runs the callbacks.

    a task ──▶ current registry ──▶ options of the task ──▶ pool, opened if it is not ──▶ submit

Guarantees:
- A pool is opened once, whoever asks first; opening starts no thread and no process: the first call does.
- `shutdown` runs accepted chains dry, their later stages too, before it closes the pools.
- A forked child has the same configuration and no open pool.

State: `_pools`, `_callbacks`, `_desk`, `_shut` and `_entered` of a registry, guarded by its `_lock`; the program's
default registry, guarded by `_default_lock`. No user code runs while one of them is held. Nothing else in the library
remembers anything between calls; `reset` forgets it.
"""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from importlib import import_module
from types import TracebackType
from typing import Self, TypeAlias, cast

import parallel.config
from parallel import context
from parallel.checks import key_path
from parallel.config import Config, PoolConfig, Unobserved, cpus
from parallel.context import WITHIN, LateCallbacks, Within, entered, registry_source
from parallel.errors import ConfigError, NestedPoolError, PoolShutdownError, UnknownPoolError
from parallel.imports import imported
from parallel.kinds import ProcessConfig
from parallel.lanes import Lane
from parallel.limits import Limits
from parallel.options import Rate, TaskOptions
from parallel.plans import Plan
from parallel.pools import KINDS
from parallel.pools.base import Engine, Pool, count_interrupts, run_dry, wait_at_exit
from parallel.pools.crew import Crew
from parallel.pools.desk import Desk
from parallel.terms import Terms
from parallel.unseen import raise_collected

LimitsOf: TypeAlias = Callable[[int | None, Rate | None], tuple[Limits, ...]]
"""Returns what counts the calls of one task, by its limit and its rate."""


class Registry:
    """
    Named pools and the rules that route tasks to them; a context manager.

    In a `with` block it is the current registry: the tasks called there, and in what they call, go to its pools; at
    the end of the block it is shut down. After a Ctrl-C with *cancel_futures*, and what runs is ended as far as it can
    be.

    Args:
        source: A mapping as a TOML file would hold it, the path of a TOML file, or None: what is found from the
            working directory upward, read when the first pool is asked for.

    Raises:
        ConfigError: The configuration can't be used; it tells every mistake.
    """

    def __init__(self, source: str | os.PathLike[str] | Mapping[str, object] | None = None) -> None:
        self._config = None if source is None else _read(source)
        self._lock = threading.RLock()
        self._pools: dict[str, Pool] = {}
        self._callbacks: Crew | None = None
        self._desk: Desk | None = None
        self._shut = False
        self._drained = threading.Event()
        self._entered = 0  # blocks that it is current in
        self.edition = object()
        """Changes when what a task has looked up here is no longer true."""
        _registries.add(self)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """Make a registry from a `parallel.toml`, or from the `[tool.parallel]` table of a `pyproject.toml`."""
        return cls(path)

    @property
    def config(self) -> Config:
        """The configuration, found and read now if it was not given."""
        config = self._config
        if config is None:
            config = self._config = parallel.config.discover()
        return config

    @property
    def unobserved(self) -> Unobserved:
        """What is done about a failure that nobody looked at; as long as no configuration was read, it is logged."""
        return "log" if self._config is None else self._config.unobserved

    def adopt(self, config: Config) -> None:
        """Take *config* for its own, before anything was asked for."""
        self._config = config

    @property
    def callbacks(self) -> Crew:
        """The threads that run what follows calls whose own workers can't; once it has run dry, the default's."""
        if self._callbacks is None and self._drained.is_set() and (default := default_registry()) is not self:
            return default.callbacks
        with self._lock:
            crew = self._callbacks
            if crew is None:
                # As many as a thread pool has: callbacks are short, or wait, and one that waits lends its place.
                crew = self._callbacks = Crew("the callback threads", min(32, cpus() + 4), "parallel-callback")
                weakref.finalize(self, crew.close, False).atexit = False
                if self._drained.is_set():
                    crew.close(cancel_futures=False)  # nobody would end its threads: it refuses what comes
        return crew

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

    def plan_for(
        self, task: str, declared: TaskOptions, said: TaskOptions, limits: LimitsOf, lane: Lane | None = None
    ) -> tuple[Plan, Pool]:
        """
        Return how the calls of a task are made here, and the pool that they run in.

        Args:
            task: Its name, `module:qualname`.
            declared: What its decorator says.
            said: What `.options()` says; it wins over the configuration, which wins over the decorator.
            limits: Returns what counts the calls of the task, by limit and rate; the same for the same.
            lane: Says how long an attempt may run, in place of the options.

        Raises:
            ConfigError: An import string among the options names nothing. Besides, what `pool` raises.
        """
        if self._shut:
            self._check_inside()
        options = said.over(self.config.options_for(task).over(declared))
        try:
            pool = self.pool(cast(str, options.pool))
        except UnknownPoolError as error:
            raise UnknownPoolError(error.name, error.known, task) from None
        is_bare = options == TaskOptions(pool=options.pool, timeout=options.timeout, idempotent=options.idempotent)
        return Plan(self._terms(task, pool, options, limits, lane), is_bare=is_bare), pool

    def _terms(self, task: str, pool: Pool, options: TaskOptions, limits: LimitsOf, lane: Lane | None) -> Terms:
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
                on_success=_function("on_success", options.on_success),
                on_failure=_function("on_failure", options.on_failure),
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
        config = self.config.pools.get(name)
        if config is None:
            raise UnknownPoolError(name, sorted(self.config.pools))
        made = _make(name, config, lambda: self.callbacks, self.config)
        with self._lock:
            pool = self._pools.setdefault(name, made)
        if pool is not made:
            made.shutdown(wait=False)  # another thread was faster; this one has started nothing
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """
        Take no more calls from outside, run what was accepted, with all that is chained to it, and close the pools.

        May be called again. Called by a worker of its own it doesn't wait, nor does a signal handler that has
        interrupted a call to it.

        Args:
            wait: Return only when all that is done; else it goes on behind.
            cancel_futures: Cancel what has not been started.

        Raises:
            ExceptionGroup: With `unobserved = "raise"`: calls have failed, and nobody has looked at their errors, and
                nobody can any more. Only with *wait*; else it is told at the interpreter's exit.
        """
        self._shut_down(wait, cancel_futures)
        if wait and self.unobserved == "raise":
            raise_collected(self)

    def _shut_down(self, wait: bool, cancel_futures: bool, interrupt: bool = False) -> None:
        with self._lock:
            first = not self._shut
            self._shut = True
            self.edition = object()
        if cancel_futures:
            if self._desk is not None:
                self._desk.close(cancel_futures=True)
            for pool in self._open_pools():
                pool.shutdown(wait=False, cancel_futures=True)
                if interrupt:
                    pool.interrupt()
        inside = self._owns_this_thread()
        if first and wait and not inside:
            try:
                self._run_dry(cancel_futures)
            except BaseException:  # a Ctrl-C: the rest is done behind
                self._run_dry_behind(cancel_futures)
                raise
        elif first:
            self._run_dry_behind(cancel_futures)
        elif wait and not inside:
            self._drained.wait()

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
        for pool in self._open_pools():
            pool.shutdown(wait=False, cancel_futures=cancel_futures)
        for pool in self._open_pools():
            pool.shutdown(wait=True)
        crew = self._callbacks
        if crew is not None:
            crew.idle()
            crew.close(cancel_futures=False)
            crew.join()
        self._drained.set()

    def _engines(self) -> list[Pool | Engine]:
        """Return all that has something to do, or may get it."""
        others = [engine for engine in (self._desk, self._callbacks) if engine is not None]
        return [*self._open_pools(), *others]

    def _open_pools(self) -> list[Pool]:
        with self._lock:
            return list(self._pools.values())

    def _owns_this_thread(self) -> bool:
        if self._lock._is_owned():  # type: ignore[attr-defined]  # a signal handler: whom it has interrupted holds it
            return True
        return any(engine.owns_this_thread() for engine in self._engines())

    def after_fork_in_child(self) -> None:
        """Forget the open pools: their workers stayed in the parent."""
        self._lock = threading.RLock()
        self._pools = {}
        self._callbacks = None
        self._desk = None
        self._drained = threading.Event()
        if self._shut:
            self._drained.set()
        self.edition = object()

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

    def __repr__(self) -> str:
        state = "shut down" if self._shut else "running"
        source = "not read yet" if self._config is None else self._config.source
        pools = ", ".join(repr(pool) for pool in self._open_pools()) or "none"
        return f"<Registry {state} [configuration: {source}; open pools: {pools}]>"


def _read(source: str | os.PathLike[str] | Mapping[str, object]) -> Config:
    if isinstance(source, Mapping):
        return parallel.config.from_mapping(source)
    return parallel.config.load(source)


def _make(name: str, config: PoolConfig, callbacks: Callable[[], Crew], whole: Config) -> Pool:
    """
    Make the pool that *config*, of the *whole*, describes.

    Raises:
        NestedPoolError: It is one of processes, this is a worker process, and its configuration forbids that.
    """
    kind, arguments = config.kind, config.arguments()
    if isinstance(config, ProcessConfig) and context.in_worker_process:
        kind, arguments = _nested(name, config)
    module, _, attribute = KINDS[kind].partition(":")
    make: Callable[..., Pool] = getattr(import_module(module), attribute)
    if isinstance(initializer := arguments.get("initializer"), str):
        arguments["initializer"] = _resolved(initializer, f"pools.{name}.initializer", whole.source)
    for variable in cast("tuple[str, ...]", arguments.get("context", ())):
        found = _resolved(variable, f"pools.{name}.context", whole.source)
        if not isinstance(found, ContextVar):
            problem = f"expected what names a ContextVar, found {variable!r}, which is {found!r}"
            raise ConfigError(whole.source, [f"pools.{name}.context: {problem}"])
    if kind == "process":
        arguments["configuration"] = pickle.dumps(whole)
    return make(**arguments, name=name, callbacks=LateCallbacks(callbacks))


def _nested(name: str, config: ProcessConfig) -> tuple[str, dict[str, object]]:
    """Return what a pool of processes is in a worker process: the kind, and the arguments of its constructor."""
    if config.nested == "error":
        raise NestedPoolError(name)
    if config.nested == "inline":
        return "inline", {}
    return "thread", {"max_workers": config.arguments().get("max_workers") or cpus()}


def _resolved(import_string: str, key: str, source: str) -> object:
    """Import what a string of a configuration names."""
    try:
        return imported(import_string)
    except (ImportError, AttributeError) as error:
        raise ConfigError(source, [f"{key}: expected something to import, found {import_string!r}: {error}"]) from error


def _function(option: str, said: Callable[..., object] | str | None) -> Callable[..., object] | None:
    """Import a handler that a configuration names."""
    if not isinstance(said, str):
        return said
    try:
        found = imported(said)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option}: expected something to import, found {said!r}: {error}") from error
    if not callable(found):
        raise ValueError(f"{option}: expected a function, found {said!r}, which is {found!r}")
    return found


_ENTERED: ContextVar[tuple[Token[Within | None], ...]] = ContextVar("parallel.entered", default=())
"""How to leave the blocks of registries that this context is in, the innermost last."""

_registries: weakref.WeakSet[Registry] = weakref.WeakSet()
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


def configure(source: str | os.PathLike[str] | Mapping[str, object] | None = None) -> Registry:
    """
    Set the program's default registry. The one before runs what it has accepted, then closes its pools.

    Args:
        source: A mapping as a TOML file would hold it, the path of a TOML file, or None: search again, from the
            working directory upward.

    Raises:
        ConfigError: The configuration can't be used; it tells every mistake, and the registry before stays.
    """
    global _default
    registry = Registry(parallel.config.find() or {} if source is None else source)
    with _default_lock:
        before, _default = _default, registry
    if before is not None:
        before.shutdown(wait=False)
    return registry


@contextmanager
def using(source: Registry | str | os.PathLike[str] | Mapping[str, object]) -> Generator[Registry]:
    """
    Make a registry the current one for a block.

    Args:
        source: A registry, which stays open after the block; or what makes one, a mapping or a path, which is shut
            down at the end.
    """
    if not isinstance(source, Registry):
        with Registry(source) as registry:
            yield registry
        return
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
    for registry in list(_registries):
        registry.after_fork_in_child()


registry_source(default_registry, is_loaded=True)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
