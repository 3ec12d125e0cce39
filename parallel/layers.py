"""
Tables from several places, laid over each other, and who says what in the result.

    base.toml ◀─ parallel.toml ◀─ [profiles.NAME] ◀─ $PARALLEL_POOLS__IO__MAX_WORKERS     each wins over those before it

Options are replaced as a whole: `retry = {...}` in an upper layer leaves nothing of the one below. A pool whose `kind`
is changed keeps nothing of its former options.

Knows nothing of what may be said; that is for `config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

from attrs import field, frozen

from parallel.checks import Mistake, as_table, described, did_you_mean, is_table, key_path, only_table

Path: TypeAlias = "tuple[object, ...]"
"""The keys that lead to a value; TOML's are strings."""

ENVIRONMENT: Final = "environment"
"""Where the tables have the rules of the environment: they win over all `tasks`, however specific those are."""

_DEPTH: Final[Mapping[object, int]] = {"pools": 3, "tasks": 3, ENVIRONMENT: 3}
"""How many keys lead to an option; in other tables two do."""


class Place(NamedTuple):
    """
    Where something is said.

    Attributes:
        source: A file, or a variable of the environment; empty if there is nothing to say.
        line: The line in the file, 0 if it has none.
    """

    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Told(NamedTuple):
    """
    A mistake as it is written: where it stands, then its keys, and what is wrong.
    """

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place.source else self.text


def told(place: Place, keys: Path, problem: str) -> Told:
    """Tell a mistake."""
    return Told(place, ": ".join(part for part in (key_path(*keys), problem) if part))


def _nowhere(_: Path) -> Place:
    return Place()


@frozen
class Layer:
    """
    What one place says.

    Args:
        tables: Its tables.
        at: The keys under which they stand there.
        where: Says where in that place a key of the tables stands, such as `parallel.toml:12`.
    """

    tables: Mapping[str, object]
    at: Path = ()
    where: Callable[[Path], Place] = field(default=_nowhere, eq=False)


@frozen
class Merged:
    """
    Layers in one.

    Attributes:
        tables: What they say together.
        said_by: For each key down to the options, the layer that said it last.
    """

    tables: Mapping[str, object]
    said_by: Mapping[Path, Layer]

    def layer_of(self, path: Path) -> Layer | None:
        """Give the layer that says what stands at *path*, or around it; None if nobody does."""
        while path and path not in self.said_by:
            path = path[:-1]
        return self.said_by.get(path)

    def where(self, path: Path) -> Place:
        """Tell where *path* was said."""
        layer = self.layer_of(path)
        return Place() if layer is None else layer.where(path)

    def told(self, mistake: Mistake) -> Told:
        """Tell a mistake in the tables, where it was said."""
        layer = self.layer_of(mistake.path)
        at = () if layer is None else layer.at
        keys = ("tasks", *mistake.path[1:]) if mistake.path[:1] == (ENVIRONMENT,) else mistake.path
        return told(self.where(mistake.path), (*at, *keys), mistake.problem)


def merged(layers: Iterable[Layer], kinds: Mapping[str, str]) -> Merged:
    """
    Lay tables over each other.

    Args:
        layers: The lowest first.
        kinds: The kinds of pools whose tables needn't say theirs.
    """
    tables: dict[str, object] = {}
    said_by: dict[Path, Layer] = {}
    for layer in layers:
        for key, value in layer.tables.items():
            tables[key] = _over(value, tables.get(key), (key,), layer, said_by, kinds)
    return Merged(tables, said_by)


def _over(
    value: object, below: object, path: Path, layer: Layer, said_by: dict[Path, Layer], kinds: Mapping[str, str]
) -> object:
    said_by[path] = layer
    if not is_table(value) or len(path) >= _DEPTH.get(path[0], 2):
        return value
    kept = dict(as_table(below))
    if path[0] == "pools" and len(path) == 2 and "kind" in value:
        name = path[1]
        before = kept.get("kind", kinds.get(name) if isinstance(name, str) else None)
        if before != value["kind"]:
            kept = {}
    for key, each in value.items():
        kept[key] = _over(each, kept.get(key), (*path, key), layer, said_by, kinds)
    return kept


# The environment

_OURS: Final = re.compile(r"PARALLEL_([A-Z]+)__(.+)")
_FLAT: Final = ("DEFAULTS", "OBSERVE")
_TABLES: Final = ("POOLS", *_FLAT, "TASKS")


def layers_of(environ: Mapping[str, str], pools: Iterable[str]) -> tuple[list[Layer], list[Told]]:
    """
    Read what the environment says.

    `PARALLEL_POOLS__IO__MAX_WORKERS=8` says an option of the pool `io`, `PARALLEL_DEFAULTS__TIMEOUT=30s` one of all
    tasks: a value in TOML, or a text. `PARALLEL_TASKS='{"shop:*": {"pool": "io"}}'`, in JSON, has rules for tasks;
    there may be several such, `PARALLEL_TASKS__A` and so on. `PARALLEL_UNOBSERVED=warn` is what it says.

    Args:
        environ: The variables.
        pools: The names of all pools; in a variable they are written in capitals, with `_` for what is no letter or
            digit.

    Returns:
        A layer for each variable, in order of their names, and the mistakes in variables.
    """
    names: dict[str, list[str]] = {}
    for pool in pools:
        names.setdefault(_as_variable(pool), []).append(pool)
    layers: list[Layer] = []
    mistakes: list[Told] = []
    for variable, text in sorted(environ.items()):
        try:
            tables = _said(variable, text, names)
        except ValueError as error:
            mistakes.append(Told(Place(f"${variable}"), str(error)))
        else:
            if tables is not None:
                layers.append(_layer(variable, tables))
    return layers, mistakes


def _layer(variable: str, tables: Mapping[str, object]) -> Layer:
    return Layer(tables, where=lambda _: Place(f"${variable}"))


def _as_variable(pool: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", pool.upper())


def _said(variable: str, text: str, pools: Mapping[str, list[str]]) -> Mapping[str, object] | None:
    """
    Give the tables that a variable says; None if it isn't one of ours.

    Raises:
        ValueError: It can't be meant so.
    """
    if variable == "PARALLEL_UNOBSERVED":
        return {"unobserved": text}
    if variable == "PARALLEL_TASKS" or variable.startswith("PARALLEL_TASKS__"):
        return {ENVIRONMENT: _rules(text)}
    match = _OURS.fullmatch(variable)
    if match is None:
        return None
    table, rest = match.groups()
    if table in _FLAT:
        return {table.lower(): {rest.lower(): _value(text)}}
    if table != "POOLS":
        near = did_you_mean(table, _TABLES)
        raise ValueError(f"defaults, observe, pools and tasks can be said, found {table.lower()}{near.lower()}")
    said = next((each for each in _splits(rest) if each[0] in pools), None)
    if said is None:
        raise ValueError(_no_such_pool(rest, pools))
    name, option = said
    if len(pools[name]) > 1:
        raise ValueError(f"it may mean several pools: {', '.join(map(key_path, sorted(pools[name])))}")
    return {"pools": {pools[name][0]: {option.lower(): _value(text)}}}


def _splits(rest: str) -> Iterator[tuple[str, str]]:
    """Divide `MY__POOL__MAX_WORKERS` into pool and option, in all ways: a pool's name may have what divides them."""
    for match in re.finditer(r"(?=__)", rest):
        if rest[match.start() + 2 :]:
            yield rest[: match.start()], rest[match.start() + 2 :]


def _no_such_pool(rest: str, pools: Mapping[str, list[str]]) -> str:
    name, _, option = rest.partition("__")
    known = sorted(pool for each in pools.values() for pool in each)
    listed = f"known: {', '.join(map(key_path, known))}"
    if not option:
        return f"expected a pool and an option, as in PARALLEL_POOLS__IO__MAX_WORKERS; {listed}"
    return f"no pool named {name.lower()!r}{did_you_mean(name.lower(), known)}; {listed}"


def _value(text: str) -> object:
    """Read a value in TOML; what isn't that is a text."""
    import tomllib  # 13 ms

    with suppress(ValueError, RecursionError):
        tables = tomllib.loads(f"value = {text}")
        if tables.keys() == {"value"}:  # else there are more lines in it
            return tables["value"]
    return text


def _rules(text: str) -> Mapping[str, object]:
    import json  # for this variable only

    try:
        return only_table(json.loads(text))
    except (ValueError, RecursionError) as error:
        example = """'{"shop.images:*": {"pool": "io"}}'"""
        found = error if isinstance(error, json.JSONDecodeError) else described(text)
        raise ValueError(f"expected rules in JSON such as {example}: {found}") from None
