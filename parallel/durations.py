"""
How long and how often, as people write it: durations and rates.

    2.5, timedelta(seconds=2.5), "1h30m" ──▶ seconds() ──▶ float ──▶ written() ──▶ "1h30m"
                               "100/min" ──▶ rate() ─────▶ Rate ───▶ str() ──────▶ "100/min"

What bounds something is more than 0, and `inf` is no bound (`seconds`). What is waited may be 0, but it ends (`pause`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

from parallel.checks import checked, checked_by, converted, described, did_you_mean, is_count

if TYPE_CHECKING:
    from datetime import timedelta

Duration: TypeAlias = "float | timedelta | str"
"""Seconds, a `timedelta`, or a string of numbers with units: `250ms`, `10s`, `5m`, `1.5h`, `1d`, `1h30m`."""

_DURATION = "a duration such as 2.5, '250ms' or '5m'"
_RATE = "a rate such as '100/min' or '5/2s'"

_UNITS: Mapping[str, int] = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_UNIT_OF: Mapping[str, str] = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "day": "d"}

# The units in this order, each at most once; an exponent, because `written` needs one for what is tiny.
_PARTS = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?){unit})?" for unit in (*_UNITS, "ms")))
_RATIO = re.compile(r"([1-9][0-9]{0,8})/(.+)")  # nine digits are more calls than any period has


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


AS_DURATION: Mapping[str, Callable[[float], str]] = {"written": written}
"""The metadata of a field that holds a duration: how it is written for people."""


def _written_whole(duration: int) -> str:
    text = ""
    for unit, size in _UNITS.items():
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
    number = sum(count * size for count, size in zip(whole, _UNITS.values(), strict=True)) + millis / 1_000
    return min(number, sys.float_info.max)  # of too many digits it's infinite, but only `inf` is meant to be


def _nearest_duration(text: str) -> str:
    """
    Suggest `5m` for `5 minutes`, and `10s` for `10`.
    """
    near = re.sub("[a-z]+", lambda word: _UNIT_OF.get(word[0].rstrip("s"), word[0]), _compact(text))
    near += "s" if near[-1:].isdigit() else ""
    return did_you_mean(near, [near]) if near and _PARTS.fullmatch(near) else ""


def _compact(text: str) -> str:
    return "".join(text.lower().split())


def _period(value: Duration) -> float:
    return converted(period, value)


@frozen
class Rate:
    """
    So many calls in a period of time, such as `100/min`.

    Args:
        calls: The most calls that start in one period, at least 1.
        period: Its length: seconds, a `timedelta`, or a string such as `2s`.

    Raises:
        TypeError: One of them is of another type.
        ValueError: One of them has a value that it can't have.
    """

    calls: int = field(validator=checked("an integer of at least 1", is_count, types=int))
    period: float = field(converter=_period, validator=checked_by(period), metadata=AS_DURATION)

    def __str__(self) -> str:
        text = written(self.period)
        return f"{self.calls}/{_PERIODS.get(text, text)}"


_PERIODS: Mapping[str, str] = {"1s": "s", "1m": "min", "1h": "h", "1d": "day"}


def rate(value: object) -> Rate:
    """
    Read a rate: a number of calls, a slash, and a unit or a duration.

    >>> rate("100/min")
    Rate(calls=100, period=60.0)

    Raises:
        TypeError: *value* is no `Rate` and no string.
        ValueError: It is another string.
    """
    if isinstance(value, Rate):
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected {_RATE}, found {described(value)}")
    found = _ratio(value)
    if found is None:
        near = _compact(value).replace("per", "/")
        hint = did_you_mean(near, [near]) if _ratio(near) else ""
        raise ValueError(f"expected {_RATE}, found {described(value)}{hint}")
    return found


def _ratio(text: str) -> Rate | None:
    """
    Read `CALLS/PERIOD`; None if the text isn't that.
    """
    match = _RATIO.fullmatch(text)
    if match is None:
        return None
    unit = _UNIT_OF.get(match[2], match[2])
    try:
        return Rate(int(match[1]), f"1{unit}" if unit in _UNITS else unit)
    except ValueError:
        return None
