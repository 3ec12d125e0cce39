"""
Programs that are killed in the middle of a journalled map: what they have not lost is not run again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ITEMS = 400

SCRIPT = """
import json, os, sys, time
from parallel import Registry, task, using

def body(x, folder):
    descriptor = os.open(os.path.join(folder, "ran"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"%d\\n" % x)
    os.close(descriptor)
    time.sleep(0.002)
    return x * x

if __name__ == "__main__":
    folder, kind = sys.argv[1:]
    with Registry({"pools": {"pool": {"kind": kind, "max_workers": 2}}}) as registry, using(registry):
        fn = task(pool="pool")(body)
        with open(os.path.join(folder, "seen"), "a", buffering=1) as seen:
            for value in fn.stream(range(ITEMS), constants={"folder": folder}, journal=os.path.join(folder, "journal")):
                print(value, file=seen)
    print("complete", flush=True)
""".replace("ITEMS", str(ITEMS))


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_killed_and_resumed(kind: str, tmp_path: Path) -> None:
    """Killed at random moments, a map ends after some runs; what had come out once was never run again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    chance = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before: set[int] = set()
    for _ in range(40):
        runs = Counter(read(tmp_path / "ran"))
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", script, tmp_path, kind], stdout=subprocess.PIPE, env=environment
        ) as program:
            while program.poll() is None and len(read(tmp_path / "ran")) <= runs.total():
                time.sleep(0.01)  # it starts
            try:
                out, _ = program.communicate(timeout=chance.random() * 0.3)
                break
            except subprocess.TimeoutExpired:
                program.kill()
                program.communicate()
        time.sleep(0.05)  # its workers end with it
        again = Counter(read(tmp_path / "ran")) - runs
        assert not before & set(again), "what had been seen was run again"
        before |= {round(value**0.5) for value in read(tmp_path / "seen")}
    else:
        pytest.fail("it never came to its end")
    assert out == b"complete\n"
    assert program.returncode == 0
    values = read(tmp_path / "seen")[-ITEMS:]
    assert values == [x * x for x in range(ITEMS)]
    assert set(read(tmp_path / "ran")) == set(range(ITEMS))


def read(path: Path) -> list[int]:
    """Return the numbers in a file, without a last line that is torn."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_interrupted_program_goes_on(tmp_path: Path) -> None:
    """A Ctrl-C in the middle ends a map soon; the next run goes on where it was."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), "process"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as program:
        deadline = time.monotonic() + 30
        while len(read(tmp_path / "seen")) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=30)
    assert err.strip().endswith(b"KeyboardInterrupt")
    seen = {round(value**0.5) for value in read(tmp_path / "seen")}
    runs = Counter(read(tmp_path / "ran"))
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).stdout == b"complete\n"
    assert not seen & set(Counter(read(tmp_path / "ran")) - runs)
    assert len(seen) >= 20
