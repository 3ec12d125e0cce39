"""
Weak sets that any thread may add to at any time.
"""

from __future__ import annotations

from typing import TypeVar
from weakref import WeakSet

T = TypeVar("T")


def members(weak: WeakSet[T]) -> list[T]:
    """
    Return what is in a weak set now; while another thread adds to it, the standard one can't be gone through.
    """
    while True:
        try:
            return list(weak)
        except RuntimeError:
            continue  # its size has changed: look again
