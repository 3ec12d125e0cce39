"""
Which failed calls are tried again, how often, and after which waits: `Retry`, in the words of the library stamina.

Pure: it reads no clock, draws no random number and doesn't wait; whoever runs the call does that.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import attrs
from attrs import Attribute, field, frozen

from parallel.checks import COUNT, STRINGS, Form, checked, checked_by, converted, described, did_you_mean, is_count
from parallel.durations import AS_DURATION, DURATION_FORM, Duration, pause, seconds, written
from parallel.imports import imported, is_import_string, with_colon

if TYPE_CHECKING:
    from datetime import timedelta

    from typing_extensions import TypeIs


class Judge(Protocol):
    """A function that looks at an error and says whether to try again, or in how many seconds."""

    def __call__(self, error: Exception, /) -> bool | float | timedelta:
        """Say True, False or how long to wait before the next attempt."""
        ...


On: TypeAlias = type[BaseException] | str | Sequence[type[BaseException] | str] | Judge
"""What `Retry.on` takes."""

_EXCEPTION = "an exception type, or its name such as 'OSError' or 'shop.errors:Busy'"
_ON = f"{_EXCEPTION}, several of them, or a function"


_ON_FORM: Form = {"anyOf": [{"type": "string"}, STRINGS]}


def _read_on(value: On) -> On:
    """
    Check what is retried; several exceptions become a tuple.
    """
    if isinstance(value, list | tuple):
        kinds = cast("Iterable[object]", value)
        return tuple(_read_exception(kind, _EXCEPTION) for kind in kinds)
    if callable(value) and not isinstance(value, type):
        return value
    return _read_exception(value, _ON)


def _read_exception(value: object, expected: str) -> type[BaseException] | str:
    """
    Check a type, or the name of one: a built-in one must be there, any other has only to look like one.
    """
    if isinstance(value, str):
        if not (is_import_string(value) or _is_exception(getattr(builtins, value, None))):
            raise ValueError(f"expected {expected}, found {described(value)}{_nearest_exception(value)}")
        return value
    if not _is_exception(value):
        raise TypeError(f"expected {expected}, found {described(value)}")
    return value


def _is_exception(value: object) -> TypeIs[type[BaseException]]:
    return isinstance(value, type) and issubclass(value, BaseException)


def _nearest_exception(name: str) -> str:
    known = [each for each, value in vars(builtins).items() if _is_exception(value)]
    return did_you_mean(name, known) or with_colon(name)


def _imported_exception(name: str) -> type[BaseException]:
    """
    Find the exception type that has a name.
    """
    try:
        found = imported(name if ":" in name else f"builtins:{name}")
    except (ImportError, AttributeError) as error:
        raise ValueError(f"retry.on: expected {_EXCEPTION}, found {name!r}: {error}") from error
    if not _is_exception(found):
        raise ValueError(f"retry.on: expected {_EXCEPTION}, found {name!r}, which is {described(found)}")
    return found


def _read_bound(value: Duration | None) -> float | None:
    """
    Read a duration; None for `inf` too.
    """
    bound = None if value is None else seconds(value)
    return None if bound == math.inf else bound


def _read_base(value: object) -> float:
    expected = f"expected a number of at least 1, found {described(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(expected)
    if not 1 <= value <= sys.float_info.max:
        raise ValueError(expected)
    return float(value)


# What attrs and the type checkers see: the type of a converter's parameter is that of the constructor's.


def _on(value: On) -> On:
    return converted(_read_on, value)


def _attempts(value: int | None) -> int | None:
    return None if value == math.inf else value  # TOML has no None


def _bound(value: Duration | None) -> float | None:
    return converted(_read_bound, value)


def _pause(value: Duration) -> float:
    return converted(pause, value)


def _base(value: float) -> float:
    return converted(_read_base, value)


def _not_below_wait_initial(retry: Retry | None, attribute: Attribute[Any], value: float) -> None:
    """
    Refuse a longest wait that would cut the first one short. (A file's values are checked one by one, then all again.)
    """
    if retry is not None and value < retry.wait_initial:
        least = f"at least wait_initial, which is {written(retry.wait_initial)}"
        raise ValueError(f"{attribute.name}: expected {least}, found {written(value)}")


@frozen
class Retry:
    """
    When to try a failed call again.

    Args:
        on: What is retried: an exception type or several; or a function that gets the error and returns True, False,
            or the time to wait: seconds or a `timedelta`. A type may be named: `OSError`, `package.module:Error`.
        attempts: The most attempts, the first one included; None, or `inf` in TOML, for any number.
        timeout: No attempt begins later than this after the first one began; None or `inf` for no limit.
        wait_initial: Wait after the first attempt.
        wait_max: The longest wait.
        wait_jitter: The most that is added to a wait by chance.
        wait_exp_base: By how much each wait is longer than the one before.

    Durations are seconds, a `timedelta` or a string such as `5m`.

    Raises:
        TypeError: One of them is of another type.
        ValueError: One of them has a value that it can't have.
    """

    on: On = field(default=Exception, converter=_on, validator=checked_by(_read_on, _ON_FORM))
    attempts: int | None = field(
        default=10,
        kw_only=True,
        converter=_attempts,
        validator=checked(
            "an integer of at least 1, or inf",
            lambda value: value is None or is_count(value),
            types=int,
            form={"anyOf": [COUNT, {"type": "number", "minimum": sys.float_info.max}]},
        ),
    )
    timeout: float | None = field(
        default=45.0,
        kw_only=True,
        converter=_bound,
        validator=checked_by(_read_bound, DURATION_FORM),
        metadata=AS_DURATION,
    )
    wait_initial: float = field(
        default=0.1, kw_only=True, converter=_pause, validator=checked_by(pause, DURATION_FORM), metadata=AS_DURATION
    )
    wait_max: float = field(
        default=5.0,
        kw_only=True,
        converter=_pause,
        validator=[checked_by(pause, DURATION_FORM), _not_below_wait_initial],
        metadata=AS_DURATION,
    )
    wait_jitter: float = field(
        default=1.0, kw_only=True, converter=_pause, validator=checked_by(pause, DURATION_FORM), metadata=AS_DURATION
    )
    wait_exp_base: float = field(
        default=2.0, kw_only=True, converter=_base, validator=checked_by(_read_base, {"type": "number", "minimum": 1})
    )

    def resolved(self) -> Retry:
        """
        Give the same with the exceptions that are named in *on* imported; without any, this object itself.

        Raises:
            ValueError: A name can't be imported, or is no exception type.
        """
        on = self.on
        if isinstance(on, str):
            return attrs.evolve(self, on=_imported_exception(on))
        if isinstance(on, tuple) and any(isinstance(kind, str) for kind in on):
            return attrs.evolve(self, on=[_imported_exception(kind) if isinstance(kind, str) else kind for kind in on])
        return self

    def verdict(self, error: BaseException) -> float | bool:
        """
        Say whether to try again after an error.

        Types match as in `except`. But what isn't a failure, an interrupt or a cancellation, is matched only by a type
        besides `Exception`, and no function is asked about it. What the function raises is raised here.

        Returns:
            True or False; or, from a function, the seconds to wait instead of `wait()`. Compare with `is`: after a wait
            of 0.0 there is another attempt.

        Raises:
            TypeError: The function gave another answer.
            ValueError: As `resolved` does.
        """
        on = self.resolved().on
        is_failure = isinstance(error, Exception) and not isinstance(error, CancelledError)
        if callable(on) and not isinstance(on, type):
            return is_failure and _answer(on, on(cast("Exception", error)))
        kinds = cast("tuple[type[BaseException], ...]", on if isinstance(on, tuple) else (on,))
        bases = type(error).__mro__
        return any(kind in bases and (is_failure or kind is not Exception) for kind in kinds)

    def wait(self, attempt: int, jitter: Callable[[], float]) -> float:
        """
        Say how long to wait after a failed attempt: at first *wait_initial*, each time longer, up to *wait_max*.

        Args:
            attempt: The number of the attempt that failed; the first is 1.
            jitter: Draws how much of *wait_jitter* is added, from 0 to 1, such as `random.random`.

        Returns:
            Seconds.
        """
        try:
            grown = self.wait_initial * self.wait_exp_base ** (attempt - 1)
        except OverflowError:
            grown = self.wait_max if self.wait_initial else 0.0
        return min(self.wait_max, grown + jitter() * self.wait_jitter)


def _answer(judge: Judge, answer: object) -> float | bool:
    """
    Check what a function said about an error.
    """
    if isinstance(answer, bool):
        return answer
    if not isinstance(answer, str):  # which is a mistake here rather than a duration
        with suppress(TypeError, ValueError):
            return pause(cast("Duration", answer))
    expected = f"expected True, False or how long to wait, in seconds, from {described(judge)}"
    raise TypeError(f"retry.on: {expected}; found {described(answer)}")
