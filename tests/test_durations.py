"""
Durations and rates, as people write them.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from fractions import Fraction
from threading import TIMEOUT_MAX

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.durations import Duration, pause, period, seconds, written
from parallel.rates import Rate, rate

READERS = [seconds, pause, period]

right = st.floats(min_value=0, max_value=TIMEOUT_MAX, exclude_min=True)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (2, 2.0),
        (2.5, 2.5),
        (1e-9, 1e-9),
        (timedelta(minutes=1, milliseconds=250), 60.25),
        ("250ms", 0.25),
        ("9ms", 0.009),
        ("10s", 10.0),
        ("5m", 300.0),
        ("1.5h", 5_400.0),
        ("1d", 86_400.0),
        ("1h30m", 5_400.0),
        ("1d2h3m4s5ms", 93_784.005),
        ("0h90m", 5_400.0),
        ("0.5s", 0.5),
        ("007s", 7.0),
        ("2.5e-05s", 2.5e-05),
        (TIMEOUT_MAX, TIMEOUT_MAX),
    ],
)
def test_forms_of_a_duration(read: Callable[[Duration], float], said: Duration, expected: float) -> None:
    """Each is read as seconds, a plain float."""
    assert read(said) == expected
    assert type(read(said)) is float


@pytest.mark.parametrize("said", [math.inf, "inf"])
def test_without_end(said: Duration) -> None:
    """What bounds may be without end; a wait and a period may not."""
    assert seconds(said) == math.inf
    for read in (pause, period):
        with pytest.raises(ValueError, match=rf"found \w+ '?inf'? \(allowed: .*, at most {TIMEOUT_MAX:.0f}s\)$"):
            read(said)


@pytest.mark.parametrize("said", [0, 0.0, "0s", "0h0m", timedelta()])
def test_no_time_at_all(said: Duration) -> None:
    """It can be waited, but bounds nothing that could run."""
    assert pause(said) == 0
    for read in (seconds, period):
        with pytest.raises(
            ValueError, match=r"expected a duration such as .*, found .* \(allowed: more than 0, at most"
        ):
            read(said)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("wrong", [True, False, None, [5], {"s": 5}, b"5m", len, 1j])
def test_values_of_other_types(read: Callable[[object], float], wrong: object) -> None:
    """They are no durations, and a boolean is no number."""
    with pytest.raises(TypeError, match=r"^expected a duration such as 2\.5, '250ms' or '5m', found "):
        read(wrong)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "wrong",
    [
        *["often", "", " ", "5", "5x", "m", "-5m", "+5m", "5 m", "5m ", "5M", "1,5h", ".5s", "5.s", "1e3s", "infinity"],
        *["30m1h", "1m1m", "5ms1s", "1h-30m", "\u0665s", "5m\n", "nan", "nans", "1_000s"],
        *[-1, -0.5, math.nan, -math.inf, timedelta(-1)],
        *[10**10, 10**400, 1e300, timedelta.max, "9" * 20 + "s", "9" * 400 + "s", "999999d"],
    ],
)
def test_wrong_durations(read: Callable[[Duration], float], wrong: Duration) -> None:
    """One short line says what is expected, and what was found."""
    with pytest.raises(ValueError, match=r"^expected a duration such as 2\.5, '250ms' or '5m', found ") as caught:
        read(wrong)
    assert len(str(caught.value)) < 220


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("10", "10s"), ("5 minutes", "5m"), ("1 hour 30 min", "1h30m"), ("5M", "5m"), ("3sec", "3s"), ("2 Days", "2d")],
)
def test_the_nearest_form_is_suggested(wrong: str, near: str) -> None:
    """What is likely meant can be copied from the message."""
    with pytest.raises(ValueError, match=rf"found string '{wrong}' \(did you mean '{near}'\?\)$"):
        seconds(wrong)


@pytest.mark.parametrize("wrong", ["5 months", "often", "a minute", "-5"])
def test_nothing_is_suggested_for_what_is_far(wrong: str) -> None:
    """A far guess would mislead."""
    with pytest.raises(ValueError, match=f"found string '{wrong}'$"):
        seconds(wrong)


def test_a_duration_that_is_too_long_is_told_so() -> None:
    """With the longest one, and with what to say instead."""
    for too_long in ("9999999d", 10**5_000):
        with pytest.raises(ValueError, match=rf"\(allowed: more than 0, at most {TIMEOUT_MAX:.0f}s, or inf\)$"):
            seconds(too_long)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (300.0, "5m"),
        (5_400.0, "1h30m"),
        (90_061.0, "1d1h1m1s"),
        (0.25, "250ms"),
        (0.0005, "0.0005s"),
        (90.5, "90.5s"),
        (0.0, "0s"),
        (math.inf, "inf"),
    ],
)
def test_durations_are_written_for_people(number: float, text: str) -> None:
    """In the largest units that are whole."""
    assert written(number) == text


@given(right | st.integers(1, 10**9).map(float) | st.integers(1, 10**4).map(lambda millis: millis / 1_000))
def test_what_is_written_is_read_as_the_same_number(number: float) -> None:
    """To the last bit."""
    assert seconds(written(number)) == number


@given(st.tuples(*[st.integers(0, 99)] * 5))
def test_the_parts_of_a_duration_add_up(parts: tuple[int, ...]) -> None:
    """Whichever are there."""
    text = "".join(f"{count}{unit}" for count, unit in zip(parts, ["d", "h", "m", "s", "ms"], strict=True) if count)
    exact = sum(
        count * size for count, size in zip(parts, [86_400, 3_600, 60, 1, Fraction(1, 1_000)], strict=True) if count
    )
    if text:
        assert seconds(text) == pytest.approx(float(exact), rel=1e-15)


@given(st.text("0123456789.e-dhms "))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """No other exception comes out."""
    with suppress(ValueError):
        assert pause(text) >= 0


# Rates


@pytest.mark.parametrize(
    ("said", "expected", "text"),
    [
        ("100/min", Rate(100, 60), "100/min"),
        ("100/m", Rate(100, "1m"), "100/min"),
        ("100/minute", Rate(100, timedelta(minutes=1)), "100/min"),
        ("10/s", Rate(10, 1), "10/s"),
        ("10/sec", Rate(10, 1), "10/s"),
        ("10/second", Rate(10, 1), "10/s"),
        ("1000/h", Rate(1_000, 3_600), "1000/h"),
        ("1000/hour", Rate(1_000, 3_600), "1000/h"),
        ("1/d", Rate(1, 86_400), "1/day"),
        ("1/day", Rate(1, 86_400), "1/day"),
        ("5/2s", Rate(5, 2), "5/2s"),
        ("5/1.5h", Rate(5, 5_400), "5/1h30m"),
        ("5/250ms", Rate(5, 0.25), "5/250ms"),
        ("5/60s", Rate(5, 60), "5/min"),
    ],
)
def test_forms_of_a_rate(said: str, expected: Rate, text: str) -> None:
    """Each is read as calls and seconds, and written so that people can read it."""
    assert rate(said) == expected
    assert type(rate(said).period) is float
    assert str(expected) == text
    assert rate(expected) is expected


@given(st.builds(Rate, st.integers(1, 999_999_999), right))
def test_a_rate_is_read_as_it_is_written(said: Rate) -> None:
    """Whatever the period."""
    assert rate(str(said)) == said


@pytest.mark.parametrize(
    "wrong",
    [
        *["often", "", "/", "100", "100/", "/min", "100 / min", "0/min", "-1/s", "1.5/s", "100/often", "5/0s", "5/inf"],
        *["100/2", "1/s/s", "100/min\n", "1e3/s", "1_000/s", "1000000000/s", "100/2min", "5/99999999d"],
    ],
)
def test_wrong_rates(wrong: str) -> None:
    """Whatever is wrong, the message shows a right one."""
    with pytest.raises(ValueError, match=r"^expected a rate such as '100/min' or '5/2s', found string "):
        rate(wrong)


@pytest.mark.parametrize(("wrong", "near"), [("100 / min", "100/min"), ("100 per minute", "100/minute")])
def test_the_nearest_rate_is_suggested(wrong: str, near: str) -> None:
    """What is likely meant can be copied from the message."""
    with pytest.raises(ValueError, match=rf"\(did you mean '{near}'\?\)$"):
        rate(wrong)


@pytest.mark.parametrize("wrong", [100, 1.5, True, None, ["100/min"], ("100", 60)])
def test_rates_of_other_types(wrong: object) -> None:
    """A bare number has no period."""
    with pytest.raises(TypeError, match=r"^expected a rate such as '100/min' or '5/2s', found "):
        rate(wrong)


@pytest.mark.parametrize(("calls", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError)])
def test_calls_are_counted_from_1(calls: object, error: type[Exception]) -> None:
    """As in every count here."""
    with pytest.raises(error, match=r"^calls: expected an integer of at least 1, found "):
        Rate(calls, 60)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(0, ValueError), ("often", ValueError), (math.inf, ValueError), (math.nan, ValueError), (True, TypeError)],
)
def test_a_period_is_a_duration_with_an_end(wrong: Duration, error: type[Exception]) -> None:
    """Without end, a rate would be a number of calls for ever."""
    with pytest.raises(error, match=r"^period: expected a duration such as 2\.5, '250ms' or '5m', found "):
        Rate(5, wrong)
