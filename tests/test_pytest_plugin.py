"""
The pytest plugin, in pytest runs of its own: loaded by name, and by its entry point.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 120
"""Seconds that only a deadlock reaches."""

BY_NAME = ("-p", "parallel.pytest_plugin")
HEAD = """
import os, threading, time
import pytest
from parallel import task

@task(pool="threads")
def charge(amount):
    if amount < 0:
        raise ValueError(amount)
    return threading.current_thread().name
"""

Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["by name", "by entry point"])
def run_pytest(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run pytest on a test module, with the plugin, and nothing else that is installed."""
    by_name = request.param == "by name"
    if not by_name:
        [(name, target)] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
            "pytest11"
        ].items()
        folder = tmp_path / "site" / "parallel_pools-0.1.0.dist-info"  # as an installer would write it
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: parallel-pools\nVersion: 0.1.0\n")
        (folder / "entry_points.txt").write_text(f"[pytest11]\n{name} = {target}\n")

    def run(tests: str, *args: str, conftest: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        (project / "pytest.ini").write_text(
            "[pytest]\naddopts = --strict-config --strict-markers\nfilterwarnings = error"
        )
        (project / "conftest.py").write_text(conftest)
        (project / "test_orders.py").write_text(tests if tests.startswith("def") else HEAD + tests)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PARALLEL_", "PYTEST_"))}
        env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
        env["COLUMNS"] = "200"
        if by_name:
            env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tmp_path / 'temp'}",
            *(BY_NAME if by_name else ()),
            *args,
        ]
        ended = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=TIMEOUT)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended

    return run


def test_parallel_inline(run_pytest: Run) -> None:
    """With the fixture every pool runs its calls on the test's thread; without it, and after it, on their own."""
    run_pytest("""
def test_before():
    assert charge(1).result() != "MainThread"

def test_inline(parallel_inline):
    assert charge(1).result() == "MainThread"
    assert parallel_inline.pool("processes").kind == "inline"

def test_after():
    assert charge(1).result() != "MainThread"
""")


def test_parallel_registry(run_pytest: Run) -> None:
    """Each test has a registry of its own, with the configuration that is found, which is shut down at its end."""
    run_pytest("""
registries = []

def test_one(parallel_registry):
    registries.append(parallel_registry)
    assert charge(1).result().startswith("parallel-threads")
    for _ in range(3):
        charge(2)

def test_two(parallel_registry, tmp_path, monkeypatch):
    assert registries[0].is_shut and registries[0] is not parallel_registry
    (tmp_path / "parallel.toml").write_text('[pools.threads]\\nkind = "thread"\\nthread_name_prefix = "till"')
    monkeypatch.chdir(tmp_path)
    assert charge(1).result() == "till_0"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("parallel-threads")]
""")


def test_leaks(run_pytest: Run) -> None:
    """What a test leaves behind fails it, with a list of names; other tests are not touched, and the run ends."""
    ended = run_pytest(
        """
import asyncio
from parallel import TaskTimeoutError

@task(pool="processes")
def work_for_ever():
    while True:
        time.sleep(1)

@task(timeout=0.05)
def overrun():
    threading.Event().wait()

@task
async def wait_for_ever():
    await asyncio.Event().wait()

stuck = task(threading.Event().wait)

def test_call(parallel_registry):
    stuck()

def test_straggler(parallel_registry):
    with pytest.raises(TaskTimeoutError):
        overrun().result()

def test_coroutine(parallel_registry):
    wait_for_ever()

def test_process(parallel_registry):
    future = work_for_ever()
    while not future.running():
        time.sleep(0.01)

def test_failure(parallel_registry):
    assert charge(1).result()
    charge(-1)

def test_looked_at(parallel_registry):
    with pytest.raises(ValueError):
        charge(-1).result()

def test_good(parallel_registry):
    assert charge(1).result()

def test_other():
    assert charge(1).result()
""",
        conftest="import parallel.testing\nparallel.testing.PATIENCE = 0.5\n",
        status=1,
    )

    assert "8 passed, 5 errors" in ended.stdout
    told = dict(
        re.findall(r"ERROR at teardown of (\w+) _+\n(.*?)(?=^_{5}|^={5})", ended.stdout, re.DOTALL | re.MULTILINE)
    )
    assert {*told} == {"test_call", "test_straggler", "test_coroutine", "test_process", "test_failure"}
    assert all(text.startswith("left behind at the end of the test:\n") for text in told.values())
    assert "  threading:Event.wait still runs in thread pool 'threads' (called at " in told["test_call"]
    assert "test_orders.py:" in told["test_call"]
    assert "  thread 'parallel-threads_0' of thread pool 'threads' is still there\n" in told["test_call"]
    assert "  test_orders:overrun still runs in thread pool 'threads'" in told["test_straggler"]
    assert "  test_orders:wait_for_ever still runs in loop pool 'loop'" in told["test_coroutine"]
    assert "  test_orders:work_for_ever still runs in process pool 'processes'" in told["test_process"]
    assert re.search(r"  worker process \d+ of process pool 'processes' is still there", told["test_process"])
    assert "  test_orders:charge has failed, and nobody has looked at the error (called at " in told["test_failure"]
    assert "ValueError: -1" in told["test_failure"]


def test_profile(run_pytest: Run) -> None:
    """The option sets the variable from before the collection to the end of the session, and takes it back."""
    tests = """
assert os.environ["PARALLEL_PROFILE"] == "ci"

def test_it():
    assert os.environ["PARALLEL_PROFILE"] == "ci"
"""
    conftest = """
import atexit, os
atexit.register(lambda: print("in the end:", os.environ.get("PARALLEL_PROFILE")))
"""
    mine = conftest + "os.environ['PARALLEL_PROFILE'] = 'mine'\n"
    assert "in the end: None" in run_pytest(tests, "--parallel-profile=ci", conftest=conftest).stdout
    assert "in the end: mine" in run_pytest(tests, "--parallel-profile", "ci", conftest=mine).stdout
    assert "in the end: mine" in run_pytest("def test_it(): ...", conftest=mine).stdout


def test_an_empty_profile(run_pytest: Run) -> None:
    """A profile without a name is a usage error."""
    ended = run_pytest("def test_it(): ...", "--parallel-profile=", status=4)
    assert "--parallel-profile: expected the name of a profile, found an empty one" in ended.stderr


def test_it_is_light(run_pytest: Run) -> None:
    """A run that asks for no fixture loads nothing of the library but what `import parallel` does, and no thread."""
    run_pytest(
        "def test_it(): ...\n",
        conftest="""
import sys, threading

def pytest_unconfigure():
    heavy = {"asyncio", "attr", "cattrs", "cloudpickle", "multiprocessing"} & sys.modules.keys()
    ours = {name for name in sys.modules if name.startswith("parallel")}
    assert ours == {"parallel", "parallel.context", "parallel.pytest_plugin"}, ours
    assert threading.active_count() == 1
""",
    )


def test_it_is_told(run_pytest: Run) -> None:
    """The fixtures and the option are in pytest's own lists, with what they are for."""
    listed = run_pytest("def test_it(): ...", "--fixtures", "-v").stdout
    assert "parallel_inline" in listed
    assert "A fresh current registry with the configuration that is found" in listed
    assert "--parallel-profile=NAME" in run_pytest("def test_it(): ...", "--help").stdout
