"""
The pool of kind `nice`: a pool of processes whose workers begin by becoming nice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from parallel import ProcessPool


class NicePool(ProcessPool):
    """
    Processes that leave the machine to others.

    Args:
        niceness: How much they leave, from 0 to 19: see `nice(2)`.
        initializer: Called at the start of each worker, once it is nice.
        initargs: What it is called with.
        options: Those of `ProcessPool`.
    """

    kind: ClassVar[str] = "nice"

    def __init__(
        self,
        *,
        niceness: int = 10,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(initializer=partial(_begin, niceness, initializer), initargs=initargs, **options)


def _begin(niceness: int, initializer: Callable[..., object] | None, *initargs: Any) -> None:
    os.nice(niceness)
    if initializer is not None:
        initializer(*initargs)
