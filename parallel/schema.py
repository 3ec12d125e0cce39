"""
The JSON Schema of a configuration, by which editors complete and check `parallel.toml`.

    attrs classes ──▶ options: forms of their validators, or types; texts of their docstrings ──▶ tables ──▶ schema

It is as strict as a schema can be: what it refuses is a mistake, what it lets pass may still be one, such as the name
of a pool that isn't there.

Source: JSON Schema, draft 2020-12, https://json-schema.org/draft/2020-12.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

import attrs

from parallel.catalogue import config_of, known_kinds
from parallel.checks import STRINGS, Form, form_of
from parallel.events import EVENTS
from parallel.imports import IMPORT_FORM
from parallel.kinds import BUILT_IN
from parallel.observing import ObserveOptions
from parallel.options import Retry, TaskOptions
from parallel.tables import UNOBSERVED

_TYPES: Final[Mapping[object, Form]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    tuple[object, ...]: {"type": "array"},
}
"""What fields without a validator look like."""


def schema(*, of_pyproject: bool = False) -> dict[str, object]:
    """
    Make the schema of a `parallel.toml`; kinds that packages add are loaded.

    Args:
        of_pyproject: Make that of a `pyproject.toml`, of which only `[tool.parallel]` is said.

    Raises:
        ValueError: A kind that a package adds can't be loaded.
    """
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "parallel"}
    if not of_pyproject:
        return {**head, **_file()}
    tool = {"type": "object", "properties": {"parallel": _file("#/properties/tool/properties/parallel/$defs/")}}
    return {**head, "type": "object", "properties": {"tool": tool}}


def _file(definitions: str = "#/$defs/") -> dict[str, object]:
    """Give all that a file may say; *definitions* is where its parts can be referred to."""
    kinds = {kind: config_of(kind) for kind in known_kinds()}
    parts: dict[str, object] = {f"kind-{kind}": _options(cls, kind) for kind, cls in kinds.items()}
    parts |= {"task": _with_retry(_options(TaskOptions), f"{definitions}retry"), "retry": _options(Retry)}
    whole = {
        "anyOf": [
            {"$ref": f"{definitions}kind-{kind}", "required": ["kind", *_required(cls)]} for kind, cls in kinds.items()
        ]
    }
    partial = {"anyOf": [{"$ref": f"{definitions}kind-{kind}"} for kind in kinds]}
    built_in = {
        name: {"anyOf": [{"$ref": f"{definitions}kind-{config.kind}"}, *whole["anyOf"]]}
        for name, config in BUILT_IN.items()
    }
    task = {"$ref": f"{definitions}task"}
    tables: dict[str, object] = {
        "pools": _table("What runs calls, by name.", {}, additional=partial),
        "tasks": {
            **_table(
                "Options of tasks, by `module:qualname`, where `*` is any run of characters.", {}, additional=task
            ),
            "propertyNames": {"pattern": "[:*]"},
        },
        "unobserved": {
            "description": "What is done about a failure that nobody looked at.",
            "enum": list(UNOBSERVED),
            "default": "log",
        },
        "defaults": {"description": "Options of all tasks.", **task},
        "on": _table(
            "Functions that are called with events.",
            {
                event: {"description": _first_line(kind), "anyOf": [IMPORT_FORM, STRINGS]}
                for event, kind in EVENTS.items()
            },
        ),
        "observe": _options(ObserveOptions),
    }
    parts["tables"] = _table("What a profile lays over the other tables.", tables)
    profile = {"$ref": f"{definitions}tables"}
    return {
        "type": "object",
        "description": "Where and how the functions run that a program declares as tasks of `parallel`.",
        "properties": {
            **tables,
            "extends": {
                "description": "Files over which this one is laid; paths as seen from its directory.",
                "anyOf": [{"type": "string", "minLength": 1}, STRINGS],
            },
            "profiles": _table("Tables that are laid over the others, by name.", {}, additional=profile),
        },
        "additionalProperties": False,
        # A file that extends another needn't say the kinds of pools that it has from there.
        "if": {"not": {"required": ["extends"]}},
        "then": {"properties": {"pools": {"properties": built_in, "additionalProperties": whole}}},
        "$defs": parts,
    }


def _table(description: str, properties: Form, *, additional: Form | bool = False) -> dict[str, object]:
    about: dict[str, object] = {"type": "object", "description": description}
    return {**about, "properties": properties, "additionalProperties": additional}


def _options(cls: type[Any], kind: str | None = None) -> dict[str, object]:
    """Give the options of a class; those of a pool's begin with its kind."""
    hints, told = get_type_hints(cls), dict(_told_of(cls))
    options = [option for option in attrs.fields(cls) if option.init]
    properties: dict[str, object] = {} if kind is None else {"kind": {"const": kind}}
    for option in options:
        form = form_of(option) or _form_of_type(hints[option.name])
        about = {"description": told[option.name]} if option.name in told else {}
        properties[option.name] = {**about, **form}
    return _table(_first_line(cls), properties)


def _required(cls: type[Any]) -> list[str]:
    """Give the options that a pool can't do without; what is laid over it need not say them again."""
    return [option.name for option in attrs.fields(cls) if option.init and option.default is attrs.NOTHING]


def _form_of_type(hint: object) -> Form:
    """Give what values of a type look like; of a union, any of its members, besides None, which is not said."""
    members = [member for member in get_args(hint) if member is not NoneType] if NoneType in get_args(hint) else [hint]
    forms = [_TYPES.get(member, {}) for member in members]
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _with_retry(task: dict[str, object], retry: str) -> dict[str, object]:
    """Refer to the options of *retry* where they are said of a task."""
    properties: Any = task["properties"]
    properties["retry"] = {**properties["retry"], "$ref": retry}
    return task


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _told_of(cls: type) -> Iterator[tuple[str, str]]:
    """Give what docstrings say about options, under `Args:`, those of the class itself last, as they win."""
    for each in reversed(cls.__mro__):
        lines = inspect.cleandoc(each.__doc__ or "").splitlines()
        yield from _arguments(lines)


def _arguments(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    name, words, inside = "", list[str](), False
    for line in [*lines, "End:"]:
        match = re.match(r"    (\w+): (.*)", line)
        if match or (line and not line.startswith(" ")):
            if name and inside:
                yield name, " ".join(words)
            name, words = (match[1], [match[2]]) if match else ("", [])
            inside = inside if match else line == "Args:"
        elif name:
            words.append(line.strip())
