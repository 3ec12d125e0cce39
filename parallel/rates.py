"""
How often, as people write it: rates.

    "100/min" ──▶ rate() ──▶ Rate ──▶ str() ──▶ "100/min"
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

from parallel.checks import Form, checked, checked_by, converted, described, did_you_mean, is_count
from parallel.durations import AS_DURATION, UNIT_OF, UNITS, Duration, compact, period, written

_RATE = "a rate such as '100/min' or '5/2s'"
_RATIO = re.compile(r"([1-9][0-9]{0,8})/(.+)")  # nine digits are more calls than any period has
_PERIODS: Mapping[str, str] = {"1s": "s", "1m": "min", "1h": "h", "1d": "day"}


RATE_FORM: Form = {"type": "string", "pattern": "^[1-9][0-9]{0,8}/.+$"}
"""What a rate looks like."""


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
        near = compact(value).replace("per", "/")
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
    unit = UNIT_OF.get(match[2], match[2])
    try:
        return Rate(int(match[1]), f"1{unit}" if unit in UNITS else unit)
    except ValueError:
        return None
