"""
Values and options, written as TOML: for people, and to be read again.

    8, "2*cpus", 30.0 as a duration, Retry(attempts=3) ──▶ 8, "2*cpus", "30s", {attempts = 3}

Source: the grammar of TOML 1.0.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import attrs

from parallel.checks import is_table, key_path, quoted

if TYPE_CHECKING:
    from attrs import Attribute


def in_toml(value: object, option: Attribute[Any] | None = None) -> str:
    """
    Write a value.

    Args:
        value: What TOML can have, an object of attrs as a table, a function or class by its name; None is `inf`: no
            limit.
        option: The field that it stands in, which may have a form of its own, such as a duration's.

    Raises:
        TypeError: TOML has nothing like it.
    """
    write: Callable[[Any], str] | None = None if option is None else option.metadata.get("written")
    if value is None or value == math.inf:
        return "inf"
    if write is not None:
        return in_toml(write(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)  # nan and -inf as well
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, cast('tuple[object, ...]', value)))}]"
    if is_table(value):
        return _inline((key_path(key), in_toml(each)) for key, each in value.items())
    if attrs.has(type(value)):
        return _inline(said_in(cast("attrs.AttrsInstance", value)))
    if callable(value):
        return quoted(_name_of(value))
    from datetime import date, time  # 2 to 5 ms; who has one has loaded it

    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"TOML has no {type(value).__name__}, such as {value!r}")


def as_json(text: str) -> object:
    """
    Give what a value that `in_toml` has written is in JSON; what that has no form for is a text, such as `inf`.
    """
    import tomllib  # 13 ms, for people's tools only

    return _in_json(tomllib.loads(f"value = {text}")["value"])


def _in_json(value: object) -> object:
    if is_table(value):
        return {str(key): _in_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_in_json(each) for each in cast("list[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def said_in(options: attrs.AttrsInstance) -> Iterator[tuple[str, str]]:
    """
    Give the options of an object that differ from their defaults, and each value as TOML.
    """
    for option in attrs.fields(type(options)):
        value: object = getattr(options, option.name)
        if option.init and value != _default_of(option):
            yield option.name, in_toml(value, option)


def table_in_toml(keys: tuple[str, ...], pairs: Iterable[tuple[str, str]]) -> str:
    """
    Write a table under its heading.
    """
    return "\n".join([f"[{key_path(*keys)}]", *(f"{key_path(key)} = {value}" for key, value in pairs), ""])


def _default_of(option: Attribute[Any]) -> object:
    default: object = option.default
    return cast(Any, default).factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]  # a class, whatever the stubs say


def _name_of(named: Callable[..., object]) -> str:
    """Give the import string of a function or class; of a built-in one, the name alone."""
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None) or repr(named)
    return name if module in (None, "builtins") else f"{module}:{name}"


def _inline(pairs: Iterable[tuple[str, str]]) -> str:
    return f"{{{', '.join(f'{key} = {value}' for key, value in pairs)}}}"
