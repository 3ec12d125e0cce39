"""
What it costs to replace workers, and whether anything is left of them.

    python benchmarks/recycling.py [--workers 1000] [--method forkserver] [--preload MODULE ...]

Each call gets a worker of its own (`max_tasks_per_child = 1`). The exit status is 1 if this process has more
descriptors afterwards than before.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time

from parallel import ProcessPool


def descriptors(pool: ProcessPool) -> int:
    """Count the open descriptors of this process, once the workers have left."""
    while pool.stats().workers:
        time.sleep(0.05)
    time.sleep(0.1)  # the last one is being buried
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--method", default="forkserver", choices=["forkserver", "spawn", "fork"])
    parser.add_argument("--preload", nargs="*", default=[])
    options = parser.parse_args()
    with ProcessPool(2, options.method, max_tasks_per_child=1, idle_timeout=0.2, preload=options.preload) as pool:
        for future in [pool.submit(os.getpid) for _ in range(10)]:
            future.result()
        before = descriptors(pool)
        began = time.perf_counter()
        used = {future.result() for future in [pool.submit(os.getpid) for _ in range(options.workers)]}
        each = (time.perf_counter() - began) / options.workers
        after = descriptors(pool)
    print(f"{len(used)} workers by {options.method}: {each * 1e3:.1f} ms each; descriptors: {before}, then {after}")
    return int(after > before)


if __name__ == "__main__":
    sys.exit(main())
