"""
What a call costs on a cluster, and an item of a map: ours beside the engine's own client.

    python benchmarks/cluster.py [--rounds N] [--calls N]

The clusters are on this machine, with two workers, which both sides use in turn, round by round: a Dask scheduler and
workers of one thread, in processes of their own; and a local Ray cluster. How to read the table is told in `README.md`.
Exit status 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import sys

from measures.clusters import dask, ray
from measures.peers import installed
from measures.rounds import WORKERS, Scale, show

ENGINES = {"distributed": dask, "ray": ray}


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what calls cost on a cluster.")
    parser.add_argument("--rounds", type=int, default=7, help="of each kind, per side (default: 7)")
    parser.add_argument("--calls", type=int, default=1000, help="in a round (default: 1000)")
    asked = parser.parse_args()
    scale = Scale(max(asked.rounds, 1), max(asked.calls, 1))
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}, {WORKERS} workers, medians of {scale.rounds} rounds")
    there = installed(tuple(ENGINES))
    kept = True
    for name, engine in ENGINES.items():
        if name in there:
            kept &= all(row.kept for row in show(f"{name} {there[name]}", engine(scale)))
        else:
            print(f"no {name}: not installed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
