"""
How workers of process pools start: what is loaded, in which environment, and where.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from pools import start_jobs
from pools.process_jobs import PATIENCE, is_gone

from parallel import ProcessPool, Registry, memory
from parallel.errors import ConfigError, PoolBrokenError
from parallel.kinds import ProcessConfig
from parallel.pools.process import launching, surroundings

METHODS = ["forkserver", "spawn", "fork"]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # 3.12 and later, where it is asked for


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = "module_of_test") -> str:
    """Write a module where workers find it, and return its name."""
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return name


# -- preload ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_preloaded(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the modules before its first call, and the pool's process need not have them."""
    name = module(tmp_path, monkeypatch, "import os\nloader = os.getpid()")
    with ProcessPool(1, method, preload=[name, "colorsys"]) as pool:
        assert pool.submit(start_jobs.is_loaded, name).result(PATIENCE)
        assert pool.submit(start_jobs.is_loaded, "colorsys").result(PATIENCE)
        loader = pool.submit(start_jobs.attribute, name, "loader").result(PATIENCE)
        worker = pool.submit(os.getpid).result(PATIENCE)
        server = pool.submit(start_jobs.parent).result(PATIENCE)
    assert loader == (server if method == "forkserver" else worker)
    assert not start_jobs.is_loaded(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_module_of_test", "ModuleNotFoundError: No module named 'no_such_module_of_test'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_what_can_not_be_preloaded(
    method: str, text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks the pool, loudly: with the module's name, the error and its traceback."""
    name = module(tmp_path, monkeypatch, text)
    with ProcessPool(1, method, preload=[name]) as pool:
        with pytest.raises(PoolBrokenError, match=f"the import of 'module_of_test', .*, raised {told}") as caught:
            pool.submit(os.getpid).result(PATIENCE)
        assert f'{name}.py", line 1, in <module>' in str(getattr(caught.value.__cause__, "__cause__", None))
        with pytest.raises(PoolBrokenError):
            pool.submit(os.getpid)


def test_a_server_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool with modules has its own fork server, which ends with it; pools without share one."""
    name = module(tmp_path, monkeypatch, "")
    with ProcessPool(1, "forkserver") as first, ProcessPool(2, "forkserver", threads_per_worker=3) as second:
        with ProcessPool(1, "forkserver", preload=[name]) as third:
            shared, too, own = (pool.submit(start_jobs.parent).result(PATIENCE) for pool in (first, second, third))
            assert shared == too != own
            assert not first.submit(start_jobs.is_loaded, name).result(PATIENCE)
        assert is_gone(own)
        assert first.submit(start_jobs.parent).result(PATIENCE) == shared


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_the_main_module_uses_of_this_library(run_script: Any, method: str) -> None:
    """A fork server has loaded that before; a worker that had to would take several times as long to start."""
    script = f"""
import sys
THERE = "parallel.streams" in sys.modules
from parallel import MapFuture, ProcessPool
def there():
    return THERE
if __name__ == "__main__":
    with ProcessPool(1, {method!r}) as pool:
        print(THERE, pool.submit(there).result())
"""
    assert run_script(script).stdout == f"False {method == 'forkserver'}\n"


@pytest.mark.parametrize("preload", [[], ["colorsys"]])
def test_the_server_is_started_again(preload: list[str]) -> None:
    """If it dies, the next worker gets a new one."""
    with ProcessPool(1, "forkserver", preload=preload, max_tasks_per_child=1) as pool:
        before = pool.submit(start_jobs.parent).result(PATIENCE)
        pool.idle()
        os.kill(before, 9)
        assert is_gone(before)
        after = pool.submit(start_jobs.parent).result(PATIENCE)
        assert after not in (before, 1)


def test_threads_of_a_preloaded_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are warned of: the workers have none of them."""
    text = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    with ProcessPool(1, "forkserver", preload=[module(tmp_path, monkeypatch, text)]) as pool:
        assert pool.submit(start_jobs.threads).result(PATIENCE) == ["MainThread"]
    (record,) = caplog.records
    assert "what it preloads has started threads in its fork server (1)" in record.getMessage()


def test_closed_while_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that never ends to load doesn't keep the pool from its end."""
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    text = f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(1000)"
    pool = ProcessPool(1, "forkserver", preload=[module(tmp_path, monkeypatch, text)])
    future = pool.submit(os.getpid)
    with open(begun, encoding="ascii") as pipe:
        pipe.read()
    pool.shutdown(cancel_futures=True)
    assert future.cancelled()


# -- environment and directory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_environment(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are laid over those of this process, which keeps its own."""
    monkeypatch.setenv("START_JOBS_KEPT", "kept")
    monkeypatch.setenv("START_JOBS_HIDDEN", "hidden")
    with ProcessPool(1, method, env={"START_JOBS_NEW": "new", "START_JOBS_HIDDEN": "seen"}) as pool:
        names = ["START_JOBS_KEPT", "START_JOBS_NEW", "START_JOBS_HIDDEN"]
        found = [pool.submit(start_jobs.variable, name).result(PATIENCE) for name in names]
    assert found == ["kept", "new", "seen"]
    assert [start_jobs.variable(name) for name in names] == ["kept", None, "hidden"]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("preload", [[], ["pools.start_jobs"]])
def test_there_before_anything_is_loaded(method: str, preload: list[str], tmp_path: Path) -> None:
    """A module that looks when it is loaded finds all of it."""
    env = {"START_JOBS_PARENT": "found"}
    with ProcessPool(1, method, env=env, cwd=tmp_path, threads_per_worker=5, preload=preload) as pool:
        assert pool.submit(start_jobs.when_loaded).result(PATIENCE) == ("found", "5", str(tmp_path))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_the_main_module_finds_it(run_script: Any, method: str, tmp_path: Path) -> None:
    """Also the script that each worker imports first."""
    script = f"""
import os
SEEN = os.environ.get("OMP_NUM_THREADS"), os.environ.get("SAID"), os.path.basename(os.getcwd())
def seen():
    return SEEN
if __name__ == "__main__":
    from parallel import ProcessPool
    for said in [{{}}, {{"env": {{"SAID": "yes"}}}}, {{"cwd": "there"}}, {{"preload": ["colorsys"]}}]:
        with ProcessPool(1, {method!r}, threads_per_worker=3, **said) as pool:
            print(*pool.submit(seen).result())
"""
    (tmp_path / "there").mkdir()
    here = tmp_path.name
    assert run_script(script).stdout == f"3 None {here}\n3 yes {here}\n3 None there\n3 None {here}\n"


@pytest.mark.parametrize("method", METHODS)
def test_directory(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls run there; a relative path counts from where the pool was made."""
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    with ProcessPool(1, method, cwd="inner") as pool:
        monkeypatch.chdir("/")
        assert pool.submit(os.getcwd).result(PATIENCE) == str(tmp_path / "inner")
        assert os.getcwd() == "/"


@pytest.mark.parametrize("method", METHODS)
def test_directory_that_is_not_there(method: str, tmp_path: Path) -> None:
    """The first call says so; it works as soon as there is one."""
    with ProcessPool(1, method, cwd=tmp_path / "none") as pool:
        with pytest.raises(PoolBrokenError, match=r"cwd: expected a directory, found '.*none'"):
            pool.submit(os.getcwd)
        (tmp_path / "none").mkdir()
        assert pool.submit(os.getcwd).result(PATIENCE) == str(tmp_path / "none")


# -- threads of libraries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_threads_are_shared_out(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a worker's libraries start as many threads as its share of the CPUs."""
    for name in surroundings.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("parallel.pools.process.pool.cpus", lambda: 7)
    for workers, threads in ((2, "3"), (7, "1"), (20, "1")):
        with ProcessPool(workers, method) as pool:
            found = {pool.submit(start_jobs.variable, name).result(PATIENCE) for name in surroundings.THREAD_VARIABLES}
        assert found == {threads}
    assert not any(name in os.environ for name in surroundings.THREAD_VARIABLES)


def test_threads_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says holds; the general variable speaks for the others, unless a number is asked for."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "9")
    with ProcessPool(1) as pool:
        assert pool.submit(start_jobs.variable, "MKL_NUM_THREADS").result(PATIENCE) == "9"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with ProcessPool(1) as pool:
        assert pool.submit(start_jobs.variable, "OPENBLAS_NUM_THREADS").result(PATIENCE) is None
    with ProcessPool(1, threads_per_worker=2, env={"MKL_NUM_THREADS": "4"}) as pool:
        assert pool.submit(start_jobs.variable, "OMP_NUM_THREADS").result(PATIENCE) == "2"
        assert pool.submit(start_jobs.variable, "MKL_NUM_THREADS").result(PATIENCE) == "4"


def test_threads_that_come_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under fork, a library that is loaded has read its number: who has asked for another is warned."""
    monkeypatch.setitem(__import__("sys").modules, "numpy", threading)
    with (
        ProcessPool(1, "fork", threads_per_worker=2) as pool,
        pytest.warns(RuntimeWarning, match="process pool: threads_per_worker comes too late for numpy"),
    ):
        pool.submit(os.getpid).result(PATIENCE)
    with ProcessPool(1, "fork") as pool:
        pool.submit(os.getpid).result(PATIENCE)


# -- fork -------------------------------------------------------------------------------------------------------------


def test_fork_beside_threads() -> None:
    """Under fork, threads that run are warned of, once; this library's own are seen to."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="beside")
    with ProcessPool(1, "fork", max_tasks_per_child=1) as pool:
        thread.start()
        try:
            with pytest.warns(RuntimeWarning, match=r"about to fork while other threads run \(beside\)") as caught:
                for _ in range(3):
                    pool.submit(os.getpid).result(PATIENCE)
            assert [w.category for w in caught if w.category is RuntimeWarning] == [RuntimeWarning]
        finally:
            go.set()
            thread.join()
        with ProcessPool(1, "fork") as second:  # the threads of the first are this library's
            second.submit(os.getpid).result(PATIENCE)


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_hard_memory_limit(method: str) -> None:
    """What wants more gets a MemoryError; the worker goes on."""
    with ProcessPool(1, method, hard_memory_limit="500MB") as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        with pytest.raises(MemoryError):
            pool.submit(start_jobs.allocate, 10**9).result(PATIENCE)
        assert pool.submit(start_jobs.allocate, 10**6).result(PATIENCE) == 10**6
        assert pool.submit(os.getpid).result(PATIENCE) == pid


def test_no_limit_on_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory can't be limited, the pool can't be made."""
    monkeypatch.setattr("parallel.kinds.can_limit_memory", lambda: False)
    with pytest.raises(ValueError, match=r"hard_memory_limit: expected nothing, found .*: this platform has no such"):
        ProcessPool(1, hard_memory_limit="1GB")
    ProcessPool(1).shutdown()


# -- what may be said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ({"preload": "numpy"}, TypeError, "preload: expected the names of modules, such as"),
        ({"preload": ["not a name"]}, ValueError, "preload: expected the names"),
        ({"preload": [3]}, ValueError, "preload: expected the names"),
        ({"env": ["A=b"]}, TypeError, "env: expected variables and their values"),
        ({"env": {"A": 3}}, ValueError, "env: expected variables"),
        ({"env": {"A=B": "3"}}, ValueError, "env: expected variables"),
        ({"env": {"": "3"}}, ValueError, "env: expected variables"),
        ({"cwd": ""}, ValueError, "cwd: expected the path of a directory, found string ''"),
        ({"cwd": 3}, TypeError, "cwd: expected the path of a directory, found integer 3"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker: expected an integer of at least 1"),
        ({"threads_per_worker": True}, TypeError, "threads_per_worker: expected an integer of at least 1"),
        ({"hard_memory_limit": "1 GB"}, ValueError, r"hard_memory_limit: expected a size .* \(did you mean '1GB'\?\)"),
        ({"hard_memory_limit": 2.5}, TypeError, "hard_memory_limit: expected a size"),
    ],
)
def test_wrong_arguments(said: dict[str, Any], error: type[Exception], told: str) -> None:
    """They are refused when the pool is made, and when a file is read: each by its name."""
    with pytest.raises(error, match=f"^{told}"):
        ProcessPool(**said)
    if "numpy" not in said.values():  # TOML has arrays
        with pytest.raises(ConfigError, match=rf"pools\.x\.{told}"):
            Registry({"pools": {"x": {"kind": "process", **said}}})


def test_said_by_a_file(tmp_path: Path) -> None:
    """Everything can be said in TOML."""
    file = tmp_path / "parallel.toml"
    file.write_text(f"""
[pools.x]
kind = "process"
max_workers = 1
preload = ["colorsys"]
env = {{ START_JOBS_NEW = "new" }}
cwd = "{tmp_path}"
threads_per_worker = 2
hard_memory_limit = "4GiB"
""")
    with Registry(file) as registry:
        pool = registry.pool("x")
        assert pool.submit(start_jobs.is_loaded, "colorsys").result(PATIENCE)
        assert pool.submit(start_jobs.variable, "START_JOBS_NEW").result(PATIENCE) == "new"
        assert pool.submit(start_jobs.variable, "OMP_NUM_THREADS").result(PATIENCE) == "2"
        assert pool.submit(os.getcwd).result(PATIENCE) == str(tmp_path)
    assert ProcessConfig(hard_memory_limit="4GiB").arguments() == {"hard_memory_limit": 2**32}  # type: ignore[arg-type]


# -- what is taken from multiprocessing -------------------------------------------------------------------------------


def test_somebodys_own_context() -> None:
    """A context that somebody made starts its processes; the workers enter their surroundings inside."""

    class Own(launching.BaseContext):
        _name = "spawn"

        class Process(__import__("multiprocessing").context.SpawnProcess):  # type: ignore[misc]
            started = 0

            def start(self) -> None:
                type(self).started += 1
                super().start()

            def __reduce__(self) -> Any:
                return object.__new__, (__import__("multiprocessing").context.SpawnProcess,), vars(self)

    with ProcessPool(1, Own(), env={"START_JOBS_NEW": "new"}, threads_per_worker=2, preload=["colorsys"]) as pool:
        assert pool.submit(start_jobs.variable, "START_JOBS_NEW").result(PATIENCE) == "new"
        assert pool.submit(start_jobs.is_loaded, "colorsys").result(PATIENCE)
    assert Own.Process.started == 1


def test_memory_in_use() -> None:
    """It is told in bytes, and grows with what is taken."""
    before = memory.resident()
    with mmap.mmap(-1, 50_000_000) as fresh:  # bytes may come out of what the interpreter has not given back
        fresh.write(b"x" * len(fresh))
        assert before > 5_000_000
        assert memory.resident() - before > 40_000_000
