"""
What maps cost an item: ours, with nothing said about chunks, beside `multiprocessing.Pool.map`, which chooses its own,
and `ProcessPoolExecutor.map`, joblib and mpire, with nothing said and with the best chunks that were found for them.

    python benchmarks/maps.py [--rounds N] [--only PART]

All run in this one process, in turn, round by round, after a warm-up, with the same number of workers and the same
start method. How to read the table is told in `README.md`. Exit status 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import sys

from measures.maps import PEERS, memory, short, tiny, uneven
from measures.peers import installed
from measures.rounds import WORKERS, show

PARTS = {"tiny": tiny, "short": short, "uneven": uneven, "memory": memory}


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what maps cost an item.")
    parser.add_argument("--rounds", type=int, default=7, help="of each kind, per side (default: 7)")
    parser.add_argument("--only", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    asked = parser.parse_args()
    rounds: int = max(asked.rounds, 1)
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}, {WORKERS} workers, medians of {rounds} rounds")
    there = installed(PEERS)
    print(
        "beside", ", ".join(f"{name} {there[name]}" if name in there else f"no {name}: not installed" for name in PEERS)
    )
    parts = [asked.only] if asked.only else list(PARTS)
    rows = [row for part in parts for row in show(part, PARTS[part](rounds))]
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
