"""
What a call costs that does nothing: our pools beside those of `concurrent.futures`, and beside our peers.

    python benchmarks/overhead.py [--rounds N] [--calls N] [--only PART ...] [--observe] [--json FILE]

All run in this one process, in turn, round by round, after a warm-up, with the same number of workers and the same
start method. How to read the table is told in `README.md`. Exit status 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from measures.calls import processes, threads
from measures.chains import chains, hops
from measures.imports import imports
from measures.memory import memory
from measures.observing import observing
from measures.options import options
from measures.peers import installed
from measures.rounds import WORKERS, Row, Scale, show

PARTS: Final[Mapping[str, Callable[[Scale], Iterator[Row]]]] = {
    "threads": threads,
    "memory": memory,
    "chains": chains,
    "hops": hops,
    "options": options,
    "processes": processes,
    "imports": imports,
    "observe": observing,
}


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what calls cost, beside concurrent.futures and others.")
    parser.add_argument("--rounds", type=int, default=25, help="of each kind, per side (default: 25)")
    parser.add_argument("--calls", type=int, default=4000, help="per round (default: 4000)")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures to")
    parser.add_argument("--observe", action="append_const", dest="only", const="observe", help="as --only observe")
    asked = parser.parse_args()
    scale = Scale(max(asked.rounds, 1), max(asked.calls, 1))

    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}, {WORKERS} workers, medians of {scale.rounds} rounds of {scale.calls} calls")
    print("beside", ", ".join(f"{name} {number}" for name, number in installed().items()) or "no peers")
    table = {part: show(part, rows(scale)) for part, rows in PARTS.items() if not asked.only or part in asked.only}
    if asked.json is not None:
        write(asked.json, version, scale, table)
    return 0 if all(row.kept for rows in table.values() for row in rows) else 1


def write(file: Path, version: str, scale: Scale, table: Mapping[str, list[Row]]) -> None:
    """Write the figures down, unrounded."""
    figures = {
        "python": version,
        "peers": installed(),
        "workers": WORKERS,
        **scale._asdict(),
        "parts": {part: [{**row._asdict(), "kept": row.kept} for row in rows] for part, rows in table.items()},
    }
    file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
