"""
A randomised run of calls, kills and failures of all sorts; see `chaos.py`, which can be run alone, and longer.

`pytest --chaos 60` says for how many seconds.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from pools.process_jobs import wait_until

MARK = "CHAOS_OF_TEST"  # a variable by which all processes of the run are known, whoever their parents are


def still_there(mark: str) -> list[int]:
    """Return the processes that have *mark* in their environment."""
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                environment = Path(entry.path, "environ").read_bytes()
            except OSError:
                continue  # it has ended, or is somebody else's
            if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_chaos(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Whatever happens to calls and workers: each future ends as it may, no body runs too often, nothing is left."""
    seconds = pytestconfig.getoption("--chaos")
    seed, mark = random.randrange(1_000_000), os.urandom(8).hex()
    here = Path(__file__)
    words = tmp_path / "stderr"  # the workers' as well: `faulthandler` tells of each that a signal ends
    with words.open("w") as stderr:
        run = subprocess.run(
            [sys.executable, here.with_name("chaos.py"), "--seconds", str(seconds), "--seed", str(seed)],
            env={**os.environ, MARK: mark, "PYTHONPATH": str(here.parents[2]), "PARALLEL_CONFIG": ""},
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            timeout=seconds + 50,
        )
    assert run.returncode == 0, f"{run.stdout}\n{words.read_text(errors='replace')[-5000:]}"
    wait_until(lambda: not still_there(mark), 10)
