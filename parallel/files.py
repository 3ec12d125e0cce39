"""
Files of configuration: found, read, and those that they extend.

    $PARALLEL_CONFIG ─┐
    parallel.toml ────┼─ find() ─▶ files_from() ─▶ File, after those that it extends
    pyproject.toml ───┘

Reading a file imports nothing and runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final, cast

from parallel.checks import as_table, described, several
from parallel.errors import ConfigError
from parallel.layers import Layer, Place, told
from parallel.lines import lines_of

_DEPTH: Final = 50  # files, each extending the next; more are a program's doing, and its mistake


def find(start: Path | None = None) -> Path | None:
    """
    Find the configuration: `$PARALLEL_CONFIG`, else the nearest file from a directory upward.

    In one directory `parallel.toml` comes first, then a `pyproject.toml` with a table `[tool.parallel]`.

    Args:
        start: The directory to begin with, None for the working directory.

    Returns:
        Its path, None if there is no file. What `$PARALLEL_CONFIG` names need not exist: reading it says so.
    """
    if named := os.environ.get("PARALLEL_CONFIG"):
        return Path(named)
    try:
        directory = (start or Path()).resolve()
    except OSError:  # the working directory was deleted
        return None
    for each in (directory, *directory.parents):
        if os.path.isfile(own := each / "parallel.toml"):
            return own
        if os.path.isfile(project := each / "pyproject.toml") and _concerns_us(project):
            return project
    return None


def _concerns_us(project: Path) -> bool:
    """
    Tell whether a `pyproject.toml` configures this library; True also if it is too broken to tell, so reading says so.
    """
    try:
        mentioned = b"parallel" in project.read_bytes()  # spares most programs the parsing
        return mentioned and "parallel" in as_table(File(project).document.get("tool"))
    except (OSError, ConfigError):
        return True


class File:
    """
    A file of TOML, read now.

    Args:
        path: Its path.

    Attributes:
        source: The path, as it was given.
        document: All that it says.
        at: The keys under which it says what concerns us: none, or `tool.parallel` in a `pyproject.toml`.
        tables: What it says there; if that is no table, the mistake of it is for whoever checks the tables.

    Raises:
        ConfigError: It can't be read, or isn't TOML.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.source = os.fspath(path)
        self._text = _text_of(path)
        self.document = _parsed(self._text, self.source)
        self.at: tuple[str, ...] = ("tool", "parallel") if Path(path).name == "pyproject.toml" else ()
        self.tables: object = self.document
        for key in self.at:
            self.tables = as_table(self.tables).get(key)

    @cached_property
    def _lines(self) -> Mapping[tuple[str | int, ...], int]:
        return lines_of(self._text)

    def where(self, *keys: object) -> Place:
        """Tell where *keys* stand, of all that the file says, or what is nearest around them."""
        path = cast("tuple[str | int, ...]", keys)
        while path and path not in self._lines:
            path = path[:-1]
        return Place(self.source, self._lines[path] if path else 0)

    def layer(self, *below: str) -> Layer:
        """Give the tables under some of our keys as a layer; what is no table says nothing."""
        tables: object = self.tables
        for key in below:
            tables = as_table(tables).get(key)
        at = (*self.at, *below)
        return Layer(cast("Mapping[str, object]", as_table(tables)), at, lambda path: self.where(*at, *path))


def files_from(path: str | os.PathLike[str]) -> list[File]:
    """
    Read a file and those that it extends.

    `extends` names a file, or several, as seen from the directory of the file that says so; each is laid over those
    before it.

    Returns:
        The lowest first; the file itself is the last.

    Raises:
        ConfigError: One can't be read, or isn't TOML; or they extend each other in a circle.
    """
    return list(_with_bases(File(path), ()))


def _with_bases(file: File, above: tuple[File, ...]) -> Iterator[File]:
    above = (*above, file)
    for name in _bases_of(file):
        base = Path(file.source).parent / name
        if any(_are_same(base, each.source) for each in above):
            raise _refused(file, above[0], base, ["extends itself, in a circle"])
        if len(above) > _DEPTH:
            raise _refused(file, above[0], base, [f"is one too many: at most {_DEPTH} may extend each the next"])
        try:
            read = File(base)
        except ConfigError as error:
            raise _refused(file, above[0], base, error.mistakes) from error
        yield from _with_bases(read, above)
    yield file


def _refused(file: File, first: File, base: Path, problems: Iterable[str]) -> ConfigError:
    """Tell what is wrong with a base, where *file* names it; *first* is what was asked for."""
    path = (*file.at, "extends")
    return ConfigError(first.source, [str(told(file.where(*path), path, f"{base} {each}")) for each in problems])


def _bases_of(file: File) -> tuple[str, ...]:
    said = as_table(file.tables).get("extends", ())
    names = several(said)
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        path = (*file.at, "extends")
        problem = f"expected the path of a file, or several, found {described(said)}"
        raise ConfigError(file.source, [str(told(file.where(*path), path, problem))])
    return cast("tuple[str, ...]", names)


def _are_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _text_of(path: str | os.PathLike[str]) -> str:
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        named = os.environ.get("PARALLEL_CONFIG")
        by_whom = "; $PARALLEL_CONFIG names it" if named and Path(named) == Path(path) else ""
        mistake = f"can't be read: {getattr(error, 'strerror', None) or error}{by_whom}"
        raise ConfigError(os.fspath(path), [mistake]) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mistake = f"expected text in UTF-8, found byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise ConfigError(os.fspath(path), [mistake]) from error


def _parsed(text: str, source: str) -> dict[str, object]:
    import tomllib  # 13 ms

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5,000 digits, deep nesting
        raise ConfigError(source, [f"not TOML: {error}"]) from error
