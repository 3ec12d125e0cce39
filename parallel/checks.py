"""
How what is said is checked: one strict converter, and mistakes told with key path, expected, found, nearest name.

Knows nothing of what may be said; that is for `options` and `config`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
from attrs import Attribute

if TYPE_CHECKING:
    from cattrs import Converter

_TOML_WORDS: dict[type, str] = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "table"}

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80  # characters, by feel: a message stays one readable line


def described(value: object) -> str:
    """
    Describe a wrong value for an error message: its type in TOML's words, and its start.

    Returns:
        One line, such as `boolean True`, `string 'eight'`; `nothing` for None.
    """
    if value is None:
        return "nothing"
    return f"{_TOML_WORDS.get(type(value), type(value).__name__)} {_short.repr(value)}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """
    Suggest the known name that is nearest to a wrong one.

    Returns:
        ` (did you mean 'Z'?)`, to be put behind a message; empty if nothing is near.
    """
    if not isinstance(name, str):
        return ""
    from difflib import get_close_matches  # 6 ms, needed for mistakes only

    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def checked(
    expected: str,
    is_right: Callable[[object], bool],
    hint: Callable[[object], str] = lambda _: "",
    error: type[Exception] = ValueError,
) -> Callable[[object, Attribute[Any], object], None]:  # an Attribute is invariant, and this serves fields of any type
    """
    Make the validator of a field; it lets None pass where that is the default, and so means "not said".

    Args:
        expected: What the field takes, in words.
        is_right: Whether a value is that; it gets values of any type.
        hint: What to say about a wrong value at the end of the message.
        error: What a wrong value raises, `NAME: expected EXPECTED, found VALUE`.
    """

    def validate(_instance: object, attribute: Attribute[Any], value: object) -> None:
        if not (value is None and attribute.default is None) and not is_right(value):
            raise error(f"{attribute.name}: expected {expected}, found {described(value)}{hint(value)}")

    return validate


def key_path(*keys: object) -> str:
    """
    Write a path of keys as TOML does: `tasks."shop.images:*".pool`.
    """
    return ".".join(map(_key, keys))


def _key(key: object) -> str:
    if not isinstance(key, str) or _BARE_KEY.fullmatch(key):
        return text_of(key)
    import json  # for mistakes only

    return json.dumps(key, ensure_ascii=not key.isprintable())


_SCALARS: Mapping[type, tuple[str, type | tuple[type, ...]]] = {
    bool: ("a boolean", bool),
    int: ("an integer", int),
    float: ("a number", (float, int)),
    str: ("a string", str),
}


def _only_scalar(value: object, cls: type) -> object:
    """
    Accept a value of just this type: a boolean is no number here.
    """
    expected, types = _SCALARS[cls]
    if not isinstance(value, types) or (isinstance(value, bool) and cls is not bool):
        raise ValueError(f"expected {expected}, found {described(value)}")
    return value


def _only_array(value: object, _: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected an array, found {described(value)}")
    return tuple(cast("Iterable[object]", value))


def only_table(value: object) -> Mapping[str, object]:
    """
    Accept a table; a `ValueError` tells what was found instead.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a table, found {described(value)}")
    return cast("Mapping[str, object]", value)


def text_of(key: object) -> str:
    return key if isinstance(key, str) else repr(key)  # a program's mistake, TOML has none such


def strict_converter() -> Converter:
    """
    Make a cattrs converter that takes no value for one of another type, and no key that it doesn't know.

    Of an attrs class, a field with a validator is checked by that alone, one without by its type.
    """
    from cattrs import Converter  # 40 ms, needed only where a file is read
    from cattrs.gen import make_dict_structure_fn, override

    def by_validator(option: Attribute[object]) -> Callable[[object, object], object]:
        def hook(value: object, _: object) -> object:
            if option.validator is not None:
                option.validator(None, option, value)
            return value

        return hook

    def of_class(cls: type[attrs.AttrsInstance]) -> Callable[[object, object], object]:
        hooks = {each.name: override(struct_hook=by_validator(each)) for each in attrs.fields(cls) if each.validator}
        structure = make_dict_structure_fn(cls, converter, **hooks)  # type: ignore[arg-type]  # no field is `_cattrs_…`
        return lambda table, _: structure({text_of(key): value for key, value in only_table(table).items()}, cls)

    converter = Converter(forbid_extra_keys=True)
    for scalar in _SCALARS:
        converter.register_structure_hook(scalar, _only_scalar)
    converter.register_structure_hook_func(lambda cls: cls == tuple[object, ...], _only_array)
    converter.register_structure_hook_factory(attrs.has, of_class)
    return converter


def mistakes_in(
    error: Exception, at: tuple[object, ...], unknown: Callable[[object, type, tuple[object, ...]], str]
) -> Iterator[str]:
    """
    Tell the mistakes in an error of the converter, a line each.

    Args:
        error: What `structure` raised.
        at: The keys under which the tables stand in their file.
        unknown: Makes the line for a key that the class doesn't know, from the key, the class and where it stands.
    """
    from cattrs import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ClassValidationError):
        fields, rest = error.group_exceptions()
        for each, field_note in fields:
            yield from mistakes_in(each, (*at, field_note.name), unknown)
        for each in rest:
            yield from mistakes_in(each, at, unknown)
    elif isinstance(error, IterableValidationError):
        for each, item_note in error.group_exceptions()[0]:
            yield from mistakes_in(each, (*at, item_note.index), unknown)
    elif isinstance(error, ForbiddenExtraKeysError):
        yield from (unknown(key, error.cl, at) for key in sorted(error.extra_fields, key=str))
    elif isinstance(error, KeyError):
        yield f"{key_path(*at)}: required, found nothing"
    else:
        yield f"{key_path(*at)}: {str(error).removeprefix(f'{at[-1]}: ')}" if at else str(error)
