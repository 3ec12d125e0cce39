"""
How what is said is checked: strictness, and the messages about wrong values.
"""

import pytest
from attrs import field, frozen

from parallel.checks import checked, described, did_you_mean, key_path, strict_converter


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
