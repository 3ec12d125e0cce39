"""
Context variables, and functions that look at them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

USER: ContextVar[str] = ContextVar("USER", default="nobody")
SESSION: ContextVar[Any] = ContextVar("SESSION")


class Unpicklable:
    """It can't travel."""

    def __reduce__(self) -> str:
        raise TypeError("no way")


def seen() -> tuple[str, Any]:
    """Return what the variables have."""
    return USER.get(), SESSION.get(None)


def seen_with(number: int, numbers: Any, *, key: str) -> tuple[Any, ...]:
    """Return what the first one has, and the arguments."""
    return USER.get(), number, numbers, key


def seen_and(number: int) -> tuple[str, int]:
    """Return what the first one has, and the argument."""
    return USER.get(), number
