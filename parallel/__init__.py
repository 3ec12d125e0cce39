"""
`parallel`: plain functions, declared parallel; where and how they run is configuration.

    from parallel import task

    @task(pool="threads")
    def fetch(url: str) -> bytes: ...

    page = fetch("https://www.python.org").result()

Names are handed on lazily (PEP 562): importing the package loads none of its rooms, starts no thread, reads no file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from parallel.context import Home, registry_source

if TYPE_CHECKING:
    from parallel.combine import as_completed, first, gather, race, settle, wait
    from parallel.errors import ParallelError
    from parallel.futures import Future, completed, failed

__version__: Final = "0.1.0"

_ROOMS: Final = {
    "errors": ["ParallelError"],
    "futures": ["Future", "completed", "failed"],
    "combine": ["as_completed", "first", "gather", "race", "settle", "wait"],
}
_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["ParallelError"]


def __getattr__(name: str) -> object:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value  # next time without this detour
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF])


def _default_registry() -> Home:
    home: Home = import_module(f"{__name__}.registry").default_registry()
    return home


registry_source(_default_registry)
