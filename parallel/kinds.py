"""
What may be said about a pool, kind by kind.

Each kind has a class, whose fields are the options of its pool's constructor; `KINDS` names them all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import attrs
from attrs import Attribute, field, frozen

from parallel.checks import checked, described, did_you_mean, is_count, one_of
from parallel.imports import is_import_string, with_colon
from parallel.machine import cpus

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


def _are_import_strings(value: object) -> bool:
    return isinstance(value, tuple) and all(map(is_import_string, cast("tuple[object, ...]", value)))


def _as_tuple(value: object) -> Any:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


_count = checked("an integer of at least 1", is_count)
_max_workers = checked("an integer of at least 1 or a string such as 'cpus', 'cpus-1' or '2*cpus'", _is_workers)
_import_string = checked("an import string such as 'package.module:attribute'", is_import_string, with_colon)
_start_method = checked(
    f"a start method that this platform has ({', '.join(map(repr, _START_METHODS))})",
    lambda value: value in _START_METHODS,
    lambda value: did_you_mean(value, _START_METHODS),
)
_on_full = [one_of(("block", "raise", "run")), _not_alone]
_import_strings = checked("a list of import strings such as ['package.module:variable']", _are_import_strings)
_nested = one_of(("inline", "thread", "error"))
_on_full_of_loop = [
    one_of(("block", "raise"), "; a coroutine can't run on its caller, as calls of the kinds thread and process can"),
    _not_alone,
]


@frozen
class PoolConfig:
    """
    What is said about one pool; each kind has a class of its own.

    A subclass names its *kind* and has the options of its pool's constructor as fields, under the same names. When
    read from TOML, a field with a validator is checked by that alone, one without by its type. A field's default means
    "not said", and is the default of the pool too.

    Raises:
        ValueError: A value that the option can't have.
    """

    kind: ClassVar[str]

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
    """

    kind: ClassVar[str] = "thread"
    max_workers: int | str | None = field(default=None, validator=_max_workers)
    thread_name_prefix: str = ""
    initializer: str | None = field(default=None, validator=_import_string)
    initargs: tuple[object, ...] = ()
    max_pending: int | None = field(default=None, validator=_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=_on_full)
    helping: bool = True


@frozen
class ProcessConfig(PoolConfig):
    """
    A pool of child processes.

    Args:
        max_workers: The most processes, or a share of the CPUs such as `cpus-1`; None for the pool's own default.
        mp_context: How a process starts, None for the pool's own default.
        initializer: Import string of what each process calls first, None for nothing.
        initargs: The initializer's arguments.
        max_tasks_per_child: Calls that a process runs before a fresh one replaces it, None for no limit.
        max_pending: The most calls that wait for a process, None for no limit.
        on_full: What a submission does when so many wait: it blocks, raises, or runs the call itself; None blocks.
        context: Import strings of the context variables whose values travel with each call.
        forward_logs: Whether the log records of the processes arrive in the program's own logging; None if that has
            been set up when a process starts.
        nested: What the pool is in a worker process: its calls run inline, on the thread that makes them; or on
            threads, as many as it may have processes; or it is an error to ask for it.
    """

    kind: ClassVar[str] = "process"
    max_workers: int | str | None = field(default=None, validator=_max_workers)
    mp_context: Literal["fork", "forkserver", "spawn"] | None = field(default=None, validator=_start_method)
    initializer: str | None = field(default=None, validator=_import_string)
    initargs: tuple[object, ...] = ()
    max_tasks_per_child: int | None = field(default=None, validator=_count)
    max_pending: int | None = field(default=None, validator=_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=_on_full)
    context: tuple[str, ...] = field(default=(), converter=_as_tuple, validator=_import_strings)
    forward_logs: bool | None = None
    nested: Literal["inline", "thread", "error"] = field(default="inline", validator=_nested)

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
    """

    kind: ClassVar[str] = "loop"
    max_workers: int | str | None = field(default=None, validator=_max_workers)
    max_pending: int | None = field(default=None, validator=_count)
    on_full: Literal["block", "raise"] | None = field(default=None, validator=_on_full_of_loop)


@frozen
class InlineConfig(PoolConfig):
    """
    Calls run where they are made; for tests and debugging.
    """

    kind: ClassVar[str] = "inline"


KINDS: dict[str, type[PoolConfig]] = {
    config.kind: config for config in (ThreadConfig, ProcessConfig, LoopConfig, InlineConfig)
}
"""The kinds of pools, by the name that a file gives them."""

BUILT_IN: Mapping[str, PoolConfig] = {
    "threads": ThreadConfig(),
    "processes": ProcessConfig(),
    "loop": LoopConfig(),
}
"""The pools that are there without a file."""
