"""
What may be said about a pool, kind by kind.

Each kind has a class, whose fields are the options of its pool's constructor. Those whose calls run here, or in
processes that are started for them, are in this room, and `KINDS` names them; the others are in `elsewhere`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, ClassVar, Literal, cast

import attrs
from attrs import Attribute, field, frozen

from parallel.checks import (
    COUNT,
    STRINGS,
    Form,
    checked,
    checked_by,
    converted,
    described,
    did_you_mean,
    is_count,
    one_of,
)
from parallel.durations import AS_DURATION, DURATION_FORM, Duration, pause, seconds
from parallel.imports import IMPORT_FORM, is_import_string, with_colon
from parallel.machine import cpus
from parallel.memory import can_limit_memory
from parallel.shortage import UNTOLD, free_memory
from parallel.sizes import AS_SIZE, SIZE_FORM, Size, size

# N*cpus, cpus-N or both; five digits are more workers than any machine runs.
_CPUS = re.compile(r"(?:([1-9][0-9]{0,4})\*)?cpus(?:-([1-9][0-9]{0,4}))?")
_START_METHODS = ("spawn",) if sys.platform == "win32" else ("fork", "forkserver", "spawn")


def _workers(said: str) -> int:
    """
    Resolve `cpus`, `cpus-1`, `2*cpus` on this machine; at least 1.
    """
    match = _CPUS.fullmatch(said)
    assert match is not None, said  # the field's validator saw to it
    times, less = match.groups()
    return max(1, int(times or 1) * cpus() - int(less or 0))


def _is_workers(value: object) -> bool:
    return is_count(value) or (isinstance(value, str) and _CPUS.fullmatch(value) is not None)


def _not_alone(pool: PoolConfig | None, attribute: Attribute[Any], value: object) -> None:
    """
    Refuse *on_full* where nothing gets full. (A file's values are checked one by one, then all again.)
    """
    if value is not None and pool is not None and getattr(pool, "max_pending", None) is None:
        raise ValueError(f"{attribute.name}: expected only beside max_pending, found {described(value)} without it")


def _grace(value: Duration | None) -> float | None:
    return None if value is None else converted(pause, value)


def _are_import_strings(value: object) -> bool:
    return isinstance(value, tuple) and all(map(is_import_string, cast("tuple[object, ...]", value)))


def _seconds(value: Duration | None) -> float | None:
    return None if value is None else converted(seconds, value)


def as_size(value: Size | None) -> int | None:
    return None if value is None else converted(size, value)


def as_names(value: Sequence[str]) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else cast("tuple[str, ...]", value)


def _path(value: str | PathLike[str] | None) -> str | None:
    return fspath(value) if isinstance(value, PathLike) else value


def _is_env(value: object) -> bool:
    """
    Tell whether these are variables as the system takes them.
    """
    if not isinstance(value, Mapping):
        return False
    pairs = cast("Mapping[object, object]", value).items()
    return all(
        isinstance(name, str) and isinstance(text, str) and name and "=" not in name and "\0" not in name + text
        for name, text in pairs
    )


def is_modules(value: object) -> bool:
    """
    Tell whether these are names of modules.
    """
    return isinstance(value, tuple) and all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        for name in cast("tuple[object, ...]", value)
    )


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _only_where_memory_can_be_limited(_: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not can_limit_memory():
        found = described(value)
        raise ValueError(f"{attribute.name}: expected nothing, found {found}: this platform has no such limit")


def _only_where_free_memory_is_told(_: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and free_memory() is None:
        raise ValueError(f"{attribute.name}: {UNTOLD}")


_TEXT: Form = {"type": "string", "minLength": 1}
_ENV: Form = {"type": "object", "additionalProperties": {"type": "string"}}
_WORKERS: Form = {"anyOf": [COUNT, {"type": "string", "pattern": f"^{_CPUS.pattern}$"}]}

valid_count = checked("an integer of at least 1", is_count, form=COUNT)
_typed_count = checked("an integer of at least 1", is_count, types=int, form=COUNT)
"""For what a program says as well: a wrong type is a `TypeError` there."""
valid_modules = checked(
    "the names of modules, such as ['numpy', 'package.module']", is_modules, types=(tuple, list), form=STRINGS
)
_variables = checked(
    "variables and their values, such as {NAME = 'value'}: all of them strings", _is_env, types=dict, form=_ENV
)
_directory = checked("the path of a directory", _is_path, types=str, form=_TEXT)
_limits = [checked_by(size, SIZE_FORM), _only_where_memory_can_be_limited]
_memory_free = [checked_by(size, SIZE_FORM), _only_where_free_memory_is_told]
valid_max_workers = checked(
    "an integer of at least 1 or a string such as 'cpus', 'cpus-1' or '2*cpus'", _is_workers, form=_WORKERS
)
valid_import_string = checked(
    "an import string such as 'package.module:attribute'", is_import_string, with_colon, form=IMPORT_FORM
)
_start_method = checked(
    f"a start method that this platform has ({', '.join(map(repr, _START_METHODS))})",
    lambda value: value in _START_METHODS,
    lambda value: did_you_mean(value, _START_METHODS),
    form={"enum": ["fork", "forkserver", "spawn"]},
)
valid_on_full = [one_of(("block", "raise", "run")), _not_alone]
valid_import_strings = checked(
    "a list of import strings such as ['package.module:variable']", _are_import_strings, form=STRINGS
)
_nested = one_of(("inline", "thread", "error"))
valid_on_exit = one_of(("wait", "cancel"))
_on_full_of_loop = [
    one_of(("block", "raise"), "; a coroutine can't run on its caller, as calls of the kinds thread and process can"),
    _not_alone,
]


@frozen
class PoolConfig:
    """
    What is said about one pool; each kind has a class of its own.

    A subclass names its *kind*, and the *pool* that is made of it, and has the options of that one's constructor as
    fields, under the same names. When read from TOML, a field with a validator is checked by that alone, one without by
    its type. A field's default means "not said", and is the default of the pool too.

    A package can add a kind: see `docs/configuration.md`.

    Attributes:
        kind: Its name in a configuration.
        pool: Import string of the pool's class, which is resolved when a pool opens. Its constructor takes *name* and
            *callbacks* besides the options, as `Pool` does.
        distant: Its calls run in processes that others have started; there, its own calls run inline.
        abilities: What its pools can do, of `abilities.ABILITIES`: "yes", or what it depends on. What is missing, they
            can't.

    Raises:
        ValueError: A value that the option can't have.
    """

    kind: ClassVar[str]
    pool: ClassVar[str]
    distant: ClassVar[bool] = False
    abilities: ClassVar[Mapping[str, str]] = {}

    def arguments(self) -> dict[str, object]:
        """
        Give the keyword arguments of the pool's constructor, without those left at their defaults.

        A share of the CPUs becomes a number here; import strings stay strings.
        """
        said = attrs.asdict(self, recurse=False, filter=lambda option, value: value != option.default)
        if isinstance(max_workers := said.get("max_workers"), str):
            said["max_workers"] = _workers(max_workers)
        return said


@frozen
class ThreadConfig(PoolConfig):
    """
    A pool of threads.

    Args:
        max_workers: The most threads, or a share of the CPUs such as `2*cpus`; None for the pool's own default.
        thread_name_prefix: Start of the threads' names.
        initializer: Import string of what each thread calls first, None for nothing.
        initargs: The initializer's arguments.
        max_pending: The most calls that wait for a thread, None for no limit.
        on_full: What a submission does when so many wait: it blocks, raises, or runs the call itself; None blocks.
        helping: Whether a thread that waits for a call which is still queued runs it itself.
        memory_free: Memory that has to be free on the machine where a call starts, None for any; see `shortage`.
        on_exit: What becomes of accepted calls when the program ends: all are run, or cancelled.
    """

    kind: ClassVar[str] = "thread"
    pool: ClassVar[str] = "parallel.pools.thread:ThreadPool"
    abilities: ClassVar[Mapping[str, str]] = {
        "ask": "yes",
        "replace": "yes",
        "priority": "yes",
        "context": "all",
        "share": "as it is",
        "fork": "yes",
    }
    max_workers: int | str | None = field(default=None, validator=valid_max_workers)
    thread_name_prefix: str = ""
    initializer: str | None = field(default=None, validator=valid_import_string)
    initargs: tuple[object, ...] = ()
    max_pending: int | None = field(default=None, validator=valid_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=valid_on_full)
    helping: bool = True
    memory_free: int | None = field(
        default=None, kw_only=True, converter=as_size, validator=_memory_free, metadata=AS_SIZE
    )
    on_exit: Literal["wait", "cancel"] = field(default="wait", kw_only=True, validator=valid_on_exit)


@frozen(kw_only=True)
class Workplace:
    """
    What is said about the processes of a pool, in a file or to its constructor.

    Args:
        preload: Modules that a process has loaded before its first call.
        env: Variables of its environment, besides those of this process.
        cwd: Its working directory, None for that of this process.
        threads_per_worker: Threads that BLAS and OpenMP may start in it, None for the process's share of the CPUs.
        max_memory_per_child: Size above which a fresh one replaces it after its present call, None for no limit.
        hard_memory_limit: Size beyond which its allocations fail, None for no limit.
        idle_timeout: How long it stays without a call, None for ever.

    Raises:
        TypeError: One of them is of another type.
        ValueError: One of them has a value that it can't have.
    """

    preload: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_modules)
    env: Mapping[str, str] | None = field(default=None, validator=_variables)
    cwd: str | None = field(default=None, converter=_path, validator=_directory)
    threads_per_worker: int | None = field(default=None, validator=_typed_count)
    max_memory_per_child: int | None = field(
        default=None, converter=as_size, validator=checked_by(size, SIZE_FORM), metadata=AS_SIZE
    )
    hard_memory_limit: int | None = field(default=None, converter=as_size, validator=_limits, metadata=AS_SIZE)
    idle_timeout: float | None = field(
        default=None, converter=_seconds, validator=checked_by(seconds, DURATION_FORM), metadata=AS_DURATION
    )


@frozen
class ProcessConfig(PoolConfig, Workplace):
    """
    A pool of child processes; see `Workplace` for the options that are not named here.

    Args:
        max_workers: The most processes, or a share of the CPUs such as `cpus-1`; None for the pool's own default.
        mp_context: How a process starts, None for the pool's own default.
        initializer: Import string of what each process calls first, None for nothing.
        initargs: The initializer's arguments.
        max_tasks_per_child: Calls that a process runs before a fresh one replaces it, None for no limit.
        kill_grace: How long a process that is killed may take to end after SIGTERM, before SIGKILL; None for the
            pool's own default.
        max_pending: The most calls that wait for a process, None for no limit.
        on_full: What a submission does when so many wait: it blocks, raises, or runs the call itself; None blocks.
        context: Import strings of the context variables whose values travel with each call.
        forward_logs: Whether the log records of the processes arrive in the program's own logging; None if that has
            been set up when a process starts.
        nested: What the pool is in a worker process: its calls run inline, on the thread that makes them; or on
            threads, as many as it may have processes; or it is an error to ask for it.
        memory_free: Memory that has to be free on the machine where a call starts, None for any; see `shortage`.
        on_exit: What becomes of accepted calls when the program ends: all are run, or cancelled.
    """

    kind: ClassVar[str] = "process"
    pool: ClassVar[str] = "parallel.pools.process.pool:ProcessPool"
    abilities: ClassVar[Mapping[str, str]] = {
        "kill": "yes",
        "ask": "yes",
        "replace": "yes",
        "crash": "yes",
        "rerun": "yes",
        "priority": "yes",
        "context": "by `context`",
        "logs": "yes",
        "share": "yes",
        "fork": "yes",
    }
    max_workers: int | str | None = field(default=None, validator=valid_max_workers)
    mp_context: Literal["fork", "forkserver", "spawn"] | None = field(default=None, validator=_start_method)
    initializer: str | None = field(default=None, validator=valid_import_string)
    initargs: tuple[object, ...] = ()
    max_tasks_per_child: int | None = field(default=None, validator=valid_count)
    kill_grace: float | None = field(
        default=None, kw_only=True, converter=_grace, validator=checked_by(pause, DURATION_FORM), metadata=AS_DURATION
    )
    max_pending: int | None = field(default=None, validator=valid_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=valid_on_full)
    context: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_import_strings)
    forward_logs: bool | None = None
    nested: Literal["inline", "thread", "error"] = field(default="inline", validator=_nested)
    memory_free: int | None = field(
        default=None, kw_only=True, converter=as_size, validator=_memory_free, metadata=AS_SIZE
    )
    on_exit: Literal["wait", "cancel"] = field(default="wait", kw_only=True, validator=valid_on_exit)

    def arguments(self) -> dict[str, object]:
        """Give those of the constructor, which knows nothing of nesting; see `PoolConfig.arguments`."""
        said = super().arguments()
        said.pop("nested", None)
        return said


@frozen
class LoopConfig(PoolConfig):
    """
    One asyncio event loop on a thread of its own.

    Args:
        max_workers: The most calls in flight, or a share of the CPUs; None for the pool's own default.
        max_pending: The most calls that wait for their turn, None for no limit.
        on_full: What a submission does when so many wait: it blocks or raises; None blocks.
        memory_free: Memory that has to be free on the machine where a call starts, None for any; see `shortage`.
        on_exit: What becomes of accepted calls when the program ends: all are run, or cancelled.
    """

    kind: ClassVar[str] = "loop"
    pool: ClassVar[str] = "parallel.pools.loop:LoopPool"
    abilities: ClassVar[Mapping[str, str]] = {
        "kill": "at its next `await`",
        "ask": "yes",
        "priority": "yes",
        "context": "all",
        "share": "as it is",
        "fork": "yes",
    }
    max_workers: int | str | None = field(default=None, validator=valid_max_workers)
    max_pending: int | None = field(default=None, validator=valid_count)
    on_full: Literal["block", "raise"] | None = field(default=None, validator=_on_full_of_loop)
    memory_free: int | None = field(
        default=None, kw_only=True, converter=as_size, validator=_memory_free, metadata=AS_SIZE
    )
    on_exit: Literal["wait", "cancel"] = field(default="wait", kw_only=True, validator=valid_on_exit)


@frozen
class InlineConfig(PoolConfig):
    """
    Calls run where they are made; for tests and debugging.

    Args:
        check_pickle: Whether each call, and what comes out of it, is packed and loaded as if it went to a process.
    """

    kind: ClassVar[str] = "inline"
    pool: ClassVar[str] = "parallel.pools.inline:InlinePool"
    abilities: ClassVar[Mapping[str, str]] = {"context": "all", "share": "as it is", "fork": "yes"}
    check_pickle: bool = False


KINDS: dict[str, type[PoolConfig]] = {
    config.kind: config for config in (ThreadConfig, ProcessConfig, LoopConfig, InlineConfig)
}
"""The kinds of pools whose workers are this program's own, by the name that a file gives them."""

BUILT_IN: Mapping[str, PoolConfig] = {
    "threads": ThreadConfig(),
    "processes": ProcessConfig(),
    "loop": LoopConfig(),
}
"""The pools that are there without a file."""
