"""
What may be said about pools whose calls somebody else's engine runs.

Each kind has a class, as those of `kinds`; `ELSEWHERE` names them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, cast

from attrs import field, frozen

from parallel.checks import STRINGS, Form, checked, checked_by
from parallel.kinds import (
    PoolConfig,
    as_names,
    as_size,
    valid_count,
    valid_import_string,
    valid_import_strings,
    valid_max_workers,
    valid_modules,
    valid_on_exit,
    valid_on_full,
)
from parallel.sizes import AS_SIZE, SIZE_FORM, size

CAPABILITIES: Final = ("running", "cancel")
"""What may be declared of an executor: see `ExecutorPool`."""


def _are_arguments(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and name.isidentifier() for name in cast("Mapping[object, object]", value)
    )


def _are_capabilities(value: object) -> bool:
    return isinstance(value, tuple) and all(one in CAPABILITIES for one in cast("tuple[object, ...]", value))


def _are_amounts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and name and type(much) in (int, float) and much > 0
        for name, much in cast("Mapping[object, Any]", value).items()
    )


def are_tls_paths(value: object) -> bool:
    """Tell whether *value* names the three files of an encrypted connection."""
    return (
        isinstance(value, Mapping)
        and set(cast("Mapping[object, object]", value)) == set(_TLS)
        and all(isinstance(path, str) and path for path in cast("Mapping[object, object]", value).values())
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) and one for one in cast("tuple[object, ...]", value))


def is_ray_address(text: str) -> bool:
    """Tell whether that can be the address of a Ray cluster. Those of Ray's own proxy, `ray://`, are none."""
    return _RAY_ADDRESS.fullmatch(text) is not None


_RAY_ADDRESS: Final = re.compile(r"auto|local|[^/\s]+:[0-9]{1,5}")

_TLS: Final = ("ca_file", "cert", "key")

_address = checked(
    "the address of a scheduler, such as 'tcp://scheduler:8786'",
    lambda value: isinstance(value, str) and bool(value.strip()),
    form={"type": "string", "minLength": 1},
)
_ray_address = checked(
    "the address of a cluster, such as 'head:6379', or 'auto'",
    lambda value: isinstance(value, str) and is_ray_address(value),
    form={"type": "string", "pattern": f"^(?:{_RAY_ADDRESS.pattern})$"},
)
_amount = checked(
    "a number from 0 on",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
    form={"type": "number", "minimum": 0},
)
_environment = checked(
    "a table as Ray describes it, such as {pip = ['pillow']}",
    lambda value: isinstance(value, Mapping),
    form={"type": "object"},
)
_tls = checked(
    "a table of the paths ca_file, cert and key",
    are_tls_paths,
    form={
        "type": "object",
        "properties": {name: {"type": "string"} for name in _TLS},
        "required": list(_TLS),
        "additionalProperties": False,
    },
)
_resources = checked(
    "a table of amounts, such as {GPU = 1}",
    _are_amounts,
    form={"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}},
)
_workers = checked("a list of names or addresses of workers", _are_texts, form=STRINGS)
_ARGUMENTS: Form = {"type": "object"}
_arguments = checked("a table of arguments, such as {max_workers = 4}", _are_arguments, form=_ARGUMENTS)
_capabilities = checked(
    f"a list of capabilities, each {' or '.join(map(repr, CAPABILITIES))}",
    _are_capabilities,
    form={**STRINGS, "items": {"enum": list(CAPABILITIES)}},
)


@frozen
class ExecutorConfig(PoolConfig):
    """
    Any executor that is made by a factory.

    Args:
        factory: Import string of what makes the executor, a class such as `concurrent.futures:ProcessPoolExecutor`.
        kwargs: What the factory is called with.
        submit_kwargs: What each `submit` of the executor is given beside the call.
        capabilities: What the executor can do besides: its futures tell when calls begin (`running`), and cancelling
            one ends a call that runs (`cancel`).
        max_workers: The most calls that the executor runs at a time, or a share of the CPUs; None for what it says.
        initializer: Import string of what each of its processes calls first, None for nothing.
        initargs: The initializer's arguments.
        upload: Modules that the workers don't have, such as `package.module`: each is sent with its top-level package.
        context: Import strings of the context variables whose values travel with each call.
        max_pending: The most calls that wait, None for no limit.
        on_full: What a submission does when so many wait: it blocks, raises, or runs the call itself; None blocks.
        on_exit: What becomes of accepted calls when the program ends: all are run, or cancelled.
    """

    kind: ClassVar[str] = "executor"
    pool: ClassVar[str] = "parallel.pools.foreign:ExecutorPool"
    abilities: ClassVar[Mapping[str, str]] = {
        "kill": "with the capability `cancel`",
        "crash": "as the executor does",
        "rerun": "yes",
        "priority": "yes",
        "context": "by `context`",
        "share": "yes",
        "fork": "with a new executor",
    }
    distant: ClassVar[bool] = True
    factory: str = field(validator=valid_import_string)
    kwargs: Mapping[str, Any] = field(factory=dict[str, Any], validator=_arguments)
    submit_kwargs: Mapping[str, Any] = field(factory=dict[str, Any], validator=_arguments)
    capabilities: tuple[str, ...] = field(default=(), converter=as_names, validator=_capabilities)
    max_workers: int | str | None = field(default=None, validator=valid_max_workers)
    initializer: str | None = field(default=None, validator=valid_import_string)
    initargs: tuple[object, ...] = ()
    upload: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_modules)
    context: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_import_strings)
    max_pending: int | None = field(default=None, validator=valid_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=valid_on_full)
    on_exit: Literal["wait", "cancel"] = field(default="wait", validator=valid_on_exit)


@frozen
class DaskConfig(PoolConfig):
    """
    A Dask cluster that is there, or one of processes on this machine.

    Args:
        address: The scheduler's, such as `tcp://scheduler:8786`; None for a cluster of processes that is started here.
        max_workers: The most processes of that cluster, or calls at a time beside an address, or a share of the CPUs.
        tls: Paths of what an encrypted connection needs: `ca_file`, `cert` and `key`; None for one that is not.
        client_name: What the scheduler calls this client, None for the pool's name.
        resources: What a worker must have for each call, such as `{GPU = 1}`.
        workers: Names or addresses of the workers that may run the calls, none for all.
        kill: Whether a call can be ended by force, with its worker; None for where that can be, true insists on it.
        initializer: Import string of what each worker process calls first, None for nothing.
        initargs: The initializer's arguments.
        upload: Modules that the workers don't have, such as `package.module`: each is sent with its top-level package.
        context: Import strings of the context variables whose values travel with each call.
        max_pending: The most calls that wait, None for no limit.
        on_full: What a submission does when so many wait: it blocks, raises, or runs the call itself; None blocks.
        on_exit: What becomes of accepted calls when the program ends: all are run, or cancelled.
    """

    kind: ClassVar[str] = "dask"
    pool: ClassVar[str] = "parallel.pools.dask:DaskPool"
    abilities: ClassVar[Mapping[str, str]] = {
        "kill": "on workers of one thread that have nannies",
        "ask": "yes",
        "replace": "with `kill`",
        "crash": "calls on the same worker are sent again",
        "rerun": "yes",
        "priority": "yes",
        "context": "by `context`",
        "share": "yes",
    }
    distant: ClassVar[bool] = True
    address: str | None = field(default=None, validator=_address)
    max_workers: int | str | None = field(default=None, validator=valid_max_workers)
    tls: Mapping[str, str] | None = field(default=None, validator=_tls)
    client_name: str | None = None
    resources: Mapping[str, float] | None = field(default=None, validator=_resources)
    workers: tuple[str, ...] = field(default=(), converter=as_names, validator=_workers)
    kill: bool | None = None
    initializer: str | None = field(default=None, validator=valid_import_string)
    initargs: tuple[object, ...] = ()
    upload: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_modules)
    context: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_import_strings)
    max_pending: int | None = field(default=None, validator=valid_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=valid_on_full)
    on_exit: Literal["wait", "cancel"] = field(default="wait", validator=valid_on_exit)


@frozen
class RayConfig(PoolConfig):
    """
    A Ray cluster that is there, or one on this machine.

    Args:
        address: The cluster's, such as `head:6379`, or `auto`; None for the one of this process, or a new one here.
        max_workers: The most calls at a time, or a share of the CPUs; None for as many as there is room for.
        num_cpus: CPUs that a call takes of its node, 0 for none; None for one.
        num_gpus: GPUs, likewise; None for none.
        memory: What a call takes of its node's memory, None for any.
        resources: What else it takes, such as `{license = 1}`.
        runtime_env: What the workers have besides, as Ray describes it.
        initializer: Import string of what each worker process calls first, None for nothing.
        initargs: The initializer's arguments.
        upload: Modules that the workers don't have, such as `package.module`: each is sent with its top-level package.
        context: Import strings of the context variables whose values travel with each call.
        max_pending: The most calls that wait, None for no limit.
        on_full: What a submission does when so many wait: it blocks, raises, or runs the call itself; None blocks.
        on_exit: What becomes of accepted calls when the program ends: all are run, or cancelled.
    """

    kind: ClassVar[str] = "ray"
    pool: ClassVar[str] = "parallel.pools.ray:RayPool"
    abilities: ClassVar[Mapping[str, str]] = {
        "kill": "yes",
        "ask": "yes",
        "replace": "yes",
        "crash": "yes",
        "rerun": "yes",
        "priority": "of those that Ray has not got yet",
        "context": "by `context`",
        "share": "yes",
    }
    distant: ClassVar[bool] = True
    address: str | None = field(default=None, validator=_ray_address)
    max_workers: int | str | None = field(default=None, validator=valid_max_workers)
    num_cpus: float | None = field(default=None, validator=_amount)
    num_gpus: float | None = field(default=None, validator=_amount)
    memory: int | None = field(default=None, converter=as_size, validator=checked_by(size, SIZE_FORM), metadata=AS_SIZE)
    resources: Mapping[str, float] | None = field(default=None, validator=_resources)
    runtime_env: Mapping[str, Any] | None = field(default=None, validator=_environment)
    initializer: str | None = field(default=None, validator=valid_import_string)
    initargs: tuple[object, ...] = ()
    upload: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_modules)
    context: tuple[str, ...] = field(default=(), converter=as_names, validator=valid_import_strings)
    max_pending: int | None = field(default=None, validator=valid_count)
    on_full: Literal["block", "raise", "run"] | None = field(default=None, validator=valid_on_full)
    on_exit: Literal["wait", "cancel"] = field(default="wait", validator=valid_on_exit)


ELSEWHERE: Final[Mapping[str, type[PoolConfig]]] = {
    config.kind: config for config in (ExecutorConfig, DaskConfig, RayConfig)
}
"""Those kinds, by the name that a file gives them."""
