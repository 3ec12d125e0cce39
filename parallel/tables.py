"""
The tables of a configuration: what may stand in them, and every mistake in what stands there.

    tables ─▶ one strict converter ─▶ Tables: pools, rules, defaults, hooks
       └────▶ names that can't be, pools that aren't there ─▶ mistakes, each with its key path

cattrs is imported where tables are checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args, get_origin

import attrs
from attrs import Attribute, field, frozen

from parallel.catalogue import OWN, config_of, is_known, known_kinds
from parallel.checks import (
    Mistake,
    as_table,
    checked,
    described,
    did_you_mean,
    is_table,
    key_path,
    mistakes_in,
    one_of,
    only_table,
    several,
    strict_converter,
)
from parallel.events import EVENTS
from parallel.imports import is_import_string, with_colon
from parallel.kinds import BUILT_IN, PoolConfig
from parallel.layers import ENVIRONMENT
from parallel.observing import ObserveOptions
from parallel.options import Retry, TaskOptions

if TYPE_CHECKING:
    from cattrs import Converter

Unobserved: TypeAlias = Literal["log", "warn", "raise", "ignore"]
"""What is done about a failure that nobody looked at."""

UNOBSERVED: tuple[Unobserved, ...] = get_args(Unobserved)
_PATTERN = re.compile(r"[^\s:]+:[^\s:]+|[^\s:]*\*[^\s:]*")


def _on(value: Mapping[str, object]) -> Mapping[str, tuple[str, ...]]:
    """
    Give each event its functions; one alone needn't be in a list. What is wrong stays, for `_bad_hooks`.
    """
    return {cast(str, event): cast("tuple[str, ...]", several(named)) for event, named in as_table(value).items()}


def _are_hooks(_instance: object, _attribute: object, _value: object) -> None:
    """Take the field from cattrs, which would check it by its type; `_bad_hooks` tells what is wrong in it."""


def _bad_hooks(on: object) -> Iterator[Mistake]:
    """
    Tell what is wrong in the table of hooks.
    """
    if not is_table(on):
        yield Mistake(("on",), f"expected a table, found {described(on)}")
    for event, named in as_table(on).items():
        if event not in EVENTS:
            problem = f"unknown event{did_you_mean(event, EVENTS)}; known: {', '.join(EVENTS)}"
            yield Mistake(("on", event), problem)
        for each in several(named):
            if not is_import_string(each):
                problem = f"expected an import string such as 'package.module:attribute', found {described(each)}"
                yield Mistake(("on", event), problem + with_colon(each))


@frozen
class Tables:
    """
    What a file says.
    """

    pools: dict[str, PoolConfig] = field(factory=dict[str, PoolConfig])
    tasks: dict[str, TaskOptions] = field(factory=dict[str, TaskOptions])
    unobserved: Unobserved = field(default="log", validator=one_of(UNOBSERVED))
    defaults: TaskOptions = field(factory=TaskOptions)
    environment: dict[str, TaskOptions] = field(factory=dict[str, TaskOptions])
    on: Mapping[str, tuple[str, ...]] = field(factory=dict[str, "tuple[str, ...]"], converter=_on, validator=_are_hooks)
    observe: ObserveOptions = field(factory=ObserveOptions)


TABLE_NAMES: Final = tuple(each.name for each in attrs.fields(Tables) if each.name != ENVIRONMENT)
TOP: Final = (*TABLE_NAMES, "profiles")
"""What a file, or a mapping, may say at its top; a file may also say `extends`."""


_is_kind = checked(
    "the kind of a pool",
    is_known,
    lambda kind: f"{did_you_mean(kind, known_kinds())}; known: {', '.join(known_kinds())}",
)


def _can_be_had(_instance: object, attribute: Attribute[Any], kind: str) -> None:
    """
    Refuse a kind whose package is broken.
    """
    try:
        config_of(kind)
    except ValueError as error:
        raise ValueError(f"{attribute.name}: {error}") from None


@frozen
class _Kind:
    """
    The one option that every pool's table has.
    """

    kind: str = field(validator=[_is_kind, _can_be_had])


def structured(tables: Mapping[str, object]) -> tuple[Tables, list[Mistake]]:
    """
    Check tables.

    Returns:
        What they say, and the mistakes in them; with mistakes, nothing is said.
    """
    found = [*_bad_names(tables), *_bad_hooks(tables.get("on", {}))]
    try:
        return _converter().structure(tables, Tables), found
    except (ValueError, ExceptionGroup) as error:
        return Tables(), [*found, *mistakes_in(error, (), _unknown)]


def unknown_table(key: object) -> str:
    """
    Tell what is wrong with a key at the top that is none of ours.
    """
    return _unknown(key, Tables)


def _bad_names(tables: Mapping[str, object]) -> Iterator[Mistake]:
    """
    Tell the names of pools and patterns of tasks that can't be, and the pools asked for that aren't there.
    """
    pools = as_table(tables.get("pools"))
    known = sorted({*BUILT_IN, *(name for name in pools if isinstance(name, str))})
    for name in pools:
        if not (isinstance(name, str) and name):
            yield Mistake(("pools", name), f"expected the name of a pool, found {described(name)}")
    yield from _no_such_pool(("defaults",), tables.get("defaults"), known)
    for of in ("tasks", ENVIRONMENT):
        for pattern, options in as_table(tables.get(of)).items():
            if not (isinstance(pattern, str) and _PATTERN.fullmatch(pattern)):
                expected = 'expected a name or pattern in quotes, such as "shop.images:resize" or "shop.images:*"'
                yield Mistake((of, pattern), f"{expected}, found {described(pattern)}")
            yield from _no_such_pool((of, pattern), options, known)


def _no_such_pool(at: tuple[object, ...], options: object, known: list[str]) -> Iterator[Mistake]:
    pool = as_table(options).get("pool")
    if isinstance(pool, str) and pool and pool not in known:
        near = did_you_mean(pool, known)
        yield Mistake((*at, "pool"), f"no pool named {pool!r}{near}; known: {', '.join(map(key_path, known))}")


_WHAT = {
    Tables: "table or option",
    TaskOptions: "option of a task",
    Retry: "option of retry",
    ObserveOptions: "option of observe",
}
"""What the keys of a class are called."""


def _unknown(key: object, cls: type) -> str:
    """
    Tell what is wrong with a key that a class doesn't know.
    """
    known = [each.name for each in attrs.fields(cls)]
    if issubclass(cls, PoolConfig):
        known, what = ["kind", *known], f"option of kind {cls.kind!r}"
        others = [kind for kind, config in OWN.items() if key in attrs.fields_dict(config)]
        if others:
            return f"kind {cls.kind!r} has no such option, but {_listed(others)}; known: {', '.join(known)}"
    else:
        known, what = list(TOP) if cls is Tables else known, _WHAT[cls]
    near = did_you_mean(key, known)
    if cls is Tables and key == "tool":
        near = " ([tool.parallel] is read from a pyproject.toml only)"
    return f"unknown {what}{near}; known: {', '.join(known)}"


def _listed(kinds: list[str]) -> str:
    *first, last = map(repr, kinds)
    return f"{', '.join(first)} and {last} have" if first else f"{last} has"


def _with_kinds(value: object) -> Mapping[str, object]:
    """
    Fill in the kinds of the built-in pools, which a file may leave out.
    """
    pools = dict(only_table(value))
    for name, config in BUILT_IN.items():
        if isinstance(pools.get(name), Mapping):
            pools[name] = {"kind": config.kind, **as_table(pools[name])}
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
        return converter.structure(options, config_of(kind))

    def of_dict(cls: type[object]) -> Callable[[object, object], object]:
        # Keys are for `_bad_names`: this would tell a bad key or what is wrong below it, not both.
        structure = make_mapping_structure_fn(cls, converter, key_type=Any)
        prepared = _with_kinds if PoolConfig in get_args(cls) else only_table
        return lambda table, _: structure(prepared(table), cls)

    converter.register_structure_hook_func(lambda cls: cls is PoolConfig, pool)
    converter.register_structure_hook_factory(_is_dict, of_dict)
    return converter
