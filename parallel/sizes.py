"""
How much memory, as people write it.

    512_000_000, "512MB", "1.5GiB" ──▶ size() ──▶ int ──▶ sized() ──▶ "512MB"

Units are those of the SI, powers of 1,000, and those of IEC 80000-13, powers of 1,024; each means what it says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from parallel.checks import Form, described, did_you_mean

Size: TypeAlias = "int | str"
"""Bytes, or a number with a unit: `500MB`, `2GB`, `1.5GiB`."""

_UNITS: Final[Mapping[str, int]] = {
    "B": 1,
    "kB": 10**3, "KiB": 2**10,
    "MB": 10**6, "MiB": 2**20,
    "GB": 10**9, "GiB": 2**30,
    "TB": 10**12, "TiB": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(rf"([0-9]{{1,18}}(?:\.[0-9]{{1,18}})?)({'|'.join(_UNITS)})")
_EXPECTED: Final = "a size such as 500_000_000, '500MB' or '1.5GiB'"


SIZE_FORM: Final[Form] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_SIZE.pattern}$"}]
}
"""What a size looks like."""


def size(value: Size) -> int:
    """
    Read a size, as bytes.

    >>> size("500MB"), size("1.5KiB")
    (500000000, 1536)

    Raises:
        TypeError: *value* is neither an integer nor a string.
        ValueError: It is no size, less than a byte, or more than a process can address.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected {_EXPECTED}, found {described(value)}")
    found = value if isinstance(value, int) else _parsed(value)
    if not 1 <= found <= sys.maxsize:
        raise ValueError(f"expected {_EXPECTED}, found {described(value)} (allowed: 1B to {sized(sys.maxsize)})")
    return found


def sized(count: int) -> str:
    """
    Write bytes as a string: in the largest unit in which they are a whole number, else in one that they reach.

    >>> sized(500_000_000), sized(2**30), sized(123_456_789)
    ('500MB', '1GiB', '123.5MB')
    """
    largest_first = sorted(_UNITS.items(), key=lambda unit: -unit[1])
    for unit, bytes_each in largest_first:
        if (count or 1) >= bytes_each and count % bytes_each == 0 and (bytes_each > 1 or count < 1000):
            return f"{count // bytes_each}{unit}"
    unit, bytes_each = next((each for each in largest_first if each[0][1:] == "B" and count >= each[1]), ("B", 1))
    return f"{count / bytes_each:.1f}{unit}"


AS_SIZE: Final[Mapping[str, Callable[[int], str]]] = {"written": sized}
"""The metadata of a field that holds a size: how it is written for people."""


def _parsed(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"expected {_EXPECTED}, found {described(text)}{_nearest(text)}")
    from decimal import Decimal  # a millisecond

    return int(Decimal(match[1]) * _UNITS[match[2]])


def _nearest(text: str) -> str:
    """Suggest `500MB` for `500 mb`, `500M` and `500 megabytes`."""
    match = re.fullmatch(r"([0-9.]+)([kmgt]?)(i?)(?:b|bytes?|[a-z]{2,4}bytes?)?", "".join(text.lower().split()))
    if match is None:
        return ""
    number, prefix, binary = match.groups()
    prefix = prefix.upper() if binary or prefix != "k" else prefix
    near = f"{number}{prefix}{'i' if binary and prefix else ''}B"
    return did_you_mean(near, [near]) if _SIZE.fullmatch(near) else ""
