"""
Import strings: their form, and what they name.
"""

import json.decoder
import sys

import pytest

from parallel.imports import imported, is_import_string, with_colon


@pytest.mark.parametrize("right", ["shop:f", "shop.images:resize", "shop.images:Class.method", "größe:_f1"])
def test_right_forms(right: str) -> None:
    """A module, a colon, and what is in it."""
    assert is_import_string(right)


@pytest.mark.parametrize(
    "wrong",
    ["", "prepare", "shop:", ":prepare", "shop:a:b", "shop:a b", "1shop:a", "shop..x:a", "a:b\n", 3, None, ["a:b"]],
)
def test_wrong_forms(wrong: object) -> None:
    """Whatever could name nothing."""
    assert not is_import_string(wrong)


def test_a_dot_for_the_colon_is_the_likely_slip() -> None:
    """So that one is suggested, and nothing else."""
    assert with_colon("shop.images.resize") == " (did you mean 'shop.images:resize'?)"
    assert with_colon("resize") == with_colon("a b.c") == with_colon(3) == ""


def test_what_is_named_is_imported() -> None:
    """The attribute may lie deeper."""
    assert imported("json.decoder:JSONDecoder.decode") is json.decoder.JSONDecoder.decode


def test_what_is_not_there() -> None:
    """Python's own errors tell of it."""
    with pytest.raises(ImportError, match="No module named 'no'"):
        imported("no.such.module:thing")
    with pytest.raises(AttributeError, match="'json' has no attribute 'thing'"):
        imported("json:thing")


def test_the_form_is_checked_without_importing() -> None:
    """Reading a configuration loads nothing that it names."""
    assert is_import_string("antigravity:fly")
    assert "antigravity" not in sys.modules
