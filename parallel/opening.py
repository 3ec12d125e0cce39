"""
How pools are opened: from what a configuration says, and what it names, imported now.

Nothing here has state.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import cast

from parallel import context
from parallel.config import Config, PoolConfig, cpus
from parallel.context import Dispatcher
from parallel.errors import ConfigError, NestedPoolError
from parallel.imports import imported
from parallel.kinds import InlineConfig, ProcessConfig, ThreadConfig
from parallel.pools.base import Pool


def open_pool(name: str, config: Config, callbacks: Dispatcher, *, nested: bool) -> Pool:
    """
    Make a pool that a configuration describes; it starts nothing yet.

    Args:
        name: Its name there.
        config: The configuration.
        callbacks: Who runs what follows its calls, where its own workers can't.
        nested: It is for what a call in a worker calls.

    Raises:
        NestedPoolError: It is nested, one of processes, and its configuration forbids that.
        ConfigError: What it names can't be imported.
    """
    said = config.pools[name]
    if nested or context.in_worker_process:
        said = _nested(name, said)
    arguments = said.arguments()
    make = cast("Callable[..., Pool]", _resolved(said.pool, f"pools.{name}.kind", config.source))
    for option in ("initializer", "factory"):
        if isinstance(function := arguments.get(option), str):
            arguments[option] = _resolved(function, f"pools.{name}.{option}", config.source)
    for variable in cast("tuple[str, ...]", arguments.get("context", ())):
        found = _resolved(variable, f"pools.{name}.context", config.source)
        if not isinstance(found, ContextVar):
            problem = f"expected what names a ContextVar, found {variable!r}, which is {found!r}"
            raise ConfigError(config.source, [f"pools.{name}.context: {problem}"])
    if getattr(make, "wants_configuration", False):
        arguments["configuration"] = pickle.dumps(config)
    return make(**arguments, name=name, callbacks=callbacks)


def _nested(name: str, config: PoolConfig) -> PoolConfig:
    """Return what a pool is for what a call in a worker calls: no pool there starts processes, or has others do."""
    if config.distant:
        return InlineConfig()
    if not isinstance(config, ProcessConfig):
        return config
    if config.nested == "error":
        raise NestedPoolError(name)
    if config.nested == "inline":
        return InlineConfig()
    return ThreadConfig(config.max_workers or cpus())


def hooks_of(config: Config) -> Iterator[tuple[str, Callable[..., object]]]:
    """
    Give the functions that a configuration names for events.

    Raises:
        ConfigError: One can't be imported, or can't be called.
    """
    for event, named in config.on.items():
        for each in named:
            found = _resolved(each, f"on.{event}", config.source)
            if not callable(found):
                problem = f"expected a function, found {each!r}, which is {found!r}"
                raise ConfigError(config.source, [f"on.{event}: {problem}"])
            yield event, found


def function(option: str, said: Callable[..., object] | str | None) -> Callable[..., object] | None:
    """
    Import a handler that is named; give any other as it is.

    Raises:
        ValueError: It can't be imported, or can't be called; the text begins with the option.
    """
    if not isinstance(said, str):
        return said
    try:
        found = imported(said)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option}: expected something to import, found {said!r}: {error}") from error
    if not callable(found):
        raise ValueError(f"{option}: expected a function, found {said!r}, which is {found!r}")
    return found


def changed(before: Mapping[str, PoolConfig], after: Mapping[str, PoolConfig]) -> set[str]:
    """Tell the pools about which something else is said, or nothing any more."""
    return {name for name, said in before.items() if after.get(name) != said}


def _resolved(import_string: str, key: str, source: str) -> object:
    """Import what a string of a configuration names."""
    try:
        return imported(import_string)
    except (ImportError, AttributeError) as error:
        raise ConfigError(source, [f"{key}: expected something to import, found {import_string!r}: {error}"]) from error
