"""
What a future knows of the chain that it ends: a few short names, for the one note that an error gets.

    fetch(url) ── then(parse) ──▶ (made, "fetch", "parse") ── then(save) ──▶ (made, "fetch", "parse", "save")

An error that comes out at the end of a chain says in a note where it was raised, and in which chain. The names are
kept, never the functions: a closure may hold much. Of a long chain the first and the last are kept.

Nothing here has state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any, Final, Protocol, TypeAlias, cast

from parallel.context import name_of


class Named(Protocol):
    """What is known of a declared function."""

    name: str


Made: TypeAlias = tuple[Named, CodeType, int]
"""Where a task was called: the task, the caller's code, and the offset in it of the instruction that called."""

Chain: TypeAlias = tuple[Any, ...]
"""A `Made`, or None if that isn't known, then the names of the stages."""

_HEAD: Final = 5
_TAIL: Final = 3
"""A chain of more stages keeps the first four and the last four of them; more would make a note hard to read."""

_HERE: Final = __file__.rpartition(os.sep)[0] + os.sep
"""Where the code of this library is."""

_ARROW: Final = " → "
_OF_THE_CHAIN: Final = "of the chain "


def longer(fields: Mapping[str, Any], fn: Callable[..., Any]) -> Chain:
    """Return the chain of the future with these *fields* with one more stage, *fn*."""
    chain: Chain = fields.get("_chain") or _begun(fields)
    name = fn.__qualname__ if type(fn) is FunctionType else short_name(fn)
    if len(chain) < _HEAD + 1 + _TAIL:
        return chain + (name,)  # noqa: RUF005  # half the time of a display
    return (*chain[:_HEAD], "…", *chain[-_TAIL:], name)


def chain_of(fields: Mapping[str, Any]) -> Chain:
    """Return the chain that the future with these *fields* ends, or begins; without names if nothing is known."""
    return fields.get("_chain") or _begun(fields)


def _begun(fields: Mapping[str, Any]) -> Chain:
    made: Made | None = fields.get("_made")
    if made is not None:
        return (made, _without_modules(made[0].name))
    work: Any = fields.get("_work")  # of a call that nobody has started yet
    if type(work) is tuple:
        fn: object = cast(Any, work)[0] if work else None
        if callable(fn):
            return (None, short_name(fn))
    elif isinstance(name := getattr(work, "name", None), str):  # it is packed for another process
        return (None, _without_modules(name))
    return (None, "…") if "dispatcher" in fields else (None,)  # one that has begun; one that was made by hand


def short_name(fn: Callable[..., Any]) -> str:
    """Name *fn* without its module."""
    if type(fn) is FunctionType:
        return fn.__qualname__
    named: Any = fn
    while isinstance(named, partial):
        named = cast(Any, named).func
    name: object = getattr(named, "name", None) or getattr(named, "__qualname__", None)
    return _without_modules(name) if isinstance(name, str) else str(type(named).__qualname__)


def _without_modules(name: str) -> str:
    """Shorten `module:qualname`; in the name of a chain of tasks, each."""
    return _ARROW.join(part.rpartition(":")[2] for part in name.split(_ARROW))


def written(chain: Chain) -> str:
    """Write the names of *chain* for people."""
    return _ARROW.join(chain[1:])


def name_of_chain(fields: Mapping[str, Any]) -> str:
    """Name the chain that the future with these *fields* ends, or the one call that it is."""
    made: Made | None = fields.get("_made")
    return made[0].name if made is not None else written(chain_of(fields)) or "a future"


def place(made: Made) -> tuple[str, int]:
    """Return the file and the line in which a task was called."""
    _, code, offset = made
    lines = (line for start, end, line in code.co_lines() if start <= offset < end and line is not None)
    return code.co_filename, next(lines, code.co_firstlineno)


def is_made_here(made: Made) -> bool:
    """Tell whether a task was called by this library, as a stage of a chain is."""
    return made[1].co_filename.startswith(_HERE)


def full_name(fn: Callable[..., Any]) -> str:
    """Name *fn*, a task too, `module:qualname`."""
    name: object = getattr(fn, "name", None)
    return name if isinstance(name, str) else name_of(fn)


def note_chain(error: BaseException, fn: Callable[..., Any] | None, chain: Chain) -> None:
    """Have *error* say where in *chain* it was raised, unless it was given such a note before."""
    if len(chain) < 3:
        return
    where = f"in {short_name(fn)}, " if fn is not None else ""
    add_note(error, f"{where}{_OF_THE_CHAIN}{written(chain)}", unless=_OF_THE_CHAIN)


def add_note(error: BaseException, text: str, *, unless: str | None = None) -> None:
    """Add a note to *error*, unless it has one that holds *unless*; if it can be had at all."""
    try:
        notes = cast("list[object] | None", getattr(error, "__notes__", None))
        if notes is None:
            # By the base's own setter, as the exception may be frozen.
            BaseException.__setattr__(error, "__notes__", [text])
        elif unless is None or not any(isinstance(note, str) and unless in note for note in notes):
            notes.append(text)
    except Exception:  # its attributes may be the user's code, and `__notes__` may be anything
        return
