"""
Fingerprints: whether a function is still the one that it was when an earlier run used it.

    function ──▶ what it does, as a structure of plain values ──▶ canonical pickle ──▶ digest, as text
                 │ code: instructions, constants, names; nested code likewise
                 │ defaults, values of closures; functions among them likewise

Nothing here has state. Pickling runs user code; it is called with no lock held.
"""

from __future__ import annotations

import functools
import opcode
import re
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeAlias

from parallel.context import Declared
from parallel.keys import canonical, digests

Description: TypeAlias = tuple[object, ...]

# Of any type, as pyright takes what is narrowed to a generic class for partially unknown.
_HOLDERS: Final[Any] = (staticmethod, classmethod)
_CALLED: Final[Any] = (FunctionType, MethodType, functools.partial, BuiltinFunctionType, Declared)

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_LOADS_CONSTANT: Final = frozenset(opcode.hasconst)
_ANNOTATE: Final = frozenset({"__annotate__", "__annotate_func__"})
"""Functions by which newer interpreters make annotations."""


def fingerprint(fn: Callable[..., object]) -> str:
    """
    Return a text that is the same in every process and run, until what *fn* does is changed.

    It covers the code of *fn* (instructions, constants, names; that of nested functions too), its defaults, and the
    values of its closure: functions by their own fingerprint, all else as pickled, or else by `repr`. Of a partial, the
    function and its arguments count; of a method, its object; of another callable object, its class and what it hands
    to pickle; of a class, its methods and plain attributes, and those of its bases; of a builtin, the name; of a chain
    of tasks, all of them.

    Where the code stands, its line numbers, comments and docstrings don't count. Neither do the functions that it calls
    and the global values that it reads: a journal can't know that these have changed. Another version of Python makes
    other instructions, and so another fingerprint.
    """
    [digest] = digests([canonical(_Describing().called(fn))])
    return digest.hex()


class _Describing:
    """Describes one callable; it knows which it is in, as a function may be in its own closure."""

    def __init__(self) -> None:
        self._around: list[object] = []

    def called(self, fn: Any) -> Description:
        """Describe anything that can be called."""
        depth = next((depth for depth, known in enumerate(self._around) if known is fn), None)
        if depth is not None:
            return "again", depth
        self._around.append(fn)
        try:
            return self._described(fn)
        finally:
            self._around.pop()

    def _described(self, fn: Any) -> Description:
        ways: list[tuple[type, Callable[[Any], Description]]] = [
            (Declared, self._declared),
            (FunctionType, self._function),
            (MethodType, self._method),
            (functools.partial, self._partial),
            (type, self._class),
            (BuiltinFunctionType, self._builtin),
            (object, self._object),
        ]
        return next(describe(fn) for kind, describe in ways if isinstance(fn, kind))

    def _declared(self, fn: Declared) -> Description:
        stages = fn.stages()
        if stages:
            return "stages", *map(self.value, stages)
        return self.called(fn.__wrapped__)  # whatever it is declared with

    def _method(self, fn: MethodType) -> Description:
        return "method", self.called(fn.__func__), self.value(fn.__self__)

    def _function(self, fn: FunctionType) -> Description:
        named = sorted((fn.__kwdefaults__ or {}).items())
        return (
            "function",
            _code(fn.__code__),
            tuple(map(self.value, fn.__defaults__ or ())),
            tuple((name, self.value(default)) for name, default in named),
            tuple(map(self._cell, fn.__closure__ or ())),
        )

    def _partial(self, fn: functools.partial[Any]) -> Description:
        named = tuple((name, self.value(value)) for name, value in sorted(fn.keywords.items()))
        return "partial", self.called(fn.func), tuple(map(self.value, fn.args)), named

    def _builtin(self, fn: BuiltinFunctionType) -> Description:
        owner = fn.__self__
        of = None if owner is None or isinstance(owner, ModuleType) else self.value(owner)
        return "builtin", fn.__module__, fn.__qualname__, of

    def _object(self, fn: object) -> Description:
        wrapped = getattr(fn, "__wrapped__", None)  # of `functools.lru_cache` and its like
        return "object", self._class(type(fn)), self._plain(fn), callable(wrapped) and self.called(wrapped)

    def _class(self, cls: type) -> Description:
        bases = [base for base in cls.__mro__ if base.__module__ != "builtins"]  # what those do is known by their names
        return "class", _name(cls), tuple((_name(base), tuple(self._space(vars(base)))) for base in bases)

    def _space(self, space: Mapping[str, object]) -> Iterator[object]:
        for name in sorted(space):
            if not _keeps_books(name, space[name]):
                yield name, self._attribute(space[name])

    def _attribute(self, value: Any) -> object:
        if isinstance(value, _HOLDERS):
            return type(value).__name__, self.called(value.__func__)
        if isinstance(value, property):
            return "property", *(one and self.called(one) for one in (value.fget, value.fset, value.fdel))
        if isinstance(value, FunctionType):
            return self.called(value)
        return self.value(value)

    def _cell(self, cell: CellType) -> Description:
        try:
            contents = cell.cell_contents
        except ValueError:  # it is empty
            return ("cell",)
        return "cell", self.value(contents)

    def value(self, value: Any) -> Description:
        """Describe a default, an argument, or what is in a closure."""
        if isinstance(value, _CALLED):
            return self.called(value)
        if isinstance(value, type | ModuleType):
            return "named", _name(value)
        return self._plain(value)

    def _plain(self, value: object) -> Description:
        try:
            return "pickled", *digests([canonical(value)])
        except Exception:  # it can't be pickled, or its own code fails at that
            return "repr", _name(type(value)), _text(value)


def _keeps_books(name: str, value: object) -> bool:
    """Tell whether an attribute of a class is the interpreter's or a module's own: where it stands, fields, caches."""
    is_special = name.startswith("__") and name.endswith("__")
    return is_special and (name in _ANNOTATE or not (callable(value) or isinstance(value, _HOLDERS)))


def _code(code: CodeType) -> Description:
    return (
        "code",
        code.co_code,
        tuple(_constant(value) for value in _constants(code)),
        code.co_names,
        code.co_varnames,
        code.co_cellvars,
        code.co_freevars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        code.co_exceptiontable,
    )


def _constants(code: CodeType) -> tuple[object, ...]:
    """Return the constants of *code*, without the first if that is only there as the docstring."""
    loaded = zip(code.co_code[::2], code.co_code[1::2], strict=True)
    if any(instruction in _LOADS_CONSTANT and number == 0 for instruction, number in loaded):
        return code.co_consts
    return code.co_consts[1:]


def _constant(value: object) -> object:
    return _code(value) if isinstance(value, CodeType) else value


def _name(thing: type | ModuleType) -> str:
    return thing.__name__ if isinstance(thing, ModuleType) else f"{thing.__module__}:{thing.__qualname__}"


def _text(value: object) -> str:
    try:
        return _ADDRESS.sub("", repr(value))
    except Exception:  # made by user code
        return ""
