"""
How long, as people write it: durations.

    2.5, timedelta(seconds=2.5), "1h30m" ──▶ seconds() ──▶ float ──▶ written() ──▶ "1h30m"

What bounds something is more than 0, and `inf` is no bound (`seconds`). What is waited may be 0, but it ends (`pause`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, TypeAlias

from parallel.checks import Form, described, did_you_mean

if TYPE_CHECKING:
    from datetime import timedelta

Duration: TypeAlias = "float | timedelta | str"
"""Seconds, a `timedelta`, or a string of numbers with units: `250ms`, `10s`, `5m`, `1.5h`, `1d`, `1h30m`."""

_DURATION = "a duration such as 2.5, '250ms' or '5m'"

UNITS: Mapping[str, int] = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
UNIT_OF: Mapping[str, str] = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "day": "d"}

# The units in this order, each at most once; an exponent, because `written` needs one for what is tiny.
_PARTS = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?){unit})?" for unit in (*UNITS, "ms")))


DURATION_FORM: Form = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": f"^(?=.){_PARTS.pattern}$|^inf$"},
    ]
}
"""What a duration looks like; some that look so are still refused, such as 0 where something is bounded."""


def seconds(value: Duration) -> float:
    """
    Read a duration that bounds something, as seconds; `inf` is no bound.

    >>> seconds("1h30m")
    5400.0

    Raises:
        TypeError: *value* is no number, `timedelta` or string.
        ValueError: It is no duration, not more than 0, or longer than a thread can wait.
    """
    return _read(value, zero=False, endless=True)


def pause(value: Duration) -> float:
    """
    Read a duration that is waited, as seconds; it may be 0, but not `inf`.

    Raises:
        TypeError: *value* is no number, `timedelta` or string.
        ValueError: It is no duration, negative, or longer than a thread can wait.
    """
    return _read(value, zero=True, endless=False)


def period(value: Duration) -> float:
    """
    Read a duration that goes by again and again, as seconds; neither 0 nor `inf`.

    Raises:
        TypeError: *value* is no number, `timedelta` or string.
        ValueError: It is no duration, not more than 0, or longer than a thread can wait.
    """
    return _read(value, zero=False, endless=False)


def written(duration: float) -> str:
    """
    Write seconds as a string that is read as the same number.

    >>> written(5400.0), written(0.25), written(2.5)
    ('1h30m', '250ms', '2.5s')
    """
    if math.isinf(duration):
        return "inf"
    if duration.is_integer():
        return _written_whole(int(duration)) or "0s"
    millis = round(duration * 1_000)
    return f"{millis}ms" if duration < 1 and millis / 1_000 == duration else f"{duration!r}s"


def briefly(seconds: float) -> str:
    """Write a measured time for people, in three digits: `1.25 s`, `61 ms`, `4 us`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e6:.0f} us"


AS_DURATION: Mapping[str, Callable[[float], str]] = {"written": written}
"""The metadata of a field that holds a duration: how it is written for people."""


def _written_whole(duration: int) -> str:
    text = ""
    for unit, size in UNITS.items():
        count, duration = divmod(duration, size)
        text += f"{count}{unit}" if count else ""
    return text


def _read(value: object, *, zero: bool, endless: bool) -> float:
    number = _number(value)
    if endless and number == math.inf:
        return math.inf
    if (number >= 0 if zero else number > 0) and number <= TIMEOUT_MAX:  # nan is neither
        return float(number)
    allowed = f"{'0 or more' if zero else 'more than 0'}, at most {TIMEOUT_MAX:.0f}s{', or inf' if endless else ''}"
    raise ValueError(f"expected {_DURATION}, found {described(value)} (allowed: {allowed})")


def _number(value: object) -> float:
    """
    Read a duration of any length and sign; an integer stays one, as it may be too large for a float.
    """
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    from datetime import timedelta  # 2 to 5 ms; who has one has loaded it

    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"expected {_DURATION}, found {described(value)}")


def _parsed(text: str) -> float:
    if text == "inf":
        return math.inf
    match = _PARTS.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"expected {_DURATION}, found {described(text)}{_nearest_duration(text)}")
    *whole, millis = (float(part or 0) for part in match.groups())
    number = sum(count * size for count, size in zip(whole, UNITS.values(), strict=True)) + millis / 1_000
    return min(number, sys.float_info.max)  # of too many digits it's infinite, but only `inf` is meant to be


def _nearest_duration(text: str) -> str:
    """
    Suggest `5m` for `5 minutes`, and `10s` for `10`.
    """
    near = re.sub("[a-z]+", lambda word: UNIT_OF.get(word[0].rstrip("s"), word[0]), compact(text))
    near += "s" if near[-1:].isdigit() else ""
    return did_you_mean(near, [near]) if near and _PARTS.fullmatch(near) else ""


def compact(text: str) -> str:
    """
    Write a text in small letters, and without spaces.
    """
    return "".join(text.lower().split())
