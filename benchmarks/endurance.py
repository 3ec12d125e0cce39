"""
What process pools cost in the long run, and at both ends of a job, beside the standard pool.

    python benchmarks/endurance.py [--rounds N] [--only PART ...]

A million calls in a sliding window, a thousand recycled workers, calls of very different lengths, the first result of
a fresh interpreter, and doing nothing. How to read the table is told in `README.md`. Exit status 1 if a budget is
missed. Linux only: it reads `/proc`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from measures.endurance import cold, idle, recycling, tails, window
from measures.rounds import Row, Scale, show

PARTS: Final[Mapping[str, Callable[[Scale], Iterator[Row]]]] = {
    "idle": idle,
    "cold": cold,
    "tails": tails,
    "recycling": recycling,
    "window": window,
}


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what process pools cost in the long run.")
    parser.add_argument("--rounds", type=int, default=9, help="of what is measured in rounds (default: 9)")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    asked = parser.parse_args()
    scale = Scale(max(asked.rounds, 1), 1)
    table = {part: show(part, rows(scale)) for part, rows in PARTS.items() if not asked.only or part in asked.only}
    return 0 if all(row.kept for rows in table.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
