"""
Sizes, as people write them.
"""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.sizes import Size, size, sized


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (1, 1),
        (500_000_000, 500_000_000),
        ("1B", 1),
        ("2kB", 2_000),
        ("2KiB", 2_048),
        ("500MB", 500_000_000),
        ("512MiB", 512 * 2**20),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("0.1TB", 10**11),
        ("1TiB", 2**40),
        (sys.maxsize, sys.maxsize),
    ],
)
def test_forms_of_a_size(said: Size, expected: int) -> None:
    """Each is read as bytes."""
    assert size(said) == expected


@pytest.mark.parametrize("wrong", [True, 2.5, None, [1], b"1MB"])
def test_other_types(wrong: object) -> None:
    """They are named."""
    with pytest.raises(TypeError, match=r"^expected a size such as 500_000_000, '500MB' or '1\.5GiB', found "):
        size(wrong)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("wrong", ["", "MB", "much", "-1MB", "1e3MB", "1MB2kB", ".5GB", "5.GB", "1,5GB"])
def test_what_is_no_size(wrong: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"^expected a size such as .*, found string "):
        size(wrong)


@pytest.mark.parametrize("wrong", [0, -1, "0MB", "0.5B", sys.maxsize + 1, "9999999999TiB"])
def test_sizes_that_nothing_has(wrong: Size) -> None:
    """At least a byte, at most what can be addressed."""
    with pytest.raises(ValueError, match=r"\(allowed: 1B to "):
        size(wrong)


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("500 MB", "500MB"),
        ("500mb", "500MB"),
        ("500M", "500MB"),
        ("500 megabytes", "500MB"),
        ("2gib", "2GiB"),
        ("2Gi", "2GiB"),
        ("10KB", "10kB"),
        ("10k", "10kB"),
        ("10kib", "10KiB"),
        ("100", "100B"),
        ("100 bytes", "100B"),
    ],
)
def test_the_nearest_size(said: str, near: str) -> None:
    """It is suggested, not taken."""
    with pytest.raises(ValueError, match=rf"\(did you mean '{near}'\?\)$"):
        size(said)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1B"),
        (999, "999B"),
        (1_500, "1.5kB"),
        (2_048, "2KiB"),
        (500_000_000, "500MB"),
        (2**30, "1GiB"),
        (123_456_789, "123.5MB"),
        (10**12, "1TB"),
    ],
)
def test_writing(count: int, text: str) -> None:
    """For people: short, and exact where that is short."""
    assert sized(count) == text


@given(st.integers(1, 999), st.sampled_from(["kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]))
def test_whole_numbers_are_read_as_written(number: int, unit: str) -> None:
    """What is a whole number of a unit comes back as it was."""
    assert size(sized(size(f"{number}{unit}"))) == size(f"{number}{unit}")
