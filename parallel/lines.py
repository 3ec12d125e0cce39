"""
In which line of a TOML text each key stands; `tomllib` doesn't tell.

    [pools.io]             1: pools, pools.io
    kind = "thread"        2: pools.io.kind
    initargs = [           3: pools.io.initargs
        { a = 1 },         4: pools.io.initargs.0, pools.io.initargs.0.a
    ]

It reads what `tomllib` has found right, and so only has to know where a key, a string and a bracket begin and end.

Source: the grammar of TOML 1.0.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

Path: TypeAlias = "tuple[str | int, ...]"
"""The keys, and the indices in arrays, that lead to a value."""

_BLANK: Final = re.compile(r"(?:[\s]|#[^\n]*)*")
_KEY: Final = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_STRING: Final = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|"(?:[^"\\\n]|\\.)*"'''  # basic: of several lines, of one
    r"""|'''.*?'{3,5}|'[^'\n]*'""",  # literal: the same
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\n]+")  # a number, a boolean or a date


def lines_of(text: str) -> Mapping[Path, int]:
    """
    Find the line of every key, and of every item of an array.

    Args:
        text: TOML without a mistake.

    Returns:
        The line, from 1 on, by path: for a table that several lines name, the first of them. Where values are nested
        too deep to be followed, the outer ones only.
    """
    scan = _Scan(text.replace("\r\n", "\n"))
    with suppress(RecursionError):
        scan.document()
    return scan.lines


class _Scan:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0  # the line is that of this offset
        self._tables: dict[Path, int] = {}  # for each array of tables, how many it has so far

    def document(self) -> None:
        table: Path = ()
        while self._blank() < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """Read `[table]` or `[[table]]`."""
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        *outer, last = self._keys()
        self._at += 2 if is_array else 1
        path: Path = ()
        for key in outer:
            path = self._last_of(self._note((*path, key)))
        path = self._note((*path, last))
        if is_array:
            self._tables[path] = self._tables.get(path, -1) + 1
            return self._note(self._last_of(path))
        return self._last_of(path)

    def _last_of(self, path: Path) -> Path:
        """Give the table that a key means: of an array of tables, the last one."""
        return (*path, self._tables[path]) if path in self._tables else path

    def _pair(self, table: Path) -> None:
        """Read `key = value`."""
        for key in self._keys():
            table = self._note((*table, key))
        self._at += 1  # =
        self._value(table)

    def _value(self, path: Path) -> None:
        self._at = _spaces(self._text, self._at)
        match self._text[self._at]:
            case "[":
                for index in self._items("]"):
                    self._value(self._note((*path, index)))
            case "{":
                for _ in self._items("}"):
                    self._pair(path)
            case '"' | "'":
                self._at = _end(_STRING, self._text, self._at)
            case _:
                self._at = _end(_PLAIN, self._text, self._at)

    def _items(self, end: str) -> Iterator[int]:
        """Go through what stands between brackets; whoever asks for the next has read the one before."""
        self._at += 1
        index = 0
        while self._text[self._blank()] != end:
            yield index
            index += 1
            if self._text[self._blank()] == ",":
                self._at += 1
        self._at += 1

    def _keys(self) -> list[str]:
        """Read `a."b c".d`."""
        keys: list[str] = []
        while True:
            found = _KEY.match(self._text, self._at)
            assert found is not None, self._at
            self._at = found.end()
            keys.append(_plain(found[1]))
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _blank(self) -> int:
        """Go on behind white space and comments."""
        self._at = _end(_BLANK, self._text, self._at)
        return self._at

    def _note(self, path: Path) -> Path:
        """Note that *path* begins here, if it hasn't begun before."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self.lines.setdefault(path, self._line)
        return path


def _plain(key: str) -> str:
    """Give what a key in quotes means."""
    if key[0] not in "\"'":
        return key
    import tomllib  # 13 ms; whoever has a text to scan has read it

    return next(iter(tomllib.loads(f"{key} = 0")))


def _spaces(text: str, at: int) -> int:
    while text[at] in " \t":
        at += 1
    return at


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None, at
    return found.end()
