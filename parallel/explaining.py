"""
Why a task runs where and how it does: each of its options, and who says it.

    built in < [defaults] < decorator < [tasks."…"] < environment < .options()        the last one that says it wins
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import attrs
from attrs import frozen

from parallel.checks import key_path
from parallel.config import Config, Read
from parallel.dumping import as_json, in_toml
from parallel.kinds import PoolConfig
from parallel.layers import ENVIRONMENT, Path
from parallel.mapping import ParallelMap
from parallel.options import TaskOptions
from parallel.tasks import Task


@frozen
class Saying:
    """
    What one layer says about an option.

    Attributes:
        value: The value, as TOML.
        layer: Which layer it is, such as `decorator` or `tasks`.
        where: The file and line, or the variable; empty if it is neither.
        key: The key path; empty if it has none.
    """

    value: str
    layer: str
    where: str = ""
    key: str = ""

    def __str__(self) -> str:
        where = self.where.removeprefix(f"{os.getcwd()}{os.sep}")  # as people would write it here
        return ": ".join(part for part in (where, self.key) if part) or self.layer


@frozen
class Explanation:
    """
    What holds for a task, or for a pool.

    Attributes:
        options: For each option all that is said about it, first what wins; nothing if nobody says anything.
    """

    options: Mapping[str, list[Saying]]

    def as_json(self) -> dict[str, object]:
        """Give it in a form that JSON can have."""
        return {
            option: [{**attrs.asdict(each), "value": as_json(each.value)} for each in said]
            for option, said in self.options.items()
        }


def task_of(found: object) -> Task[..., Any] | None:
    """Give the task that an object is, or has, if it has one."""
    if isinstance(found, ParallelMap):
        return cast("ParallelMap[..., Any]", found).task
    return cast("Task[..., Any]", found) if isinstance(found, Task) else None


def explain_task(task: Task[..., Any], read: Read) -> Explanation:
    """
    Say what holds for a task.

    Raises:
        ConfigError: Its rules don't decide.
    """
    layers = [
        *_of_rules(task.name, read),
        *_plain(task.declared, "decorator"),
        *_of_tables(read.config.defaults, ("defaults",), "defaults", read),
        *_plain(task.otherwise, "built in"),
    ]
    options = [option.name for option in attrs.fields(TaskOptions)]
    return Explanation({option: [said for name, said in layers if name == option] for option in options})


def explain_pool(name: str, read: Read) -> Explanation:
    """Say what holds for a pool; options that are left as they are have nothing said about them."""
    config = read.config.pools[name]
    said = [("kind", _told(in_toml(config.kind), "pools", ("pools", name, "kind"), read))]
    said += _of_tables(config, ("pools", name), "pools", read)
    found: dict[str, list[Saying]] = {"kind": []}
    found |= {option.name: [] for option in attrs.fields(type(config)) if option.init}
    for option, saying in said:
        found[option].append(saying)
    return Explanation(found)


def _of_rules(task: str, read: Read) -> Iterator[tuple[str, Saying]]:
    """Give what rules say, the winning ones first."""
    config = read.config
    config.options_for(task)  # tells what they leave undecided
    for table, pattern, rule in config.rules_for(task):
        layer = "environment" if table == ENVIRONMENT else "tasks"
        yield from _of_tables(rule, (table, pattern), layer, read)


def _of_tables(options: TaskOptions | PoolConfig, path: Path, layer: str, read: Read) -> Iterator[tuple[str, Saying]]:
    for option in attrs.fields(type(options)):
        value: object = getattr(options, option.name)
        if option.init and value != option.default:
            yield option.name, _told(in_toml(value, option), layer, (*path, option.name), read)


def _plain(options: TaskOptions, layer: str) -> Iterator[tuple[str, Saying]]:
    for option in attrs.fields(TaskOptions):
        value: object = getattr(options, option.name)
        if value is not option.default:
            yield option.name, Saying(in_toml(value, option), layer)


def _told(value: str, layer: str, path: Path, read: Read) -> Saying:
    said = read.said.layer_of(path)
    if said is None or path not in read.said.said_by:
        return Saying(value, "built in")
    keys = ("tasks", *path[1:]) if path[0] == ENVIRONMENT else path
    return Saying(value, layer, str(read.said.where(path)), key_path(*said.at, *keys))


def used_pools(config: Config, tasks: list[Task[..., Any]]) -> set[str]:
    """Give the names of the pools that some tasks run in, or that rules and defaults name."""
    named = [config.defaults, *config.tasks.values(), *config.environment.values()]
    pools = {options.pool for options in named if options.pool is not None}
    for task in tasks:
        rules = config.options_for(task.name)
        said = rules.over(task.declared.over(config.defaults.over(task.otherwise)))
        pools |= {said.pool} if said.pool is not None else set()
    return pools
