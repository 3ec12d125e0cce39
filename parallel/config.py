"""
Find, read, merge and check TOML.

    $PARALLEL_CONFIG ─┐
    parallel.toml ────┼─ find() ─▶ load() ─▶ tables ─▶ from_mapping() ─▶ Config: pools by name, tasks by pattern
    pyproject.toml ───┘                                     └─▶ ConfigError: every mistake, each with its key path

Guarantees:
- Nothing that a file says is ignored: an option that isn't known is a mistake.
- A value is taken for what it is or refused, never made to fit: `true` is no number, `2.7` no integer.
- Reading imports nothing that the file names. Import strings are only checked for their form.

cattrs and tomllib are imported where a file is read: a program, or a worker process, that reads none doesn't pay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args, get_origin

import attrs
from attrs import field, frozen

from parallel.checks import (
    checked,
    described,
    did_you_mean,
    key_path,
    mistakes_in,
    one_of,
    only_table,
    strict_converter,
)
from parallel.errors import ConfigError
from parallel.kinds import BUILT_IN, KINDS
from parallel.kinds import PoolConfig as PoolConfig  # whoever takes a Config takes these from here too
from parallel.machine import cpus as cpus
from parallel.options import Retry, TaskOptions

if TYPE_CHECKING:
    from cattrs import Converter

Unobserved: TypeAlias = Literal["log", "warn", "raise", "ignore"]
"""What is done about a failure that nobody looked at."""

_UNOBSERVED: tuple[Unobserved, ...] = get_args(Unobserved)
_PATTERN = re.compile(r"[^\s:]+:[^\s:]+|[^\s:]*\*[^\s:]*")


@frozen
class Config:
    """
    A configuration that was read and found right.

    Args:
        source: Where it came from: a file's path, or words.
        pools: What is said about each pool, by name. When read, it always has `threads`, `processes` and `loop`.
        tasks: Options by pattern, `module:qualname` where `*` is any run of characters; in the file's order.
        unobserved: What is done about a failure that nobody looked at: it is logged, warned of, raised at exit, or
            ignored.
    """

    source: str
    pools: Mapping[str, PoolConfig]
    tasks: Mapping[str, TaskOptions]
    unobserved: Unobserved = "log"

    def options_for(self, task_name: str) -> TaskOptions:
        """
        Merge the options of all patterns that match a task's `module:qualname`.

        For each option, the most specific pattern that says it wins: the one with the most characters besides `*`,
        of these the one with the fewest `*`, of these the later one. So a whole name wins over every pattern.
        """
        options = TaskOptions()
        for pattern in sorted((each for each in self.tasks if _matches(each, task_name)), key=_specificity):
            options = self.tasks[pattern].over(options)
        return options


def _matches(pattern: str, task_name: str) -> bool:
    return fnmatchcase(task_name, re.sub(r"[\[?]", r"[\g<0>]", pattern))  # here only `*` is special


def _specificity(pattern: str) -> tuple[int, int]:
    stars = pattern.count("*")
    return len(pattern) - stars, -stars


def built_in() -> Config:
    """
    Give the configuration that holds where there is no file: the pools `threads`, `processes` and `loop`.
    """
    return Config("built-in defaults", dict(BUILT_IN), {})


def discover() -> Config:
    """
    Read the configuration that `find` finds, or give the built-in one if there is none.

    Raises:
        ConfigError: The file can't be read, or has mistakes.
    """
    path = find()
    return built_in() if path is None else load(path)


def find(start: Path | None = None) -> Path | None:
    """
    Find the configuration: `$PARALLEL_CONFIG`, else the nearest file from a directory upward.

    In one directory `parallel.toml` comes first, then a `pyproject.toml` with a table `[tool.parallel]`.

    Args:
        start: The directory to begin with, None for the working directory.

    Returns:
        Its path, None if there is no file. What `$PARALLEL_CONFIG` names need not exist: `load` says so.
    """
    if named := os.environ.get("PARALLEL_CONFIG"):
        return Path(named)
    try:
        directory = (start or Path()).resolve()
    except OSError:  # the working directory was deleted
        return None
    for each in (directory, *directory.parents):
        if os.path.isfile(own := each / "parallel.toml"):
            return own
        if os.path.isfile(project := each / "pyproject.toml") and _concerns_us(project):
            return project
    return None


def _concerns_us(project: Path) -> bool:
    """
    Tell whether a `pyproject.toml` configures this library; True also if it is too broken to tell, so `load` says so.
    """
    try:
        mentioned = b"parallel" in project.read_bytes()  # spares most programs the parsing
        return mentioned and "parallel" in _table(_document(project).get("tool"))
    except (OSError, ConfigError):
        return True


def load(path: str | os.PathLike[str]) -> Config:
    """
    Read and check a file: a `parallel.toml`, or the table `[tool.parallel]` of a `pyproject.toml`.

    Raises:
        ConfigError: The file can't be read, isn't TOML, or has mistakes; all of them are told.
    """
    document = _document(path)
    if Path(path).name == "pyproject.toml":
        return _read(_table(document.get("tool")).get("parallel"), os.fspath(path), ("tool", "parallel"))
    return _read(document, os.fspath(path), ())


def _document(path: str | os.PathLike[str]) -> dict[str, object]:
    """
    Parse a TOML file; a `ConfigError` says why that can't be done.
    """
    import tomllib  # 13 ms

    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        named = os.environ.get("PARALLEL_CONFIG")
        by_whom = "; $PARALLEL_CONFIG names it" if named and Path(named) == Path(path) else ""
        mistake = f"can't be read: {getattr(error, 'strerror', None) or error}{by_whom}"
        raise ConfigError(os.fspath(path), [mistake]) from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        mistake = f"expected text in UTF-8, found byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise ConfigError(os.fspath(path), [mistake]) from error
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5,000 digits, deep nesting
        raise ConfigError(os.fspath(path), [f"not TOML: {error}"]) from error


def from_mapping(mapping: Mapping[str, object], source: str = "the mapping given") -> Config:
    """
    Check tables that a program made, in the form in which TOML would give them.

    Args:
        mapping: `{"pools": {NAME: {...}}, "tasks": {PATTERN: {...}}, "unobserved": ...}`; all may be left out.
        source: What an error calls it.

    Raises:
        ConfigError: It has mistakes; all of them are told.
    """
    return _read(mapping, source, ())


@frozen
class _Tables:
    """
    What a file says.
    """

    pools: dict[str, PoolConfig] = field(factory=dict[str, PoolConfig])
    tasks: dict[str, TaskOptions] = field(factory=dict[str, TaskOptions])
    unobserved: Unobserved = field(default="log", validator=one_of(_UNOBSERVED))


@frozen
class _Kind:
    """
    The one option that every pool's table has.
    """

    kind: str = field(
        validator=checked(
            "the kind of a pool",
            lambda kind: isinstance(kind, str) and kind in KINDS,
            lambda kind: f"{did_you_mean(kind, KINDS)}; known: {', '.join(KINDS)}",
        )
    )


def _read(tables: object, source: str, at: tuple[str, ...]) -> Config:
    """
    Check the tables that a file has under the keys *at*.
    """
    read, mistakes = _Tables(), list(_bad_names(tables, at))
    try:
        read = _converter().structure(tables, _Tables)
    except (ValueError, ExceptionGroup) as error:
        mistakes += mistakes_in(error, at, _unknown)
    if mistakes:
        raise ConfigError(source, sorted(mistakes))
    return Config(source, {**BUILT_IN, **read.pools}, read.tasks, read.unobserved)


def _bad_names(tables: object, at: tuple[str, ...]) -> Iterator[str]:
    """
    Tell the names of pools and patterns of tasks that can't be, and the pools asked for that aren't there.
    """
    pools = _table(_table(tables).get("pools"))
    known = sorted({*BUILT_IN, *(name for name in pools if isinstance(name, str))})
    for name in pools:
        if not (isinstance(name, str) and name):
            yield f"{key_path(*at, 'pools', name)}: expected the name of a pool, found {described(name)}"
    for pattern, options in _table(_table(tables).get("tasks")).items():
        path = (*at, "tasks", pattern)
        if not (isinstance(pattern, str) and _PATTERN.fullmatch(pattern)):
            expected = 'expected a name or pattern in quotes, such as "shop.images:resize" or "shop.images:*"'
            yield f"{key_path(*path)}: {expected}, found {described(pattern)}"
        pool = _table(options).get("pool")
        if isinstance(pool, str) and pool and pool not in known:
            near = did_you_mean(pool, known)
            yield f"{key_path(*path, 'pool')}: no pool named {pool!r}{near}; known: {', '.join(map(key_path, known))}"


def _table(value: object) -> Mapping[object, object]:
    """
    Give a table, an empty one for anything else.
    """
    return cast("Mapping[object, object]", value) if isinstance(value, Mapping) else {}


_WHAT = {_Tables: "table or option", TaskOptions: "option of a task", Retry: "option of retry"}
"""What the keys of a class are called."""


def _unknown(key: object, cls: type, at: tuple[object, ...]) -> str:
    """
    Tell of a key that is no table or option.
    """
    known = [each.name for each in attrs.fields(cls)]
    if issubclass(cls, PoolConfig):
        known, what = ["kind", *known], f"option of kind {cls.kind!r}"
    else:
        what = _WHAT[cls]
    near = did_you_mean(key, known)
    if cls is _Tables and key == "tool":
        near = " ([tool.parallel] is read from a pyproject.toml only)"
    return f"{key_path(*at, key)}: unknown {what}{near}; known: {', '.join(known)}"


def _with_kinds(value: object) -> Mapping[str, object]:
    """
    Fill in the kinds of the built-in pools, which a file may leave out.
    """
    pools = dict(only_table(value))
    for name, config in BUILT_IN.items():
        if isinstance(pools.get(name), Mapping):
            pools[name] = {"kind": config.kind, **_table(pools[name])}
    return pools


def _is_dict(cls: object) -> bool:
    return get_origin(cls) is dict


@cache
def _converter() -> Converter:
    """
    Make the converter that reads the tables.
    """
    from cattrs.gen import make_mapping_structure_fn  # pyright: ignore[reportUnknownVariableType]  # a bare parameter

    converter = strict_converter()

    def pool(table: object, _: object) -> PoolConfig:
        options = dict(only_table(table))
        kind = converter.structure({"kind": options.pop("kind", None)}, _Kind).kind
        return converter.structure(options, KINDS[kind])

    def of_dict(cls: type[object]) -> Callable[[object, object], object]:
        # Keys are for `_bad_names`: this would tell a bad key or what is wrong below it, not both.
        structure = make_mapping_structure_fn(cls, converter, key_type=Any)
        prepared = _with_kinds if PoolConfig in get_args(cls) else only_table
        return lambda table, _: structure(prepared(table), cls)

    converter.register_structure_hook_func(lambda cls: cls is PoolConfig, pool)
    converter.register_structure_hook_factory(_is_dict, of_dict)
    return converter
