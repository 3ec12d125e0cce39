"""What is called: plain functions that do as little as can be."""

from __future__ import annotations


def nothing() -> None:
    """Do nothing."""


def one() -> int:
    """Begin a chain."""
    return 1


def same(value: int) -> int:
    """Hand a value on."""
    return value


async def same_later(value: int) -> int:
    """Hand a value on, as a coroutine function."""
    return value
