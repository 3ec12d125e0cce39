"""
`parallel`: plain functions, declared parallel; where and how they run is configuration.

    from parallel import task

    @task(pool="threads")
    def fetch(url: str) -> bytes: ...

    page = fetch("https://www.python.org").result()

Names are handed on lazily (PEP 562): importing the package loads hardly any of its rooms, starts no thread and reads no
file.
"""

from __future__ import annotations

from importlib import import_module
from os import environ
from typing import TYPE_CHECKING, Final

from parallel.context import Home, registry_source

if TYPE_CHECKING:
    from parallel.arguments import result_of, unresolved
    from parallel.combine import Settled, as_completed, first, gather, race, settle, wait
    from parallel.current import CurrentTask, checkpoint, current_task, sleep
    from parallel.deaths import WorkerDiedError
    from parallel.declaring import task
    from parallel.errors import (
        ConfigError,
        DeadlockError,
        ForkedError,
        GroupClosedError,
        JournalError,
        JournalLockedError,
        MapHaltedError,
        NestedPoolError,
        NoTaskError,
        ParallelError,
        PoolBrokenError,
        PoolFullError,
        PoolShutdownError,
        RemoteError,
        SerializationError,
        StarvationError,
        TaskTimeoutError,
        UnknownPoolError,
        UnrecordableError,
        UnsuitableFunctionError,
    )
    from parallel.futures import Future, completed, failed
    from parallel.groups import TaskGroup, detached
    from parallel.kinds import PoolConfig
    from parallel.logged import CallFilter
    from parallel.mapping import ParallelMap, parallel_map
    from parallel.meters import Progress
    from parallel.observe.recorder import record
    from parallel.observe.snapshot import dump
    from parallel.pools.base import Pool
    from parallel.pools.dask import DaskPool
    from parallel.pools.foreign import ExecutorPool
    from parallel.pools.inline import InlinePool
    from parallel.pools.loop import LoopPool
    from parallel.pools.process.pool import ProcessPool
    from parallel.pools.ray import RayPool
    from parallel.pools.thread import ThreadPool
    from parallel.rates import Rate
    from parallel.registry import Registry, configure, using
    from parallel.resources import PerWorker, per_worker
    from parallel.retries import Retry
    from parallel.seeds import rng
    from parallel.stats import PoolStats, RegistryStats
    from parallel.streams import Halt, MapFuture, Stream
    from parallel.tasks import Task
    from parallel.unseen import UnobservedErrorWarning

__version__ = "0.1.0"

__all__ = [
    "CallFilter",
    "ConfigError",
    "CurrentTask",
    "DaskPool",
    "DeadlockError",
    "ExecutorPool",
    "ForkedError",
    "Future",
    "GroupClosedError",
    "Halt",
    "InlinePool",
    "JournalError",
    "JournalLockedError",
    "LoopPool",
    "MapFuture",
    "MapHaltedError",
    "NestedPoolError",
    "NoTaskError",
    "ParallelError",
    "ParallelMap",
    "PerWorker",
    "Pool",
    "PoolBrokenError",
    "PoolConfig",
    "PoolFullError",
    "PoolShutdownError",
    "PoolStats",
    "ProcessPool",
    "Progress",
    "Rate",
    "RayPool",
    "Registry",
    "RegistryStats",
    "RemoteError",
    "Retry",
    "SerializationError",
    "Settled",
    "StarvationError",
    "Stream",
    "Task",
    "TaskGroup",
    "TaskTimeoutError",
    "ThreadPool",
    "UnknownPoolError",
    "UnobservedErrorWarning",
    "UnrecordableError",
    "UnsuitableFunctionError",
    "WorkerDiedError",
    "as_completed",
    "checkpoint",
    "completed",
    "configure",
    "current_task",
    "detached",
    "dump",
    "failed",
    "first",
    "gather",
    "parallel_map",
    "per_worker",
    "race",
    "record",
    "result_of",
    "rng",
    "settle",
    "sleep",
    "task",
    "unresolved",
    "using",
    "wait",
]

_ROOMS: Final = {
    "errors": "ConfigError DeadlockError ForkedError GroupClosedError JournalError JournalLockedError MapHaltedError "
    "NestedPoolError NoTaskError ParallelError PoolBrokenError PoolFullError PoolShutdownError RemoteError "
    "SerializationError StarvationError TaskTimeoutError UnknownPoolError UnrecordableError UnsuitableFunctionError",
    "deaths": "WorkerDiedError",
    "unseen": "UnobservedErrorWarning",
    "rates": "Rate",
    "retries": "Retry",
    "kinds": "PoolConfig",
    "stats": "PoolStats RegistryStats",
    "futures": "Future completed failed",
    "combine": "Settled as_completed first gather race settle wait",
    "arguments": "result_of unresolved",
    "logged": "CallFilter",
    "current": "CurrentTask checkpoint current_task sleep",
    "pools.base": "Pool",
    "pools.dask": "DaskPool",
    "pools.foreign": "ExecutorPool",
    "pools.inline": "InlinePool",
    "pools.thread": "ThreadPool",
    "pools.loop": "LoopPool",
    "pools.process.pool": "ProcessPool",
    "pools.ray": "RayPool",
    "registry": "Registry configure using",
    "meters": "Progress",
    "seeds": "rng",
    "streams": "Halt MapFuture Stream",
    "tasks": "Task",
    "declaring": "task",
    "mapping": "ParallelMap parallel_map",
    "resources": "PerWorker per_worker",
    "groups": "TaskGroup detached",
    "observe.snapshot": "dump",
    "observe.recorder": "record",
}
"""Where each name lives, room by room, ground to roof."""

_WATCHED: Final = ("PARALLEL_TRACE", "PARALLEL_STATS")
"""The variables of the environment that have the whole program recorded, from the first name on that is handed out."""

_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> object:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if any(variable in environ for variable in _WATCHED):
        import_module(f"{__name__}.observe.recorder").record_program()
    value: object = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value  # next time without this detour
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF])


def _default_registry() -> Home:
    home: Home = import_module(f"{__name__}.registry").default_registry()
    return home


registry_source(_default_registry, is_loaded=False)
