"""
What may be said about a task.

The same options come from several places (a decorator, the tables of a file) and are laid over each other, one
`TaskOptions` over another. A new field here is merged, and read from TOML, without more code, if its default means
"not said".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypedDict, Unpack, cast

import attrs
from attrs import field, frozen

from parallel.checks import COUNT, checked, checked_by, converted, described, did_you_mean, is_count
from parallel.durations import AS_DURATION, DURATION_FORM
from parallel.durations import Duration as Duration  # what may be said can be had from here
from parallel.durations import seconds as seconds
from parallel.imports import IMPORT_FORM, is_import_string, with_colon
from parallel.rates import RATE_FORM, rate
from parallel.rates import Rate as Rate
from parallel.retries import Retry as Retry

OnSuccess: TypeAlias = Callable[[Any], object] | str
"""A function that gets the value of a call, or its import string."""

OnFailure: TypeAlias = Callable[[BaseException], object] | str
"""A function that gets the error of a call, or its import string."""


def _seconds(value: Duration | None) -> float | None:
    return None if value is None else converted(seconds, value)


def _rate(value: Rate | str | None) -> Rate | None:
    return None if value is None else converted(rate, value)


def _retry(value: Retry | None) -> Retry | None:
    """
    Let a `Retry` pass; without a validator, the field is read from TOML by its type, as a table.
    """
    if not isinstance(cast("object", value), Retry | None):
        raise TypeError(f"retry: expected a Retry, found {described(value)}")
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_pool_name = checked(
    "the name of a pool",
    lambda name: isinstance(name, str) and name != "",
    types=str,
    form={"type": "string", "minLength": 1},
)
_count = checked("an integer of at least 1", is_count, types=int, form=COUNT)
_integer = checked("an integer", _is_integer, types=int, form={"type": "integer"})
_flag = checked("true or false", lambda value: isinstance(value, bool), types=bool, form={"type": "boolean"})
_duration = checked_by(seconds, DURATION_FORM)
_function = checked(
    "a function, or an import string such as 'package.module:attribute'",
    lambda value: callable(value) or is_import_string(value),
    with_colon,
    types=str,
    form=IMPORT_FORM,
)


@frozen(kw_only=True)
class TaskOptions:
    """
    What is said about a task; a field left at its default isn't said.

    Durations are seconds, a `timedelta` or a string such as `5m`; `inf` switches off what is said elsewhere.

    Args:
        pool: Name of the pool that runs the calls.
        timeout: How long one attempt may run.
        deadline: How long the whole call may take, from its submission.
        retry: When to try a failed call again.
        limit: The most calls of the task at a time.
        rate: The most calls that start in a period: a `Rate`, or a string such as `100/min`.
        priority: Calls of a higher one run first; 0 is usual.
        idempotent: Whether a call may be run again whose worker died in it.
        on_success: Called with each value: a function, or its import string.
        on_failure: Called with each error: a function, or its import string.

    Raises:
        TypeError: One of them is of another type.
        ValueError: One of them has a value that it can't have.
    """

    pool: str | None = field(default=None, validator=_pool_name)
    timeout: float | None = field(default=None, converter=_seconds, validator=_duration, metadata=AS_DURATION)
    deadline: float | None = field(default=None, converter=_seconds, validator=_duration, metadata=AS_DURATION)
    retry: Retry | None = field(default=None, converter=_retry)
    limit: int | None = field(default=None, validator=_count)
    rate: Rate | None = field(
        default=None, converter=_rate, validator=checked_by(rate, RATE_FORM), metadata={"written": str}
    )
    priority: int | None = field(default=None, validator=_integer)
    idempotent: bool | None = field(default=None, validator=_flag)
    on_success: OnSuccess | None = field(default=None, validator=_function)
    on_failure: OnFailure | None = field(default=None, validator=_function)

    def over(self, below: TaskOptions) -> TaskOptions:
        """
        Lay these options over others: what is said here wins, *below* says the rest.

        A field is replaced as a whole: of two that say *retry*, the upper one's holds, and its defaults.
        Associative, and `TaskOptions()` changes nothing on either side.
        """
        said = attrs.asdict(self, recurse=False, filter=lambda option, value: value is not option.default)
        return attrs.evolve(below, **said)


class Saying(NamedTuple):
    """
    What is said about a task besides its configuration.

    Attributes:
        task: Its name, `module:qualname`.
        otherwise: What holds if nobody says anything else.
        declared: What its decorator says: it wins over the configuration's defaults.
        said: What `.options()` says: it wins over all of the configuration.
    """

    task: str
    otherwise: TaskOptions
    declared: TaskOptions
    said: TaskOptions


class Said(TypedDict, total=False):
    """The arguments of `TaskOptions`, for a function that hands them on."""

    pool: str | None
    timeout: Duration | None
    deadline: Duration | None
    retry: Retry | None
    limit: int | None
    rate: Rate | str | None
    priority: int | None
    idempotent: bool | None
    on_success: OnSuccess | None
    on_failure: OnFailure | None


def declared_options(name: str, **said: Unpack[Said]) -> TaskOptions:
    """
    Make options where a task is declared; a mistake in them tells whose they are.

    Args:
        name: The task's `module:qualname`.
        said: The arguments of `TaskOptions`.

    Raises:
        As `TaskOptions` does, `NAME: OPTION: ...`.
    """
    known = list(Said.__annotations__)
    for option in said.keys() - known:
        raise TypeError(f"{name}: no option {option!r}{did_you_mean(option, known)}; known: {', '.join(known)}")
    try:
        return TaskOptions(**said)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
