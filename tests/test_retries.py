"""
Which failed calls are tried again, and after which waits.
"""

import asyncio
import concurrent.futures
import math
import pickle
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.retries import On, Retry


class Unequal(type):
    """A type of types that claims every subclass and instance."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        """Claim it."""
        return True

    def __instancecheck__(cls, instance: object) -> bool:
        """Claim it."""
        return True


class Greedy(Exception, metaclass=Unequal):
    """Claims every exception."""


def is_busy(error: Exception) -> bool:
    """Say whether trying again is worth it."""
    return "busy" in str(error)


# What may be said


def test_the_defaults_are_those_of_stamina() -> None:
    """Who knows that library knows these."""
    retry = Retry()
    assert (retry.on, retry.attempts, retry.timeout) == (Exception, 10, 45.0)
    assert (retry.wait_initial, retry.wait_max, retry.wait_jitter, retry.wait_exp_base) == (0.1, 5.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (OSError, OSError),
        ((OSError, ValueError), (OSError, ValueError)),
        ([OSError, "shop.errors:Busy"], (OSError, "shop.errors:Busy")),
        ("OSError", "OSError"),
        ("shop.errors:Busy", "shop.errors:Busy"),
        (["OSError", "shop.errors:Pool.Busy"], ("OSError", "shop.errors:Pool.Busy")),
        (KeyboardInterrupt, KeyboardInterrupt),
        ((), ()),
        (is_busy, is_busy),
    ],
)
def test_what_is_retried(said: On, expected: On) -> None:
    """Exceptions, their names, several of them, or a function; the first argument."""
    assert Retry(said).on == Retry(on=said).on == expected


@pytest.mark.parametrize(
    ("wrong", "error", "found"),
    [
        ("OSErorr", ValueError, r"string 'OSErorr' \(did you mean 'OSError'\?\)"),
        ("len", ValueError, "string 'len'"),
        ("", ValueError, "string ''"),
        ("shop.errors.Busy", ValueError, r"string 'shop.errors.Busy' \(did you mean 'shop.errors:Busy'\?\)"),
        ("shop:a b", ValueError, "string 'shop:a b'"),
        (["OSError", "nothing"], ValueError, "string 'nothing'"),
        (int, TypeError, "type <class 'int'>"),
        ([OSError, 3], TypeError, "integer 3"),
        ([is_busy], TypeError, "function <function is_busy at .*>"),
        ({OSError}, TypeError, "set {<class 'OSError'>}"),
        (3, TypeError, "integer 3"),
        (True, TypeError, "boolean True"),
        (None, TypeError, "nothing"),
        (OSError(), TypeError, r"OSError OSError\(\)"),
    ],
)
def test_what_can_not_be_retried(wrong: On, error: type[Exception], found: str) -> None:
    """A name of no built-in exception is known to be wrong at once, with the nearest one."""
    with pytest.raises(error, match=rf"^on: expected an exception type, or its name such as .*, found {found}$"):
        Retry(wrong)


@pytest.mark.parametrize("unlimited", [None, math.inf])
def test_without_limits(unlimited: float | None) -> None:
    """TOML has no None, so `inf` says the same."""
    retry = Retry(attempts=unlimited, timeout=unlimited)  # type: ignore[arg-type]  # a float is for TOML
    assert (retry.attempts, retry.timeout) == (None, None)


@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError), ("3", TypeError)]
)
def test_attempts_are_counted_from_1(wrong: object, error: type[Exception]) -> None:
    """The first one is an attempt too."""
    with pytest.raises(error, match=r"^attempts: expected an integer of at least 1, or inf, found "):
        Retry(attempts=wrong)  # type: ignore[arg-type]  # that is the test


def test_durations_are_read() -> None:
    """In each of their forms; a wait may be 0."""
    retry = Retry(timeout="1m", wait_initial="200ms", wait_max=timedelta(seconds=9), wait_jitter=0)
    assert retry == Retry(timeout=60.0, wait_initial=0.2, wait_max=9.0, wait_jitter=0.0)
    assert [type(each) for each in (retry.timeout, retry.wait_max, retry.wait_jitter)] == [float] * 3


@pytest.mark.parametrize("option", ["timeout", "wait_initial", "wait_max", "wait_jitter"])
@pytest.mark.parametrize(("wrong", "error"), [("soon", ValueError), (-1, ValueError), (True, TypeError)])
def test_wrong_durations(option: str, wrong: object, error: type[Exception]) -> None:
    """The option is named."""
    with pytest.raises(error, match=rf"^{option}: expected a duration such as 2\.5, '250ms' or '5m', found "):
        Retry(**{option: wrong})  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("option", ["wait_initial", "wait_max", "wait_jitter"])
def test_a_wait_ends(option: str) -> None:
    """To wait without end is not to retry."""
    with pytest.raises(ValueError, match=rf"^{option}: .* found float inf"):
        Retry(**{option: math.inf})  # type: ignore[arg-type]  # as all keywords could be meant


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(0.9, ValueError), (math.inf, ValueError), (math.nan, ValueError), (10**400, ValueError), ("2", TypeError)],
)
def test_waits_never_get_shorter(wrong: object, error: type[Exception]) -> None:
    """So the base is 1 at least, and a number to compute with."""
    with pytest.raises(error, match=r"^wait_exp_base: expected a number of at least 1, found "):
        Retry(wait_exp_base=wrong)  # type: ignore[arg-type]  # that is the test


def test_a_first_wait_is_not_cut_short() -> None:
    """By a default that its author didn't think of."""
    with pytest.raises(ValueError, match=r"^wait_max: expected at least wait_initial, which is 10s, found 5s$"):
        Retry(wait_initial=10)
    assert Retry(wait_initial=10, wait_max=10).wait_initial == 10


def test_it_is_a_value() -> None:
    """It can be compared, hashed and sent to a process."""
    retry = Retry(["OSError"], attempts=3)
    assert pickle.loads(pickle.dumps(retry)) == retry
    assert hash(retry) == hash(Retry(("OSError",), attempts=3))


# Names of exceptions


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("OSError", OSError),
        ("concurrent.futures:CancelledError", concurrent.futures.CancelledError),
        (["OSError", ValueError, "json:JSONDecodeError"], (OSError, ValueError, __import__("json").JSONDecodeError)),
        (["builtins:KeyError"], (KeyError,)),
    ],
)
def test_names_are_imported(said: On, expected: On) -> None:
    """When someone needs to know, not before."""
    retry = Retry(said, attempts=3)
    assert retry.resolved() == Retry(expected, attempts=3)
    assert retry == Retry(said, attempts=3)


@pytest.mark.parametrize("on", [Exception, (OSError, ValueError), is_busy, ()])
def test_without_names_there_is_nothing_to_import(on: On) -> None:
    """It stays as it is."""
    retry = Retry(on)
    assert retry.resolved() is retry


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no.such.module:Busy", "No module named 'no'"),
        ("json:Busy", "module 'json' has no attribute 'Busy'"),
        ("json:loads", "which is function <function loads at .*>"),
        ("json:JSONDecoder", "which is type <class 'json.decoder.JSONDecoder'>"),
    ],
)
def test_names_of_no_exception(name: str, reason: str) -> None:
    """The name and the reason are told."""
    for on in (name, [OSError, name]):
        with pytest.raises(
            ValueError, match=rf"^retry\.on: expected an exception type.*, found '{name}'[:,] {reason}$"
        ):
            Retry(on).resolved()


# Verdicts


@pytest.mark.parametrize(
    ("on", "error", "expected"),
    [
        (Exception, ValueError(), True),
        (OSError, FileNotFoundError(), True),
        (OSError, ValueError(), False),
        ((OSError, ValueError), ValueError(), True),
        ((), ValueError(), False),
        ("OSError", FileNotFoundError(), True),
        (["OSError", "json:JSONDecodeError"], ValueError(), False),
        (is_busy, ValueError("busy"), True),
        (is_busy, ValueError("wrong"), False),
    ],
)
def test_verdicts(on: On, error: Exception, expected: bool) -> None:
    """Types match as in `except`, a function is asked."""
    assert Retry(on).verdict(error) is expected


def test_a_type_is_matched_by_what_it_is() -> None:
    """As in `except`, what a metaclass claims doesn't count."""
    assert isinstance(ValueError(), Greedy)
    assert Retry(Greedy).verdict(ValueError()) is False


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(), GeneratorExit(), asyncio.CancelledError(), concurrent.futures.CancelledError()],
)
def test_an_interrupt_or_a_cancellation_is_no_failure(error: BaseException) -> None:
    """It is retried only where its type, or one that isn't for failures, is named; no function is asked about it."""
    assert Retry().verdict(error) is False
    assert Retry((OSError, Exception)).verdict(error) is False
    assert Retry(lambda error: True).verdict(error) is False
    assert Retry(type(error)).verdict(error) is True
    assert Retry(BaseException).verdict(error) is True


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(True, True), (False, False), (0, 0.0), (0.0, 0.0), (3, 3.0), (0.5, 0.5), (timedelta(minutes=1), 60.0)],
)
def test_a_function_may_say_how_long_to_wait(answer: float | timedelta, expected: float | bool) -> None:
    """In seconds; 0 is to try again at once, and not the same as no."""
    verdict = Retry(lambda error: answer).verdict(ValueError())
    assert (verdict, type(verdict)) == (expected, type(expected))


@pytest.mark.parametrize("answer", [None, "5m", -1, -0.5, math.nan, math.inf, 10**400, timedelta(-1), [True], ""])
def test_what_else_a_function_says_is_a_mistake(answer: object) -> None:
    """The function and its answer are named."""
    judge: Callable[[Exception], bool] = lambda error: answer  # type: ignore[return-value]  # noqa: E731  # that is it
    expected = r"retry\.on: expected True, False or how long to wait, in seconds, from function <function .*>; found "
    with pytest.raises(TypeError, match=expected):
        Retry(judge).verdict(ValueError())


def test_what_a_function_raises_is_raised() -> None:
    """Whoever runs the call decides what becomes of it."""
    with pytest.raises(ZeroDivisionError):
        Retry(lambda error: 1 / 0).verdict(ValueError())


# Waits


def test_waits_grow_up_to_the_longest() -> None:
    """Each is longer by the base, and chance adds to it."""
    retry = Retry(wait_initial=1, wait_max=6, wait_jitter=2, wait_exp_base=2)
    assert [retry.wait(attempt, lambda: 0.0) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 6, 6]
    assert [retry.wait(attempt, lambda: 0.5) for attempt in (1, 2, 3, 4, 5)] == [2, 3, 5, 6, 6]


def test_chance_is_asked_once() -> None:
    """So that a seeded program draws what it drew before."""
    draws = iter([0.25])
    assert Retry(wait_initial=1, wait_jitter=1).wait(1, lambda: next(draws)) == 1.25


@pytest.mark.parametrize(("initial", "expected"), [(0.1, 5.0), (0, 0.5)])
def test_many_attempts_do_not_overflow(initial: float, expected: float) -> None:
    """Neither does a first wait of 0 grow."""
    retry = Retry(wait_initial=initial)
    for attempt in (10_000, 10**9):
        assert retry.wait(attempt, lambda: 0.5) == expected


waits = st.floats(0, 1e9)


@given(
    st.tuples(waits, waits).map(sorted),
    waits,
    st.floats(1, 1.7e308),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.floats(0, 1),
)
def test_waits_are_monotonic_and_bounded(
    ends: list[float], jitter: float, base: float, first: int, second: int, chance: float
) -> None:
    """Whatever is said, and however many attempts there were."""
    retry = Retry(wait_initial=ends[0], wait_max=ends[1], wait_jitter=jitter, wait_exp_base=base)
    earlier, later = (retry.wait(attempt, lambda: chance) for attempt in sorted((first, second)))
    assert 0 <= earlier <= later <= retry.wait_max
