"""
What may be said about a task: merging, and the messages about wrong values.
"""

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from parallel.options import TaskOptions, checked, described, did_you_mean, key_path, strict_converter

options = st.builds(TaskOptions, pool=st.none() | st.sampled_from(["threads", "processes", "cluster"]))


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
    """A value said above hides the one below; one not said shows it."""
    assert high.over(low).pool == (low.pool if high.pool is None else high.pool)


def test_merging_leaves_both_as_they_are() -> None:
    """Options are values."""
    high, low = TaskOptions(pool="a"), TaskOptions(pool="b")
    assert high.over(low) == TaskOptions(pool="a")
    assert (high, low) == (TaskOptions(pool="a"), TaskOptions(pool="b"))


@pytest.mark.parametrize("wrong", ["", 3, True, ["threads"], len, b"threads"])
def test_a_pool_is_named_by_a_string(wrong: object) -> None:
    """Whatever else is given as a pool is named in the error."""
    with pytest.raises(TypeError, match=r"^pool: expected the name of a pool, found \S+ .+"):
        TaskOptions(pool=wrong)  # type: ignore[arg-type]  # that is the test


def test_an_option_that_does_not_exist_is_refused() -> None:
    """Nothing is accepted and ignored."""
    with pytest.raises(TypeError, match="tiemout"):
        TaskOptions(tiemout=3)  # type: ignore[call-arg]  # that is the test


def test_a_wrong_value_is_described_on_one_short_line() -> None:
    """Neither line breaks nor megabytes get into a message."""
    text = described("two\nlines" * 100_000)
    assert "\n" not in text
    assert len(text) < 120


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "boolean True"), (2.7, "float 2.7"), ("8", "string '8'"), ([1], "array [1]"), (None, "nothing")],
)
def test_a_wrong_value_is_described_in_the_words_of_toml(value: object, text: str) -> None:
    """The reader of the message wrote TOML."""
    assert described(value) == text


def test_only_a_near_name_is_suggested() -> None:
    """A far guess would mislead."""
    assert did_you_mean("max_wokers", ["max_workers", "kind"]) == " (did you mean 'max_workers'?)"
    assert did_you_mean("zzz", ["max_workers", "kind"]) == ""
    assert did_you_mean(3, ["3"]) == ""


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("pools", "io-2", "max_workers"), "pools.io-2.max_workers"),
        (("tasks", "shop.images:*", "pool"), 'tasks."shop.images:*".pool'),
        (("pools", ""), 'pools.""'),
        (("pools", 'a"b'), r'pools."a\"b"'),
        (("pools", "a\nb"), r'pools."a\nb"'),
        (("pools", 3), "pools.3"),
    ],
)
def test_key_paths_are_quoted_as_in_toml(keys: tuple[object, ...], text: str) -> None:
    """A path can be found in the file by searching for it."""
    assert key_path(*keys) == text


@frozen
class Sample:
    """One field of each type that is checked by its type, and one with a validator."""

    switch: bool = False
    count: int = 0
    share: float = 0.0
    name: str = ""
    limit: int | None = None
    items: tuple[object, ...] = ()
    even: int | None = field(default=None, validator=checked("an even number", lambda value: value in (0, 2, 4)))


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("switch", "false"),
        ("switch", 0),
        ("count", True),
        ("count", 2.7),
        ("count", 8.0),
        ("count", "8"),
        ("share", "0.5"),
        ("share", True),
        ("name", 3),
        ("limit", "none"),
        ("items", "abc"),
        ("items", {"a": 1}),
        ("even", 3),
    ],
)
def test_no_value_is_converted(option: str, wrong: object) -> None:
    """A value of another type is refused, however near it is."""
    with pytest.raises(ExceptionGroup) as caught:
        strict_converter().structure({option: wrong}, Sample)
    assert "expected" in str(caught.value.exceptions[0])


def test_right_values_are_taken_as_they_are() -> None:
    """An array becomes a tuple, an integer may stand for a number; None where it means "not said"."""
    table = {"switch": True, "count": 3, "share": 1, "name": "x", "limit": None, "items": [1, [2]], "even": None}
    assert strict_converter().structure(table, Sample) == Sample(True, 3, 1, "x", None, (1, [2]), None)


def test_a_validator_holds_in_python_too() -> None:
    """What a file may not say, a program may not say either."""
    with pytest.raises(ValueError, match=r"^even: expected an even number, found integer 3$"):
        Sample(even=3)
