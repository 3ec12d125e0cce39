"""
How what is said is checked: one strict converter, and mistakes told with key path, expected, found, nearest name.

Knows nothing of what may be said; that is for `options` and `config`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    import attrs
    from attrs import Attribute
    from cattrs import Converter
    from typing_extensions import TypeIs

T = TypeVar("T")
R = TypeVar("R")

Validator: TypeAlias = "Callable[[object, Attribute[Any], object], None]"
"""What checks a field, of any type: an Attribute is invariant."""

Form: TypeAlias = Mapping[str, object]
"""What a value looks like, as a JSON Schema."""

COUNT: Form = {"type": "integer", "minimum": 1}
STRINGS: Form = {"type": "array", "items": {"type": "string"}}

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
    word = _TOML_WORDS.get(type(value), type(value).__name__)
    try:
        return f"{word} {_short.repr(value)}"
    except ValueError:  # an integer in it has more digits than Python writes
        return f"{word} too long to be written"


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
    types: type | tuple[type, ...] = object,
    form: Form | None = None,
) -> Validator:
    """
    Make the validator of a field; it lets None pass where that is the default, and so means "not said".

    A wrong value raises `NAME: expected EXPECTED, found VALUE`: a `TypeError` if it isn't of *types*, else a
    `ValueError`.

    Args:
        expected: What the field takes, in words.
        is_right: Whether a value is that; it gets values of any type.
        hint: What to say about a wrong value at the end of the message.
        types: What right values are instances of; a boolean is no integer.
        form: What right values look like, for editors; None: anything.
    """

    def validate(_instance: object, attribute: Attribute[Any], value: object) -> None:
        if not _is_unsaid(attribute, value) and not is_right(value):
            error = ValueError if _is_one_of(value, types) else TypeError
            raise error(f"{attribute.name}: expected {expected}, found {described(value)}{hint(value)}")

    return _with_form(validate, form)


def one_of(words: tuple[str, ...], otherwise: str = "") -> Validator:
    """
    Make the validator of a field that takes one of some words.

    Args:
        words: These, two at least.
        otherwise: What to say about a wrong value that is near none of them.
    """
    expected = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"

    def hint(value: object) -> str:
        return did_you_mean(value, words) or otherwise

    return checked(expected, lambda value: value in words, hint, form={"enum": list(words)})


def checked_by(read: Callable[[Any], object], form: Form | None = None) -> Validator:
    """
    Make the validator of a field from the function that reads its values, and from that one's errors.

    Args:
        read: Raises a `TypeError` or `ValueError` for a wrong value, without the field's name. It gets values of any
            type, but no None where that means "not said".
        form: What right values look like, as in `checked`.
    """

    def validate(_instance: object, attribute: Attribute[Any], value: object) -> None:
        if not _is_unsaid(attribute, value):
            try:
                read(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{attribute.name}: {error}") from None

    return _with_form(validate, form)


def _with_form(validate: Validator, form: Form | None) -> Validator:
    cast(Any, validate).form = form
    return validate


def form_of(option: Attribute[Any]) -> Form | None:
    """
    Give what the values of a field look like, as its validators say; None if they don't.
    """
    validator: Any = option.validator
    several = getattr(validator, "_validators", (validator,))  # attrs keeps a list of them so
    return next((form for each in several if (form := getattr(each, "form", None)) is not None), None)


def converted(read: Callable[[T], R], value: T) -> R:
    """
    Read a value in the converter of a field, as *read* does.

    A wrong value is left as it is: the converter doesn't know the field's name, the validator after it does.
    """
    try:
        return read(value)
    except (TypeError, ValueError):
        return cast("R", value)


def is_count(value: object) -> bool:
    """
    Tell whether a value is an integer of at least 1.
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_unsaid(attribute: Attribute[Any], value: object) -> bool:
    return value is None and attribute.default is None


def _is_one_of(value: object, types: type | tuple[type, ...]) -> bool:
    return isinstance(value, types) and (types is object or not isinstance(value, bool))


def key_path(*keys: object) -> str:
    """
    Write a path of keys as TOML does: `tasks."shop.images:*".pool`.
    """
    return ".".join(map(_key, keys))


def _key(key: object) -> str:
    return text_of(key) if not isinstance(key, str) or _BARE_KEY.fullmatch(key) else quoted(key)


def quoted(text: str) -> str:
    """
    Write a text as a string of TOML; what can't be seen is escaped.
    """
    import json  # 4 ms, for mistakes and dumps only

    plain = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in plain)


def _escaped(point: int) -> str:
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


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


def is_table(value: object) -> TypeIs[Mapping[object, object]]:
    """
    Tell whether a value is a table.
    """
    return isinstance(value, Mapping)


def as_table(value: object) -> Mapping[object, object]:
    """
    Give a table, an empty one for anything else: what is none is told elsewhere.
    """
    return value if is_table(value) else {}


def several(value: object) -> tuple[object, ...]:
    """
    Give the items of an array; anything else is the only one.
    """
    return tuple(cast("Iterable[object]", value)) if isinstance(value, list | tuple) else (value,)


def text_of(key: object) -> str:
    return key if isinstance(key, str) else repr(key)  # a program's mistake, TOML has none such


def strict_converter() -> Converter:
    """
    Make a cattrs converter that takes no value for one of another type, and no key that it doesn't know.

    Of an attrs class, a field with a validator is converted and checked by the field's own functions alone, one without
    by its type.
    """
    import attrs
    from cattrs import Converter  # 40 ms, needed only where a file is read
    from cattrs.gen import make_dict_structure_fn, override

    def by_validator(option: Attribute[Any]) -> Callable[[object, object], object]:
        def hook(value: object, _: object) -> object:
            convert: Callable[[object], object] | None = cast("Any", option).converter  # attrs leaves its type open
            if option.validator is not None:
                option.validator(None, option, value if convert is None else convert(value))
            return value  # the constructor converts it again

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


class Mistake(NamedTuple):
    """
    What is wrong with a value that was said.

    Attributes:
        path: The keys that lead to it.
        problem: What was expected, and what was found.
    """

    path: tuple[object, ...]
    problem: str


def mistakes_in(error: Exception, at: tuple[object, ...], unknown: Callable[[object, type], str]) -> Iterator[Mistake]:
    """
    Tell the mistakes in an error of the converter.

    Args:
        error: What `structure` raised.
        at: The keys under which stands what was converted.
        unknown: Says what is wrong with a key that a class doesn't know.
    """
    from cattrs import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ClassValidationError):
        fields, rest = error.group_exceptions()
        for each, field_note in fields:
            yield from mistakes_in(each, (*at, field_note.name), unknown)
        for each in rest:
            yield from mistakes_in(each, (*at, *_option_in(each, error.cl)), unknown)
    elif isinstance(error, IterableValidationError):
        for each, item_note in error.group_exceptions()[0]:
            yield from mistakes_in(each, (*at, item_note.index), unknown)
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields, key=str):
            yield Mistake((*at, key), unknown(key, error.cl))
    elif isinstance(error, KeyError):
        yield Mistake(at, "required, found nothing")
    else:
        yield Mistake(at, str(error).removeprefix(f"{at[-1]}: ") if at else str(error))


def _option_in(error: Exception, cls: type) -> tuple[str, ...]:
    """
    Give the option that an error of a class itself begins with, as one about several options does; else nothing.
    """
    import attrs

    name = str(error).partition(": ")[0]
    return (name,) if any(name == each.name for each in attrs.fields(cls)) else ()
