"""
What can be told of a configuration besides its mistakes: rules and pools that nothing uses.

What uses them is known of the tasks that are loaded: of the modules that are named, and of all that they import.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

from parallel.checks import key_path
from parallel.config import Config, Read
from parallel.errors import ConfigError
from parallel.explaining import used_pools
from parallel.kinds import BUILT_IN
from parallel.rules import Patterns
from parallel.tasks import Task, TaskChain


def loaded_tasks() -> list[Task[..., Any]]:
    """
    Give all tasks of this process, by name: who declares one needn't note it for this.
    """
    # By type: to ask some objects for their class runs code of theirs.
    tasks = {one.name: one for one in gc.get_objects() if issubclass(type(one), Task)}
    return [task for _, task in sorted(tasks.items()) if not isinstance(task, TaskChain)]


def undecided(config: Config, tasks: list[Task[..., Any]]) -> Iterator[str]:
    """
    Tell the rules that are as specific as each other, and say different things for one of the tasks.
    """
    for task in tasks:
        try:
            config.options_for(task.name)
        except ConfigError as error:
            yield from error.mistakes


def warnings_of(read: Read, tasks: list[Task[..., Any]]) -> Iterator[str]:
    """
    Tell the rules that none of the tasks matches, and the pools that nothing uses.
    """
    config, said = read.config, read.said
    for pattern in _unmatched(config.tasks, tasks):
        yield f"{_place(read, 'tasks', pattern)}: no task that is loaded matches"
    used = used_pools(config, tasks)
    for name in config.pools:
        if name not in used and name not in BUILT_IN and ("pools", name) in said.said_by:
            yield f"{_place(read, 'pools', name)}: nothing uses it: no task that is loaded, and no rule"


def _unmatched(patterns: Iterable[str], tasks: list[Task[..., Any]]) -> list[str]:
    ready = Patterns(patterns)
    matched = {pattern for task in tasks for pattern in ready.matching(task.name)}
    return [pattern for pattern in patterns if pattern not in matched]


def _place(read: Read, *path: str) -> str:
    layer = read.said.layer_of(path)
    at = () if layer is None else layer.at
    return ": ".join(part for part in (str(read.said.where(path)), key_path(*at, *path)) if part)
