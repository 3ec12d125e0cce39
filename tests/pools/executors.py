"""
Executors of others, as factories for pools of kind `executor`; and what is run there.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from parallel import current_task, task

TESTS = Path(__file__).parent.parent
BROADCAST: ContextVar[str] = ContextVar("BROADCAST", default="unset")


def processes(max_workers: int = 2) -> Executor:
    """Make the standard library's pool of processes."""
    return ProcessPoolExecutor(max_workers, mp_context=multiprocessing.get_context("forkserver"))


def loky(max_workers: int = 2) -> Executor:
    """Make an executor of loky."""
    from loky import ProcessPoolExecutor as Loky  # pyright: ignore

    return Loky(max_workers)  # type: ignore[no-any-return]


def mpi(max_workers: int = 2) -> Executor:
    """Make an executor of mpi4py, whose workers MPI starts."""
    from mpi4py.futures import MPIPoolExecutor  # pyright: ignore

    return MPIPoolExecutor(max_workers, path=[str(TESTS)])  # type: ignore[no-any-return]


def single_node(max_workers: int = 2) -> Executor:
    """Make an executor of executorlib, on this machine."""
    from executorlib import SingleNodeExecutor  # pyright: ignore

    return SingleNodeExecutor(max_workers=max_workers, block_allocation=True)  # type: ignore[no-any-return]


def parsl(max_workers: int = 2) -> Executor:
    """Make an executor of Parsl, on this machine; it notes its runs in the working directory."""
    from parsl import Config, HighThroughputExecutor  # pyright: ignore
    from parsl.concurrent import ParslPoolExecutor  # pyright: ignore

    workers = HighThroughputExecutor(
        address="127.0.0.1", loopback_address="127.0.0.1", max_workers_per_node=max_workers, cores_per_worker=0.1
    )
    return ParslPoolExecutor(Config([workers], usage_tracking=0))  # type: ignore[no-any-return]


class Killing(Executor):
    """An executor that has a process for each call, and kills it if the call is cancelled."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(8)
        self._context = multiprocessing.get_context("spawn")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it."""
        future = _Killable()
        self._threads.submit(self._run, future, fn, args, kwargs)
        return future

    def _run(self, future: _Killable, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        mine, other = self._context.Pipe()
        process = future.process = self._context.Process(target=_send, args=(other, fn, args, kwargs))
        process.start()
        other.close()
        try:
            future.set_result(mine.recv())
        except EOFError:
            future.set_exception(concurrent.futures.CancelledError())
        process.join()

    def shutdown(self) -> None:  # type: ignore[override]
        """Wait for all."""
        self._threads.shutdown()


class _Killable(Future[Any]):
    process: Any = None

    def cancel(self) -> bool:
        """Kill it, if it runs."""
        if self.process is not None:
            self.process.kill()
        return super().cancel()


def _send(pipe: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pipe.send(fn(*args, **kwargs))


class Frugal(ThreadPoolExecutor):
    """An executor whose futures can't be cancelled, and whose shutdown takes no arguments."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it, so many times as is said beside it."""
        times = kwargs.pop("times", 1)
        future = super().submit(lambda: [fn(*args, **kwargs) for _ in range(times)][-1])
        future.cancel = self._refuse  # type: ignore[method-assign]
        return future

    def shutdown(self) -> None:  # type: ignore[override]
        """Wait for all."""
        super().shutdown()

    def _refuse(self) -> bool:
        raise NotImplementedError("no")


def no_executor() -> object:
    """Make something else."""
    return object()


made = []


def fragile() -> Executor:
    """Make an executor that has broken before it is used."""
    made.append(1)
    executor = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("fork"), initializer=os._exit, initargs=(1,)
    )
    return executor


def pid() -> int:
    """Return the process that it runs in."""
    return os.getpid()


def leave(path: str, times: int) -> int:
    """Note that it runs, and kill the process; after so many times, return that number."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(".")
    if len(Path(path).read_text(encoding="utf-8")) <= times:
        os._exit(3)
    return times


def remembered() -> str:
    """Return what came along."""
    return BROADCAST.get()


@task(pool="ex")
def inner() -> tuple[int, int, str]:
    """Return where it runs, and as what."""
    return os.getpid(), threading.get_ident(), current_task().pool


@task(pool="ex")
def outer() -> list[tuple[int, int, str]]:
    """Call itself nothing but others, in pools of several kinds."""
    here = (os.getpid(), threading.get_ident(), current_task().pool)
    return [here, inner().result(), inner.options(pool="processes")().result()]


class Counted:
    """Counts how often it is loaded, in a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, str]) -> None:
        self.folder = state["folder"]
        tempfile.mkstemp(dir=self.folder, prefix=f"{os.getpid()}-")


def with_counted(item: int, counted: Counted) -> int:
    """Use it."""
    assert counted.folder
    return item


def note(path: str) -> None:
    """Write down that it was called."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(".")
