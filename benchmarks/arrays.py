"""
What large arrays cost on their way to processes and back: our process pool beside that of `concurrent.futures`, and
beside joblib's, which maps them from files.

    python benchmarks/arrays.py [--rounds N]

All run in this one process, in turn, round by round, after a warm-up, with the same number of workers and the same
start method. It needs numpy. How to read the table is told in `README.md`. Exit status 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import sys

from measures.arrays import arrays
from measures.peers import installed
from measures.rounds import WORKERS, show


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(
        description="Measure what large arrays cost, beside concurrent.futures and joblib."
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each kind, per side (default: 5)")
    rounds: int = max(parser.parse_args().rounds, 1)

    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}, {WORKERS} workers, medians of {rounds} rounds of 20 calls")
    print("beside", ", ".join(f"{name} {number}" for name, number in installed().items()) or "no peers")
    return 0 if all(row.kept for row in show("arrays", arrays(rounds))) else 1


if __name__ == "__main__":
    sys.exit(main())
