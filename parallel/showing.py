"""
What the command line shows: lines, tables, and JSON for programs.

On a terminal tables are drawn by rich, if that is installed; else, and in a pipe, they are aligned text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def say(line: str = "") -> None:
    """Print a line; what the encoding of standard output doesn't have is escaped."""
    print(_writable(line))


def say_json(value: object) -> None:
    """Print a value as JSON."""
    import json  # 4 ms, for programs only

    print(json.dumps(value, indent=2))


def show(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table, after an empty line."""
    print()
    rows = [tuple(map(_writable, row)) for row in rows]
    if not (sys.stdout.isatty() and _drawn(heads, rows)):
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in (heads, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _drawn(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> bool:
    """Draw a table with rich; False if it isn't installed."""
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


def _writable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
