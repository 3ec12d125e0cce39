"""
The command line: `python -m parallel check [FILE]` reads a configuration and shows it, or every mistake in it; `map` is
in `shell`.

Statuses: 0 right, 1 mistakes (told on standard error), 2 wrong usage, 130 after Ctrl-C, 141 when the reader of the
output has gone away.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import attrs
from attrs import Attribute

from parallel.checks import key_path
from parallel.config import Config, PoolConfig, built_in, find, load
from parallel.errors import ConfigError
from parallel.interrupts import STATUS
from parallel.options import Rate, Retry, TaskOptions
from parallel.piped import PIPE_CLOSED
from parallel.shell import add_command, run


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: The arguments after the program's name, None for those of this process.

    Returns:
        The exit status.

    Raises:
        SystemExit: After `--help` and `--version` (status 0), and on wrong arguments (status 2).
    """
    try:
        try:
            return _run(argv)
        finally:
            _flush()
    except KeyboardInterrupt:
        return STATUS
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still unwritten goes nowhere
        return PIPE_CLOSED


def _flush() -> None:
    if sys.stdout is not None:  # else it was closed when the program began
        sys.stdout.flush()


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    return run(arguments) if arguments.command == "map" else _check(arguments.file)


def _version() -> str:
    """Ask the package, which is there already: it stands above this room."""
    return str(sys.modules["parallel"].__version__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m parallel", description="Run a function over many items, or look at a configuration."
    )
    parser.add_argument("--version", action="version", version=f"parallel {_version()}")
    commands = parser.add_subparsers(dest="command", title="commands")
    about = "read a configuration, show its pools and task rules, or every mistake in it"
    check = commands.add_parser("check", help=about, description=about[0].upper() + about[1:] + ".")
    what = "a parallel.toml or pyproject.toml; without it, the one that programs started here would find"
    check.add_argument("file", nargs="?", metavar="FILE", help=what)
    add_command(commands)
    return parser


def _check(file: str | None) -> int:
    """
    Read a file, or what is found without one, and show what it says.
    """
    path = file or find()
    try:
        config = built_in() if path is None else load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if path is None:
        _say(f"No configuration: $PARALLEL_CONFIG isn't set, and from {os.getcwd()} upward there is no parallel.toml,")
        _say("and no pyproject.toml with a table [tool.parallel]. Programs started here have the built-in pools:")
    else:
        named = " (named by $PARALLEL_CONFIG)" if not file and os.environ.get("PARALLEL_CONFIG") else ""
        _say(f"{config.source}{named}: no mistakes")
    if config.unobserved != built_in().unobserved:
        _say(f"\nunobserved = {config.unobserved!r}")
    _show(("Pool", "Kind", "Options"), list(_pools(config)))
    if config.tasks:
        _show(("Tasks", "Options"), list(_rules(config)))
        _say("\nIf several rules match a task, the most specific one that says an option wins.")
    else:
        _say("\nNo rules for tasks.")
    return 0


def _pools(config: Config) -> Iterator[tuple[str, ...]]:
    for name, pool in config.pools.items():
        yield key_path(name), pool.kind, ", ".join(_said(pool, pool.arguments())) or "(defaults)"


def _rules(config: Config) -> Iterator[tuple[str, ...]]:
    for pattern, options in config.tasks.items():
        yield key_path(pattern), ", ".join(_said(options, {})) or "(defaults)"


def _said(options: PoolConfig | TaskOptions | Retry, resolved: dict[str, object]) -> Iterator[str]:
    """
    Write the options that differ from their defaults, with what they come to on this machine.
    """
    for option in attrs.fields(type(options)):
        value: object = getattr(options, option.name)
        here = resolved.get(option.name, value)
        if value != option.default:
            yield f"{option.name} = {_in_toml(value, option)}" + f" ({here} here)" * (here != value)


def _in_toml(value: object, option: Attribute[Any]) -> str:
    """
    Write the value of an option in a form that TOML takes.
    """
    if value is None or value == math.inf:  # None: where that isn't the default, it is no limit too
        return "inf"
    if isinstance(value, Retry):
        return f"{{{', '.join(_said(value, {}))}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(_in_toml(item, option) for item in cast('tuple[object, ...]', value))}]"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return f"{{{', '.join(f'{key_path(name)} = {_in_toml(item, option)}' for name, item in pairs)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    write = str if isinstance(value, Rate) else option.metadata.get("written")
    return repr(value if write is None else write(value))


def _show(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """
    Print a table: drawn by rich on a terminal, if it is installed, else as aligned text.
    """
    print()
    rows = [tuple(map(_writable, row)) for row in rows]
    if not (sys.stdout.isatty() and _drawn(heads, rows)):
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in (heads, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _drawn(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> bool:
    """
    Draw a table with rich; False if it isn't installed.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(*heads)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))  # Text: `[...]` is no markup here
    Console().print(table)
    return True


def _say(line: str) -> None:
    print(_writable(line))


def _writable(text: str) -> str:
    """
    Escape what the encoding of standard output doesn't have.
    """
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
