"""
What every test gets: a fresh registry before it, and after it a look whether anything of ours was left behind.

Left behind would be a thread, a child process, a file descriptor or a temporary file. The helpers of multiprocessing,
its fork server and its resource tracker, live as long as the program: they and their descriptors are the exception.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PATIENCE = 10.0  # seconds until something left behind counts as such; only a leak takes so long

if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))  # for `import jobs`, here and, as multiprocessing hands the path on, in children

pytest.register_assert_rewrite("pools.contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `--chaos` say how long `crash/test_chaos.py` runs."""
    parser.addoption("--chaos", type=float, default=20, metavar="SECONDS", help="how long chaos lasts (default: 20)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Give the program a folder of its own for temporary files, so that none of ours goes unseen."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own stay where they are
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray leaves a token in the home directory
    folder = tempfile.mkdtemp(prefix="t-")  # short: a socket's address has room for 107 characters
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of clusters last: their clients start threads that never end, beside which nobody should fork."""
    clusters = ("dask", "ray")
    items.sort(key=lambda item: any(item.get_closest_marker(name) is not None for name in clusters))


def _helpers() -> tuple[set[int], set[int]]:
    """The processes of the shared fork servers and of the resource tracker, and the descriptors that lead to them."""
    pids: set[int | None] = set()
    descriptors: set[int | None] = set()
    if (server := sys.modules.get("multiprocessing.forkserver")) is not None:
        pids.add(server._forkserver._forkserver_pid)
        descriptors.add(server._forkserver._forkserver_alive_fd)
    if (launching := sys.modules.get("parallel.pools.process.launching")) is not None:
        pid, descriptor = launching.helper() or (None, None)
        pids.add(pid)
        descriptors.add(descriptor)
    if (tracker := sys.modules.get("multiprocessing.resource_tracker")) is not None:
        pids.add(tracker._resource_tracker._pid)
        descriptors.add(tracker._resource_tracker._fd)
    return pids - {None}, descriptors - {None}  # type: ignore[return-value]


def _children() -> dict[int, str]:
    """The child processes of this one, and those that the fork server started for it, by id."""
    helpers, _ = _helpers()
    parents = {os.getpid(), *helpers}
    found: dict[int, str] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:
            continue
        name, _, rest = stat.rpartition(")")
        state, parent = rest.split()[:2]
        if int(parent) in parents and int(entry.name) not in helpers:
            found[int(entry.name)] = f"process {name}) {state}"
    return found


def _descriptors() -> dict[int, str]:
    """The open descriptors and what they lead to."""
    _, helpers = _helpers()
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one with which the folder was read
        if int(name) not in helpers and not target.startswith("/dev/urandom"):
            found[int(name)] = f"descriptor {name}: {target}"
    return found


def _files() -> dict[str, str]:
    """The temporary files; `pymp-*` is multiprocessing's folder."""
    return {name: f"file {name}" for name in os.listdir(tempfile.gettempdir()) if not name.startswith("pymp-")}


def _threads() -> dict[int, str]:
    return {id(thread): f"thread {thread.name}" for thread in threading.enumerate()}


def _census() -> dict[tuple[str, object], str]:
    """All that a test could leave behind."""
    kinds: dict[str, Mapping[Any, str]] = {"thread": _threads()}
    if sys.platform == "linux":
        kinds |= {"process": _children(), "descriptor": _descriptors(), "file": _files()}
    return {(kind, key): text for kind, found in kinds.items() for key, text in found.items()}


def _left(before: dict[tuple[str, object], str], is_kept: Callable[[str], bool]) -> list[str]:
    return [text for key, text in _census().items() if key not in before and not is_kept(text)]


def _kept_by_clients(request: pytest.FixtureRequest) -> Callable[[str], bool]:
    """
    Return what tells whether the client of a cluster keeps something: that is its own, and not for us to close.

    Dask's keeps the connections of a cluster that many tests share, as it needs them, and a thread; Ray's its files.
    """
    if request.node.get_closest_marker("dask") is not None:
        shares = "shared" in request.fixturenames
        return lambda text: text == "thread Dask-Offload_0" or (shares and ": socket:" in text)
    if request.node.get_closest_marker("ray") is not None:
        return lambda text: text.startswith("descriptor ") or text == "file ray"
    return lambda _: False


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Start from no configuration and no open pool; afterwards nothing may be left."""
    is_kept = _kept_by_clients(request)
    for name in [name for name in os.environ if name.startswith("PARALLEL_")]:
        monkeypatch.delenv(name)
    before = _census()
    yield
    if (registry := sys.modules.get("parallel.registry")) is not None:
        registry.reset()
    if (timer := sys.modules.get("parallel.timer")) is not None:
        timer.TIMER.close()  # its thread would end by itself, but only after a while
    left = _left(before, is_kept)
    if left:
        deadline = time.monotonic() + PATIENCE
        pause = 0.001
        gc.collect()
        while (left := _left(before, is_kept)) and time.monotonic() < deadline:
            time.sleep(pause)  # what is on its way out tells nobody when it has gone
            gc.collect()  # a thread that has just ended may have left a circle
            pause = min(pause * 2, 0.1)
    assert not left, f"left behind: {left}"


@pytest.fixture
def held() -> Iterator[Any]:
    """A pool of one thread that is busy until `held.go.set()`."""
    from jobs import Held

    with Held() as one:
        yield one


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory from which no configuration is found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_script(tmp_path: Path) -> Runner:
    """Run a script in a fresh interpreter, with the package and the tests' modules in reach."""

    def run(
        text: str,
        *,
        flags: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        interrupt_at: str | None = None,
        as_module: bool = False,
        status: int | None = 0,
    ) -> subprocess.CompletedProcess[str]:
        """
        Run *text*.

        Args:
            text: The script.
            flags: The interpreter's own.
            env: Variables besides the present ones.
            timeout: Seconds after which it hangs.
            interrupt_at: Send SIGINT when it prints this line.
            as_module: Run it with `-m`.
            status: The exit status to insist on, None: any.
        """
        script = tmp_path / "script_of_test.py"
        script.write_text(text, encoding="utf-8")
        paths = os.pathsep.join([str(ROOT), str(TESTS), str(tmp_path)])
        start = ["-m", script.stem] if as_module else [str(script)]
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *flags, *start],
            env={**os.environ, "PYTHONPATH": paths, "PARALLEL_CONFIG": "", **(env or {})},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        watchdog = threading.Timer(timeout, process.send_signal, [signal.SIGABRT])  # shows where it hangs
        watchdog.start()
        try:
            with process:
                head = ""
                if interrupt_at is not None and process.stdout is not None:
                    for line in process.stdout:
                        head += line
                        if line.strip() == interrupt_at:
                            process.send_signal(signal.SIGINT)
                            break
                out, err = process.communicate()
        finally:
            watchdog.cancel()
            watchdog.join()
        assert status is None or process.returncode == status, f"status {process.returncode}\n{head}{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, head + out, err)

    return run


@pytest.fixture
def in_fork() -> Callable[..., Any]:
    """Run a function in a forked child and return what it returned there; what it raised there is raised here."""

    def run(fn: Callable[[], Any], *, timeout: float = 30) -> Any:
        ours, theirs = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: there are threads
            pid = os.fork()
        if pid == 0:
            _be_child(fn, theirs)
        os.close(theirs)
        answer = b""
        deadline = time.monotonic() + timeout
        try:
            while select.select([ours], [], [], max(deadline - time.monotonic(), 0))[0]:
                piece = os.read(ours, 65536)
                if not piece:
                    break
                answer += piece
            else:
                os.kill(pid, signal.SIGABRT)  # shows where it hangs
        finally:
            os.close(ours)
            os.waitpid(pid, 0)
        if not answer:
            raise AssertionError("the forked child hung, or died without an answer")
        value, error = pickle.loads(answer)
        assert error is None, error
        return value

    return run


def _be_child(fn: Callable[[], Any], answer: int) -> None:
    """Run *fn*, tell the parent how it ended, and end."""
    try:
        try:
            told = pickle.dumps((fn(), None))
        except BaseException:
            told = pickle.dumps((None, "in the forked child:\n" + traceback.format_exc()))
        with os.fdopen(answer, "wb") as pipe:
            pipe.write(told)
    finally:
        os._exit(0)


@pytest.fixture
def kinds() -> Iterator[Any]:
    """A registry with a pool of each kind, named after it; it is that of the test."""
    from parallel import Registry, using  # as above

    pools = {
        "thread": {"kind": "thread", "max_workers": 3},
        "process": {"kind": "process", "max_workers": 2},
        "inline": {"kind": "inline"},
        "loop": {"kind": "loop"},
    }
    with Registry({"pools": pools}) as made, using(made):
        yield made
