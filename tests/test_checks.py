"""
How what is said is checked: strictness, and the messages about wrong values.
"""

import pytest
from attrs import field, fields, frozen

from parallel.checks import (
    Mistake,
    checked,
    checked_by,
    converted,
    described,
    did_you_mean,
    is_count,
    key_path,
    mistakes_in,
    one_of,
    strict_converter,
)


def test_a_wrong_value_is_described_on_one_short_line() -> None:
    """Neither line breaks nor megabytes get into a message."""
    text = described("two\nlines" * 100_000)
    assert "\n" not in text
    assert len(text) < 120


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "boolean True"),
        (2.7, "float 2.7"),
        ("8", "string '8'"),
        ([1], "array [1]"),
        (None, "nothing"),
        (10**100, "integer 100000000000000000...0000000000000000000"),
    ],
)
def test_a_wrong_value_is_described_in_the_words_of_toml(value: object, text: str) -> None:
    """The reader of the message wrote TOML."""
    assert described(value) == text


def test_an_integer_that_python_does_not_write() -> None:
    """It has more digits than may be written; a TOML file can say it in hexadecimal."""
    assert described(16**5_000) == "integer too long to be written"
    assert described([16**5_000]) == "array too long to be written"


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


def half(value: object) -> float:
    """Read a number, as its half."""
    if not isinstance(value, int):
        raise TypeError(f"expected an integer, found {described(value)}")
    if value > 100:
        raise ValueError("expected less")
    return value / 2


def as_half(value: int | None) -> float | None:
    """Convert to the half, or leave it."""
    return None if value is None else converted(half, value)


def below_limit(sample: object, attribute: object, value: float | None) -> None:
    """Refuse what is above another field, where there is one."""
    if isinstance(sample, Sample) and value is not None and value > (sample.limit or 100):
        raise ValueError("half: expected less than limit")


@frozen
class Sample:
    """One field of each type that is checked by its type, and some with a validator."""

    switch: bool = False
    count: int = 0
    share: float = 0.0
    name: str = ""
    limit: int | None = None
    items: tuple[object, ...] = ()
    even: int | None = field(default=None, validator=checked("an even number", lambda value: value in (0, 2, 4)))
    half: float | None = field(default=None, converter=as_half, validator=below_limit)
    word: str = field(default="on", validator=one_of(("on", "off", "auto")))
    whole: int = field(default=0, validator=checked("a whole number", lambda value: type(value) is int, types=int))


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


def test_a_value_of_another_type_is_a_type_error() -> None:
    """Where types are given; a boolean is no integer then."""
    for wrong in (True, 2.0, "2", None):
        with pytest.raises(TypeError, match=r"^whole: expected a whole number, found "):
            Sample(whole=wrong)  # type: ignore[arg-type]  # that is the test


def test_words_are_listed_and_the_nearest_suggested() -> None:
    """Whatever else is given."""
    with pytest.raises(
        ValueError, match=r"^word: expected 'on', 'off' or 'auto', found string 'atuo' \(did you mean 'auto'"
    ):
        Sample(word="atuo")
    with pytest.raises(ValueError, match=r"^word: expected 'on', 'off' or 'auto', found nothing$"):
        Sample(word=None)  # type: ignore[arg-type]  # that is the test


def test_a_count_begins_at_1() -> None:
    """A boolean is no count."""
    assert [value for value in (1, 5, 0, -1, True, 1.0, "1", None) if is_count(value)] == [1, 5]


def test_a_field_is_read_by_its_own_functions() -> None:
    """In Python and in a file alike."""
    assert Sample(half=3).half == strict_converter().structure({"half": 3}, Sample).half == 1.5


def test_a_wrong_value_passes_the_converter() -> None:
    """The validator, which knows the field's name, tells of it."""
    assert converted(half, "three") == "three"
    assert converted(half, 101) == 101
    validate = checked_by(half)
    for wrong, error in (("three", TypeError), (101, ValueError)):
        with pytest.raises(error, match=r"^half: expected "):
            validate(None, fields(Sample).half, wrong)
    validate(None, fields(Sample).half, None)


def test_a_mistake_between_options_is_told_at_the_one_that_it_names() -> None:
    """With its key path, as others are."""
    with pytest.raises(ExceptionGroup) as caught:
        strict_converter().structure({"half": 10, "limit": 3}, Sample)
    assert [*mistakes_in(caught.value, ("table",), str)] == [Mistake(("table", "half"), "expected less than limit")]
