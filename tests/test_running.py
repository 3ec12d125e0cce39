"""
`python -m parallel run`: a program as it is, with a profile, a recording, or figures at its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 60  # seconds; only a deadlock takes so long

PROGRAM = """
import os, subprocess, sys
from parallel import task

@task(pool="threads")
def double(number):
    return 2 * number

@task(pool="heavy")
def square(number):
    return number * number

if __name__ == "__main__":
    print(__name__, sys.argv[1:], double(2).result(), square(3).result())
    if "child" in sys.argv:
        subprocess.run([sys.executable, __file__], check=True)
    if "fail" in sys.argv:
        sys.exit(7)
"""

CONFIGURATION = """
[pools.heavy]
kind = "thread"

[profiles.night.pools.heavy]
kind = "process"
max_workers = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a program and its configuration."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "parallel.toml").write_text(CONFIGURATION)
    return tmp_path


def command(*words: object) -> list[str]:
    """The command, with these arguments."""
    return [sys.executable, "-m", "parallel", "run", *map(str, words)]


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run it there."""
    return subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def attempts(file: Path) -> list[dict[str, Any]]:
    """The attempts in a trace."""
    return [event for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "X"]


@pytest.mark.parametrize("program", [["program.py"], ["-m", "program"]])
def test_a_program(program: list[str], folder: Path) -> None:
    """It gets its arguments, also those that look like ours, and its status is ours."""
    done = run(folder, *program, "a", "--stats", "-m", "fail")
    assert done.stdout == "__main__ ['a', '--stats', '-m', 'fail'] 4 9\n"
    assert done.stderr == ""
    assert done.returncode == 7


def test_stats(folder: Path) -> None:
    """Figures of each task, and what held it back, on standard error; of what it starts, nothing."""
    done = run(folder, "--stats", "program.py", "child")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("2 calls in ")
    assert lines[2].split()[:3] == ["task", "pool", "calls"]
    assert sorted(line.split()[:3] for line in lines[3:5]) == [
        ["__main__:double", "threads", "1"],
        ["__main__:square", "heavy", "1"],
    ]
    assert lines[-1].endswith(".")


def test_record_with_a_profile(folder: Path) -> None:
    """The file is where it was named from, and what was run is in it, as the profile has it."""
    done = run(folder, "--record", "run.json", "--profile", "night", "program.py", "child")
    assert done.returncode == 0, done.stderr
    calls = attempts(folder / "run.json")
    assert sorted(call["name"] for call in calls) == ["__main__:double", "__main__:square"]
    events = json.loads((folder / "run.json").read_text())["traceEvents"]
    assert "process pool heavy" in [event["args"]["name"] for event in events if event["name"] == "process_name"]


def test_flags_of_the_interpreter(folder: Path) -> None:
    """What the interpreter is told holds for the program."""
    (folder / "flags.py").write_text("import sys; print(sys.flags.dev_mode, sys.warnoptions)")
    words = [sys.executable, "-X", "dev", "-W", "error", "-m", "parallel", "run", "flags.py"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stdout.startswith("True ")
    assert "error" in done.stdout


def test_a_signal(folder: Path) -> None:
    """It comes to the program itself, which ends as it always does."""
    (folder / "waits.py").write_text("import time, os; print(os.getpid(), flush=True); time.sleep(60)")
    with subprocess.Popen(command("waits.py"), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(TIMEOUT) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a script, or -m and a module"),
        (["-m"], "name a script, or -m and a module"),
        (["-mprogram", "--stats"], "-m"),
        (["nowhere.py"], "there is no file 'nowhere.py'; a module is named after -m"),
        (["--record", "run.txt", "program.py"], "--record: a recording can't be written to 'run.txt'"),
        (["--record", "no/run.html", "program.py"], "there is no folder 'no'"),
        (["--recrod", "run.html", "program.py"], "--recrod"),
    ],
)
def test_wrong_usage(words: list[str], said: str, folder: Path) -> None:
    """Nothing is run."""
    done = run(folder, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_stats_alone(folder: Path) -> None:
    """`$PARALLEL_STATS` does the same for a program that is started as ever."""
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "PARALLEL_STATS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert "2 calls in " in done.stderr
