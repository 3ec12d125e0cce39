"""
Notebooks: cells run in a real kernel of Jupyter, whose loop of asyncio runs on the thread that runs the cells.

One kernel serves the whole module. What its pools do while a test looks on is seen through the kernel's messages, and
through a `Gate` that holds calls in whatever process they run.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import Gate
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

TESTS = Path(__file__).parent
LONG = 60.0  # seconds; only a deadlock takes so long
SOON = 2.0  # seconds that an interrupt may take

pytestmark = pytest.mark.slow


class CellError(Exception):
    """What a cell raised: its type, and the traceback as the notebook shows it."""

    def __init__(self, name: str, shown: str) -> None:
        super().__init__(name, shown)
        self.name = name
        self.shown = shown


class Kernel:
    """A kernel, and the cells that it runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = f"KERNEL_OF_TESTS={os.getpid()}.{id(self)}"  # in the environment of all that it starts
        self._manager = KernelManager(kernel_name="python3", connection_file=str(folder / "kernel.json"))
        self._client: BlockingKernelClient = self._manager.client()

    def start(self) -> None:
        """Start the kernel, and wait until it takes cells."""
        places = ("TMPDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
        env = {**os.environ, **dict.fromkeys(places, str(self._folder)), "PARALLEL_CONFIG": ""}
        env |= [self._mark.split("=")]
        env["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        with (self._folder / "stderr").open("w") as errors:  # here, what it logs would only be noise
            self._manager.start_kernel(cwd=str(self._folder), env=env, stderr=errors)
        self._client.load_connection_info(self._manager.get_connection_info())
        self._client.start_channels()
        self._client.wait_for_ready(timeout=LONG)

    def close(self) -> None:
        """End the kernel; by force if it must be. Nothing that it has started may be left."""
        try:
            self._client.stop_channels()
            self._shut_down(now=not self._manager.is_alive())
        finally:
            self._shut_down(now=True)
            self._manager.cleanup_resources()
        left = self.family()
        deadline = time.monotonic() + 10
        while left and time.monotonic() < deadline:
            time.sleep(0.01)  # what is on its way out tells nobody when it has gone
            left = self.family()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left

    def _shut_down(self, *, now: bool) -> None:
        if self._manager.has_kernel:
            self._manager.shutdown_kernel(now=now)

    def run(self, cell: str, meanwhile: Callable[[], object] | None = None) -> str:
        """
        Run *cell* and return what it printed.

        Args:
            cell: Its text.
            meanwhile: Called when the cell has printed something.

        Raises:
            CellError: The cell has failed.
        """
        ticket = self._client.execute(cell)
        printed = ""
        for text in self._printed(ticket):
            printed += text
            if meanwhile is not None:
                meanwhile()
                meanwhile = None
        reply = self._reply(ticket)
        if reply["status"] != "ok":
            raise CellError(reply["ename"], re.sub(r"\x1b\[[\d;]*m", "", "\n".join(reply["traceback"])))
        return printed

    def _reply(self, ticket: str) -> Any:
        while True:
            message = self._client.get_shell_msg(timeout=LONG)
            if message["parent_header"].get("msg_id") == ticket:
                return message["content"]

    def interrupt(self) -> None:
        """Do what the notebook's stop button does: SIGINT, for the kernel and its children."""
        self._manager.interrupt_kernel()
        # What wakes the loop, in which the kernel cancels a cell that awaits: its own signal handler forgets to.
        self._client.kernel_info()

    def _printed(self, ticket: str) -> Iterator[str]:
        while True:
            message = self._client.get_iopub_msg(timeout=LONG)
            content = message["content"]
            if message["parent_header"].get("msg_id") != ticket:
                continue
            if message["msg_type"] == "stream":
                yield content["text"]
            elif content.get("execution_state") == "idle":
                return

    def family(self) -> list[int]:
        """The processes of the kernel, itself and all that it has started, as their environment tells."""
        found: list[int] = []
        for entry in Path("/proc").iterdir() if sys.platform == "linux" else ():
            try:
                if entry.name.isdigit() and self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # it has gone, or is somebody else's
        return found


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """The kernel of this module. It is there before the first test counts what there is, and goes after the last."""
    kernel = Kernel(tmp_path_factory.mktemp("k"))
    try:
        kernel.start()
        kernel.run("import jobs, parallel, threading")
        kernel.run("from parallel import as_completed, gather, parallel_map, task")
        yield kernel
    finally:
        kernel.close()


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_task_in_a_cell(kernel: Kernel, pool: str) -> None:
    """A task that a cell declares is called and waited for, though a loop runs on the cell's thread."""
    kernel.run(f"@task(pool={pool!r})\ndef double(x):\n    return x * 2")
    assert kernel.run("print(double(1).result())") == "2\n"
    assert kernel.run("print(double(1).then(double).result(), list(double.map(range(3))))") == "4 [0, 2, 4]\n"
    assert kernel.run("print([one.result() for one in as_completed([double(1)])])") == "[2]\n"


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_await_at_the_top_of_a_cell(kernel: Kernel, pool: str) -> None:
    """A cell awaits a future, and iterates with `async for`, at its top level."""
    kernel.run(f"@task(pool={pool!r})\ndef triple(x):\n    return x * 3")
    assert kernel.run("print(await triple(1), await gather(triple(1), triple(2)))") == "3 (3, 6)\n"
    assert kernel.run("async for one in as_completed([triple(1)]):\n    print(one.result())") == "3\n"
    with pytest.raises(CellError) as caught:
        kernel.run("await triple(None)")
    assert caught.value.name == "TypeError"


def test_a_coroutine_in_a_cell(kernel: Kernel) -> None:
    """A task that is an `async def` runs on the loop of its pool, and may be waited for by result()."""
    kernel.run("@task\nasync def wait(x):\n    await __import__('asyncio').sleep(0)\n    return x")
    assert kernel.run("print(wait(1).result(), await wait(2))") == "1 2\n"
    kernel.run("async def helper(x):\n    return await wait(x) + await wait(x)")
    assert kernel.run("print(await helper(2))") == "4\n"


def test_a_map_in_a_cell(kernel: Kernel) -> None:
    """A declared map of a cell runs in processes."""
    kernel.run("@parallel_map\ndef square(x):\n    return x * x")
    assert kernel.run("print(list(square(range(5))), await square([3]))") == "[0, 1, 4, 9, 16] [9]\n"


def test_trio_in_a_cell(kernel: Kernel) -> None:
    """trio.run() in a cell: its tasks await futures by trio's means, though the kernel's loop of asyncio runs too."""
    kernel.run("import trio\nasync def main():\n    with trio.fail_after(30):\n        return await task(len)('abc')")
    assert kernel.run("print(trio.run(main), await task(len)('ab'))") == "3 2\n"


def test_a_cell_run_twice(kernel: Kernel) -> None:
    """A cell that declares a task and calls it may be run again."""
    cell = "@task(pool='processes')\ndef again(x):\n    return x + 1\nprint(again(1).result())"
    assert [kernel.run(cell) for _ in range(3)] == ["2\n"] * 3


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_cell_redefined(kernel: Kernel, pool: str) -> None:
    """After a cell was changed and run again, calls use the new definition, of the task and of what it uses."""
    kernel.run("step = 1\ndef helper(x):\n    return x + step")
    kernel.run(f"@task(pool={pool!r})\ndef use(x):\n    return helper(x)")
    assert kernel.run("print(use(1).result())") == "2\n"
    kernel.run("step = 10")
    assert kernel.run("print(use(1).result())") == "11\n"
    kernel.run("def helper(x):\n    return x * step")
    assert kernel.run("print(use(2).result())") == "20\n"
    kernel.run(f"old = use\n@task(pool={pool!r})\ndef use(x):\n    return 'new', helper(x)")
    assert kernel.run("print(use(2).result(), old(2).result())") == "('new', 20) 20\n"


def test_a_class_in_a_cell(kernel: Kernel) -> None:
    """Instances of a class that a cell defines travel to a process and back, and are of that class; redefined too."""
    cell = "class Point:\n    def __init__(self, x):\n        self.x = x"
    kernel.run("@task(pool='processes')\ndef move(point):\n    return Point(point.x + 1)")
    for _ in range(2):
        kernel.run(cell)
        assert kernel.run("moved = move(Point(1)).result()\nprint(type(moved) is Point, moved.x)") == "True 2\n"


@pytest.mark.parametrize("how", ["call.result()", "await call"])
@pytest.mark.parametrize("pool", ["threads", "processes", "loop"])
def test_an_error_shows_the_users_frames(kernel: Kernel, pool: str, how: str) -> None:
    """The traceback in the notebook shows the cell's line, and that of the function that failed."""
    kernel.run(f"@task(pool={pool!r})\n{'async ' * (pool == 'loop')}def fails(x):\n    return 1 / x")
    with pytest.raises(CellError) as caught:
        kernel.run(f"call = fails(0)\n{how}")
    assert caught.value.name == "ZeroDivisionError"
    assert f"2 {how}\n" in caught.value.shown
    # A worker process knows the line by its number alone: the cell's text is in the kernel.
    where = r"line 3, in fails\n" if pool == "processes" else r"in fails\(x\)\n(.*\n)*-+> 3\s+return 1 / x\n"
    assert re.search(where, caught.value.shown), caught.value.shown


@pytest.mark.parametrize(
    "how", ["call.result()", "await call", "list(as_completed([call]))", "call.then(str).result()"]
)
@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_an_interrupt(kernel: Kernel, pool: str, how: str) -> None:
    """The stop button ends the wait for a long call at once; the call goes on, and so do the pool and the kernel."""
    kernel.run(f"@task(pool={pool!r})\ndef long(address):\n    return jobs.wait_at(address, 'opened')")
    began = 0.0
    with Gate() as gate:

        def interrupt() -> None:
            nonlocal began
            gate.arrived()
            began = time.monotonic()
            kernel.interrupt()

        with pytest.raises(CellError) as caught:
            kernel.run(f"call = long({gate.address!r})\nprint('waiting')\n{how}", interrupt)
        assert caught.value.name in ("KeyboardInterrupt", "CancelledError")
        assert time.monotonic() - began < SOON
        assert kernel.run("print(call.done())") == "False\n"
    assert kernel.run("print(call.result())") == "opened\n"
    assert kernel.run(f"print(task(pool={pool!r})(jobs.double)(2).result())") == "4\n"


def test_an_interrupt_cancels_what_is_awaited(kernel: Kernel) -> None:
    """The stop button cancels a queued call that nobody but the cell awaits."""
    kernel.run("pool = parallel.ThreadPool(1)")
    with Gate() as gate:
        kernel.run(f"busy, queued = pool.submit(jobs.wait_at, {gate.address!r}), pool.submit(jobs.nothing)")
        gate.arrived()
        with pytest.raises(CellError):
            kernel.run("print('waiting')\nawait queued", kernel.interrupt)
        assert kernel.run("print(busy.done(), queued.cancelled())") == "False True\n"
    kernel.run("pool.shutdown()")
