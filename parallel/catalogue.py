"""
Which kinds of pools there are: this library's own, and those that installed packages add.

    kind = "nice" ──▶ OWN, else the entry points of the group `parallel.pools` ──▶ a class of configurations
                                                                                        └──▶ `pool`: import string

A package adds a kind by an entry point with the kind's name, which leads to a subclass of `PoolConfig`. That is loaded
when a configuration names the kind, to check its options; the pool itself when it opens.

State: what is installed is looked up once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Final

from parallel.checks import described
from parallel.elsewhere import ELSEWHERE
from parallel.imports import is_import_string
from parallel.kinds import KINDS, PoolConfig

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from typing_extensions import TypeIs

GROUP: Final = "parallel.pools"

OWN: Final[dict[str, type[PoolConfig]]] = {**KINDS, **ELSEWHERE}
"""The kinds of this library."""


def known_kinds() -> list[str]:
    """
    Give the names of all kinds; loads none of them.
    """
    return [*OWN, *(name for name in _installed() if name not in OWN)]


def is_known(kind: object) -> bool:
    """
    Tell whether there is such a kind.
    """
    return isinstance(kind, str) and (kind in OWN or kind in _installed())


def config_of(kind: str) -> type[PoolConfig]:
    """
    Give the class that says what may be said about a pool of that kind; an installed one is loaded.

    Raises:
        ValueError: It can't be loaded, or is no such class.
    """
    found = OWN.get(kind)
    return _loaded(_installed()[kind]) if found is None else found


@cache
def _installed() -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms, needed only for kinds that aren't ours

    return {each.name: each for each in entry_points(group=GROUP)}


@cache
def _loaded(entry: EntryPoint) -> type[PoolConfig]:
    whose = f"{entry.name!r} of {_package(entry)}"
    try:
        found: object = entry.load()
    except Exception as error:
        raise ValueError(f"{whose} can't be loaded: {type(error).__name__}: {error}") from error
    if not _is_config(found):
        raise ValueError(f"{whose} must be a class derived from parallel.PoolConfig, found {described(found)}")
    if found.kind != entry.name or not is_import_string(getattr(found, "pool", None)):
        said = "say its name as kind, and the import string of its Pool as pool"
        raise ValueError(
            f"{whose}: {found.__name__} must {said}, found {found.kind!r}, {getattr(found, 'pool', None)!r}"
        )
    return found


def _is_config(found: object) -> TypeIs[type[PoolConfig]]:
    return isinstance(found, type) and issubclass(found, PoolConfig)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
