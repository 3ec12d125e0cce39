"""What importing costs, in fresh interpreters, and which heavy modules it loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from measures.rounds import OURS, STANDARD, Row, Scale, Side, in_turn

ROUNDS = 15
"""Fresh interpreters for each import: one takes about 100 ms."""

HEAVY = ("rich", "asyncio", "multiprocessing", "cattrs", "cloudpickle")
"""What is to be loaded only when it is used."""

BUDGETS = {"import parallel": 45.0, "from parallel import task": None}
"""Milliseconds over the import of the standard thread pool."""


def imports(scale: Scale) -> Iterator[Row]:
    """Compare imports with that of the standard thread pool."""
    for statement, budget in BUDGETS.items():
        sides = {OURS: _side(statement), STANDARD: _side("import concurrent.futures.thread")}
        yield in_turn("ms", sides, min(scale.rounds, ROUNDS)).difference(statement, budget)
        loaded = _heavy(statement)
        what = f"heavy modules: {', '.join(loaded) or 'none'}"
        yield Row(what, "", {OURS: float(len(loaded)), STANDARD: 0.0}, float(len(loaded)), "", 0.0)


def _side(statement: str) -> Side:
    program = f"from time import perf_counter as now; start = now(); {statement}; print((now() - start) * 1e3)"
    return lambda: float(_run(program))


def _heavy(statement: str) -> list[str]:
    """List the heavy modules that an import loads."""
    program = f"{statement}; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    return _run(program).split()


def _run(program: str) -> str:
    return subprocess.check_output([sys.executable, "-c", program], text=True)
