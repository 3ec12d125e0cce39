"""
What may be said about a task: in which forms, and how it is merged.
"""

import math
import pickle
from collections.abc import Callable
from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.config import from_mapping
from parallel.options import Duration, Rate, Retry, Said, TaskOptions, declared_options

options = st.builds(
    TaskOptions,
    pool=st.none() | st.sampled_from(["threads", "processes", "cluster"]),
    timeout=st.none() | st.sampled_from([1, "5m", math.inf]),
    deadline=st.none() | st.sampled_from([2, "1h"]),
    retry=st.none() | st.builds(Retry, st.sampled_from([OSError, "OSError"]), attempts=st.integers(1, 3)),
    limit=st.none() | st.integers(1, 3),
    rate=st.none() | st.sampled_from(["1/s", Rate(5, 2)]),
    priority=st.none() | st.integers(-1, 1),
    idempotent=st.none() | st.booleans(),
    on_success=st.none() | st.sampled_from([print, "shop:sold"]),
    on_failure=st.none() | st.sampled_from([repr, "shop:page"]),
)


def in_toml(table: dict[str, object]) -> TaskOptions:
    """Read options as a file's."""
    return from_mapping({"tasks": {"*": table}}).tasks["*"]


# Merging


@given(options, options, options)
def test_merging_is_associative(high: TaskOptions, middle: TaskOptions, low: TaskOptions) -> None:
    """It doesn't matter which neighbours are merged first."""
    assert high.over(middle).over(low) == high.over(middle.over(low))


@given(options)
def test_saying_nothing_changes_nothing(said: TaskOptions) -> None:
    """Empty options are neutral on either side."""
    assert TaskOptions().over(said) == said == said.over(TaskOptions())


@given(options, options)
def test_what_is_said_wins(high: TaskOptions, low: TaskOptions) -> None:
    """A value said above hides the whole one below; one not said shows it."""
    merged = high.over(low)
    for option in attrs.fields(TaskOptions):
        above, below = getattr(high, option.name), getattr(low, option.name)
        assert getattr(merged, option.name) == (below if above is None else above)


def test_merging_leaves_both_as_they_are() -> None:
    """Options are values."""
    high, low = TaskOptions(pool="a"), TaskOptions(pool="b")
    assert high.over(low) == TaskOptions(pool="a")
    assert (high, low) == (TaskOptions(pool="a"), TaskOptions(pool="b"))


def test_no_limit_is_said_too() -> None:
    """So `inf` switches off what a lower layer says."""
    assert TaskOptions(timeout=math.inf).over(TaskOptions(timeout=5)).timeout == math.inf


# Forms


def test_nothing_is_said_by_default() -> None:
    """Each option may be left out."""
    assert set(attrs.asdict(TaskOptions()).values()) == {None}


@pytest.mark.parametrize("said", [300, 300.0, timedelta(minutes=5), "5m", "300s", "4m60s"])
def test_durations_are_seconds(said: Duration) -> None:
    """In whichever form they are given."""
    read = TaskOptions(timeout=said, deadline=said)
    assert read == TaskOptions(timeout=300.0, deadline=300.0)
    assert type(read.timeout) is float


def test_python_and_toml_say_the_same() -> None:
    """Each form has the same value from either."""
    assert in_toml(
        {
            "pool": "threads",
            "timeout": "30s",
            "deadline": math.inf,
            "retry": {"on": ["OSError", "shop.errors:Busy"], "attempts": math.inf, "wait_initial": "200ms"},
            "limit": 3,
            "rate": "100/min",
            "priority": -1,
            "idempotent": True,
            "on_success": "shop:sold",
            "on_failure": "alerts:page",
        }
    ) == TaskOptions(
        pool="threads",
        timeout=timedelta(seconds=30),
        deadline="inf",
        retry=Retry(("OSError", "shop.errors:Busy"), attempts=None, wait_initial=0.2),
        limit=3,
        rate=Rate(100, "1m"),
        priority=-1,
        idempotent=True,
        on_success="shop:sold",
        on_failure="alerts:page",
    )


def test_functions_are_taken_as_they_are() -> None:
    """Any callable is one."""
    assert TaskOptions(on_success=print, on_failure=repr).on_success is print


def test_options_can_be_sent_to_a_process() -> None:
    """They hold only plain values, if no function was given."""
    said = TaskOptions(timeout="5m", retry=Retry(OSError), rate="1/s", on_success="shop:sold")
    assert pickle.loads(pickle.dumps(said)) == said


WRONG: list[tuple[str, object, type[Exception], str]] = [
    ("pool", "", ValueError, "the name of a pool, found string ''"),
    *(("pool", wrong, TypeError, r"the name of a pool, found \S+ .+") for wrong in (3, True, ["threads"], len, b"x")),
    *(
        (name, wrong, error, r"a duration such as 2\.5, '250ms' or '5m', found .+")
        for name in ("timeout", "deadline")
        for wrong, error in [
            *[("often", ValueError), (0, ValueError), (-1, ValueError), (math.nan, ValueError), (10**400, ValueError)],
            *[(True, TypeError), ([5], TypeError), ({}, TypeError)],
        ]
    ),
    *(("limit", wrong, ValueError, r"an integer of at least 1, found integer .+") for wrong in (0, -1)),
    *(("limit", wrong, TypeError, r"an integer of at least 1, found \S+ .+") for wrong in (True, 2.0, "x", math.inf)),
    *(("rate", wrong, ValueError, r"a rate such as '100/min' or '5/2s', found string .+") for wrong in ("often", "5")),
    *(("rate", wrong, TypeError, r"a rate such as '100/min' or '5/2s', found \S+ .+") for wrong in (5, True, [5])),
    *(("idempotent", wrong, TypeError, r"true or false, found \S+ .+") for wrong in (1, "yes", [])),
    *(("priority", wrong, TypeError, r"an integer, found \S+ .+") for wrong in (True, 1.0, "high", math.nan)),
    *(
        (name, wrong, error, r"a function, or an import string such as 'package\.module:attribute', found \S+ .+")
        for name in ("on_success", "on_failure")
        for wrong, error in [
            ("page", ValueError),
            ("", ValueError),
            (3, TypeError),
            (True, TypeError),
            ([len], TypeError),
        ]
    ),
]


@pytest.mark.parametrize(("name", "wrong", "error", "expected"), WRONG)
def test_wrong_values(name: str, wrong: object, error: type[Exception], expected: str) -> None:
    """A wrong type is a TypeError, a wrong value a ValueError; both tell what is expected, what was found."""
    with pytest.raises(error, match=rf"^{name}: expected {expected}$"):
        TaskOptions(**{name: wrong})  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("wrong", [3, True, "OSError", {"attempts": 3}, Retry])
def test_a_retry_is_made_first(wrong: object) -> None:
    """In Python it's an object; only in TOML it's a table."""
    with pytest.raises(TypeError, match=r"^retry: expected a Retry, found \S+ .+"):
        TaskOptions(retry=wrong)  # type: ignore[arg-type]  # that is the test


def test_an_option_that_does_not_exist_is_refused() -> None:
    """Nothing is accepted and ignored."""
    with pytest.raises(TypeError, match="tiemout"):
        TaskOptions(tiemout=3)  # type: ignore[call-arg]  # that is the test


# Where a task is declared


def test_declared_options_are_options() -> None:
    """As they were said."""
    said: Said = {"timeout": "5m", "rate": "100/min", "retry": Retry(OSError)}
    assert declared_options("shop.images:resize", **said) == TaskOptions(**said)
    assert declared_options("shop.images:resize") == TaskOptions()


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (
            lambda name: declared_options(name, timeout="soon"),
            ValueError,
            "timeout: expected a duration such as 2.5, '250ms' or '5m', found string 'soon'",
        ),
        (
            lambda name: declared_options(name, limit=True),
            TypeError,
            "limit: expected an integer of at least 1, found boolean True",
        ),
    ],
)
def test_a_mistake_names_the_task(declare: Callable[[str], TaskOptions], error: type[Exception], message: str) -> None:
    """And keeps its type, and hides where it was found."""
    with pytest.raises(error) as caught:
        declare("shop.images:resize")
    assert str(caught.value) == f"shop.images:resize: {message}"
    assert caught.value.__suppress_context__


def test_declared_options_name_every_option() -> None:
    """Whatever an option is, it may be declared."""
    assert [*Said.__annotations__] == [option.name for option in attrs.fields(TaskOptions)]
